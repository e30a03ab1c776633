"""One ledger of a whole audit or study: every second of every recording is done, skipped or failed, with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from faithad import parquet, storage
from faithad.audit.steps import EXPLAIN, SCORE, Step
from faithad.clips.ledger import LedgerRow, unheard
from faithad.errors import StudyError
from faithad.runs import layout
from faithad.runs.lock import require_still_alone
from faithad.runs.tables import read_shards, read_whole, shard_files
from faithad.schemas import LEDGER
from faithad.vocabulary import listed


@dataclass(frozen=True)
class LedgerCounts:
    """How many clips a ledger has, and how many recordings or parts of them (`parts`) became no clip.

    `clips_skipped` are those of recordings that do not fit the model, see `misfits`. `recordings_failed` are those
    parts that failed and are whole recordings. `unheard` says in words how much sound was skipped or failed, see
    `clips.ledger.unheard`.
    """

    clips: int
    clips_done: int
    clips_failed: int
    clips_skipped: int
    parts_failed: int
    recordings_failed: int
    parts_skipped: int
    unheard: str


def merge_ledgers(
    root: str,
    manifest: pa.Table,
    audits: Sequence[str],
    *,
    others: Sequence[tuple[str, str]] = (),
    remarks: Sequence[LedgerRow] = (),
) -> pa.Table:
    """The ledger of a whole root: one row for each clip, and for each part of a recording that became no clip.

    A clip has failed if any stage failed on it, and is done if no stage did.

    Args:
        root: of a study, or the folder of an audit of recordings.
        manifest: all clips below the root.
        audits: folders of the audits of its test clips.
        others: further ledgers of shards, which may hold failures: their folders and their names there.
        remarks: further rows.

    Raises:
        StudyError: an audit's ledger does not hold each test clip once.
        DamagedError: a ledger is damaged.
    """
    ledgers = [read_whole(folder, name, LEDGER) for folder, name in others]
    tests = manifest.filter(pc.equal(manifest["split"], "test"))
    for folder in audits:
        scored = read_whole(folder, SCORE.ledger, LEDGER)
        _require_each_once(tests, scored, folder)
        ledgers += [scored, read_whole(folder, EXPLAIN.ledger, LEDGER)]
    failed: dict[str, LedgerRow] = {}
    for ledger in ledgers:
        for row in ledger.filter(pc.equal(ledger["status"], "failed")).to_pylist():
            failed.setdefault(row["clip_id"], row)
    done = manifest.filter(pc.invert(pc.is_in(manifest["clip_id"], value_set=pa.array(failed, pa.string()))))
    columns = {name: done[name] for name in ("clip_id", "recording", "onset_s", "duration_s")}
    columns["status"] = pa.repeat("done", done.num_rows)
    columns["stage"] = pc.if_else(pc.equal(done["split"], "test"), "audit", "features")
    columns["reason"] = pa.nulls(done.num_rows, pa.string())
    index = parquet.read_table(storage.join(root, layout.INDEX_LEDGER))
    merged = pa.concat_tables(
        [
            pa.table(columns, schema=LEDGER),
            pa.Table.from_pylist([*failed.values(), *remarks], schema=LEDGER),
            index.cast(LEDGER),
        ]
    )
    # The row of a whole recording, which has no onset, comes first.
    keys = pa.table({"recording": merged["recording"], "onset_s": pc.fill_null(merged["onset_s"], -1.0)})
    return merged.take(pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in keys.column_names]))


def _require_each_once(tests: pa.Table, scored: pa.Table, folder: str) -> None:
    lost = tests.filter(pc.invert(pc.is_in(tests["clip_id"], value_set=scored["clip_id"].combine_chunks())))
    if lost.num_rows or scored.num_rows != tests.num_rows:
        names = [f"{clip['recording']} at {clip['onset_s']:g} s" for clip in lost.to_pylist()]
        missing = f" (without {listed(names, most=3)})" if names else ""
        raise StudyError(
            f"The ledgers in {folder} hold {scored.num_rows} clips{missing}, the manifest {tests.num_rows}: results "
            "were removed or added by hand. Remove that folder, and audit again."
        )


def count_ledger(location: str) -> LedgerCounts:
    """Count the rows of a merged ledger."""
    table = parquet.read_table(location, columns=["clip_id", "recording", "onset_s", "duration_s", "status"])
    clips = Counter(table.filter(pc.is_valid(table["clip_id"]))["status"].to_pylist())
    of_parts = table.filter(pc.is_null(table["clip_id"]))
    parts = Counter(of_parts["status"].to_pylist())
    whole = Counter(of_parts.filter(pc.is_null(of_parts["onset_s"]))["status"].to_pylist())
    return LedgerCounts(
        clips=clips.total(),
        clips_done=clips["done"],
        clips_failed=clips["failed"],
        clips_skipped=clips["skipped"],
        parts_failed=parts["failed"],
        recordings_failed=whole["failed"],
        parts_skipped=parts["skipped"],
        unheard=unheard(table),
    )


def remove_failed_shards(out: str, step: Step) -> None:
    """Delete a step's shards in which a clip failed. Its stage must have begun, or it would still count as done.

    Raises:
        StudyError: another driver has taken over the folder.
    """
    ledgers = read_shards(out, step.ledger, columns=["status"])
    for location, table in zip(shard_files(storage.join(out, step.ledger)), ledgers, strict=True):
        if pc.any(pc.equal(table["status"], "failed")).as_py():
            require_still_alone()
            storage.delete(location)
