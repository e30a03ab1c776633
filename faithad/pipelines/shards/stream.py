"""The unit in which clips travel through Ray Data: a shard, some clips of the manifest in one row.

A row names its shard, or holds its clips as a small Arrow table. So a stage sees whole shards whatever Ray's blocks
are, each shard can be written to one file of a fixed name, and a manifest that arrives as one block still feeds all
workers.

A process that dies takes only its own work along: Ray starts another and gives it the shard again, as often as it
takes. That this ends is up to `attempts`, which finds the clip that kills its process every time.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import ray.data
from ray.data.exceptions import ExecutionTimeoutError, SystemException
from ray.exceptions import RayError, UserCodeException

from faithad.errors import StudyError
from faithad.progress import Ticker

Row = dict[str, Any]

# A manifest that holds as many clips gives at least this many shards: enough for some dozen workers to be busy until
# shortly before the end.
_FEWEST_SHARDS = 64


class WorkersLost(StudyError):
    """Processes or machines went away and Ray could not make up for it. What was written until then is there."""


def shard_size(n_clips: int, *, largest: int) -> int:
    """Clips in a shard: `largest`, or fewer where workers would be left without one.

    It follows from the clips alone, not from the cluster: a run may go on on another one.
    """
    return max(1, min(largest, math.ceil(n_clips / _FEWEST_SHARDS)))


def shards(clips: pa.Table, *, size: int) -> list[pa.Table]:
    """Cut a table of clips in slices of at most `size` clips, in its order."""
    return [clips.slice(start, size) for start in range(0, clips.num_rows, size)]


def dataset(rows: Sequence[Row]) -> ray.data.Dataset:
    """A Ray data set with one block for each row, quiet and with a bound on silent waiting."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = 600
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # from_arrow would start a task for each of the blocks, only to look at it.
    return ray.data.from_items(list(rows), override_num_blocks=len(rows))


class Tally:
    """Counts clips as shards come in, and shows them."""

    def __init__(self, ticker: Ticker) -> None:
        self._ticker = ticker
        self._done = self._failed = 0

    def add(self, row: Row) -> None:
        """Count a shard's `n_done` and `n_failed`."""
        self._done += row["n_done"]
        self._failed += row["n_failed"]
        self._ticker.update(self._done + self._failed, f"{self._failed} failed" if self._failed else "")


def consume(results: ray.data.Dataset, *, title: str, tally: Tally) -> None:
    """Run a chain whose rows say `n_done` and `n_failed`, one row a shard.

    Raises:
        StudyError: a shard could not be processed; the text is the cause's own.
        WorkersLost: it was not the shard's fault.
    """
    try:
        for row in results.iter_rows():
            tally.add(row)
    except (UserCodeException, ExecutionTimeoutError) as error:
        raise StudyError(f"The stage {title!r} stopped: {first_cause(error)}") from error
    except (RayError, SystemException) as error:
        raise WorkersLost(f"The stage {title!r} stopped: {first_cause(error)}") from error


# The line of a traceback that names an exception, of ours or any. Ray carries the traceback of a worker as text only.
_OURS = re.compile(r"^faithad\.errors\.(\w+: .*)$", re.MULTILINE)
_EXCEPTION = re.compile(r"^([\w.]+(?:Error|Exception|Interrupt)(?:: .*)?)$", re.MULTILINE)


def first_cause(error: BaseException) -> str:
    """What went wrong first, out of the errors that Ray wraps around it: a chained traceback begins with it.

    An error of ours says more than one of a library that it was made of.
    """
    found = _OURS.search(str(error)) or _EXCEPTION.search(str(error))
    return found.group(1) if found else f"{type(error).__name__}: {error}"


def to_bytes(table: pa.Table) -> bytes:
    """An Arrow table as one value of a row."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def from_bytes(payload: bytes) -> pa.Table:
    with pa.ipc.open_stream(payload) as reader:
        return reader.read_all()
