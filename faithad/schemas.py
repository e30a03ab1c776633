"""The Arrow schema of every table that is written: the contract with everybody downstream.

Plain Arrow types only, so that pandas, DuckDB and Polars read each file without Ray or torch. Long form: one row per
key. Units are in the names (`_s` seconds). Where a column holds a whole (F, T) map it is flattened row by row (mel
band by mel band) and the shape stands in the schema's metadata under `shape`.

Contents
    FORMAT                                                   of all tables together
    MANIFEST, HEALTH, INPUTS, EPOCHS, VALIDATION_SCORES, PIECE_SCORES
                                                             one file each
    SCORES, LOCALIZATION, FAITHFULNESS, CONTROLS, LINES, CHECKS, LEDGER    one folder of shards per (model, seed)
    MEDIAN_SPECTRA                                           a folder of shards of an audit of recordings
    attributions(n_mels, n_frames), spectrograms(...)        the same, for a model of this shape
    EVENTS, STATES, SOUNDS, CLIP_SOUNDS, OPERATING_POINTS, DECISIONS,
    SEARCH_SUMMARY, SEARCH_SCORES
    DETECTION_SUMMARY, F_SCORE_SUMMARY, FAITHFULNESS_SUMMARY, CONTROLS_SUMMARY, COMPARISON,
    SECONDS_SUMMARY, PSDS_SUMMARY, REPLACEMENTS, BANDS, SANITY
    COMPARED_SETTINGS, COMPARED_NUMBERS, COMPARED_CLIPS, COMPARED_EVENTS, DRIFT    of several runs
    MEANINGS                                                 what each column says
"""

from __future__ import annotations

import pyarrow as pa

# Raised when a table gains, loses or changes a column; older ones are always read. 1: release 0.1.0. 2: the manifest
# has machine, section and domain. 3: the manifest has utc_offset_s, recorder, channel, take and shard, events have
# utc_offset_s, inputs have gone; curves, maps and spectrograms are as long as the clip's sound; scores have
# spectrum_difference_db and level_difference_db; scores and events have raised_by; scores have windows and
# window_threshold, validation_scores worst_windows; localization and faithfulness have protocol (before: all of them
# `paper`), faithfulness has normalized; scores and validation_scores have paper_score; summary/detection has score,
# anomaly_type and n_normal_needed; summary/search has present and settings, epochs have gradient_norm; new tables of an
# audit are sounds (with expected), operating_points, decisions, lines, reasons, median_spectra and states; events have
# normalized and trusted; summary/seconds, summary/psds and summary/search_scores; clip_sounds of
# a study; compared/* of a comparison.
FORMAT = 3

SPLITS = ("train", "validation", "test")
STATUSES = ("done", "skipped", "failed")

INTERVALS = pa.list_(pa.struct([pa.field("onset_s", pa.float64()), pa.field("offset_s", pa.float64())]))

MANIFEST = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("recording", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("onset_s", pa.float64(), nullable=False),
        pa.field("duration_s", pa.float64(), nullable=False),
        pa.field("recorded_at", pa.timestamp("us")),
        pa.field("utc_offset_s", pa.int32()),
        pa.field("recorder", pa.string()),
        pa.field("split", pa.string(), nullable=False),
        pa.field("label", pa.int8()),
        pa.field("anomaly_type", pa.string()),
        pa.field("intervals", INTERVALS),
        pa.field("annotated", pa.bool_(), nullable=False),
        pa.field("machine", pa.string()),
        pa.field("section", pa.string()),
        pa.field("domain", pa.string()),
        pa.field("channel", pa.int32()),
        pa.field("take", pa.int32()),
        pa.field("shard", pa.int32()),
    ]
)

# What some windows of each recording hold, see `clips.health`. Lists have a value for each channel.
HEALTH = pa.schema(
    [
        pa.field("recording", pa.string(), nullable=False),
        pa.field("sample_rate_hz", pa.int32(), nullable=False),
        pa.field("channels", pa.int32(), nullable=False),
        pa.field("heard", pa.string(), nullable=False),
        pa.field("sampled_s", pa.float64(), nullable=False),
        *[
            pa.field(name, pa.list_(pa.float64()))
            for name in ("level_dbfs", "dc", "clipped", "zeros", "correlation", "lag_ms")
        ],
        pa.field("problems", pa.list_(pa.string()), nullable=False),
    ]
)

# Which files an audit of recordings read. `bytes` is null where a file could not be read.
INPUTS = pa.schema(
    [
        pa.field("recording", pa.string(), nullable=False),
        pa.field("bytes", pa.int64()),
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("gone", pa.bool_()),
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
        pa.field("diverged", pa.bool_(), nullable=False),
        pa.field("gradient_norm", pa.float64()),
    ]
)

# Scores of a model's validation clips, all normal: what alarm thresholds are fitted on.
VALIDATION_SCORES = pa.schema(
    [
        pa.field("score", pa.float64(), nullable=False),
        pa.field("worst_second_score", pa.float64()),
        pa.field("worst_windows", pa.list_(pa.float64())),
        pa.field("paper_score", pa.float64()),
    ]
)

