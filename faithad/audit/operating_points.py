"""What other thresholds would bring: alarms and events of an audit for each rate of false alarms that one may allow."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from faithad.audit.events import find_events
from faithad.errors import StudyError
from faithad.evaluation.alarms import fit_alarm, with_window_thresholds
from faithad.evaluation.arrays import Reals
from faithad.model.alarm import AlarmThreshold
from faithad.runs.piece_scores import paper_scores
from faithad.schemas import OPERATING_POINTS
from faithad.settings import FeatureSettings
from faithad.vocabulary import POOLINGS

RATES = np.geomspace(1e-4, 0.2, 34)


def operating_points(
    scores: pa.Table,
    manifest: pa.Table,
    normals: pa.Table,
    *,
    alarm: AlarmThreshold,
    features: FeatureSettings,
    pieces: Mapping[float, Reals] | None = None,
    lowest: float | None = None,
    **events: Any,
) -> pa.Table:
    """One row for each threshold that the alarm's rule gives at one of `RATES`, and for the alarm itself.

    Args:
        scores: schemas.SCORES of the clips that are searched.
        manifest: schemas.MANIFEST.
        normals: schemas.VALIDATION_SCORES of the clips that the alarm was fitted to; no row where they are not known.
        alarm: as it was raised.
        features: of the model.
        pieces: scores of pieces of the normal clips, for the thresholds of short clips, see `fit_alarm`.
        lowest: see `fit_alarm`.
        events: how alarms become events, see `find_events`.

    Returns:
        schemas.OPERATING_POINTS by rising threshold.
    """
    by_threshold = {}
    # "mean" is the paper's score; a model may have another one as well.
    of_clips = paper_scores(normals) if alarm.pooling == "mean" else normals[POOLINGS[alarm.pooling].column]
    of_clips = of_clips.drop_null().to_numpy()
    for rate in RATES if len(of_clips) else ():
        with contextlib.suppress(StudyError):  # these normal clips are too few for this rate
            fitted = fit_alarm(
                of_clips,
                rule=alarm.rule,
                pooling=alarm.pooling,
                false_alarm_rate=float(rate),
                clip_s=features.clip_s,
                pieces=pieces,
                lowest=lowest,
            )
            by_threshold[fitted.threshold] = with_window_thresholds(fitted, normals)
    by_threshold[alarm.threshold] = alarm
    place = pc.index_in(scores["clip_id"], value_set=manifest["clip_id"].combine_chunks())
    duration_s = manifest["duration_s"].take(place).to_numpy()
    rows = []
    for _, point in sorted(by_threshold.items()):
        above = _at(point, alarm, scores, duration_s, clip_s=features.clip_s)
        point_events = find_events(
            above, manifest, alarm=point, explanations=None, faithfulness=None, features=features, **events
        )
        rows.append(
            {
                "false_alarm_rate": point.expected_rate,
                "false_alarms_per_hour": point.expected_rate * 3_600.0 / features.clip_s,
                "threshold": point.threshold,
                "n_alarms": pc.sum(above["alarm"]).as_py() or 0,
                "n_events": point_events.num_rows,
            }
        )
    return pa.Table.from_pylist(rows, schema=OPERATING_POINTS)


def _at(
    alarm: AlarmThreshold, raised: AlarmThreshold, scores: pa.Table, duration_s: Reals, *, clip_s: float
) -> pa.Table:
    """The scores as they would be with another alarm than the one that was raised: those of short clips, and windows of
    each model, have thresholds of their own.
    """
    lengths_s, places = np.unique(duration_s, return_inverse=True)
    thresholds = np.array([alarm.of_length(float(length_s), clip_s=clip_s).threshold for length_s in lengths_s])
    columns: dict[str, Any] = {"threshold": pa.array(thresholds[places])}
    columns["alarm"] = pc.greater(scores[POOLINGS[alarm.pooling].column], columns["threshold"])
    columns["window_threshold"] = scores["window_threshold"]
    for old, new in zip(raised.window_thresholds, alarm.window_thresholds, strict=False):
        of_model = pc.fill_null(pc.equal(scores["window_threshold"], old), False)
        columns["window_threshold"] = pc.if_else(of_model, new, columns["window_threshold"])
    for name, values in columns.items():
        scores = scores.set_column(scores.schema.get_field_index(name), name, values)
    return scores
