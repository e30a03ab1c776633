"""Which files an audit of recordings read (`inputs.parquet`), and where they lie now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from faithad import schemas, storage
from faithad.clips.channels import split_name
from faithad.clips.manifest import Recording
from faithad.runs import layout
from faithad.runs.fingerprints import Fingerprint
from faithad.runs.formats import mark_format
from faithad.runs.lock import require_still_alone
from faithad.runs.stages import is_whole
from faithad.runs.tables import read_manifest

# The tables of an audit's index, the last of which is written last.
INDEXED = (layout.MANIFEST, layout.INDEX_LEDGER, layout.INPUTS)


def inputs_table(inputs: Mapping[str, Fingerprint]) -> pa.Table:
    """The fingerprints of recordings, by name, as schemas.INPUTS."""
    columns: dict[str, list[Any]] = {
        "recording": list(inputs),
        "bytes": [fingerprint.bytes for fingerprint in inputs.values()],
        "fingerprint": [fingerprint.digest for fingerprint in inputs.values()],
    }
    return pa.table(columns, schema=schemas.INPUTS)


def is_indexed(out: str) -> bool:
    """Whether the manifest of an audit and what was written beside it are whole."""
    return all(is_whole(storage.join(out, table)) for table in indexed_tables(out))


def indexed_tables(out: str) -> tuple[str, ...]:
    """The tables of an audit's index; releases before FORMAT 3 wrote no `health`."""
    return (layout.HEALTH, *INDEXED) if storage.exists(storage.join(out, layout.HEALTH)) else INDEXED


def relocated(out: str, recordings: Sequence[Recording]) -> pa.Table:
    """The manifest, corrected where the recordings have moved: that changes neither their names nor their clips."""
    manifest = read_manifest(out)
    names = pa.array([recording.path for recording in recordings], pa.string())
    uris = pa.array([recording.uri for recording in recordings], pa.string())
    of_clips = manifest["recording"].combine_chunks().dictionary_encode()
    files = pa.array([split_name(name)[0] for name in of_clips.dictionary.to_pylist()], pa.string())
    now = pa.chunked_array([pc.take(pc.take(uris, pc.index_in(files, value_set=names)), of_clips.indices)])
    if not manifest["uri"].equals(now):
        manifest = manifest.set_column(manifest.schema.get_field_index("uri"), schemas.MANIFEST.field("uri"), now)
        require_still_alone()
        mark_format(out)
        storage.write_table(manifest, storage.join(out, layout.MANIFEST), schema=schemas.MANIFEST)
    return manifest
