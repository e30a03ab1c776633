"""Means over clips and seeds, and whether they differ."""

from __future__ import annotations

import pyarrow as pa

# Summaries: mean and standard deviation over seeds (null for a single seed), a 95 % bootstrap interval over
# recordings, and the controls that a score must beat.
_ESTIMATE = [
    pa.field("protocol", pa.string(), nullable=False),
    pa.field("mean", pa.float64()),
    pa.field("std", pa.float64()),
    pa.field("ci_low", pa.float64()),
    pa.field("ci_high", pa.float64()),
    pa.field("n_seeds", pa.int32(), nullable=False),
]

DETECTION_SUMMARY = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("score", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("pooling", pa.string(), nullable=False),
        pa.field("anomaly_type", pa.string(), nullable=False),
        *_ESTIMATE,
        pa.field("n_normal", pa.int32(), nullable=False),
        pa.field("n_anomalous", pa.int32(), nullable=False),
        pa.field("n_normal_needed", pa.int32()),
    ]
)

F_SCORE_SUMMARY = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("percentile", pa.float64(), nullable=False),
        pa.field("anomaly_type", pa.string(), nullable=False),
        *_ESTIMATE,
        pa.field("n_clips", pa.int32(), nullable=False),
        pa.field("control_random", pa.float64()),
        pa.field("control_every_second", pa.float64()),
    ]
)

FAITHFULNESS_SUMMARY = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("mode", pa.string(), nullable=False),
        pa.field("percentile", pa.float64(), nullable=False),
        pa.field("scope", pa.string(), nullable=False),
        *_ESTIMATE,
        pa.field("n_clips", pa.int32(), nullable=False),
    ]
)

CONTROLS_SUMMARY = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("line", pa.string(), nullable=False),
        pa.field("percentile", pa.float64()),
        pa.field("scope", pa.string(), nullable=False),
        *_ESTIMATE,
        pa.field("n_clips", pa.int32(), nullable=False),
    ]
)

# How well curves rank the seconds of clips, without a threshold.
SECONDS_SUMMARY = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("ranked", pa.string(), nullable=False),
        pa.field("scope", pa.string(), nullable=False),
        *_ESTIMATE,
        pa.field("chance", pa.float64(), nullable=False),
        pa.field("n_clips", pa.int32(), nullable=False),
    ]
)

# How many labels are found at each rate of false detections.
PSDS_SUMMARY = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        *_ESTIMATE,
        pa.field("false_per_hour", pa.list_(pa.float64()), nullable=False),
        pa.field("found", pa.list_(pa.float64()), nullable=False),
        pa.field("n_reference", pa.int32(), nullable=False),
        pa.field("n_clips", pa.int32(), nullable=False),
    ]
)

# Of the deep clips: what `checks` comes to.
REPLACEMENTS = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("replacement", pa.string(), nullable=False),
        *_ESTIMATE,
        pa.field("n_clips", pa.int32(), nullable=False),
        pa.field("rank_agreement", pa.float64()),
    ]
)

BANDS = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("scope", pa.string(), nullable=False),
        *_ESTIMATE,
        pa.field("n_clips", pa.int32(), nullable=False),
    ]
)

SANITY = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("check", pa.string(), nullable=False),
        pa.field("at", pa.float64()),
        *_ESTIMATE,
        pa.field("n_clips", pa.int32(), nullable=False),
        pa.field("passed", pa.bool_()),
    ]
)

# Does A differ from B? Numbers are null where too few recordings leave them undefined.
COMPARISON = pa.schema(
    [
        pa.field("question", pa.string(), nullable=False),
        pa.field("scope", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("mode", pa.string()),
        pa.field("replacement", pa.string()),
        pa.field("percentile", pa.float64()),
        pa.field("method", pa.string(), nullable=False),
        pa.field("model_a", pa.string(), nullable=False),
        pa.field("model_b", pa.string(), nullable=False),
        pa.field("protocol", pa.string(), nullable=False),
        *[
            pa.field(name, pa.float64())
            for name in ("estimate", "ci_low", "ci_high", "se", "p_t", "p_boot", "p_flip", "p_holm")
        ],
        pa.field("n_clips", pa.int32(), nullable=False),
        pa.field("n_recordings", pa.int32(), nullable=False),
        pa.field("n_seeds", pa.int32(), nullable=False),
        pa.field("n_left_out", pa.int32(), nullable=False),
        pa.field("smallest_effect", pa.float64()),
        pa.field("verdict", pa.string(), nullable=False),
    ]
)

# How the events of an audit agree with reference intervals.
EVENT_SUMMARY = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("detections", pa.string(), nullable=False),
        pa.field("protocol", pa.string(), nullable=False),
        pa.field("detection_tolerance", pa.float64(), nullable=False),
        pa.field("ground_truth_tolerance", pa.float64(), nullable=False),
        pa.field("n_detections", pa.int32(), nullable=False),
        pa.field("n_true", pa.int32(), nullable=False),
        pa.field("precision", pa.float64()),
        pa.field("n_reference", pa.int32(), nullable=False),
        pa.field("n_found", pa.int32(), nullable=False),
        pa.field("n_not_heard", pa.int32(), nullable=False),
        pa.field("recall", pa.float64()),
        pa.field("detected_s", pa.float64(), nullable=False),
        pa.field("labelled_s", pa.float64(), nullable=False),
        pa.field("shared_s", pa.float64(), nullable=False),
        pa.field("not_heard", pa.list_(pa.string()), nullable=False),
    ]
)
