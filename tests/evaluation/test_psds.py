"""Detections over all thresholds against a slow count, second by second of a fine grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from faithad import schemas
from faithad.evaluation.checks import CURVES
from faithad.evaluation.psds import RATES, DetectionCounts, Heard, count_detections, found_at, spans_above, window_means
from faithad.evaluation.summary import Experiment, summarize


def test_windows_up_to_a_second_apart_are_one_detection() -> None:
    windows = np.zeros(40)
    windows[[2, 3, 8, 14, 39]] = 1.0
    # 8 begins 1 s after 3 ends; 14 begins 1.25 s after 8 ends; the last window runs to the end of the clip.
    assert spans_above(windows, 0.5, 10.025) == [(0.5, 2.25), (3.5, 3.75), (9.75, 10.025)]
    assert spans_above(windows, 1.0, 10.0) == []


def test_the_last_window_runs_to_the_end() -> None:
    assert window_means(np.arange(23.0), 40.0).tolist() == [4.5, 16.0]
    assert window_means(np.arange(3.0), 40.0).tolist() == [1.0]


def test_counts_are_those_of_a_grid_of_hundredths() -> None:
    generator = np.random.default_rng(0)
    clips = [
        Heard(generator.exponential(size=40), 10.0, [(2.0, 3.0), (2.5, 4.0), (7.0, 8.0)][: 3 * (k % 2)], k // 2)
        for k in range(6)
    ]
    thresholds = [0.5, 1.5, 2.5]
    counts = count_detections(clips, thresholds)
    assert counts.labels.tolist() == [2.0, 2.0, 2.0]
    assert counts.hours == pytest.approx([20 / 3600] * 3)
    for column, threshold in enumerate(thresholds):
        false, found = np.zeros(3), np.zeros(3)
        for clip in clips:
            labelled, true = np.zeros(1000, dtype=bool), np.zeros(1000, dtype=bool)
            for onset, offset in clip.intervals:
                labelled[round(100 * onset) : round(100 * offset)] = True
            for onset, offset in spans_above(clip.windows, threshold, 10.0):
                span = slice(round(100 * onset), round(100 * offset))
                if labelled[span].mean() >= 0.05:
                    true[span] = True
                else:
                    false[clip.recording] += 1
            for onset, offset in [(2.0, 4.0), (7.0, 8.0)] if clip.intervals else []:
                found[clip.recording] += true[round(100 * onset) : round(100 * offset)].mean() >= 0.5
        assert counts.false[:, column].tolist() == false.tolist()
        assert counts.found[:, column].tolist() == found.tolist()


def test_the_best_threshold_within_each_rate_counts() -> None:
    """Two recordings of half an hour, two labels each: 0, 10, 50 and 200 false detections an hour. Rates are whole."""
    counts = DetectionCounts(
        false=np.array([[0.0, 10.0, 20.0, 100.0], [0.0, 0.0, 30.0, 100.0]]),
        found=np.array([[0.0, 1.0, 1.0, 2.0], [1.0, 1.0, 0.0, 2.0]]),
        labels=np.array([2.0, 2.0]),
        hours=np.array([0.5, 0.5]),
    )
    whole, first = found_at(counts, np.array([[1, 1], [2, 0]]))
    assert [whole[rate].item() for rate in (0, 9, 10, 50, 100)] == [0.25, 0.25, 0.5, 0.5, 0.5]
    assert [first[rate].item() for rate in (0, 19, 20, 100)] == [0.0, 0.0, 0.5, 0.5]
    assert np.isnan(found_at(counts._replace(labels=np.zeros(2)), np.array([[1, 1]]))).all()


@pytest.mark.parametrize("strength", [0.0, 30.0])
def test_a_model_has_one_row_and_clips_whose_labels_are_not_known_are_left_out(strength: float) -> None:
    """Loud events are found without a false detection; without any, hardly one is."""
    generator = np.random.default_rng(0)
    clips: list[dict[str, Any]] = [
        {"clip_id": f"{k}", "recording": f"{k // 2}", "uri": "", "onset_s": 0.0, "duration_s": 10.0, "split": "test",
         "label": int(k % 3 == 0), "annotated": k % 6 == 0,
         "intervals": [{"onset_s": 2.0, "offset_s": 4.0}] if k % 6 == 0 else []}
        for k in range(24)
    ]  # fmt: skip
    rows = []
    for seed in (0, 1):
        for clip in clips:
            curve = generator.exponential(size=401).astype(np.float32)
            if clip["label"]:  # those of unknown clips would be false
                curve[80:160] += strength
            for method in ("error_map", "saliency"):
                keys = {"clip_id": clip["clip_id"], "model": "ae", "seed": seed, "method": method, "degenerate": False}
                rows.append(keys | {"curve": curve if method == "error_map" else curve[::-1]})
    manifest = pa.Table.from_pylist(clips, schema=schemas.MANIFEST)
    experiment = Experiment(manifest, "paper", n_frames={"ae": 400}, frames_per_s=40.0)
    (row,) = summarize("psds", {"attributions": pa.Table.from_pylist(rows, schema=CURVES)}, experiment).to_pylist()
    assert (row["model"], row["n_seeds"], row["n_reference"], row["n_clips"]) == ("ae", 2, 4, 20)
    assert row["mean"] == pytest.approx(np.mean(row["found"][:-1]))
    assert row["ci_low"] <= row["mean"] <= row["ci_high"]
    assert row["false_per_hour"] == RATES.tolist()
    assert (row["mean"] == 1.0) is bool(strength)
    none = [{**clip, "annotated": False, "intervals": []} for clip in clips]
    experiment = Experiment(
        pa.Table.from_pylist(none, schema=schemas.MANIFEST), "paper", n_frames={}, frames_per_s=40.0
    )
    assert summarize("psds", {"attributions": pa.Table.from_pylist(rows, schema=CURVES)}, experiment).num_rows == 0
