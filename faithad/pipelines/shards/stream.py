"""Clips travel through Ray Data in shards: one row of a data set holds some clips of the manifest.

A row names its shard, or holds its clips as a small Arrow table. So a stage gets whole shards whatever blocks Ray
makes, writes each one to a file of a fixed name, and keeps all workers busy even if the manifest is a single block.

When a process dies, Ray starts another one and gives it the same shard again, without a limit. `attempts` sees to it
that this ends, by finding the clip that kills its process.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import ray.data
from ray.data.exceptions import ExecutionTimeoutError, SystemException
from ray.exceptions import RayError, UserCodeException

from faithad.errors import StudyError
from faithad.pipelines.shards.failures import WorkersLost, first_cause
from faithad.progress import Ticker
from faithad.runs.lock import require_still_alone
from faithad.vocabulary import duration

# A row of a data set that names a shard or holds one.
ShardRow = dict[str, Any]

# A manifest of this many clips or more has at least this many shards: enough to keep some dozen workers busy until
# shortly before the end.
_FEWEST_SHARDS = 64

# Ray gives up after this long without progress.
_PATIENCE_S = 600


def shard_size(n_clips: int, *, largest: int, fewest: int = _FEWEST_SHARDS) -> int:
    """Clips in a shard: `largest`, or fewer if there would be fewer shards than `fewest`, and workers without one.

    It depends on the clips alone, not on the cluster: another run may go on on another cluster.
    """
    return max(1, min(largest, math.ceil(n_clips / fewest)))


def shards(clips: pa.Table, *, size: int) -> list[pa.Table]:
    """Cut a table of clips into slices of at most `size` clips, in its order."""
    return [clips.slice(start, size) for start in range(0, clips.num_rows, size)]


def dataset(rows: Sequence[ShardRow]) -> ray.data.Dataset:
    """A Ray data set with one block per row, without messages, that gives up after ten minutes without progress."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = _PATIENCE_S
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # from_arrow would start one task per block only to look at it.
    return ray.data.from_items(list(rows), override_num_blocks=len(rows))


class Tally:
    """Counts clips as shards come in, and shows the counts."""

    def __init__(self, ticker: Ticker) -> None:
        self._ticker = ticker
        self._done = self._failed = 0

    def add(self, row: ShardRow) -> None:
        """Count a shard's `n_done` and `n_failed`."""
        self._done += row["n_done"]
        self._failed += row["n_failed"]
        self._ticker.update(self._done + self._failed, f"{self._failed} failed" if self._failed else "")


def consume(results: ray.data.Dataset, *, title: str, tally: Tally) -> None:
    """Run a chain that gives one row with `n_done` and `n_failed` per shard.

    Raises:
        StudyError: a shard could not be processed; the text is that of the cause. Or another driver has taken over.
        WorkersLost: it was not the shard's fault.
    """
    try:
        for row in results.iter_rows():
            tally.add(row)
            require_still_alone()
    except ExecutionTimeoutError as error:
        raise StudyError(
            f"The stage {title!r} stopped: no clips were finished for {duration(_PATIENCE_S)}. Either other programs "
            "take all of this machine's cores, or a drive or a store does not answer. Run the same command again: it "
            "goes on where this one stopped."
        ) from error
    except UserCodeException as error:
        raise StudyError(f"The stage {title!r} stopped: {first_cause(error)}") from error
    except (RayError, SystemException) as error:
        raise WorkersLost(f"The stage {title!r} stopped: {first_cause(error)}") from error


def to_bytes(table: pa.Table) -> bytes:
    """An Arrow table as one value of a row."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def from_bytes(payload: bytes) -> pa.Table:
    """The table that `to_bytes` was given."""
    with pa.ipc.open_stream(payload) as reader:
        return reader.read_all()
