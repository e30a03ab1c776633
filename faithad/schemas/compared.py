"""What several runs have in common, and where they differ."""

from __future__ import annotations

import pyarrow as pa

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
