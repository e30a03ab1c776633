"""The recordings of an audit → its manifest, and a ledger of what became no clip.

`inputs.parquet` says which files these were. It is written last: where it is, the manifest is whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from faithad import schemas, storage
from faithad.clips.inputs import find_left_out
from faithad.clips.labels.reference import read_reference
from faithad.clips.manifest import (
    ClipRow,
    LedgerRow,
    Recording,
    attach_annotations,
    cut_recording,
    ledger_table,
    manifest_table,
)
from faithad.config.audit import AuditRun
from faithad.pipelines.headers import read_headers
from faithad.progress import console, progress
from faithad.runs import layout
from faithad.runs.fingerprints import Fingerprint
from faithad.vocabulary import count

# Rows that are plain objects at a time: all of them would be many times as large as the table.
_ROWS_AT_ONCE = 1024


def index_recordings(
    run: AuditRun, recordings: Sequence[Recording], inputs: Mapping[str, Fingerprint], *, clip_s: float
) -> pa.Table:
    """Cut the recordings in clips, as far as that is not done yet; Ray must have been joined.

    Args:
        run: what is audited.
        recordings: all of them.
        inputs: what each of them holds, by its name.
        clip_s: length of a clip.

    Returns:
        The manifest. Its clips are all test clips, and have a label only where there are annotations.

    Raises:
        AnnotationError: the annotations cannot be understood or do not fit the recordings.
    """
    location = storage.join(run.out, layout.MANIFEST)
    if is_indexed(run.out):
        return relocated(run.out, recordings)
    ledger = find_left_out(run.recordings)
    rows = _clips(run, recordings, ledger, clip_s)
    n_clips, used = 0, set[str]()
    with storage.open_output(location) as file, pq.ParquetWriter(file, schemas.MANIFEST, compression="zstd") as writer:
        while portion := list(islice(rows, _ROWS_AT_ONCE)):
            n_clips += len(portion)
            used.update(row.recording for row in portion)
            writer.write_table(manifest_table(portion))
    storage.write_table(ledger_table(ledger), storage.join(run.out, layout.INDEX_LEDGER), schema=schemas.LEDGER)
    storage.write_table(_inputs_table(inputs), storage.join(run.out, layout.INPUTS), schema=schemas.INPUTS)
    left_over = count(len(ledger), "recording or part of one", "recordings or parts of them")
    troubled = f", {left_over} skipped or failed" if ledger else ""
    console.print(f"index: {count(n_clips, 'clip')} of {count(len(used), 'recording')}{troubled}")
    return storage.read_table(location)


def _clips(run: AuditRun, recordings: Sequence[Recording], ledger: list[LedgerRow], clip_s: float) -> Iterator[ClipRow]:
    """The clips in their order, labelled where there are annotations; what becomes none goes into the ledger."""

    def unlabelled() -> Iterator[ClipRow]:
        headers = read_headers(recordings, marks=storage.join(run.out, layout.ATTEMPTS, "headers"))
        with progress("index", len(recordings)) as ticker:
            for number, (recording, header) in enumerate(zip(recordings, headers, strict=True), start=1):
                if isinstance(header, str):
                    ledger.append(LedgerRow(recording.path, "failed", header))
                else:
                    clips, unused = cut_recording(recording, header, clip_s=clip_s, remainder=run.remainder)
                    ledger.extend(unused)
                    yield from clips
                ticker.update(number)

    if run.annotations is None:
        return unlabelled()
    rows = list(unlabelled())
    return iter(attach_annotations(rows, read_reference(run.annotations), ledger=ledger))


def is_indexed(out: str) -> bool:
    """Whether the manifest is whole."""
    return storage.exists(storage.join(out, layout.INPUTS))


def relocated(out: str, recordings: Sequence[Recording]) -> pa.Table:
    """The manifest, corrected where the recordings have moved: that changes neither their names nor their clips."""
    manifest = storage.read_table(storage.join(out, layout.MANIFEST))
    names, uris = (pa.array([getattr(one, key) for one in recordings], pa.string()) for key in ("path", "uri"))
    now = pc.take(uris, pc.index_in(manifest["recording"], value_set=names))
    if not manifest["uri"].equals(now):
        manifest = manifest.set_column(manifest.schema.get_field_index("uri"), schemas.MANIFEST.field("uri"), now)
        storage.write_table(manifest, storage.join(out, layout.MANIFEST), schema=schemas.MANIFEST)
    return manifest


def opens_now(run: AuditRun, recordings: Sequence[Recording]) -> list[str]:
    """The recordings that could not be opened when the manifest was made and can be now; Ray must have been joined."""
    ledger = storage.join(run.out, layout.INDEX_LEDGER)
    if not storage.exists(ledger):
        return []
    left_over = storage.read_table(ledger, columns=["recording", "status"]).to_pylist()
    failed = {row["recording"] for row in left_over if row["status"] == "failed"}
    again = [recording for recording in recordings if recording.path in failed]
    headers = read_headers(again, marks=storage.join(run.out, layout.ATTEMPTS, "headers"))
    return [one.path for one, header in zip(again, headers, strict=True) if not isinstance(header, str)]


def _inputs_table(inputs: Mapping[str, Fingerprint]) -> pa.Table:
    columns: dict[str, list[Any]] = {
        "recording": list(inputs),
        "bytes": [found.bytes for found in inputs.values()],
        "fingerprint": [found.digest for found in inputs.values()],
    }
    return pa.table(columns, schema=schemas.INPUTS)
