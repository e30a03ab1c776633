"""What an audit makes of its clips: events, what lasts, their sounds, and what is decided about them."""

from __future__ import annotations

import pyarrow as pa

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
        pa.field("expected_log_mel", pa.list_(pa.float16())),
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
