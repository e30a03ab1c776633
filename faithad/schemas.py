"""The Arrow schema of every table that is written: the contract with everybody downstream.

Plain Arrow types only, so that pandas, DuckDB and Polars read each file without Ray or torch. Long form: one row per
key. Units are in the names (`_s` seconds). Where a column holds a whole (F, T) map it is flattened row by row (mel
band by mel band) and the shape stands in the schema's metadata under `shape`.

Contents
    MANIFEST, EPOCHS, VALIDATION_SCORES                      one file each
    SCORES, LOCALIZATION, FAITHFULNESS, LEDGER               one folder of shards per (model, seed)
    attributions(n_mels, n_frames), spectrograms(...)        the same, their list sizes follow from the model's shape
    EVENTS, SEARCH_SUMMARY
    DETECTION_SUMMARY, F_SCORE_SUMMARY, FAITHFULNESS_SUMMARY
"""

from __future__ import annotations

import pyarrow as pa

# Raised when a table gains, loses or changes a column. 1 is that of release 0.1.0; older ones are always read.
FORMAT = 1

SPLITS = ("train", "validation", "test")
STATUSES = ("done", "skipped", "failed")

INTERVALS = pa.list_(pa.struct([pa.field("onset_s", pa.float64()), pa.field("offset_s", pa.float64())]))

# One row per clip. `intervals` are half-open and count from the clip's own onset; `onset_s` counts from the start of
# the recording; `recorded_at` is the wall clock at the clip's onset.
MANIFEST = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("recording", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("onset_s", pa.float64(), nullable=False),
        pa.field("duration_s", pa.float64(), nullable=False),
        pa.field("recorded_at", pa.timestamp("us")),
        pa.field("split", pa.string(), nullable=False),
        pa.field("label", pa.int8()),
        pa.field("anomaly_type", pa.string()),
        pa.field("intervals", INTERVALS),
        pa.field("annotated", pa.bool_(), nullable=False),
    ]
)

EPOCHS = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("epoch", pa.int32(), nullable=False),
        pa.field("train_loss", pa.float64(), nullable=False),
        pa.field("validation_loss", pa.float64(), nullable=False),
        pa.field("learning_rate", pa.float64(), nullable=False),
        pa.field("duration_s", pa.float64(), nullable=False),
        pa.field("best", pa.bool_(), nullable=False),
        # After it the training went back to its best epoch, or ended.
        pa.field("diverged", pa.bool_(), nullable=False),
    ]
)

# Scores of a model's validation clips, all normal: what alarm thresholds are fitted on.
VALIDATION_SCORES = pa.schema(
    [pa.field("score", pa.float64(), nullable=False), pa.field("worst_second_score", pa.float64())]
)

