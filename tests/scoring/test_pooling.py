"""Weightings and poolings against their definition, frame by frame."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from faithad.errors import StudyError
from faithad.evaluation.detection import worst_second
from faithad.scoring.pooling import POOLINGS, WEIGHTINGS, band_errors, frame_errors, top_share, weighted, worst_window


def errors(n_frames: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).gamma(1.0, size=n_frames)


def slow_windows(values: np.ndarray, width: int) -> float:
    """Each frame belongs to window t // width, those after the last whole window to that one."""
    last = max(0, len(values) // width - 1)
    sums: dict[int, list[float]] = {}
    for t, value in enumerate(values):
        sums.setdefault(min(t // width, last), []).append(value)
    return max(sum(window) / len(window) for window in sums.values())


@given(n_frames=st.integers(1, 90), seed=st.integers(0, 99), frames_per_s=st.sampled_from([2.0, 31.25, 40.0]))
def test_each_pooling_is_that_of_its_definition(n_frames: int, seed: int, frames_per_s: float) -> None:
    values = errors(n_frames, seed)
    n_top = max(1, round(0.05 * n_frames))
    expected = {
        "mean": values.mean(),
        "worst_second": worst_second(values[None], frames_per_s).score,
        "worst_window": slow_windows(values, max(1, round(0.25 * frames_per_s))),
        "top_share": sorted(values)[-n_top:][0] if n_top == 1 else np.mean(sorted(values)[-n_top:]),
    }
    assert expected.keys() == POOLINGS.keys()
    for name, value in expected.items():
        found = POOLINGS[name].compute(torch.from_numpy(values), frames_per_s)
        assert found.dtype == torch.float64
        assert found.item() == pytest.approx(value, rel=1e-12), name


def test_other_windows_and_shares_are_rows_of_one_line() -> None:
    values = torch.from_numpy(errors(400, 0))
    assert worst_window(1.0)(values, 40.0).item() == pytest.approx(values.view(10, 40).mean(dim=1).max().item())
    assert top_share(0.01)(values, 40.0).item() == pytest.approx(values.topk(4).values.mean().item())


@pytest.mark.parametrize("name", POOLINGS)
def test_a_pooling_has_the_gradient_of_a_mean_over_the_frames_that_it_takes(name: str) -> None:
    values = torch.from_numpy(errors(80, 3)).requires_grad_()
    POOLINGS[name].compute(values, 40.0).backward()
    assert values.grad is not None
    assert values.grad.sum().item() == pytest.approx(1.0)
    n_taken = {"mean": 80, "worst_second": 40, "worst_window": 10, "top_share": 4}[name]
    taken = values.grad[values.grad != 0]
    assert taken.tolist() == pytest.approx([1 / n_taken] * n_taken)


def test_band_weights_are_the_mean_error_of_each_band_over_all_frames() -> None:
    clips = [torch.rand(5, n_frames, generator=torch.Generator().manual_seed(n_frames)) for n_frames in (7, 30, 12)]
    weights = band_errors(iter(clips))
    slow = [sum(float(clip[band].sum()) for clip in clips) / 49 for band in range(5)]
    assert weights.tolist() == pytest.approx(slow)
    found = frame_errors(weighted(clips[0], weights))
    expected = [sum(float(clips[0][band, t]) / slow[band] for band in range(5)) / 5 for t in range(7)]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    assert frame_errors(weighted(clips[0], None)).tolist() == pytest.approx(clips[0].mean(dim=0).tolist())
    assert math.isclose(
        np.mean([frame_errors(weighted(clip, weights)).sum() for clip in clips]) * 3 / 49, 1.0, rel_tol=1e-6
    )
    assert WEIGHTINGS["none"].fit is None


def test_bands_that_cannot_be_weighted_are_named() -> None:
    clip = torch.rand(5, 7)
    clip[3] = 0
    with pytest.raises(StudyError, match="Mel band 3 has no error"):
        band_errors([clip, clip])
    with pytest.raises(StudyError, match="no normal clips"):
        band_errors([])
