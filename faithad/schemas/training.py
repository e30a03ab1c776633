"""What trainings and searches leave."""

from __future__ import annotations

import pyarrow as pa

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

SEARCH_MEMBERS = pa.schema(
    [
        pa.field("trial", pa.string(), nullable=False),
        pa.field("members", pa.list_(pa.string()), nullable=False),
        pa.field("score", pa.string()),
        pa.field("caught", pa.float64(), nullable=False),
        pa.field("proxy_auc", pa.float64(), nullable=False),
        pa.field("behind", pa.float64(), nullable=False),
        pa.field("behind_se", pa.float64()),
        pa.field("n_normal", pa.int32(), nullable=False),
        pa.field("n_disturbed", pa.int32(), nullable=False),
        pa.field("chosen", pa.bool_(), nullable=False),
    ]
)
