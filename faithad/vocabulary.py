"""Names that several packages of faithad share, and how things are counted and listed in sentences. Without torch."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args


class AlarmPooling(NamedTuple):
    """How the errors of a clip's cells become its score. A new pooling is a row of `ERROR_POOLINGS`.

    Attributes:
        column: of the tables `scores` and `validation_scores`.
        title: in tables of the report.
        phrase: inside a sentence.
        has_ratio: whether scores are errors, of which one may be twice another; sums of logarithms have no ratio.
    """

    column: str
    title: str
    phrase: str
    has_ratio: bool = True


# Of one model.
ERROR_POOLINGS = {
    "mean": AlarmPooling("score", "whole clip", "the clip's mean error"),
    "worst_second": AlarmPooling("worst_second_score", "worst second", "the clip's worst second"),
}
# `fitted` is any score but the paper's, `ensemble` that of a model that `faithad train --normals` has made, see
# `faithad.scoring`.
FITTED, ENSEMBLE = "fitted", "ensemble"
POOLINGS = ChainMap(
    ERROR_POOLINGS,
    {
        FITTED: AlarmPooling("score", "fitted score", "the clip's fitted score", has_ratio=False),
        ENSEMBLE: AlarmPooling("score", "ensemble", "the sum of its models' calibrated scores", has_ratio=False),
    },
)


# Among models and lines: the mel power of a frame, second or clip. It needs no model.
LEVEL = "level"

# Metrics of detection: the share of anomalous clips above what this share of the normal ones exceeds.
CAUGHT_AT = {"caught_1": 0.01, "caught_2": 0.02, "caught_5": 0.05}

# Normal clips of fewer recordings promise a rate of false alarms that other days may not keep.
FEW_RECORDINGS = 10

# Which channel of a recording is heard: a number from 1, or see `clips.channels`.
ChannelName = Literal["auto", "first", "loudest", "mean", "each"]
ChannelChoice = int | ChannelName
CHANNEL_NAMES: tuple[ChannelName, ...] = get_args(ChannelName)

# Experiment trackers that runs can be exported to: see `runs.tracking`.
TrackerName = Literal["tensorboard", "mlflow", "wandb"]

# How maps are judged. `paper`: as in Deschênes et al. 2026. `corrected`: frames by rank, all models on one frame grid,
# flat curves left out, faithfulness with its sign and compared with chance.
PAPER, CORRECTED = "paper", "corrected"

# Files that are recordings, and files that are one clip's spectrogram; compared without case.
AUDIO_SUFFIXES = (".wav", ".flac")
SPECTROGRAM_SUFFIX = ".pt"


def count(n: int, singular: str, plural: str | None = None) -> str:
    """`1 clip`, `2,000 clips`."""
    return f"{n:,} {singular if n == 1 else plural or singular + 's'}"


def listed(items: Sequence[str], *, most: int = 10, separator: str = ", ") -> str:
    """The first items in one string, and how many more there are: `a, b and 3 more`."""
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return separator.join(items[:most]) + more


def rounded(value: float, digits: int = 3) -> str:
    """A number with this many significant digits, never as a power of ten: `0.56`, `260`, `3,600`."""
    return f"{float(f'{value:.{digits}g}'):,.10g}"


def size(n_bytes: float) -> str:
    """Such as `1.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 999.5:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.1f} TB"


def duration(seconds: float) -> str:
    """20 s, 3.5 min, 48.0 h."""
    if seconds < 120:
        return f"{round(seconds, 1):g} s"
    return f"{seconds / 60:.1f} min" if seconds < 2 * 3_600 else f"{seconds / 3_600:.1f} h"
