from __future__ import annotations

import ast
import csv
import math
from pathlib import Path

import numpy as np
import pytest

from faithad.evaluation import controls
from faithad.evaluation.peaks import peak_frames
from faithad.evaluation.temporal import segment_truth

FRAMES_PER_S = 40.0


@pytest.fixture(scope="session")
def published_intervals(shared_data: Path) -> dict[str, list[tuple[float, float]]]:
    """The expert's intervals of the annotated planer clips, seconds from the clip's onset."""
    with (shared_data / "planer_annotations.csv").open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    onset = {row[1]: 10.0 * (int(row[2]) - 1) for row in rows}
    return {
        row[1]: [(start - onset[row[1]], end - onset[row[1]]) for start, end in ast.literal_eval(row[5].strip())]
        for row in rows
        if row[5].strip() != "-"
    }


def expected_f_score(n_positive: int, n_peaks: int) -> float:
    """F-score per second that n_peaks frames drawn at random out of 10 x 40 reach on average, by counting."""

    def ways_to_hit_all(n_seconds: int) -> int:
        return sum(
            (-1) ** left_out * math.comb(n_seconds, left_out) * math.comb(40 * (n_seconds - left_out), n_peaks)
            for left_out in range(n_seconds + 1)
        )

    expected = 0.0
    for tp in range(1, n_positive + 1):
        for fp in range(10 - n_positive + 1):
            ways = math.comb(n_positive, tp) * math.comb(10 - n_positive, fp) * ways_to_hit_all(tp + fp)
            expected += ways / math.comb(400, n_peaks) * 2 * tp / (tp + fp + n_positive)
    return expected


def test_published_controls(published_intervals: dict[str, list[tuple[float, float]]]) -> None:
    """The three figures that are known for the 46 clips, the last two from a finite number of random curves."""
    assert len(published_intervals) == 46
    assert sum(map(len, published_intervals.values())) == 64
    random, every_second = controls.control_f_scores(
        published_intervals, 400, FRAMES_PER_S, [90, 98], seed=0, n_draws=2000
    )
    assert every_second.mean() == pytest.approx(0.481, abs=5e-4)
    assert random[:, 0].mean() == pytest.approx(0.479, abs=5e-4)
    assert random[:, 1].mean() == pytest.approx(0.399, abs=4e-3)
    n_positive = [segment_truth(intervals, 400, FRAMES_PER_S).sum() for intervals in published_intervals.values()]
    for column, n_peaks in enumerate((40, 8)):
        expected = np.mean([expected_f_score(int(n), n_peaks) for n in n_positive])
        assert random[:, column].mean() == pytest.approx(expected, abs=2e-3)


def test_counting_per_peak_does_not_give_the_published_controls(
    published_intervals: dict[str, list[tuple[float, float]]],
) -> None:
    """Counting peaks instead of seconds gives 0.477 and 0.411; counting seconds for TP and peaks for FP, 0.226."""
    generator = np.random.default_rng(0)
    per_peak, mixed = [], []
    for intervals in published_intervals.values():
        truth = segment_truth(intervals, 400, FRAMES_PER_S)
        counts = peak_frames(generator.random((2000, 400)), [90, 98]).reshape(2000, 2, 10, 40).sum(axis=3)
        hits, false_peaks = (counts[..., truth] > 0).sum(axis=2), counts[..., ~truth].sum(axis=2)
        true_peaks, fn = counts[..., truth].sum(axis=2), truth.sum() - hits
        per_peak.append((2 * true_peaks / (2 * true_peaks + false_peaks + fn)).mean(axis=0))
        mixed.append((2 * hits / (2 * hits + false_peaks + fn)).mean(axis=0))
    at_90, at_98 = np.mean(per_peak, axis=0)
    assert at_90 < 0.479 - 1e-3
    assert at_98 > 0.399 + 0.01
    assert np.mean(mixed, axis=0)[0] < 0.25


def test_lone_last_frame_changes_nothing_for_the_rule_that_flags_every_second(
    published_intervals: dict[str, list[tuple[float, float]]],
) -> None:
    """An eleventh second, of one frame, would give 0.449."""
    _, every_second = controls.control_f_scores(published_intervals, 401, FRAMES_PER_S, [90], seed=0, n_draws=1)
    assert every_second.mean() == pytest.approx(0.481, abs=5e-4)


@pytest.mark.parametrize("n_positive", range(11))
def test_flagging_every_second(n_positive: int) -> None:
    intervals = [(0.0, float(n_positive))] if n_positive else []
    expected = 2 * n_positive / (n_positive + 10)
    assert controls.every_second_f_score(intervals, 401, FRAMES_PER_S) == pytest.approx(expected)


def random_f_score(seed: int, clip_id: str, n_draws: int = 50) -> np.ndarray:
    return controls.random_curve_f_score(
        [(2, 4)], 400, FRAMES_PER_S, [90, 95, 99], clip_id=clip_id, seed=seed, n_draws=n_draws
    )


def test_random_curve_is_keyed_by_seed_and_clip() -> None:
    np.testing.assert_array_equal(random_f_score(0, "a"), random_f_score(0, "a"))
    assert (random_f_score(0, "a") != random_f_score(0, "b")).any()
    assert (random_f_score(0, "a") != random_f_score(1, "a")).any()


def test_random_curve_against_its_expectation() -> None:
    # One peak alone hits a positive second with probability 2 of 10: then tp 1, fn 1, else all is wrong.
    found = controls.random_curve_f_score([(2, 4)], 400, FRAMES_PER_S, [100], clip_id="a", seed=0, n_draws=5000)
    assert found.tolist() == pytest.approx([0.2 * 2 / 3], abs=0.01)


def test_clips_do_not_depend_on_one_another() -> None:
    clips = {"a": [(2.0, 4.0)], "b": [(0.0, 1.0), (5.0, 9.0)], "c": [(9.0, 10.0)]}
    random, every_second = controls.control_f_scores(clips, 400, FRAMES_PER_S, [90, 99], seed=3, n_draws=20)
    reverse = dict(reversed(clips.items()))
    random_reverse, every_reverse = controls.control_f_scores(reverse, 400, FRAMES_PER_S, [90, 99], seed=3, n_draws=20)
    np.testing.assert_array_equal(random, random_reverse[::-1])
    np.testing.assert_array_equal(every_second, every_reverse[::-1])
    assert ((random >= 0) & (random <= 1)).all()


@pytest.mark.parametrize("power_of_ten", [10.0, 1.0])
def test_curves_without_a_model_frame_by_frame(power_of_ten: float) -> None:
    generator = np.random.default_rng(0)
    power = generator.exponential(size=(5, 12))
    log_mel = power_of_ten * np.log10(power)
    mean, std = generator.normal(size=5), generator.uniform(0.5, 2, size=5)
    curves = controls.no_model_curves(log_mel, power_of_ten=power_of_ten, training=(mean, std))
    assert tuple(curves) == controls.NO_MODEL
    for frame in range(12):
        level = [sum(power[band, t] for band in range(5)) for t in range(12)]
        change = abs(level[frame] - level[frame - 1]) if frame else 0.0
        outlier = sum(((log_mel[band, frame] - mean[band]) / std[band]) ** 2 for band in range(5))
        assert [curve[frame] for curve in curves.values()] == pytest.approx([level[frame], change, outlier])


def test_without_statistics_of_the_training_there_is_no_outlier() -> None:
    assert list(controls.no_model_curves(np.zeros((3, 4)), power_of_ten=10.0, training=None)) == [
        controls.LEVEL,
        controls.LEVEL_CHANGE,
    ]
