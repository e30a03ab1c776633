"""The table `health`: what is known of the sound of each recording, and the lines that the index prints about it."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from faithad.clips import health
from faithad.clips.channels import heard_channels
from faithad.clips.recording_names import read_name
from faithad.errors import shown
from faithad.schemas import HEALTH
from faithad.vocabulary import ChannelChoice, count, listed

if TYPE_CHECKING:  # a report reads the table without torch
    from faithad.clips.recordings import AudioHeader

HealthRow = dict[str, Any]  # of schemas.HEALTH

# How the words of comparisons with other recordings and with the model begin: they are made anew for rows of a table.
_COMPARISONS = ("duplicate (", "sample rate too low (", "louder than usual (", "quieter than usual (")

_LISTS = ("level_dbfs", "dc", "clipped", "zeros", "correlation", "lag_ms")


def health_row(recording: str, header: AudioHeader, choice: ChannelChoice) -> HealthRow:
    """The row of one recording, as far as it does not depend on the others.

    Args:
        recording: its name.
        header: with the recording's health.
        choice: of the channel that is heard.
    """
    channels = heard_channels(choice, header.channels, header.health)
    heard = "none" if not channels else "each" if len(channels) > 1 else "mean" if channels == [None] else channels[0]
    sampled = header.health
    return {
        "recording": recording,
        "sample_rate_hz": header.sample_rate_hz,
        "channels": header.channels,
        "heard": "1" if header.channels == 1 and channels else str(heard),
        "sampled_s": 0.0 if sampled is None else sampled.sampled_s,
        **{name: None if sampled is None else list(getattr(sampled, name)) for name in _LISTS},
        "problems": [] if sampled is None else health.problems(sampled),
    }


def health_table(
    rows: Iterable[HealthRow], *, model_rate_hz: int, same_bytes: Iterable[Sequence[str]] = ()
) -> pa.Table:
    """The table, with the problems that only a comparison of recordings with each other and with the model shows.

    Args:
        rows: from `health_row`, or of an earlier table.
        model_rate_hz: the sample rate of the model's features.
        same_bytes: groups of recordings that are copies of each other.

    Returns:
        schemas.HEALTH, sorted by recording.
    """
    rows = sorted(rows, key=lambda row: str(row["recording"]))
    levels = {row["recording"]: level for row in rows if (level := heard_level(row)) is not None}
    recorders = {name: read_name(name).recorder or posixpath.dirname(name) for name in levels}
    jumps = health.level_jumps(levels, recorders)
    copies = {name: f"duplicate (of {group[0]})" for group in same_bytes for name in group[1:]}
    return pa.Table.from_pylist([_with_comparisons(row, (copies, jumps), model_rate_hz) for row in rows], schema=HEALTH)


def problem_line(table: pa.Table) -> str | None:
    """What is wrong with the recordings of schemas.HEALTH, with the first names of each kind; None if nothing is."""
    rows = [(row["recording"], row["problems"]) for row in table.select(["recording", "problems"]).to_pylist()]
    faulty = [(shown(name), problems) for name, problems in rows if problems]
    if not faulty:
        return None
    has = "has" if len(faulty) == 1 else "have"
    return f"{len(faulty):,} of {count(len(rows), 'recording')} {has} faults: {health.in_words(faulty)}"


def channel_line(table: pa.Table) -> str | None:
    """Of which recordings of schemas.HEALTH one channel alone is heard; None where there is none."""
    names: dict[str, list[str]] = {}
    for row in table.select(["recording", "channels", "heard"]).to_pylist():
        if row["channels"] > 1 and row["heard"].isdigit():
            names.setdefault(row["heard"], []).append(shown(row["recording"]))
    if not names:
        return None
    parts = [f"channel {number} ({listed(names[number], most=2)})" for number in sorted(names, key=int)]
    n = sum(map(len, names.values()))
    return f"Of {count(n, 'recording')} one channel is heard, not the mean of all: {'; '.join(parts)}"


def _with_comparisons(row: HealthRow, others: Sequence[Mapping[str, str]], model_rate_hz: int) -> HealthRow:
    texts = [health.low_rate(row["sample_rate_hz"], model_rate_hz), *(texts.get(row["recording"]) for texts in others)]
    own = [text for text in row["problems"] if not text.startswith(_COMPARISONS)]
    return row | {"problems": [*own, *filter(None, texts)]}


def heard_level(row: HealthRow) -> float | None:
    """The level of the channel that is heard, of the loudest where all are."""
    if row["level_dbfs"] is None:
        return None
    if row["heard"].isdigit():
        level: float | None = row["level_dbfs"][int(row["heard"]) - 1]
        return level
    return max((level for level in row["level_dbfs"] if level is not None), default=None)
