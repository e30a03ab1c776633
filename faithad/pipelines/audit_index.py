"""The recordings of an audit → its manifest, and a ledger of what became no clip.

`inputs.parquet` says which files these were. It is written last: where it is, the manifest is whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from faithad import schemas, storage
from faithad.clips.inputs import find_left_out
from faithad.clips.labels.reference import read_reference
from faithad.clips.manifest import ClipRow, LedgerRow, Recording, attach_annotations, ledger_table, manifest_table
from faithad.config_audit import AuditRun
from faithad.pipelines.fingerprints import INPUTS, Fingerprint
from faithad.pipelines.index import cut_recordings, manifest_location
from faithad.progress import console

# Rows that are plain objects at a time: all of them would be many times as large as the table.
_ROWS_AT_ONCE = 1024


def inputs_location(out: str) -> str:
    return storage.join(out, "inputs.parquet")


def left_over_location(out: str) -> str:
    """The ledger of the recordings, and parts of recordings, that became no clip."""
    return storage.join(out, "index_ledger.parquet")


def inputs_table(recordings: Sequence[Recording], found: Sequence[Fingerprint]) -> pa.Table:
    columns: dict[str, list[Any]] = {
        "recording": [recording.path for recording in recordings],
        "bytes": [one.bytes for one in found],
        "fingerprint": [one.digest for one in found],
    }
    return pa.table(columns, schema=INPUTS)


def index_recordings(run: AuditRun, recordings: Sequence[Recording], inputs: pa.Table, *, clip_s: float) -> pa.Table:
    """Cut the recordings in clips, as far as that is not done yet.

    Returns:
        The manifest. Its clips are all test clips, and have a label only where there are annotations.

    Raises:
        AnnotationError: the annotations cannot be understood or do not fit the recordings.
    """
    location = manifest_location(run.out)
    if is_indexed(run.out, recordings, inputs):
        return storage.read_table(location)
    ledger = find_left_out(run.recordings)
    rows = _clips(run, recordings, ledger, clip_s)
    n_clips = 0
    with storage.open_output(location) as file, pq.ParquetWriter(file, schemas.MANIFEST, compression="zstd") as writer:
        while portion := list(islice(rows, _ROWS_AT_ONCE)):
            n_clips += len(portion)
            writer.write_table(manifest_table(portion))
    storage.write_table(ledger_table(ledger), left_over_location(run.out), schema=schemas.LEDGER)
    storage.write_table(inputs, inputs_location(run.out), schema=INPUTS)
    troubled = f", {len(ledger)} recordings or parts of them skipped or failed" if ledger else ""
    console.print(f"index: {n_clips} clips of {len(recordings)} recordings{troubled}")
    return storage.read_table(location)


def _clips(run: AuditRun, recordings: Sequence[Recording], ledger: list[LedgerRow], clip_s: float) -> Iterator[ClipRow]:
    """The clips in their order, labelled where there are annotations; what becomes none goes into the ledger."""

    def unlabelled() -> Iterator[ClipRow]:
        for clips, unused in cut_recordings(recordings, clip_s=clip_s, remainder=run.remainder):
            ledger.extend(unused)
            yield from clips

    if run.annotations is None:
        return unlabelled()
    rows = list(unlabelled())
    return iter(attach_annotations(rows, read_reference(run.annotations), ledger=ledger))


def is_indexed(out: str, recordings: Sequence[Recording], inputs: pa.Table) -> bool:
    """Whether the manifest speaks of these files, and of where they are now."""
    if not storage.exists(inputs_location(out)) or storage.read_table(inputs_location(out)) != inputs:
        return False
    uris = {recording.path: recording.uri for recording in recordings}
    manifest = storage.read_table(manifest_location(out), columns=["recording", "uri"]).group_by(["recording", "uri"])
    return all(uris.get(row["recording"]) == row["uri"] for row in manifest.aggregate([]).to_pylist())
