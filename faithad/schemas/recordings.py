"""What is known of recordings and clips before any model: the manifest, their health, and the ledger."""

from __future__ import annotations

import pyarrow as pa

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

# Every second of every recording is in a ledger. A row without `clip_id` is about a whole recording (or the rest of
# one) that never became clips.
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
