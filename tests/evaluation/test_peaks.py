from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from faithad.evaluation import peaks

repeatable = settings(max_examples=25, deadline=None, derandomize=True)

PERCENTILES = list(range(90, 100))

# Whole numbers: shifting and scaling them is exact, so it cannot make or break a tie by rounding.
whole_curves = hnp.arrays(np.float64, st.integers(1, 500), elements=st.integers(-1000, 1000).map(float))


def percentile_from_definition(values: list[float], p: float) -> float:
    """Linear interpolation between the two closest ranks."""
    ordered = sorted(values)
    position = p * (len(ordered) - 1) / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def peaks_from_definition(curve: np.ndarray, percentiles: list[int]) -> np.ndarray:
    thresholds = [percentile_from_definition(curve.tolist(), p) for p in percentiles]
    return np.array([[value >= threshold for value in curve.tolist()] for threshold in thresholds])


@pytest.mark.parametrize("n_frames", [400, 401, 313, 312, 1, 7])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_peaks_are_the_frames_at_or_above_the_percentile(n_frames: int, dtype: type) -> None:
    curve = np.random.default_rng(n_frames).standard_normal(n_frames).astype(dtype)
    found = peaks.peak_frames(curve, PERCENTILES)
    np.testing.assert_array_equal(found, peaks_from_definition(curve.astype(np.float64), PERCENTILES))
    thresholds = np.percentile(curve.astype(np.float64), PERCENTILES, method="linear")
    np.testing.assert_array_equal(found, curve.astype(np.float64) >= thresholds[:, None])


def test_number_of_peaks_without_ties() -> None:
    curve = np.random.default_rng(0).permutation(401).astype(np.float32)
    # (1 - p) x 400 ranks above the percentile, which falls on a frame of its own.
    assert peaks.peak_frames(curve, PERCENTILES).sum(axis=1).tolist() == [4 * (100 - p) + 1 for p in PERCENTILES]
    assert peaks.peak_frames(curve[curve < 400], PERCENTILES).sum(axis=1).tolist() == [
        4 * (100 - p) for p in PERCENTILES
    ]


def test_signed_curves_keep_their_sign() -> None:
    curve = np.zeros(40)
    curve[3], curve[7] = -100.0, 1.0
    assert np.flatnonzero(peaks.peak_frames(curve, [99])[0]).tolist() == [7]


def test_many_curves_at_once_equal_one_at_a_time() -> None:
    curves = np.random.default_rng(1).standard_normal((3, 6, 401))
    together = peaks.peak_frames(curves, PERCENTILES)
    assert together.shape == (3, 6, 10, 401)
    for clip in range(3):
        for method in range(6):
            np.testing.assert_array_equal(together[clip, method], peaks.peak_frames(curves[clip, method], PERCENTILES))


def test_percentiles_in_any_order_and_fractional() -> None:
    curve = np.random.default_rng(2).standard_normal(401)
    found = peaks.peak_frames(curve, [99.5, 90, 0, 100, 97.5])
    np.testing.assert_array_equal(found, curve >= np.percentile(curve, [99.5, 90, 0, 100, 97.5])[:, None])
    assert found[2].all()
    assert np.flatnonzero(found[3]).tolist() == [curve.argmax()]


@pytest.mark.parametrize("percentile", [-1, 101])
def test_percentile_outside_its_range_is_refused(percentile: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 100"):
        peaks.peak_frames(np.arange(401.0), [percentile])


@repeatable
@given(whole_curves)
def test_masks_are_nested(curve: np.ndarray) -> None:
    found = peaks.peak_frames(curve, PERCENTILES)
    assert (found[1:] <= found[:-1]).all()
    assert found.any(axis=1).all()


@repeatable
@given(whole_curves, st.integers(-1000, 1000), st.integers(1, 50))
def test_shift_and_scale_move_no_peak(curve: np.ndarray, shift: int, scale: int) -> None:
    found = peaks.peak_frames(curve, PERCENTILES)
    np.testing.assert_array_equal(found, peaks.peak_frames(curve * scale + shift, PERCENTILES))
    np.testing.assert_array_equal(found, peaks.peak_frames((curve * scale + shift).astype(np.float32), PERCENTILES))


@repeatable
@given(whole_curves)
def test_equal_frames_are_peaks_together(curve: np.ndarray) -> None:
    for mask in peaks.peak_frames(curve, PERCENTILES):
        assert not set(curve[mask]) & set(curve[~mask])


@pytest.mark.parametrize("value", [0.0, -3.5, 1e-30])
def test_flat_curve_is_degenerate_and_all_peaks(value: float) -> None:
    curve = np.full(401, value, dtype=np.float32)
    assert peaks.is_flat(curve)
    assert peaks.peak_frames(curve, PERCENTILES).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_curve_that_is_not_finite_is_degenerate_and_has_no_peaks(value: float) -> None:
    curves = np.random.default_rng(3).standard_normal((2, 401))
    curves[0, 17] = value
    assert peaks.is_flat(curves[0])
    assert not peaks.is_flat(curves[1])
    found = peaks.peak_frames(curves, PERCENTILES)
    assert not found[0].any()
    np.testing.assert_array_equal(found[1], peaks.peak_frames(curves[1], PERCENTILES))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_curve_sums_the_mel_bands(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 80, 41, generator=generator, dtype=dtype)
    maps.requires_grad_()
    found = peaks.curve(maps)
    expected = [[math.fsum(maps[b, :, t].tolist()) for t in range(41)] for b in range(3)]
    assert found.dtype == (np.float32 if dtype == torch.float32 else np.float64)
    np.testing.assert_allclose(found, np.array(expected), rtol=1e-6 if dtype == torch.float32 else 1e-12, atol=1e-12)
    for clip in range(3):
        np.testing.assert_array_equal(found[clip], peaks.curve(maps[clip].detach().numpy()))


def test_narrow_maps_are_summed_in_single_precision() -> None:
    maps = torch.full((80, 4), 1000.0)
    for narrow in (maps.bfloat16(), maps.half(), maps.half().numpy(), maps.numpy()):
        found = peaks.curve(narrow)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, 80_000, rtol=1e-2)


@repeatable
@given(whole_curves)
def test_the_highest_frames_are_exactly_so_many_and_the_earlier_of_equal_ones(curve: np.ndarray) -> None:
    percentiles = [0, 50, 90, 95, 97.5, 99]
    found = peaks.highest_frames(curve, percentiles)
    for percentile, mask in zip(percentiles, found, strict=True):
        # Python's sort is stable, and a half of a percent is exact in binary.
        order = sorted(range(len(curve)), key=lambda frame: -curve[frame])
        number = math.ceil((100 - percentile) * 2 * len(curve) / 200)
        assert np.flatnonzero(mask).tolist() == sorted(order[:number])


def test_a_twentieth_of_400_frames_is_20() -> None:
    """(1 - 0.95) * 400 is 20.000000000000018 in floating point, whose ceiling is 21."""
    found = peaks.highest_frames(np.zeros((2, 400)), [90, 95, 97.6, 100])
    assert found.sum(axis=-1).tolist() == [[40, 20, 10, 0]] * 2
    assert found[0, 1, :20].all()
    with pytest.raises(ValueError, match="between 0 and 100"):
        peaks.highest_frames(np.zeros(4), [101])
