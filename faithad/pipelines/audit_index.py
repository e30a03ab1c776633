"""The recordings of an audit, or of a training on normal recordings → `manifest.parquet` and `index_ledger.parquet`.

It grows: recordings that came since are a new take, and what is done already is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from faithad import parquet, schemas, storage
from faithad.audit.inputs import Inputs, inputs_table, is_indexed, located, of_files, read_inputs, write_index
from faithad.clips.health_table import HealthRow, health_table
from faithad.clips.inputs import find_left_out
from faithad.clips.ledger import LedgerRow, ledger_row, ledger_table
from faithad.clips.manifest import ClipRow, Recording, manifest_table
from faithad.clips.recordings import Remainder
from faithad.config.audit import AuditRun
from faithad.pipelines.audit.takes import next_shard, number_shards, read_takes
from faithad.pipelines.cutting import annotated_clips, cut_recordings, left_over, tell_health
from faithad.pipelines.headers import read_headers
from faithad.progress import console
from faithad.runs import layout
from faithad.runs.fingerprints import STILL_WRITTEN, Look, same_bytes
from faithad.vocabulary import ChannelChoice, count

# Rows that are Python objects at a time: all of an audit's would need many times the memory of its table.
_ROWS_AT_ONCE = 1024


class IndexedRun(Protocol):
    """The settings of a run on recordings that belong to no study, such as `config.audit.AuditRun`."""

    @property
    def recordings(self) -> Sequence[str]: ...
    @property
    def out(self) -> str: ...
    @property
    def remainder(self) -> Remainder: ...
    @property
    def channel(self) -> ChannelChoice: ...
    @property
    def annotations(self) -> str | None: ...


def index_recordings(
    run: IndexedRun,
    recordings: Sequence[Recording],
    looks: Mapping[str, Look],
    *,
    clip_s: float,
    sample_rate_hz: int,
    clips_per_shard: int,
    known: Inputs | None = None,
    left_out: Sequence[LedgerRow] | None = None,
) -> pa.Table:
    """Write the manifest of an audit of recordings, or of a training on them, and the recordings' health.

    What is done already is left as it is: recordings that came are a new take.

    Args:
        run: whose recordings they are.
        recordings: all of them.
        looks: what each file was when it was looked at, by its name.
        clip_s: length of a clip.
        sample_rate_hz: of the model's features.
        clips_per_shard: how many clips a shard holds at most.
        known: the recordings that belong to the audit already, and stay; those of `inputs.parquet` by default.
        left_out: rows of the ledger about other files that lie there; by default what `find_left_out` finds.

    Returns:
        The manifest. Clips have the split of their recordings, and a label only where there are annotations.

    Raises:
        AnnotationError: the annotations cannot be understood or do not fit the recordings.
        WorkersLost: as `headers.read_headers`.
    """
    before = _indexed_before(run.out, known, clips_per_shard)
    new_recordings = [recording for recording in recordings if recording.path not in before.inputs.files]
    ledger = [*before.ledger, *(find_left_out(run.recordings) if left_out is None else left_out)]
    take = _Take(schemas.MANIFEST.empty_table(), [], set())
    if new_recordings:
        take = _cut_take(run, new_recordings, looks, ledger, before, clip_s=clip_s, clips_per_shard=clips_per_shard)
    manifest = pa.concat_tables([located(before.clips, recordings), take.clips])
    order = pc.sort_indices(manifest, sort_keys=[("recording", "ascending"), ("onset_s", "ascending")])
    manifest = manifest.take(order).combine_chunks()
    new_looks = {recording.path: looks[recording.path] for recording in new_recordings if recording.path in looks}
    inputs = before.inputs.having(new_looks).without(take.still_written)
    health = None
    if new_recordings:
        health = _compared([*(before.health or []), *take.health], recordings, inputs, sample_rate_hz)
        write_index(run.out, layout.HEALTH, health)
    elif before.health is not None:  # a release before FORMAT 3 wrote none
        write_index(run.out, layout.HEALTH, pa.Table.from_pylist(before.health, schema=schemas.HEALTH))
    write_index(run.out, layout.MANIFEST, manifest)
    write_index(run.out, layout.INDEX_LEDGER, ledger_table(ledger))
    # Written last: where this table has a recording, the manifest has its clips.
    write_index(run.out, layout.INPUTS, inputs_table(inputs))
    if new_recordings or not manifest.num_rows:
        n_recordings = pc.count_distinct(take.clips["recording"]).as_py()
        in_all = f", {manifest.num_rows:,} in all" if before.clips.num_rows else ""
        clips_taken = f"{count(take.clips.num_rows, 'clip')} of {count(n_recordings, 'recording')}{in_all}"
        console.print(f"index: {clips_taken}{left_over(ledger)}")
        if health is not None:
            tell_health(health)
    return manifest


class _Before(NamedTuple):
    """What an index holds of the recordings that belong to an audit already, and stay; `health` None: it has none."""

    clips: pa.Table
    ledger: list[LedgerRow]
    health: list[HealthRow] | None
    inputs: Inputs


class _Take(NamedTuple):
    """Clips and health of new recordings, and the new recordings that are still being written."""

    clips: pa.Table
    health: list[HealthRow]
    still_written: set[str]


def _indexed_before(out: str, known: Inputs | None, clips_per_shard: int) -> _Before:
    if not is_indexed(out):
        return _Before(schemas.MANIFEST.empty_table(), [], [], Inputs())
    stored = read_inputs(out)
    known = stored if known is None else known
    if stored.files.keys() - known.files.keys():
        write_index(out, layout.INPUTS, inputs_table(known))  # before anything else is written of those that leave

    def of_known(table: pa.Table) -> pa.Table:
        return table.filter(of_files(table["recording"], known.files))

    ledger = of_known(parquet.read_table(storage.join(out, layout.INDEX_LEDGER))).to_pylist()
    health = storage.join(out, layout.HEALTH)
    rows = of_known(parquet.read_table(health)).to_pylist() if storage.exists(health) else None
    return _Before(of_known(read_takes(out, clips_per_shard)), ledger, rows, known)


def _cut_take(
    run: IndexedRun,
    new_recordings: Sequence[Recording],
    looks: Mapping[str, Look],
    ledger: list[LedgerRow],
    before: _Before,
    *,
    clip_s: float,
    clips_per_shard: int,
) -> _Take:
    """The clips of recordings that came, in shards of their own. Adds to the ledger what is in no clip."""
    still_written: set[str] = set()
    health: list[HealthRow] = []
    marks = storage.join(run.out, layout.HEADER_ATTEMPTS)

    def cut() -> Iterator[ClipRow]:
        parts = cut_recordings(new_recordings, clip_s=clip_s, remainder=run.remainder, channel=run.channel, marks=marks)
        for recording, part in zip(new_recordings, parts, strict=True):
            if recording.path in looks and _was_touched(recording.uri, looks[recording.path]):
                still_written.add(recording.path)
                ledger.append(ledger_row(recording.path, "skipped", STILL_WRITTEN))
            else:
                ledger.extend(part.ledger)
                health.extend(part.health)
                yield from part.clips

    rows = cut()
    if run.annotations is not None:
        rows = iter(annotated_clips(list(rows), run.annotations, ledger, known=before.inputs.files))
    tables = [schemas.MANIFEST.empty_table()]
    while portion := list(islice(rows, _ROWS_AT_ONCE)):
        tables.append(manifest_table(portion))
    take, first = 1 + (pc.max(before.clips["take"]).as_py() or 0), next_shard(before.clips)
    clips = number_shards(pa.concat_tables(tables), largest=clips_per_shard, take=take, first=first)
    return _Take(clips, health, still_written)


def _compared(
    health: Sequence[HealthRow], recordings: Sequence[Recording], inputs: Inputs, sample_rate_hz: int
) -> pa.Table:
    """The table of health, in which the recordings are compared with each other and with the model."""
    opened = {row["recording"] for row in health}
    uris = {recording.path: recording.uri for recording in recordings if recording.path in opened}
    copies = same_bytes(uris, {name: file.digest for name, file in inputs.files.items()})
    return health_table(health, model_rate_hz=sample_rate_hz, same_bytes=copies)


def _was_touched(uri: str, look: Look) -> bool:
    """Whether a file was written since it was looked at. Objects of a store are replaced as a whole, if at all."""
    if storage.is_remote(uri) or look.fingerprint.bytes is None:
        return False
    try:
        return storage.size_and_time(uri) != (look.fingerprint.bytes, look.modified_ns)
    except OSError:
        return False  # it is gone, which its header says


def opened_since(run: AuditRun, recordings: Sequence[Recording]) -> list[str]:
    """The recordings that could not be opened when an audit's manifest was made, and can be now."""
    ledger = storage.join(run.out, layout.INDEX_LEDGER)
    if not storage.exists(ledger):
        return []
    rows = parquet.read_table(ledger, columns=["recording", "onset_s", "status"]).to_pylist()
    # A part that failed has an onset: its recording was opened.
    failed = {row["recording"] for row in rows if row["status"] == "failed" and row["onset_s"] is None}
    again = [recording for recording in recordings if recording.path in failed]
    headers = read_headers(again, marks=storage.join(run.out, layout.HEADER_ATTEMPTS))
    return [recording.path for recording, header in zip(again, headers, strict=True) if not isinstance(header, str)]