# Scores of pieces of these clips, as short as some clips of an audit are: what the thresholds of short clips are fitted
# on.
PIECE_SCORES = pa.schema(
    [
        pa.field("duration_s", pa.float64(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("worst_second_score", pa.float64()),
        pa.field("paper_score", pa.float64()),
    ]
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

SCORES = pa.schema(
    [
        *_CLIP_KEYS,
        pa.field("score", pa.float64(), nullable=False),
        pa.field("worst_second_score", pa.float64()),
        pa.field("threshold", pa.float64()),
        pa.field("alarm", pa.bool_()),
        pa.field("worst_onset_s", pa.float64()),
        pa.field("worst_mel_band", pa.int32()),
        pa.field("spectrum_difference_db", pa.float64()),
        pa.field("level_difference_db", pa.float64()),
        pa.field("raised_by", pa.string()),
        pa.field("windows", pa.list_(pa.float64())),
        pa.field("window_threshold", pa.float64()),
        pa.field("paper_score", pa.float64()),
    ]
)

# What the alarm for what lasts compares, see `scoring.state`.
MEDIAN_SPECTRA = pa.schema([*_CLIP_KEYS, pa.field("median_db", pa.list_(pa.float32()), nullable=False)])

LOCALIZATION = pa.schema(
    [
        *_METHOD_KEYS,
        pa.field("protocol", pa.string(), nullable=False),
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
        pa.field("protocol", pa.string(), nullable=False),
        pa.field("mode", pa.string(), nullable=False),
        pa.field("percentile", pa.float64(), nullable=False),
        pa.field("replaced_fraction", pa.float64(), nullable=False),
        pa.field("error_before", pa.float64(), nullable=False),
        pa.field("error_after", pa.float64(), nullable=False),
        pa.field("faithfulness", pa.float64(), nullable=False),
        pa.field("normalized", pa.float64()),
    ]
)

# What stands beside the methods, on the frames that the model's curves have.
CONTROLS = pa.schema(
    [
        *_CLIP_KEYS,
        pa.field("protocol", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("line", pa.string(), nullable=False),
        pa.field("percentile", pa.float64(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
    ]
)

# The curves of these lines, so that they can be judged against any annotations.
LINES = pa.schema(
    [
        *_CLIP_KEYS,
        pa.field("line", pa.string(), nullable=False),
        pa.field("curve", pa.list_(pa.float32()), nullable=False),
    ]
)

# What costs too much for all clips: of the deep clips, see `audit.checking`.
CHECKS = pa.schema(
    [
        *_CLIP_KEYS,
        pa.field("protocol", pa.string(), nullable=False),
        pa.field("method", pa.string()),
        pa.field("check", pa.string(), nullable=False),
        pa.field("at", pa.float64()),
        pa.field("value", pa.float64(), nullable=False),
    ]
)


def attributions(n_mels: int, n_frames: int) -> pa.Schema:
    """One row per (clip, model, seed, method). `map` is (F, T) flattened and divided by `map_scale`, because raw
    gradients are too small for 16 bits. T is the number of frames that hold sound, less than `n_frames` in a short
    clip.
    """
    return pa.schema(
        [
            *_METHOD_KEYS,
            pa.field("curve", pa.list_(pa.float32()), nullable=False),
            pa.field("profile", pa.list_(pa.float32(), n_mels), nullable=False),
            pa.field("map", pa.list_(pa.float16())),
            pa.field("map_scale", pa.float32()),
            pa.field("degenerate", pa.bool_(), nullable=False),
        ],
        metadata=_shape(n_mels, n_frames),
    )


def spectrograms(n_mels: int, n_frames: int) -> pa.Schema:
    """Input and reconstruction, (F, T) flattened, of the clips whose maps are kept; T is as in `attributions`. In the
    unit of the features.
    """
    cells = pa.list_(pa.float32())
    return pa.schema(
        [
            *_CLIP_KEYS,
            pa.field("log_mel", cells, nullable=False),
            pa.field("reconstruction", cells, nullable=False),
        ],
        metadata=_shape(n_mels, n_frames),
    )


def shape_of(schema: pa.Schema) -> tuple[int, int]:
    """The model's (F, T), from a table written under `attributions` or `spectrograms`."""
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
        pa.field("utc_offset_s", pa.int32()),
        pa.field("parts", PARTS, nullable=False),
        pa.field("clip_ids", pa.list_(pa.string()), nullable=False),
        pa.field("n_alarms", pa.int32(), nullable=False),
        pa.field("pooling", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("threshold", pa.float64(), nullable=False),
        pa.field("strength", pa.float64(), nullable=False),
        pa.field("raised_by", pa.string()),
        pa.field("seconds", PARTS, nullable=False),
        pa.field("mel_band_low", pa.int32(), nullable=False),
        pa.field("mel_band_high", pa.int32(), nullable=False),
        pa.field("low_hz", pa.float64(), nullable=False),
        pa.field("high_hz", pa.float64(), nullable=False),
        pa.field("method", pa.string()),
        pa.field("percentile", pa.float64()),
        pa.field("faithfulness", pa.float64()),
        pa.field("normalized", pa.float64()),
        pa.field("trusted", pa.string()),
    ]
)

# One row per change of a recorder's sound that lasts, see `audit.states`.
STATES = pa.schema(
    [
        pa.field("state_id", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("recorder", pa.string()),
        pa.field("recording", pa.string(), nullable=False),
        pa.field("onset_s", pa.float64(), nullable=False),
        pa.field("duration_s", pa.float64(), nullable=False),
        pa.field("started_at", pa.timestamp("us")),
        pa.field("ended_at", pa.timestamp("us")),
        pa.field("utc_offset_s", pa.int32()),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("parts", PARTS, nullable=False),
        pa.field("n_minutes", pa.int32(), nullable=False),
        pa.field("reference", pa.string(), nullable=False),
        pa.field("distance_db", pa.float64(), nullable=False),
        pa.field("threshold_db", pa.float64(), nullable=False),
        pa.field("strength", pa.float64(), nullable=False),
        pa.field(
            "changes",
            pa.list_(
                pa.struct(
                    [
                        pa.field("mel_band_low", pa.int32(), nullable=False),
                        pa.field("mel_band_high", pa.int32(), nullable=False),
                        pa.field("low_hz", pa.float64(), nullable=False),
                        pa.field("high_hz", pa.float64(), nullable=False),
                        pa.field("change_db", pa.float64(), nullable=False),
                    ]
                )
            ),
            nullable=False,
        ),
    ]
)

# What the report plays and shows of an event, see `audit.sounds`. Where the recording could not be read, there is a
# reason in place of the sound.
SOUNDS = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("recording", pa.string(), nullable=False),
        pa.field("onset_s", pa.float64(), nullable=False),
        pa.field("duration_s", pa.float64(), nullable=False),
        pa.field("gain_db", pa.float64()),
        pa.field("opus", pa.binary()),
        pa.field("expected", pa.binary()),
        pa.field("n_mels", pa.int32()),
        pa.field("log_mel", pa.list_(pa.float16())),
        pa.field("reason", pa.string()),
    ]
)

# What the report of a study plays of its example clips.
CLIP_SOUNDS = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("gain_db", pa.float64()),
        pa.field("opus", pa.binary()),
        pa.field("reason", pa.string()),
    ]
)

# What other thresholds of the same rule would bring, see `audit.operating_points`.
OPERATING_POINTS = pa.schema(
    [
        pa.field("false_alarm_rate", pa.float64(), nullable=False),
        pa.field("false_alarms_per_hour", pa.float64(), nullable=False),
        pa.field("threshold", pa.float64(), nullable=False),
        pa.field("n_alarms", pa.int32(), nullable=False),
        pa.field("n_events", pa.int32(), nullable=False),
    ]
)

# What a person decided about each event, see `audit.review`.
DECISIONS = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("verdict", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("note", pa.string(), nullable=False),
    ]
)

SEARCH_SUMMARY = pa.schema(
    [
        pa.field("trial", pa.string(), nullable=False),
        pa.field("mask_ratio", pa.float64(), nullable=False),
        pa.field("patch", pa.int32(), nullable=False),
        pa.field("settings", pa.string(), nullable=False),
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
        pa.field("diverged_epochs", pa.int32(), nullable=False),
        pa.field("duration_s", pa.float64(), nullable=False),
        pa.field("present", pa.bool_(), nullable=False),
    ]
)

SEARCH_SCORES = pa.schema(
    [
        pa.field("trial", pa.string(), nullable=False),
        pa.field("residual", pa.string(), nullable=False),
        pa.field("weighting", pa.string(), nullable=False),
        pa.field("pooling", pa.string(), nullable=False),
        pa.field("calibration", pa.string(), nullable=False),
        pa.field("caught", pa.float64(), nullable=False),
        pa.field("proxy_auc", pa.float64(), nullable=False),
        pa.field("chosen", pa.bool_(), nullable=False),
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

# What `faithad compare` writes into a folder of its own; each run is compared with the first one, the reference.
_PAIR = [pa.field("run", pa.string(), nullable=False), pa.field("reference", pa.string(), nullable=False)]

COMPARED_SETTINGS = pa.schema(
    [
        pa.field("run", pa.string(), nullable=False),
        pa.field("setting", pa.string(), nullable=False),
        pa.field("value", pa.string()),
    ]
)

COMPARED_NUMBERS = pa.schema(
    [
        pa.field("run", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("ci_low", pa.float64()),
        pa.field("ci_high", pa.float64()),
    ]
)

# Of the clips that both runs have: their columns of numbers are those of COMPARISON.
COMPARED_CLIPS = pa.schema(
    [
        *_PAIR,
        pa.field("metric", pa.string(), nullable=False),
        pa.field("mode", pa.string()),
        pa.field("model", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        *[
            pa.field(name, pa.float64())
            for name in ("estimate", "ci_low", "ci_high", "se", "p_t", "p_boot", "p_flip", "p_holm")
        ],
        pa.field("n_clips", pa.int32(), nullable=False),
        pa.field("n_recordings", pa.int32(), nullable=False),
        pa.field("n_seeds", pa.int32()),
        pa.field("n_left_out", pa.int32(), nullable=False),
        pa.field("smallest_effect", pa.float64()),
        pa.field("verdict", pa.string(), nullable=False),
    ]
)

COMPARED_EVENTS = pa.schema(
    [
        *_PAIR,
        pa.field("status", pa.string(), nullable=False),
        pa.field("recording", pa.string(), nullable=False),
        pa.field("onset_s", pa.float64(), nullable=False),
        pa.field("duration_s", pa.float64(), nullable=False),
        pa.field("started_at", pa.timestamp("us")),
        pa.field("event_id", pa.string()),
        pa.field("reference_event_id", pa.string()),
        pa.field("whole_recording", pa.bool_(), nullable=False),
    ]
)

DRIFT = pa.schema(
    [
        *_PAIR,
        pa.field("recorder", pa.string(), nullable=False),
        pa.field("quantity", pa.string(), nullable=False),
        pa.field("since", pa.timestamp("us")),
        pa.field("before", pa.float64(), nullable=False),
        pa.field("after", pa.float64(), nullable=False),
        pa.field("p", pa.float64(), nullable=False),
        pa.field("n_before", pa.int32(), nullable=False),
        pa.field("n_after", pa.int32(), nullable=False),
        pa.field("matters", pa.bool_(), nullable=False),
    ]
)

# What each column says. `table.column` stands for one table of `layout.TABLES`, where the column means something else.
MEANINGS = {
    "clip_id": "name of the clip: 16 hex digits of a hash of its recording and its onset",
    "recording": "stable name of the recording: the folder's name and the path below it",
    "uri": "where the recording was read from",
    "onset_s": "start of the clip, in seconds from the start of the recording",
    "duration_s": "seconds of sound in the clip; less than a whole clip at the end of a recording",
    "recorded_at": "the recorder's own clock at the clip's onset, without a zone; null where the name does not say it",
    "utc_offset_s": "what this clock is ahead of UTC, in seconds; null where the recording's name does not say it",
    "recorder": "which recorder made it: the folder and the name around the time stamp; null without a time stamp",
    "split": "`train`, `validation` or `test`",
    "label": "0 normal, 1 anomalous, null unknown",
    "anomaly_type": "type of the anomaly as the annotation table names it",
    "intervals": "annotated intervals, half-open, in seconds from the clip's onset",
    "annotated": "whether the clip has annotated intervals",
    "machine": "machine that was recorded, in the DCASE layout; null in the others",
    "section": "section of the data set, in the DCASE layout; null in the others",
    "domain": "`source` or `target`, in the DCASE layout; null in the others",
    "channel": "channel that is heard, from 1; null for the mean of all",
    "sample_rate_hz": "samples a second of the recording",
    "channels": "number of its channels",
    "heard": "what is heard of it: `mean` of all channels, the number of one, or `each` by itself",
    "sampled_s": "how much of the recording this row is measured on: 5 windows of 0.5 s spread over it, or all of a "
    "shorter one. What happens between the windows is not seen",
    "level_dbfs": "of each channel, RMS without DC in dB of full scale (a sine of full scale: -3), the median of the "
    "windows; null where it is 0. The lists are null where no window could be decoded",
    "dc": "mean sample of each channel; full scale is 1",
    "clipped": "share of each channel's samples at full scale",
    "zeros": "share of each channel's samples that are 0",
    "correlation": "of each channel at lag 0 with the one that `auto` would choose; null of a silent channel",
    "lag_ms": "by how much each channel is later than that one, in ms, by the largest correlation within 20 ms",
    "problems": "what is wrong, in words; empty where nothing is",
    "take": "which run of an audit of a growing folder brought the recording, from 1; null in a study",
    "shard": "number of the file of `scores` that holds the clip's score; null in a study",
    "bytes": "size of the file; null where it could not be read",
    "fingerprint": "hash of the size and of three parts of the file, or `unreadable`",
    "gone": "whether the file is gone, and was accepted as lost; its results stay",
    "model": "name of the model, such as `mae`",
    "seed": "seed of its training",
    "epoch": "number of the epoch, from 1",
    "train_loss": "mean loss of the training clips",
    "validation_loss": "mean loss of the validation clips",
    "learning_rate": "learning rate of the epoch",
    "gradient_norm": "norm of the gradient over all weights, mean of the epoch's steps",
    "best": "whether the validation loss was the lowest so far",
    "diverged": "whether the training diverged, and then went back to its best epoch or ended",
    "piece_scores.duration_s": "length of the piece in seconds",
    "epochs.duration_s": "how long the epoch took, in seconds",
    "score": "anomaly score: the mean squared reconstruction error of the clip, another score that the study chose, "
    "what a classical detector says, or the sum of an ensemble's calibrated scores; calibrated ones may be negative; "
    "where networks score some clips only (`rescore_share`), that of another clip is at most the lowest of theirs",
    "worst_second_score": "mean squared error of the clip's worst second; null for a model that gives a score only, "
    "for an ensemble and beside another score than the paper's",
    "paper_score": "mean squared error of the clip beside another score; null where `score` is that, and in audits of "
    "recordings",
    "worst_windows": "for each member of an ensemble, or a single model by the paper's score and then by its other, "
    "the highest value of a window of 0.25 s, as in `windows` of `scores`; null for a model that gives a score only",
    "windows": "of a clip that alarmed, the value of each window of 0.25 s, side by side from the clip's onset, the "
    "last one to its end: the mean squared error, or that of another score (of an ensemble that of `raised_by`), "
    "weighted and calibrated as it is; null for a model that gives a score only and for models of release 0.1.0",
    "window_threshold": "a value above it is part of an event; as many normal clips exceed it as alarm",
    "threshold": "a score above it raises an alarm: that of whole clips, or of clips as short as this one; null where "
    "there is no alarm",
    "alarm": "whether the score is above the threshold; null where there is no alarm",
    "worst_onset_s": "start of the worst second, in seconds from the clip's onset",
    "worst_mel_band": "mel band with the largest mean error, from 0",
    "spectrum_difference_db": "from the mean spectrum of the nearest training clip: the median over the mel bands of "
    "the absolute differences in decibels; null where the model does not know its training clips",
    "level_difference_db": "the median of the differences themselves: above 0 where it is louder than that clip",
    "raised_by": "member of the ensemble whose score is the highest above normal, and whose error is explained; null "
    "for a single model",
    "status": "`done`, `skipped` or `failed`",
    "stage": "the stage that says so",
    "reason": "why it was skipped or failed; of a recording that is done, what was wrong with its header, or why it "
    "may not fit the model",
    "ledger.clip_id": "name of the clip; null for a recording, or a part of one, that became no clip",
    "ledger.onset_s": "its start, in seconds from the start of the recording; null for a whole recording",
    "ledger.duration_s": "its length in seconds; null where it is not known",
    "method": "attribution method",
    "curve": "the map summed over the mel bands, one value for each frame that holds sound: T, or less in a short clip",
    "profile": "magnitude of the map at the peak frames of the lowest percentile, one sum for each mel band (F)",
    "map": "the map divided by `map_scale`, mel band by mel band, as many values for each as `curve` has; null where "
    "it is not kept",
    "map_scale": "largest magnitude of the map",
    "degenerate": "whether the curve is flat, so that it points nowhere",
    "percentile": "percentile of the curve that the peaks reach, 0 to 100",
    "tp": "seconds that hold a peak and are annotated",
    "fp": "seconds that hold a peak and are not annotated",
    "fn": "annotated seconds without a peak",
    "precision": "tp / (tp + fp), 0 where that is undefined",
    "recall": "tp / (tp + fn), 0 where that is undefined",
    "f_score": "2 tp / (2 tp + fp + fn), 0 where that is undefined",
    "mode": "which frames are replaced: `frame`, the peaks; `segment`, the annotated frames of each second with a peak",
    "replaced_fraction": "share of the frames that was replaced; under `corrected`, of those on the common grid",
    "error_before": "the clip's score before calibration; of an ensemble, that of the member that raised it",
    "error_after": "the same score once these frames are replaced by their reconstruction",
    "faithfulness": "1 - error_after / error_before; under `paper` at least 0",
    "normalized": "(faithfulness - random) / (oracle - random), with the lines of `controls`; null in mode `segment`, "
    "under `paper` (in an audit of recordings but at the percentile of its events), and where the clip has an even "
    "error: `oracle` is less than 0.01 above `random` at any percentile",
    "log_mel": "input, mel band by mel band, as many values for each as frames hold sound, in the unit of the features",
    "reconstruction": "what the model makes of it, in the same order and unit",
    "event_id": "name of the event: 16 hex digits of a hash of the model, the clips and where in the first it begins",
    "events.recording": "recording in which the event begins",
    "events.onset_s": "start of the event, in seconds from the start of that recording",
    "events.duration_s": "length of the event in seconds",
    "started_at": "the recorder's own clock at its start, without a zone; null where it is not known",
    "ended_at": "the recorder's own clock at its end",
    "events.utc_offset_s": "what the clock at its start is ahead of UTC, in seconds; null where it is not known",
    "parts": "where it lies, half-open, in seconds from the start of each recording: from the first to the last window "
    "above `window_threshold` (whole clips where a model has no windows)",
    "clip_ids": "its alarmed clips; a clip may hold several events",
    "n_alarms": "how many they are",
    "pooling": "which score it is: `mean` of the clip, `worst_second`, a `fitted` one (not the paper's), or the sum of "
    "an `ensemble`",
    "events.score": "that of its clip that is furthest above its threshold, of the pooling that alarms",
    "events.threshold": "the threshold of that clip",
    "strength": "score / threshold; not a number for an ensemble, or where the threshold is not above 0",
    "events.raised_by": "`raised_by` of that clip",
    "seconds": "its seconds that the explanation points at, all of its clips' where none of them overlaps it, or the "
    "worst ones where there is no explanation",
    "mel_band_low": "lowest mel band that carries it, from 0",
    "mel_band_high": "highest mel band that carries it, included",
    "low_hz": "lower edge of the lowest band, in Hz",
    "high_hz": "upper edge of the highest band, in Hz",
    "events.method": "method of the explanation; null where there is none",
    "events.percentile": "percentile of its peaks; null where there is none",
    "events.faithfulness": "mean faithfulness of its clips' explanations, mode `frame`",
    "events.normalized": "mean of their `normalized`: how far the reason goes from random frames (0) to the best ones "
    "(1); null where the error is even, or random frames were not measured",
    "trusted": "verdict of `reasons` for the method: `yes`, it is more faithful than random frames in this audit; null "
    "where that was not asked",
    "median_db": "median over the frames that hold sound of each mel band's level, in decibels (F)",
    "state_id": "name of the change: 16 hex digits of a hash of the model and of where it begins",
    "states.recording": "recording in which the change begins",
    "states.onset_s": "start of its first minute, in seconds from the start of that recording",
    "states.duration_s": "seconds to the end of the last minute that alarms",
    "states.ended_at": "the recorder's own clock at its end; null while it lasts, or where the clock is not known",
    "states.utc_offset_s": "what the clock at its start is ahead of UTC, in seconds; null where it is not known",
    "outcome": "`over`: the sound went back; `lasting`: the recordings end before it does; `usual`: it lasted for 240 "
    "minutes of sound, and is what later minutes are compared with",
    "states.parts": "where it lies, half-open, in seconds from the start of each recording",
    "n_minutes": "how many minutes of it alarm",
    "reference": "what its strongest minute was compared with: the recorder's own `past`, or the training's `normals`",
    "distance_db": "of that minute's spectrum from the two nearest minutes of the reference, RMS over the mel bands",
    "threshold_db": "a distance above it alarms",
    "states.strength": "distance_db / threshold_db",
    "changes": "where the spectrum changed most, at most three ranges of mel bands, and by how many dB on average: "
    "above 0 where it is louder",
    "sounds.recording": "recording that the sound is from",
    "sounds.onset_s": "start of the sound, in seconds from the start of the recording",
    "sounds.duration_s": "its length in seconds: the event and 2 s around it, at most 30 s around its strongest moment",
    "gain_db": "by how many dB it is louder than the recording",
    "opus": "the sound as a file: Ogg Opus, mono, 24 kHz, 16 kbit/s",
    "sounds.expected": "of the 20 strongest events, the same seconds as the model expects them, made from its "
    "reconstruction by Griffin-Lim; null for a model that only scores",
    "n_mels": "F, the number of mel bands",
    "sounds.log_mel": "log-mel spectrogram of the recording there, mel band by mel band, in the unit of the features; "
    "frames are averaged to 600 columns at most",
    "sounds.reason": "why there is no sound: the recording could not be read any more",
    "false_alarm_rate": "share of normal clips that may alarm",
    "false_alarms_per_hour": "what that is an hour",
    "operating_points.threshold": "the threshold that the alarm's rule gives at this rate",
    "operating_points.n_alarms": "how many clips of the audit are above it",
    "operating_points.n_events": "how many events they are",
    "decisions.verdict": "`confirm`, `reject` or `unsure`",
    "decisions.kind": "what it is, in the reviewer's words; may be empty",
    "note": "what the reviewer wrote about it; may be empty",
    "metric": "`auc` or `pauc`, the partial one; `caught_1`, `caught_2` and `caught_5`, the share of anomalous clips "
    "above the score that at most 1, 2 or 5 % of normal clips exceed; `caught` and `false_alarms`, the shares of "
    "anomalous and of normal clips that alarmed, beside the score that alarms; `dcase`, the official score of DCASE "
    "Task 2 where recordings have sections",
    "summary/detection.score": "`paper`, `robust`, the four choices of another score, or `own` of a model that gives a "
    "score only",
    "n_normal_needed": "how many normal clips the rate of false alarms needs; with fewer, `mean` is null",
    "protocol": "how maps are judged: `paper`, `corrected`, or `audit`: as `paper`, of an audit that was evaluated",
    "mean": "mean over the seeds; null where there is nothing to average",
    "std": "standard deviation over the seeds; null for a single one",
    "ci_low": "lower end of the 95 % bootstrap interval over recordings",
    "ci_high": "upper end of that interval",
    "n_seeds": "number of seeds",
    "n_normal": "number of normal clips",
    "n_anomalous": "number of anomalous clips",
    "summary/f_score.anomaly_type": "`all`, or one type of the annotation table",
    "summary/detection.anomaly_type": "`all`, or one type: its anomalous clips against all normal ones",
    "n_clips": "number of clips",
    "control_random": "F-score of peaks at random frames",
    "control_every_second": "F-score where every second is flagged",
    "scope": "`annotated` clips, as in the paper, or `all` clips",
    "line": "what stands beside the methods: `random` frames, `always` (every second is flagged), a curve that needs "
    "no model (`level`, `level_change`, `outlier`), the error of the linear model `frame_pca`, or the `oracle`: the "
    "annotated seconds, for faithfulness the frames with the highest error",
    "lines.line": "a curve that needs no model (`level`, `level_change`, `outlier`), or the error of the linear model "
    "`frame_pca` where it is one of the study's models",
    "lines.curve": "one value for each frame that holds sound",
    "controls.metric": "`f_score`, `faithfulness` in mode `frame`, or `normalized_faithfulness`",
    "controls.value": "its value; of `random` frames the mean of 16 draws",
    "check": "what is checked, see `faithad/audit/checking.py`; in `summary/sanity` also `seeds`: Spearman's rho of "
    "the curves of different seeds; `seconds` are those of one clip, and differ from run to run",
    "checks.protocol": "`corrected`: the paper has no such checks",
    "checks.method": "method; the line `outlier`; null for what is of the clip alone",
    "at": "percentile; percent of the frames (`deletion`, `insertion`) or of the layers (`randomisation`); number of "
    "the group of mel bands; null for the others",
    "checks.value": "its value",
    "summary/seconds.method": "method, or a line of `lines`",
    "summary/seconds.metric": "`auroc`, how often an annotated second ranks above another one, or `average_precision`",
    "ranked": "which seconds are ranked together: those of all clips, each curve less its mean and by its deviation "
    "(`pooled`), or those of each clip (`per_clip`), as the mean over clips. A second's value is the highest of its "
    "frames",
    "summary/seconds.scope": "`annotated` clips, or `all`: normal ones as well, by the error itself (`error_map`)",
    "summary/psds.mean": "the polyphonic sound detection score of one class: the mean of `found` below 100 false "
    "detections an hour, over the seeds",
    "false_per_hour": "rates of false detections, an hour of the annotated and the normal clips",
    "found": "share of the reference intervals that the best threshold with no more false detections finds, mean over "
    "the seeds",
    "summary/psds.n_clips": "number of annotated and of normal clips that were explained",
    "chance": "what a random order has in the mean: 0.5, or the share of annotated seconds",
    "summary/replacements.metric": "`faithfulness`, the mean over all percentiles in mode `frame`, or the area below "
    "E(x') / E(x): `deletion` (small is good), `insertion` (large is good)",
    "summary/replacements.replacement": "what replaces frames: the model's own `reconstruction`, the `training_mean` "
    "of each band, or the MAE's prediction where they are hidden (`inpainting`)",
    "rank_agreement": "Kendall's tau of the means of the model's methods with those of `reconstruction`; else null",
    "summary/replacements.n_clips": "number of deep clips",
    "summary/bands.method": "method, or the line `outlier`, which needs no model",
    "summary/bands.mean": "mean of Spearman's rho over ten groups of mel bands",
    "summary/bands.n_clips": "number of deep clips",
    "summary/sanity.mean": "mean over clips and seeds of Spearman's rho (`randomisation`, `seeds`), of the missing "
    "share (`completeness`), or of the value",
    "passed": "whether the method passes: with all layers reset rho is below 0.5 and has not risen on the way; no clip "
    "misses more than 1 %; null where nothing is asked",
    "summary/controls.model": "name of the model on whose frames the line is computed",
    "summary/controls.metric": "`f_score`, `faithfulness` in mode `frame`, or `normalized_faithfulness`",
    "summary/faithfulness.metric": "`faithfulness`, or `normalized_faithfulness`: the mean of `normalized`",
    "summary/controls.percentile": "percentile of the peaks; null for the mean over all percentiles",
    "question": "what is asked: `masked_training`, whether the MAE's explanations are better than the AE's; "
    "`against_chance`, whether a model's are better than random frames; `against_no_model`, whether they are better "
    "than the best curve that needs no model; `against_linear`, whether a network is better than a linear model: its "
    "AUC, and its explanations against the linear model's error; `best_cell`, whether the chosen cell of a search has "
    "a higher AUC than the paper's",
    "summary/comparison.metric": "`f_score`, `faithfulness`, `normalized_faithfulness`, `band_rho` (mel bands, of the "
    "deep clips) or `auc`",
    "summary/comparison.method": "method; of `auc` how the score is pooled",
    "summary/comparison.mode": "of the faithfulness, `frame` or `segment`; null for the F-score",
    "replacement": "what replaces frames or bands: the model's own `reconstruction`; of the deep clips also the "
    "`training_mean` and `inpainting`; null for the F-score and the AUC",
    "summary/comparison.percentile": "percentile of the peaks; null for the mean over all percentiles, the primary one",
    "model_a": "what is asked about",
    "model_b": "what it is compared with: a model, or a line of `summary/controls`",
    "estimate": "mean over clips of the difference A - B, seeds averaged",
    "summary/comparison.ci_low": "lower end of its 95 % interval by bootstrap-t over recordings; null where it is open",
    "summary/comparison.ci_high": "upper end of that interval; null where it is open",
    "se": "standard error of the estimate: jackknife over recordings, with 3 seeds or more also over seeds",
    "p_t": "two-sided p of Student's t, not adjusted",
    "p_boot": "two-sided p of the bootstrap-t over recordings, not adjusted",
    "p_flip": "two-sided p of studentised sign flips of recordings, not adjusted",
    "p_holm": "the largest of the three after Holm's adjustment for the methods of the question",
    "n_recordings": "number of recordings with such a clip",
    "summary/comparison.n_clips": "number of clips whose difference is defined",
    "summary/comparison.n_seeds": "seeds that both models have; below 3 the verdict is about these networks, not about "
    "two ways of training",
    "n_left_out": "number of clips in scope whose difference is not defined",
    "smallest_effect": "difference that this comparison alone would find with a power of 80 %",
    "verdict": "`yes`: A is larger, `no`: B is larger, `no (equivalent)`: within 0.02, or `undecided`, with the reason",
    "detections": "`events`, or `seconds`: each stretch of the seconds that carry them (column `seconds` of `events`)",
    "detection_tolerance": "a detection is true if at least this share of its time is labelled",
    "ground_truth_tolerance": "a reference interval is found if true detections cover at least this share of it",
    "n_detections": "number of detections",
    "n_true": "how many of them are true",
    "summary/events.precision": "n_true / n_detections; null where there is no detection",
    "n_reference": "number of reference intervals, those that overlap or touch as one",
    "n_found": "how many of them are found",
    "n_not_heard": "how many of them lie in sound that was not scored, and count as not found",
    "summary/events.recall": "n_found / n_reference; null where there is no reference interval",
    "detected_s": "how long all detections are together",
    "labelled_s": "how long all reference intervals are together",
    "shared_s": "how long both are at the same time",
    "not_heard": "recordings with reference intervals that lie in sound that was not scored",
    "trial": "name of the trial",
    "mask_ratio": "share of the patches that the MAE's training hides",
    "patch": "edge of a patch, in cells",
    "settings": "values of the settings in `search.space`, and of others that the trial had, as JSON",
    "summary/search.status": "`done`, `stopped` early by the scheduler, or `failed`",
    "objective": "what the search maximises or minimises",
    "value": "its value; null where the trial failed",
    "proxy_auc": "AUC on synthetic disturbances of validation clips",
    "summary/search.validation_loss": "lowest validation loss",
    "auc": "AUC of the test clips; null where they have no labels",
    "pauc": "partial AUC of the test clips",
    "epochs": "number of epochs that were trained",
    "best_epoch": "the epoch that was kept",
    "diverged_epochs": "how many epochs diverged",
    "residual": "the error of each cell, a row of `scoring.residuals.RESIDUALS`",
    "weighting": "what the errors of the bands are divided by, a row of `scoring.pooling.WEIGHTINGS`",
    "summary/search_scores.pooling": "how the frames become one number, a row of `scoring.pooling.POOLINGS`",
    "calibration": "what the number is compared with, a row of `scoring.calibration.CALIBRATIONS`",
    "summary/search_scores.caught": "share of the disturbed validation clips above the alarm's threshold",
    "chosen": "whether it is the score of `best/`",
    "present": "whether the trial belongs to the search as it is configured now, whose best cell is chosen",
    "summary/search.duration_s": "how long the trial took, in seconds",
    "run": "name of the run: its folder, with as many folders above it as tell it from the others",
    "compared/clips.reference": "the run that it is compared with: the first one that was given",
    "compared/events.reference": "the run that it is compared with: the first one that was given",
    "compared/drift.reference": "the run that it is compared with: the first one that was given",
    "setting": "dotted name of a setting that is not the same in all runs, or of what is known of the model",
    "compared/settings.value": "its value as YAML; null where the run does not have it",
    "name": "what the number is",
    "compared/numbers.value": "the number; null where it is not known",
    "compared/numbers.ci_low": "lower end of its 95 % interval over recordings; null where it has none",
    "compared/numbers.ci_high": "upper end of that interval",
    "compared/clips.metric": "`alarm` (1 or 0) and `score` of an audit; of a study `auc`, `f_score` or `faithfulness`",
    "compared/clips.mode": "of the faithfulness, `frame` or `segment`; null for others",
    "compared/clips.method": "attribution method; of `auc` how the score is pooled; of an audit the score that alarms",
    "compared/clips.estimate": "mean over the clips of both runs of the difference run - reference, seeds averaged",
    "compared/clips.ci_low": "lower end of its 95 % interval by bootstrap-t over recordings; null where it is open",
    "compared/clips.ci_high": "upper end of that interval; null where it is open",
    "compared/clips.n_clips": "number of clips whose difference is defined",
    "compared/clips.n_seeds": "seeds of each model; null in audits, and where the runs have different numbers of them",
    "compared/clips.verdict": "`yes`: the run is larger, `no`: the reference is larger, `no (equivalent)`, or "
    "`undecided`, with the reason",
    "compared/events.status": "`both` runs have the event, it is `new` in the run or `gone` from it, or its sound is "
    "`unheard` by the other run",
    "compared/events.recording": "recording in which the event begins",
    "compared/events.onset_s": "its start, in seconds from the start of the recording",
    "compared/events.duration_s": "how long it lasts",
    "compared/events.started_at": "the recorder's own clock at its start; null where that is not known",
    "compared/events.event_id": "name of the event in the run; null where it has none",
    "reference_event_id": "name of the event in the reference, the first of several; null where it has none",
    "whole_recording": "whether the recording is different as a whole, and the event a part of that",
    "compared/drift.recorder": "which recorder, or the folder of its recordings",
    "quantity": "`level_dbfs` of each recording, or the median `score` of its clips",
    "since": "the recorder's own clock at the first recording after the change; null: compared are reference and run",
    "before": "median of the recordings before the change",
    "after": "median of those after it",
    "p": "of no change, by ranks of recordings",
    "n_before": "number of recordings before the change",
    "n_after": "number of those after it",
    "matters": "whether p is at most 0.01, 5 recordings stand on each side, and the change is as large as 3 dB, or, of "
    "scores, as the spread of the recordings before",
}
