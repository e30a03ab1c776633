"""Detectors and ensembles: whole scores against their definition, on made and on real sound."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from faithad.errors import ConfigError
from faithad.evaluation.detection import auc
from faithad.features import Normalization
from faithad.model.linear import fit_linear
from faithad.model.table import build_network
from faithad.scoring.choices import PAPER, Score, robust
from faithad.scoring.ensemble import add_up, fit_ensemble
from faithad.scoring.score import ClipBatch, Detector, fit_detector
from tests.field_sounds import needs_field_sounds, read_split

F, T, N = 16, 41, 12


def sound(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, F, T + 4, generator=generator).unfold(2, 5, 1).mean(dim=-1)


def names(n: int) -> list[str]:
    return [f"clip {k}" for k in range(n)]


def a_model(name: str, x: Tensor) -> Any:
    network: Any = build_network(name, F, x.shape[2], reference="clip").eval()
    fit_linear(network, [x], n_clips=len(x), seed=0)
    return network


def parts(x: Tensor, size: int) -> Iterator[ClipBatch]:
    for k in range(0, len(x), size):
        numbers = range(k, min(k + size, len(x)))
        yield ClipBatch(x[k : k + size], [f"clip {n}" for n in numbers], [f"recording {n // 3}" for n in numbers])


def fitted(name: str, score: Score, x: Tensor, *, size: int = 5) -> tuple[Detector, Tensor]:
    return fit_detector(a_model(name, x), score, lambda: parts(x, size), frames_per_s=40.0)


def slow_scores(name: str, score: Score, train: Tensor, x: Tensor) -> tuple[list[float], list[float]]:
    """Calibrated scores of the training clips and of others, for the robust score of a linear model."""
    network = a_model(name, train)

    def error(clip: Tensor) -> np.ndarray:
        with torch.no_grad():
            found = network.context_error(clip[None]) if name == "frame_pca" else (network(clip[None]) - clip) ** 2
        return found[0].double().numpy()  # type: ignore[no-any-return]

    of_band = np.mean([error(clip).mean(axis=1) for clip in train], axis=0)
    weights = of_band if score.weighting == "band" else np.ones(F)

    def raw(clip: Tensor) -> float:
        frames = (error(clip) / weights[:, None]).mean(axis=0)
        return max(float(frames[k : k + 10].mean()) for k in (0, 10, 20))

    def raw_last(clip: Tensor) -> float:
        frames = (error(clip) / weights[:, None]).mean(axis=0)
        return max(raw(clip), float(frames[30:].mean()))

    def calibrated(k: int | None, clip: Tensor) -> float:
        others = [j for j in range(len(train)) if k is None or j // 3 != k // 3]
        place = clip.mean(dim=1)
        others.sort(key=lambda j: float((train[j].mean(dim=1) - place).square().sum()))
        return math.log(raw_last(clip)) - np.mean([math.log(raw_last(train[j])) for j in others[:15]])

    return [calibrated(k, clip) for k, clip in enumerate(train)], [calibrated(None, clip) for clip in x]


@pytest.mark.parametrize("name", ["frame_pca", "frame_ridge"])
def test_the_robust_score_of_a_linear_model_is_that_of_its_definition(name: str) -> None:
    train, x = sound(21, 0), sound(5, 1)
    detector, of_train = fitted(name, robust(name), train)
    expected_train, expected = slow_scores(name, robust(name), train, x)
    assert of_train.tolist() == pytest.approx(expected_train, rel=1e-4)
    assert detector.calibrated(x, names(5)).tolist() == pytest.approx(expected, rel=1e-4)


def test_the_score_of_the_paper_is_the_mean_squared_error() -> None:
    train, x = sound(N, 0), sound(5, 1)
    detector, of_train = fitted("frame_ridge", PAPER, train)
    assert detector.weights is None
    assert detector.normals is None
    for clips, scores in ((train, of_train), (x, detector.calibrated(x, names(5)))):
        expected = (detector.network(clips) - clips).square().mean(dim=(1, 2), dtype=torch.float64)
        torch.testing.assert_close(scores, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "score", [PAPER, robust("frame_ridge"), robust("mae"), Score("inpainting", "none", "top_share")]
)
def test_a_score_depends_on_neither_the_other_clips_nor_on_how_normals_came(score: Score) -> None:
    train, x, ids = sound(N, 0), sound(6, 1), names(6)
    detector, of_train = fitted("frame_ridge", score, train)
    again, of_train_again = fitted("frame_ridge", score, train, size=1)
    assert torch.equal(of_train, of_train_again)
    together = detector.calibrated(x, ids)
    order = [3, 0, 5, 3, 1, 1, 2, 4, 0]
    assert torch.equal(again.calibrated(x[order], [ids[k] for k in order]), together[order])
    assert together.unique().numel() == 6


@pytest.mark.parametrize("name", ["frame_pca", "frame_ridge"])
def test_the_raw_score_has_a_gradient_that_adds_up_along_a_path(name: str) -> None:
    """Integrated Gradients: their sum is score(x) - score(baseline)."""
    detector, _ = fitted(name, robust(name), sound(N, 0))
    x, baseline = sound(1, 1)[0].double(), torch.zeros(F, T, dtype=torch.float64)
    network = detector.network.double()
    steps, total = 500, 0.0
    for k in range(steps):
        point = (baseline + (k + 0.5) / steps * (x - baseline)).requires_grad_()
        (gradient,) = torch.autograd.grad(
            Detector(network, detector.score, 40.0, detector.weights).raw(point[None], ["a"]).sum(), point
        )
        total += float((gradient * (x - baseline)).sum()) / steps
    ends = detector.raw(torch.stack([x, baseline]), ["a", "a"])
    assert total == pytest.approx(float(ends[0] - ends[1]), rel=0.01)


def test_an_ensemble_adds_standardised_scores_and_names_the_member_that_raised_them() -> None:
    train, x, ids = sound(N, 0), sound(6, 1), names(6)
    x[2, :, 10:14] += 3
    members, scores = {}, []
    for name in ("frame_pca", "frame_ridge"):
        members[name], of_train = fitted(name, robust(name), train)
        scores.append(of_train)
    ensemble = fit_ensemble(members, torch.stack(scores))
    standardised = ensemble.standardised(x, ids)
    for row, member, of_train in zip(standardised, members.values(), scores, strict=True):
        expected = (member.calibrated(x, ids).numpy() - of_train.numpy().mean()) / of_train.numpy().std()
        np.testing.assert_allclose(row, expected)
    total, raised_by = add_up(standardised)
    assert total.tolist() == pytest.approx([sum(column) for column in standardised.T.tolist()])
    assert raised_by.tolist() == [int(np.argmax(column)) for column in standardised.T.tolist()]
    assert total.argmax() == 2
    with pytest.raises(ConfigError, match="2 members needs as many rows of scores: 1"):
        fit_ensemble(members, scores[0][None])


def test_a_member_whose_scores_are_all_alike_says_nothing() -> None:
    ensemble = fit_ensemble({"a": None, "b": None}, torch.tensor([[1.0, 1.0], [0.0, 2.0]]))  # type: ignore[dict-item]
    assert ensemble.standardise(torch.tensor([[1.0], [3.0]])).tolist() == [[0.0], [2.0]]


def test_a_row_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="no pooling 'best'; allowed: mean, worst_second, worst_window, top_share"):
        Score(pooling="best")


@needs_field_sounds
@pytest.mark.long
def test_the_linear_detectors_find_what_the_reference_finds_on_field_sounds() -> None:
    """AUC of the reference with the clip's median removed: 0.902, 0.663 and 0.891. Its sample of frames is another."""
    train, test = read_split("train"), read_split("test")
    normalization = Normalization.fit([train.log_mels])
    x, new = (normalization.apply(split.log_mels) for split in (train, test))
    ids = names(len(new))
    members, of_train = {}, []
    areas = []
    for name in ("frame_pca", "frame_ridge"):
        network: Any = build_network(name, *x.shape[1:], reference="clip").eval()
        fit_linear(network, [x], n_clips=len(x), seed=0)
        clips = ClipBatch(x, names(len(x)), train.recordings)
        members[name], scores = fit_detector(network, robust(name), lambda clips=clips: [clips], frames_per_s=40.0)
        of_train.append(scores)
    ensemble = fit_ensemble(members, torch.stack(of_train))
    with torch.inference_mode():
        standardised = ensemble.standardised(new, ids)
    total, _ = add_up(standardised)
    areas = [auc(scores.numpy(), test.anomalous) for scores in (*standardised, total)]
    assert areas == pytest.approx([0.902, 0.663, 0.891], abs=0.015)
    threshold = np.quantile(add_up(ensemble.standardise(torch.stack(of_train)))[0].numpy(), 0.95)
    assert 0.0 < (total.numpy()[~test.anomalous] > threshold).mean() < 0.12
