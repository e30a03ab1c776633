from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from faithad.errors import StudyError
from faithad.evaluation import detection
from faithad.evaluation.statistics import n_normal_needed, resample_counts

repeatable = settings(max_examples=25, deadline=None, derandomize=True)


def scored_clips(seed: int, n_clips: int = 120, ties: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, labels and recordings; with ties, scores take ten values only."""
    generator = np.random.default_rng(seed)
    labels = (generator.random(n_clips) < 0.2).astype(int)
    labels[:2] = [0, 1]
    scores = generator.normal(labels, 1.0)
    if ties:
        scores = np.round(scores * 2)
    return scores, labels, generator.integers(0, 25, n_clips)


def auc_from_definition(scores: np.ndarray, labels: np.ndarray) -> float:
    """Share of (anomalous, normal) pairs in the right order, equal scores counting half."""
    pairs = [1.0 if a > n else 0.5 if a == n else 0.0 for a in scores[labels == 1] for n in scores[labels == 0]]
    return sum(pairs) / len(pairs)


def pauc_from_definition(scores: np.ndarray, labels: np.ndarray, max_fpr: float) -> float:
    """Trapezoids under the ROC curve up to max_fpr, then McClish's standardisation."""
    points = [(0.0, 0.0)]
    for threshold in sorted(set(scores), reverse=True):
        alarm = scores >= threshold
        points.append((alarm[labels == 0].mean(), alarm[labels == 1].mean()))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 < max_fpr and x1 > x0:
            end = min(x1, max_fpr)
            area += (end - x0) * (y0 + 0.5 * (y1 - y0) * (end - x0) / (x1 - x0))
    lowest = max_fpr**2 / 2
    return 0.5 * (1 + (area - lowest) / (max_fpr - lowest))


@pytest.mark.parametrize("ties", [False, True])
@repeatable
@given(seed=st.integers(0, 1000))
def test_areas_equal_their_definition(ties: bool, seed: int) -> None:
    scores, labels, _ = scored_clips(seed, n_clips=60, ties=ties)
    assert detection.auc(scores, labels) == pytest.approx(auc_from_definition(scores, labels))
    assert detection.pauc(scores, labels) == pytest.approx(pauc_from_definition(scores, labels, 0.1))
    assert detection.pauc(scores, labels, 0.3) == pytest.approx(pauc_from_definition(scores, labels, 0.3))


@repeatable
@given(st.integers(0, 1000))
def test_order_of_clips_and_monotone_scores_change_nothing(seed: int) -> None:
    scores, labels, _ = scored_clips(seed)
    order = np.random.default_rng(seed).permutation(len(scores))
    for area in (detection.auc, detection.pauc):
        assert area(scores[order], labels[order]) == pytest.approx(area(scores, labels))
        assert area(np.exp(scores), labels) == pytest.approx(area(scores, labels))


def test_perfect_and_useless_detectors() -> None:
    labels = np.array([0] * 50 + [1] * 10)
    assert detection.auc(labels, labels) == detection.pauc(labels, labels) == 1.0
    assert detection.auc(np.ones(60), labels) == 0.5
    assert detection.pauc(np.ones(60), labels) == pytest.approx(0.5)


@pytest.mark.parametrize("function", [detection.auc, detection.pauc])
@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([1.0, 2.0], [0, 0], "2 normal and 0 anomalous"),
        ([1.0, 2.0], [1, 1], "0 normal and 2 anomalous"),
        ([], [], "0 normal and 0 anomalous"),
        ([1.0, math.nan], [0, 1], "1 of 2 anomaly scores are NaN or infinite"),
        ([1.0, math.inf], [0, 1], "diverged"),
        ([1.0, 2.0], [0, 2], "label 0 .normal. or 1"),
        ([1.0, 2.0], [0, 1, 1], "2 scores needs a label"),
    ],
)
def test_scores_that_give_no_curve_are_refused(
    function: object, scores: list[float], labels: list[int], message: str
) -> None:
    with pytest.raises(StudyError, match=message):
        function(scores, labels)  # type: ignore[operator]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_resampled_areas_equal_scikit_learn_on_the_resample(seed: int, ties: bool) -> None:
    scores, labels, groups = scored_clips(seed, ties=ties)
    drawn = resample_counts(25, seed=seed, n_resamples=40)
    found = detection.bootstrap_areas(scores, labels, groups, drawn, max_fprs=[1.0, 0.1, 0.35])
    for counts, areas in zip(drawn, found, strict=True):
        clips = np.repeat(np.arange(len(scores)), counts[groups])
        expected = [roc_auc_score(labels[clips], scores[clips], max_fpr=max_fpr) for max_fpr in (None, 0.1, 0.35)]
        np.testing.assert_allclose(areas, expected, rtol=1e-9)