# Every second of every recording stands in a ledger. A row without `clip_id` speaks of a whole recording (or of the
# rest of one): it never became clips.
LEDGER = pa.schema(
    [
        pa.field("clip_id", pa.string()),
        pa.field("recording", pa.string(), nullable=False),
        pa.field("onset_s", pa.float64()),
        pa.field("duration_s", pa.float64()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
    ]
)

_CLIP_KEYS = [
    pa.field("clip_id", pa.string(), nullable=False),
    pa.field("model", pa.string(), nullable=False),
    pa.field("seed", pa.int64(), nullable=False),
]
_METHOD_KEYS = [*_CLIP_KEYS, pa.field("method", pa.string(), nullable=False)]

# `score` is E(x), the clip's mean reconstruction error. `worst_second_score` is the mean error of its worst second,
# which starts at `worst_onset_s` of the clip; `worst_mel_band` is the band with the largest mean error, from 0. These
# are null for models that give a score only, without an error for each cell.
SCORES = pa.schema(
    [
        *_CLIP_KEYS,
        pa.field("score", pa.float64(), nullable=False),
        pa.field("worst_second_score", pa.float64()),
        pa.field("threshold", pa.float64()),
        pa.field("alarm", pa.bool_()),
        pa.field("worst_onset_s", pa.float64()),
        pa.field("worst_mel_band", pa.int32()),
    ]
)

LOCALIZATION = pa.schema(
    [
        *_METHOD_KEYS,
        pa.field("percentile", pa.float64(), nullable=False),
        pa.field("tp", pa.int32(), nullable=False),
        pa.field("fp", pa.int32(), nullable=False),
        pa.field("fn", pa.int32(), nullable=False),
        pa.field("precision", pa.float64(), nullable=False),
        pa.field("recall", pa.float64(), nullable=False),
        pa.field("f_score", pa.float64(), nullable=False),
    ]
)

FAITHFULNESS = pa.schema(
    [
        *_METHOD_KEYS,
        pa.field("mode", pa.string(), nullable=False),
        pa.field("percentile", pa.float64(), nullable=False),
        pa.field("replaced_fraction", pa.float64(), nullable=False),
        pa.field("error_before", pa.float64(), nullable=False),
        pa.field("error_after", pa.float64(), nullable=False),
        pa.field("faithfulness", pa.float64(), nullable=False),
    ]
)


def attributions(n_mels: int, n_frames: int) -> pa.Schema:
    """One row per (clip, model, seed, method).

    `curve` is the map summed over mel bands, (T,). `profile` is its magnitude summed over the peak frames of the
    audit's lowest percentile, (F,): the mel bands that carry the peaks. `map` is optional: (F, T) flattened and divided
    by `map_scale`, its largest magnitude, because raw gradients are too small for 16 bits. `degenerate`: the curve is
    flat.
    """
    return pa.schema(
        [
            *_METHOD_KEYS,
            pa.field("curve", pa.list_(pa.float32(), n_frames), nullable=False),
            pa.field("profile", pa.list_(pa.float32(), n_mels), nullable=False),
            pa.field("map", pa.list_(pa.float16(), n_mels * n_frames)),
            pa.field("map_scale", pa.float32()),
            pa.field("degenerate", pa.bool_(), nullable=False),
        ],
        metadata=_shape(n_mels, n_frames),
    )


def spectrograms(n_mels: int, n_frames: int) -> pa.Schema:
    """Input and reconstruction, (F, T) flattened, of the clips whose maps are kept. In the unit of the features."""
    cells = pa.list_(pa.float32(), n_mels * n_frames)
    return pa.schema(
        [
            *_CLIP_KEYS,
            pa.field("log_mel", cells, nullable=False),
            pa.field("reconstruction", cells, nullable=False),
        ],
        metadata=_shape(n_mels, n_frames),
    )


def shape_of(schema: pa.Schema) -> tuple[int, int]:
    """(F, T) of the flattened maps in a table written under `attributions` or `spectrograms`."""
    n_mels, n_frames = (schema.metadata or {})[b"shape"].split(b"x")
    return int(n_mels), int(n_frames)


def _shape(n_mels: int, n_frames: int) -> dict[bytes, bytes]:
    return {b"shape": f"{n_mels}x{n_frames}".encode()}


# Stretches of recordings, half-open, in seconds from each recording's start.
PARTS = pa.list_(
    pa.struct(
        [
            pa.field("recording", pa.string(), nullable=False),
            pa.field("onset_s", pa.float64(), nullable=False),
            pa.field("offset_s", pa.float64(), nullable=False),
        ]
    )
)

# One row per event: alarms that lie close together, also across recordings that follow on without a gap by the clock.
# `parts` says where it is, `seconds` which of its seconds the explanation points at, the mel bands (from 0, both
# included) and their edges which bands carry them. `strength` is the highest score over the threshold. `method` is null
# where no explanation was made; the seconds and the band are then those of the largest error.
EVENTS = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("recording", pa.string(), nullable=False),
        pa.field("onset_s", pa.float64(), nullable=False),
        pa.field("duration_s", pa.float64(), nullable=False),
        pa.field("started_at", pa.timestamp("us")),
        pa.field("ended_at", pa.timestamp("us")),
        pa.field("parts", PARTS, nullable=False),
        pa.field("clip_ids", pa.list_(pa.string()), nullable=False),
        pa.field("n_alarms", pa.int32(), nullable=False),
        pa.field("pooling", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("threshold", pa.float64(), nullable=False),
        pa.field("strength", pa.float64(), nullable=False),
        pa.field("seconds", PARTS, nullable=False),
        pa.field("mel_band_low", pa.int32(), nullable=False),
        pa.field("mel_band_high", pa.int32(), nullable=False),
        pa.field("low_hz", pa.float64(), nullable=False),
        pa.field("high_hz", pa.float64(), nullable=False),
        pa.field("method", pa.string()),
        pa.field("percentile", pa.float64()),
        pa.field("faithfulness", pa.float64()),
    ]
)

# One row per trial of a search. status: done, stopped (early, by the scheduler) or failed. `value` is the objective's;
# null where a trial failed. `auc` and `pauc` are of the test clips, null where they have no labels.
SEARCH_SUMMARY = pa.schema(
    [
        pa.field("trial", pa.string(), nullable=False),
        pa.field("mask_ratio", pa.float64(), nullable=False),
        pa.field("patch", pa.int32(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("objective", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("proxy_auc", pa.float64()),
        pa.field("validation_loss", pa.float64()),
        pa.field("auc", pa.float64()),
        pa.field("pauc", pa.float64()),
        pa.field("epochs", pa.int32(), nullable=False),
        pa.field("best_epoch", pa.int32()),
        # After the first the trial went back to its best epoch, after a second it ended.
        pa.field("diverged_epochs", pa.int32(), nullable=False),
        pa.field("duration_s", pa.float64(), nullable=False),
    ]
)

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

# metric: auc, pauc. pooling: mean (E(x)) or worst_second.
DETECTION_SUMMARY = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("pooling", pa.string(), nullable=False),
        *_ESTIMATE,
        pa.field("n_normal", pa.int32(), nullable=False),
        pa.field("n_anomalous", pa.int32(), nullable=False),
    ]
)

# anomaly_type: `all`, or one type of the annotation table.
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

# scope: `annotated` (the paper's mean, over annotated clips) or `all` test clips, which the frame mode allows.
FAITHFULNESS_SUMMARY = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("mode", pa.string(), nullable=False),
        pa.field("percentile", pa.float64(), nullable=False),
        pa.field("scope", pa.string(), nullable=False),
        *_ESTIMATE,
        pa.field("n_clips", pa.int32(), nullable=False),
    ]
)
