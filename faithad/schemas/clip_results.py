"""What an audit finds of each clip: a folder of shards per (model, seed)."""

from __future__ import annotations

import pyarrow as pa

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
        pa.field("level_db", pa.float64()),
        pa.field("loudest_second_db", pa.float64()),
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

# The lines that methods are compared with, on the frames that the model's curves have.
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
