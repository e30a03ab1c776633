"""Leave out a clip that kills its process, and no other clip.

A decoder may crash on a file, or a clip may need more memory than there is. No exception can be caught then: the
process ends, and Ray starts another one, which gets the same clips and dies as well. So a process writes a mark, one
small file, before it works on the clips of a shard, and deletes it afterwards. A process that finds a mark knows that
another one died at this work:

1. After one death the clips are tried again together, because most deaths have other causes.
2. After two deaths each clip is first tried alone, with its name in the mark; the results are thrown away. A clip that
   was being tried at two deaths is left out, with a reason. All others are then done together, so that their results
   are those of an undisturbed run.
3. Clips that all pass alone and still kill their process together are left out together after six deaths.

A clip that is alone in its shard need not be tried first: each death is its own.

The death of a whole run (its driver was killed, or its cluster went away) says less about the clips at work, and counts
half.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import pyarrow as pa

from faithad import listing, storage
from faithad.runs.marks import read_mark

Result = TypeVar("Result")

# Deaths after which each clip is tried alone, one clip is left out, and all clips are left out.
_DEATHS_TO_TRY_ALONE, _DEATHS_OF_ONE, _DEATHS_OF_ALL = 2.0, 2.0, 6.0

# In a mark, in place of a clip's id.
_TOGETHER = "together"
_KEYS = {"at", "pid", "host", "run", "died"}


class Attempt(NamedTuple, Generic[Result]):
    """The result of an attempt at a shard.

    Attributes:
        result: of the clips that were done together; None if there were none.
        left_out: the reason for each other clip, by its position.
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
    """Do some work with the clips of a shard, or with other things, that may kill this process.

    Args:
        mark: location of the mark, for this shard and this work alone.
        clip_ids: of the shard.
        run: an id of this run of the program.
        what: the work, as the subject of the reason: `Reading this clip`.
        together: does the work with the clips at some positions.
        alone: tries it with one clip; its result is thrown away.
    """
    died = _deaths(mark, run)
    try:
        if died.get(_TOGETHER, 0.0) >= _DEATHS_TO_TRY_ALONE:
            for position, clip_id in enumerate(clip_ids):
                if died.get(clip_id, 0.0) < _DEATHS_OF_ONE:
                    _write_mark(mark, run, clip_id, died)
                    alone(position)
        left_out = _left_out(clip_ids, died, what)
        rest = [position for position in range(len(clip_ids)) if position not in left_out]
        result = None
        if rest:
            _write_mark(mark, run, clip_ids[rest[0]] if len(rest) == 1 else _TOGETHER, died)
            result = together(rest)
    finally:  # also after an error, which is no death
        with contextlib.suppress(OSError, pa.ArrowException):
            storage.delete(mark)
    return Attempt(result, left_out)


def _left_out(clip_ids: Sequence[str], died: dict[str, float], what: str) -> dict[int, str]:
    """The reason for each clip that is not tried any more, by its position."""
    left_out = {
        position: f"{what} ended its process {died[clip_id]:g} times, without an error to tell: too little memory, or "
        "a decoder that crashed. Look at the recording."
        for position, clip_id in enumerate(clip_ids)
        if died.get(clip_id, 0.0) >= _DEATHS_OF_ONE
    }
    if died.get(_TOGETHER, 0.0) >= _DEATHS_OF_ALL:
        reason = (
            f"{what} together with its neighbours ended their process {died[_TOGETHER]:g} times, though each of them "
            "passes alone: too little memory, most likely."
        )
        left_out = dict.fromkeys(range(len(clip_ids)), reason) | left_out
    return left_out


def count_deaths(folder: str) -> float:
    """How many deaths the marks below a folder count: it grows with each attempt that finds an earlier one's mark."""
    marks = [_read_mark(location) for _, location in listing.list_files(folder, suffixes=[".json"])]
    return sum(sum(mark["died"].values()) for mark in marks if mark is not None)


def _deaths(mark: str, run: str) -> dict[str, float]:
    """Deaths at this work, by the clip that was at work, or `_TOGETHER`; among them that of the mark's writer."""
    content = _read_mark(mark)
    if content is None:
        return {}
    died: dict[str, float] = content["died"]
    return died | {content["at"]: died.get(content["at"], 0.0) + (1.0 if content["run"] == run else 0.5)}


def _read_mark(location: str) -> dict[str, Any] | None:
    """A mark as `_write_mark` wrote it; None where there is none, or a damaged one."""
    mark = read_mark(location)
    return mark if mark is not None and mark.keys() == _KEYS else None


def _write_mark(mark: str, run: str, at: str, died: dict[str, float]) -> None:
    content = {"at": at, "pid": os.getpid(), "host": socket.gethostname(), "run": run, "died": died}
    storage.write_text(mark, json.dumps(content), flush=False)  # it outlives its process, which is enough
