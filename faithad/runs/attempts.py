"""A clip that kills its process takes no other clip along.

A decoder can crash on a file, a clip can need more memory than there is. Nothing can be caught then: the process is
gone, Ray starts another one, which gets the same clips and dies of them again. So before a process works on the clips
of a shard it leaves a mark, one small file, and takes it away afterwards. Whoever finds a mark knows that somebody died
here:

1. At the first death the clips are tried again together: mostly they had nothing to do with it.
2. From the second one on they are probed first, one by one, with their names in the mark. Nothing of that is kept. A
   clip that was being probed at two deaths is left out, with a reason, and all others are done together as ever, so
   that their results are those of an undisturbed run.
3. Clips that are all fine alone and still die together, time and again, are left out together.

A clip that has no other beside it need not be probed: each death there is its own.

The death of a whole run (its driver was killed, its cluster went away) says less about the clips that were in work, and
counts half.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import pyarrow as pa

from faithad import storage

Result = TypeVar("Result")

# Deaths after which clips are probed one by one, a clip is left out, and clips that only die together are left out.
_PROBE, _CONDEMN, _GIVE_UP = 2.0, 2.0, 6.0

TOGETHER = "together"


class Attempt(NamedTuple, Generic[Result]):
    """What came of a shard.

    Attributes:
        result: of the clips that were done together; None where none was left.
        left_out: for each clip that is not among them, by its position, the reason.
    """

    result: Result | None
    left_out: dict[int, str]


def attempt(
    mark: str,
    clip_ids: Sequence[str],
    *,
    run: str,
    what: str,
    together: Callable[[list[int]], Result],
    alone: Callable[[int], object],
) -> Attempt[Result]:
    """Do something with the clips of a shard, or with other things, that may kill this process.

    Args:
        mark: location of the mark's file, which only this shard and this work have.
        clip_ids: of the shard.
        run: tells runs of the program apart.
        what: the work, for reasons: `Reading this clip`.
        together: does it with the clips at some positions.
        alone: tries it with one clip; what it returns is not kept.
    """
    died = _deaths(mark, run)
    try:
        if died.get(TOGETHER, 0.0) >= _PROBE:
            for position, clip_id in enumerate(clip_ids):
                if died.get(clip_id, 0.0) < _CONDEMN:
                    _write(mark, run, clip_id, died)
                    alone(position)
        left_out = _left_out(clip_ids, died, what)
        rest = [position for position in range(len(clip_ids)) if position not in left_out]
        result = None
        if rest:
            _write(mark, run, clip_ids[rest[0]] if len(rest) == 1 else TOGETHER, died)
            result = together(rest)
    finally:  # also after an error: that is not a death
        with contextlib.suppress(OSError, pa.ArrowException):
            storage.delete(mark)
    return Attempt(result, left_out)


def _left_out(clip_ids: Sequence[str], died: dict[str, float], what: str) -> dict[int, str]:
    """The clips that will not be tried any more, and why."""
    left_out = {
        position: f"{what} ended its process {died[clip_id]:g} times, without an error to tell: too little memory, or "
        "a decoder that crashed. Look at the recording; --retry-failed tries it again."
        for position, clip_id in enumerate(clip_ids)
        if died.get(clip_id, 0.0) >= _CONDEMN
    }
    if died.get(TOGETHER, 0.0) >= _GIVE_UP:
        reason = (
            f"{what} together with its neighbours ended their process {died[TOGETHER]:g} times, though each of them "
            "passes alone: too little memory, most likely. --retry-failed tries them again."
        )
        left_out = dict.fromkeys(range(len(clip_ids)), reason) | left_out
    return left_out


def count_deaths(folder: str) -> float:
    """How many deaths the marks below a folder tell of: it grows with each attempt that finds an earlier one's mark."""
    marks = [json.loads(storage.read_text(place)) for _, place in storage.list_files(folder, suffixes=[".json"])]
    return sum(sum(mark["died"].values()) for mark in marks)


def _deaths(mark: str, run: str) -> dict[str, float]:
    """How often something died here, by what it was doing; the last one is the one that left the mark."""
    if not storage.exists(mark):
        return {}
    left: dict[str, Any] = json.loads(storage.read_text(mark))
    died: dict[str, float] = left["died"]
    return died | {left["at"]: died.get(left["at"], 0.0) + (1.0 if left["run"] == run else 0.5)}


def _write(mark: str, run: str, at: str, died: dict[str, float]) -> None:
    told = {"at": at, "pid": os.getpid(), "host": socket.gethostname(), "run": run, "died": died}
    storage.write_text(mark, json.dumps(told))
