"""Which files an audit of recordings read (`inputs.parquet`), where they lie now, and what has become of them since."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from faithad import parquet, schemas, storage
from faithad.clips.channels import split_name
from faithad.clips.ledger import LedgerRow, ledger_row
from faithad.clips.manifest import Recording
from faithad.runs import layout
from faithad.runs.fingerprints import UNREADABLE, Fingerprint, Look
from faithad.runs.formats import mark_format
from faithad.runs.lock import require_still_alone
from faithad.runs.stages import is_whole
from faithad.runs.tables import read_manifest

# The tables of an audit's index.
INDEXED = {
    layout.HEALTH: schemas.HEALTH,
    layout.MANIFEST: schemas.MANIFEST,
    layout.INDEX_LEDGER: schemas.LEDGER,
    layout.INPUTS: schemas.INPUTS,
}

_GONE = "was audited, and is gone since"


@dataclass(frozen=True)
class Inputs:
    """The recordings that belong to an audit, by their names.

    A recording belongs to it from the moment that `inputs.parquet` names it: that is written last of all, so rows of
    other recordings in the manifest were left by a run that was killed.

    Attributes:
        files: what each file was when it was indexed.
        gone: those that are gone, and were accepted as lost.
    """

    files: Mapping[str, Fingerprint] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()

    def having(self, looks: Mapping[str, Look]) -> Inputs:
        """These inputs with further recordings, as they are now."""
        return replace(self, files={**self.files, **{name: look.fingerprint for name, look in looks.items()}})

    def without(self, names: Collection[str]) -> Inputs:
        return Inputs({name: file for name, file in self.files.items() if name not in names}, self.gone - set(names))

    def accepting(self, now: Mapping[str, Look], *, missing: bool) -> Inputs:
        """These inputs with absent recordings marked as gone, if `missing`; recordings that are back lose the mark."""
        gone = set(self.files) - set(now)
        return replace(self, gone=frozenset(gone if missing else gone & self.gone))

    def differing(self, now: Mapping[str, Look]) -> dict[str, str | None]:
        """The digest of each changed file; None if the file is gone. A file that is out of reach has not changed.

        Nor has one that could not be read at the index, although it can be read now: `--retry-failed` asks for it.
        """
        differ: dict[str, str | None] = {}
        for name, file in self.files.items():
            look = now.get(name)
            if look is None:
                if name not in self.gone:
                    differ[name] = None
            elif look.fingerprint.digest != file.digest and UNREADABLE not in (look.fingerprint.digest, file.digest):
                differ[name] = look.fingerprint.digest
        return differ

    def remarks(self) -> list[LedgerRow]:
        """A ledger row for each recording that is gone. It covers no seconds: the recording's clips are there."""
        return [ledger_row(name, "done", _GONE, onset_s=0.0, duration_s=0.0) for name in sorted(self.gone)]


def read_inputs(out: str) -> Inputs:
    """The recordings of an audit whose index is whole."""
    rows = parquet.read_table(storage.join(out, layout.INPUTS)).to_pylist()
    files = {row["recording"]: Fingerprint(row["bytes"], row["fingerprint"]) for row in rows}
    return Inputs(files, frozenset(row["recording"] for row in rows if row.get("gone")))


def inputs_table(inputs: Inputs) -> pa.Table:
    """The recordings of an audit, as schemas.INPUTS."""
    names = sorted(inputs.files)
    columns: dict[str, list[Any]] = {
        "recording": names,
        "bytes": [inputs.files[name].bytes for name in names],
        "fingerprint": [inputs.files[name].digest for name in names],
        "gone": [name in inputs.gone for name in names],
    }
    return pa.table(columns, schema=schemas.INPUTS)


def is_indexed(out: str) -> bool:
    """Whether the manifest of an audit and the other tables of its index are whole."""
    return all(is_whole(storage.join(out, table)) for table in indexed_tables(out))


def indexed_tables(out: str) -> tuple[str, ...]:
    """The tables of an audit's index; releases before FORMAT 3 wrote no `health`."""
    has_health = storage.exists(storage.join(out, layout.HEALTH))
    return tuple(name for name in INDEXED if has_health or name != layout.HEALTH)


def of_files(recordings: pa.ChunkedArray, files: Collection[str]) -> pa.Array:
    """Whether each recording of a table is one of some files, or a channel of one."""
    encoded = recordings.combine_chunks().dictionary_encode()
    is_of_files = pa.array([split_name(name)[0] in files for name in encoded.dictionary.to_pylist()], pa.bool_())
    return pc.take(is_of_files, encoded.indices)


def write_index(out: str, name: str, table: pa.Table) -> None:
    """Write one of the tables of an audit's index, unless the same table is already there."""
    location = storage.join(out, name)
    if not is_whole(location) or not parquet.read_table(location).equals(table):
        require_still_alone()
        mark_format(out)
        parquet.write_table(table, location, schema=INDEXED[name])


def relocated(out: str, recordings: Sequence[Recording]) -> pa.Table:
    """The manifest, corrected where the recordings have moved: that changes neither their names nor their clips."""
    manifest = located(read_manifest(out), recordings)
    write_index(out, layout.MANIFEST, manifest)
    return manifest


def located(manifest: pa.Table, recordings: Sequence[Recording]) -> pa.Table:
    """The manifest with the present locations of its recordings; one that is gone keeps its last one."""
    names = pa.array([recording.path for recording in recordings], pa.string())
    uris = pa.array([recording.uri for recording in recordings], pa.string())
    of_clips = manifest["recording"].combine_chunks().dictionary_encode()
    files = pa.array([split_name(name)[0] for name in of_clips.dictionary.to_pylist()], pa.string())
    known = pc.take(pc.take(uris, pc.index_in(files, value_set=names)), of_clips.indices)
    now = pa.chunked_array([pc.coalesce(known, manifest["uri"].combine_chunks())])
    return manifest.set_column(manifest.schema.get_field_index("uri"), schemas.MANIFEST.field("uri"), now)
