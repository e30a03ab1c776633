"""What other thresholds would bring, against counting by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from faithad import schemas
from faithad.audit.operating_points import RATES, operating_points
from faithad.audit.outcome import read_scores
from faithad.audit.raised_alarm import normal_scores
from faithad.evaluation.alarms import fit_alarm
from faithad.runs.tables import read_manifest
from tests.audit.conftest import ALARM, FEATURES, SCORES

EVENTS = {"merge_gap_s": 10.0, "method": "saliency", "percentile": 95.0}


def points_of(audit: Any, normals: np.ndarray) -> list[dict[str, Any]]:
    table = operating_points(
        read_scores(audit.out),
        read_manifest(audit.out),
        pa.table({"score": normals}),
        alarm=ALARM,
        features=FEATURES,
        **EVENTS,
    )
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def test_alarms_and_events_of_each_threshold(audit: Any) -> None:
    normals = np.random.default_rng(3).gamma(8.0, 0.25, 400)
    points = points_of(audit, normals)
    assert len(points) > 15
    thresholds = [point["threshold"] for point in points]
    assert thresholds == sorted(set(thresholds))
    # The first two recordings follow each other on one clock; the clip at 40 s of the second has failed.
    axes = [[*zip(range(12), SCORES[name] + SCORES[other], strict=False)] for name, other in [list(SCORES)[:2]]]
    axes[0] = [(place, score) for place, score in axes[0] if place != 10]
    axes.append(list(enumerate(list(SCORES.values())[2])))
    for point in points:
        alarmed = [[place for place, score in axis if score > point["threshold"]] for axis in axes]
        assert point["n_alarms"] == sum(map(len, alarmed))
        # Clips of 10 s, merged over 10 s: with at most one clip between two.
        n_events = sum(bool(places) + int((np.diff(places) > 2).sum()) for places in alarmed)
        assert point["n_events"] == n_events
    raised = next(point for point in points if point["threshold"] == ALARM.threshold)
    assert (raised["n_events"], raised["false_alarms_per_hour"]) == (3, ALARM.expected_rate * 360)


def test_thresholds_are_those_of_the_rule(audit: Any) -> None:
    normals = np.random.default_rng(3).gamma(8.0, 0.25, 400)
    fitted = [
        fit_alarm(normals, rule="quantile", pooling="mean", false_alarm_rate=float(rate), clip_s=10.0) for rate in RATES
    ]
    expected = {alarm.threshold: alarm.expected_rate for alarm in [*fitted, ALARM]}
    assert {point["threshold"]: point["false_alarm_rate"] for point in points_of(audit, normals)} == expected


def test_short_clips_have_thresholds_of_their_own(audit: Any) -> None:
    """The clip of the score 2.5 lasts 5 s: above the threshold of whole clips, and not above its own."""
    manifest = read_manifest(audit.out)
    scores = read_scores(audit.out)
    odd = scores.filter(pc.equal(scores["score"], 2.5))["clip_id"][0].as_py()
    lengths = [5.0 if clip_id == odd else 10.0 for clip_id in manifest["clip_id"].to_pylist()]
    place = manifest.schema.get_field_index("duration_s")
    manifest = manifest.set_column(place, manifest.schema.field(place), pa.array(lengths))
    for by_length, n_events in (((), 3), (((5.0, 2.6),), 2)):
        alarm = replace(ALARM, by_length=by_length)
        (point,) = operating_points(
            scores, manifest, pa.table({"score": np.empty(0)}), alarm=alarm, features=FEATURES, **EVENTS
        ).to_pylist()
        assert point["n_events"] == n_events


def test_windows_have_thresholds_of_their_own(audit: Any) -> None:
    """One clip is above its window threshold at its start and its end, and above lower ones all along."""
    scores = read_scores(audit.out).to_pylist()
    for row in scores:
        if row["score"] == 5.0:
            row |= {"windows": [9.0] * 4 + [6.0] * 32 + [9.0] * 4, "window_threshold": 8.0}
    values = np.linspace(0.0, 4.9, 200)
    normals = pa.table({"score": values, "worst_windows": [[value] for value in values]})
    alarm = replace(ALARM, threshold=4.95, window_thresholds=(8.0,))
    points = operating_points(
        pa.Table.from_pylist(scores, schema=schemas.SCORES), read_manifest(audit.out), normals, alarm=alarm,
        features=FEATURES, **EVENTS | {"merge_gap_s": 2.0},
    ).to_pylist()  # fmt: skip
    n_events = {point["threshold"]: point["n_events"] for point in points if point["threshold"] > 4.0}
    assert n_events.pop(4.95) == 2
    assert set(n_events.values()) == {1}


def test_without_normal_scores_there_is_the_alarm_alone(audit: Any, model: str) -> None:
    assert normal_scores(model).num_rows == 0
    assert [point["threshold"] for point in points_of(audit, np.empty(0))] == [ALARM.threshold]
