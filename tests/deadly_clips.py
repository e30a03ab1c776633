"""Clips that kill the process which reads or audits them, as a crash in a decoder or a lack of memory would."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from faithad.audit.judging import TableRow
from faithad.clips.manifest import Recording
from faithad.clips.recordings import AudioHeader
from faithad.pipelines import headers
from faithad.pipelines.audit.worker import Auditor, read_shard
from faithad.pipelines.shards import log_mels
from faithad.pipelines.shards.stream import ShardRow

# Part of the recording's name, and the clip's onset in it.
Place = tuple[str, float]


def is_at(clip: TableRow, places: Sequence[Place]) -> bool:
    return any(part in clip["recording"] and clip["onset_s"] == onset_s for part, onset_s in places)


def _die_at(clip: TableRow, places: Sequence[Place]) -> None:
    if is_at(clip, places):
        os.kill(os.getpid(), signal.SIGKILL)


# What the name of a file ends in whose header kills the process that reads it.
DEADLY_TO_OPEN = "deadly.wav"
_read_some = headers._read_some


def opening_kills(recordings: Sequence[Recording], mark: str, run: str) -> list[AudioHeader | str]:
    """The task that reads headers, in a process that some files kill."""

    def probe(uri: str) -> AudioHeader:
        if uri.endswith(DEADLY_TO_OPEN):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(uri)

    original, headers.examine_recording = headers.examine_recording, probe
    try:
        return _read_some(recordings, mark, run)
    finally:
        headers.examine_recording = original


def reading_kills(*places: Place) -> Callable[..., ShardRow]:
    """`read_shard`, in a process that some clips kill."""
    return functools.partial(_read_shard, deadly=places)


def _read_shard(row: ShardRow, *, deadly: Sequence[Place], **options: Any) -> ShardRow:
    def read(clip: TableRow, *settings: Any) -> np.ndarray:
        _die_at(clip, deadly)
        return original(clip, *settings)

    original, log_mels._read_sound = log_mels._read_sound, read
    try:
        return read_shard(row, **options)
    finally:
        log_mels._read_sound = original


class AuditingKills(Auditor):
    """An actor that some clips kill."""

    deadly: ClassVar[Sequence[Place]]

    def audit(self, model: Any, clips: list[TableRow], *others: Any) -> dict[str, list[TableRow]]:
        for clip in clips:
            _die_at(clip, self.deadly)
        return super().audit(model, clips, *others)