def test_resample_without_a_class_is_not_a_number() -> None:
    drawn = np.array([[2, 0], [0, 2], [1, 1]])
    found = detection.bootstrap_areas([1.0, 2.0, 3.0], [0, 0, 1], [0, 0, 1], drawn, max_fprs=[1.0, 0.1])
    assert np.isnan(found[:2]).all()
    assert found[2].tolist() == [1.0, 1.0]
    one = detection.bootstrap_areas([1.0, 2.0], [0, 1], [0, 0], np.ones((3, 1), int), max_fprs=[1.0])
    assert np.isnan(one).all()


@pytest.mark.parametrize(("n_frames", "frames_per_s"), [(400, 40.0), (401, 40.0), (313, 31.25)])
def test_worst_second_from_the_definition(n_frames: int, frames_per_s: float) -> None:
    error = np.random.default_rng(n_frames).random((6, n_frames))
    means = [
        np.mean([error[f, t] for f in range(6) for t in range(n_frames) if min(int(t / frames_per_s), 9) == second])
        for second in range(10)
    ]
    found = detection.worst_second(error, frames_per_s)
    assert found.score == pytest.approx(max(means))
    assert found.onset_s == float(np.argmax(means))
    assert detection.worst_second(torch.tensor(error), frames_per_s) == found


def test_worst_second_of_one_event_and_of_silence() -> None:
    error = np.zeros((80, 401))
    error[10, 280:320] = 8.0
    assert detection.worst_second(error, 40.0) == (pytest.approx(0.1), 7.0)
    assert detection.worst_mel_band(error) == 10
    assert detection.worst_second(np.zeros((80, 401)), 40.0) == (0.0, 0.0)
    assert detection.worst_mel_band(np.zeros((80, 401))) == 0


@pytest.mark.parametrize("ties", [False, True])
@repeatable
@given(seed=st.integers(0, 1000))
def test_resampled_shares_equal_those_of_the_resampled_clips(ties: bool, seed: int) -> None:
    scores, labels, recordings = scored_clips(seed, n_clips=60, ties=ties)
    drawn = resample_counts(25, seed=seed, n_resamples=8)
    rates = (0.05, 0.02, 0.3)
    found = detection.bootstrap_caught(scores, labels, recordings, drawn, rates=rates)
    for row, counts in zip(found, drawn, strict=True):
        clips = np.repeat(np.arange(60), counts[recordings])
        for share, rate in zip(row, rates, strict=True):
            both = len(set(labels[clips])) == 2
            expected = detection.caught(scores[clips], labels[clips], rate) if both else math.nan
            assert share == pytest.approx(expected, nan_ok=True)


def test_a_rate_needs_its_number_of_normals() -> None:
    assert [n_normal_needed(rate) for rate in (0.05, 0.02, 0.01)] == [19, 49, 99]
    for rate in (0.05, 0.02, 0.01):
        n = n_normal_needed(rate)
        for normals, share in ((n, 0.5), (n - 1, math.nan)):
            scores = [*range(normals), normals, 0]
            assert detection.caught(scores, [0] * normals + [1, 1], rate) == pytest.approx(share, nan_ok=True)
