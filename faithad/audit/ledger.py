"""One ledger of a whole audit: every second of every recording is done, skipped with a reason or failed with one.

The shards of the audit's own ledgers follow the manifest, so all is merged by reading each once, in order.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from faithad import schemas, storage
from faithad.audit.steps import EXPLAIN, SCORE, Step
from faithad.clips.ledger import LedgerRow, ledger_order
from faithad.errors import StudyError
from faithad.runs import layout
from faithad.runs.tables import read_shards, shard_files

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Counts:
    """How many clips an audit's ledger has, and how many recordings or parts of them (`parts`) became no clip."""

    clips: int
    clips_done: int
    clips_failed: int
    parts_failed: int
    parts_skipped: int


def merge_ledger(out: str) -> None:
    """Write the whole ledger.

    Raises:
        StudyError: a clip of the manifest is in no ledger, or in one twice.
    """
    not_explained = {row["clip_id"]: row for row in _rows(out, EXPLAIN.ledger) if row["status"] == "failed"}
    scored = (not_explained.get(row["clip_id"], row) for row in _rows(out, SCORE.ledger))
    left_over = storage.read_table(storage.join(out, layout.INDEX_LEDGER)).to_pylist()
    merged = heapq.merge(scored, sorted(left_over, key=ledger_order), key=ledger_order)
    n_clips = 0
    with (
        storage.open_output(storage.join(out, layout.LEDGER)) as file,
        pq.ParquetWriter(file, schemas.LEDGER, compression="zstd") as writer,
    ):
        for rows in _portions(merged):
            n_clips += sum(row["clip_id"] is not None for row in rows)
            writer.write_table(pa.Table.from_pylist(rows, schema=schemas.LEDGER))
    wanted = storage.read_table(storage.join(out, layout.MANIFEST), columns=["clip_id"]).num_rows
    if n_clips != wanted:
        raise StudyError(
            f"The ledgers in {out} hold {n_clips} clips, the manifest {wanted}: results were removed or added "
            "by hand. Remove the folder, or audit with --redo."
        )


def count_ledger(out: str) -> Counts:
    """Count what the merged ledger says."""
    table = storage.read_table(storage.join(out, layout.LEDGER), columns=["clip_id", "status"])
    clips = Counter(table.filter(pc.is_valid(table["clip_id"]))["status"].to_pylist())
    parts = Counter(table.filter(pc.is_null(table["clip_id"]))["status"].to_pylist())
    return Counts(
        clips=clips.total(),
        clips_done=clips["done"],
        clips_failed=clips["failed"],
        parts_failed=parts["failed"],
        parts_skipped=parts["skipped"],
    )


def remove_failed_shards(out: str, step: Step) -> None:
    """Delete a step's shards in which a clip failed. Its stage must have begun, or it would still count as done."""
    folder = storage.join(out, step.ledger)
    for location, table in zip(shard_files(folder), read_shards(folder, columns=["status"]), strict=True):
        if pc.any(pc.equal(table["status"], "failed")).as_py():
            storage.delete(location)


def _rows(out: str, name: str) -> Iterator[LedgerRow]:
    for table in read_shards(storage.join(out, name)):
        yield from table.to_pylist()


def _portions(rows: Iterable[LedgerRow]) -> Iterator[list[LedgerRow]]:
    left = iter(rows)
    while portion := list(islice(left, _ROWS_AT_ONCE)):
        yield portion
