"""Recordings → `manifest.parquet`, for a study and for an audit of recordings alike.

    files → headers, read by Ray tasks (see `headers`) → clips → labels → splits → manifest and `index_ledger.parquet`

The ledger holds what cannot be used and every second that is in no clip, each with its reason. What is particular to a
data set stands in its layout, see `clips.layouts`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from faithad import schemas, storage
from faithad.audit.inputs import Inputs, inputs_table, is_indexed, located, read_inputs, write_index
from faithad.clips.inputs import find_left_out
from faithad.clips.labels.names import look_up
from faithad.clips.labels.reference import Reference, read_reference
from faithad.clips.layouts import LAYOUTS
from faithad.clips.ledger import LedgerRow, ledger_row, ledger_table, unheard
from faithad.clips.manifest import ClipRow, Recording, attach_annotations, cut_recording, manifest_table, not_heard
from faithad.clips.recordings import Remainder
from faithad.clips.splits import hold_out_validation, read_split_csv, split_by_csv, split_by_time
from faithad.config.audit import AuditRun
from faithad.config.data import Data
from faithad.config.study import Study
from faithad.demo.making import make_mill
from faithad.errors import RecordingError, StudyError, shown
from faithad.pipelines.audit.takes import next_shard, number_shards, read_takes
from faithad.pipelines.cluster.session import ray_session, usable_cores
from faithad.pipelines.cluster.shared_paths import require_visible
from faithad.pipelines.headers import read_headers
from faithad.progress import console, progress
from faithad.runs import layout
from faithad.runs.fingerprints import STILL_WRITTEN, Look, contents, folder_fingerprints
from faithad.runs.lock import require_still_alone
from faithad.runs.marks import read_mark
from faithad.runs.stages import FILE_KEY, Stage, flatten
from faithad.vocabulary import count, listed

# Rows that are Python objects at a time: all of an audit's would need many times the memory of its table.
_ROWS_AT_ONCE = 1024


def index_stage(study: Study) -> Stage:
    """The index's mark: its settings, and the fingerprints of all files that it reads. Makes the demo mill first."""
    data = study.data
    if data.synthetic is not None:
        make_mill(data.root, **data.synthetic.model_dump(), workers=usable_cores())
    files = folder_fingerprints(data.folders.locations, suffixes=LAYOUTS[data.layout].suffixes)
    for table in (data.annotations, data.split.csv):
        if table is not None:
            files |= contents(data.locate(table))
    settings = _settings(study) | {f"{FILE_KEY}{name}": digest for name, digest in files.items()}
    tables = (layout.MANIFEST, layout.INDEX_LEDGER)
    outputs = (*tables, layout.HEADER_ATTEMPTS)
    return Stage(study.root, "index", settings, outputs, result=layout.INDEX_LEDGER, needs=tables)


def check_index(study: Study) -> None:
    """Refuse to build upon an index of other settings. Its files are not compared: they may be out of reach by now.

    Raises:
        StudyError: the index is not done, or its settings differ.
    """
    location = storage.join(study.root, layout.STAGES, "index.json")
    mark = read_mark(location) or {}
    if {key: value for key, value in mark.items() if not key.startswith(FILE_KEY)} != _settings(study):
        raise StudyError(
            f"Stage 'index' is not done with these settings in {study.root}. "
            "Run `faithad index` with the same configuration first."
        )


def _settings(study: Study) -> dict[str, Any]:
    """What the index depends on apart from files, as it comes back from a mark."""
    settings: dict[str, Any] = json.loads(json.dumps(flatten("data", study.data.model_dump(mode="json"))))
    return settings


def require_study_visible(study: Study) -> None:
    """Refuse a study whose recordings or root some machine of the cluster cannot see; Ray must have been joined.

    Raises:
        StudyError: as `shared_paths.require_visible`.
    """
    data = study.data
    if data.synthetic is not None:  # the index makes its recordings
        require_visible([], [data.root, study.root])
    else:
        require_visible(data.folders.locations, [study.root])


def build_index(study: Study, stage: Stage, *, redo: bool) -> None:
    """Write a study's manifest and the index's ledger.

    Raises:
        RecordingError: there are no recordings, or none that could train or test.
        AnnotationError: the annotation table cannot be understood or does not fit the recordings.
        StudyError: the headers of the recordings could not be read, see `headers.read_headers`.
    """
    if not stage.begin(redo=redo):
        return
    with ray_session():
        require_study_visible(study)
        rows, ledger = find_clips(study.data, marks=storage.join(study.root, layout.HEADER_ATTEMPTS))
    _write(study.root, manifest_table(rows), ledger)
    counts = ", ".join(f"{sum(row.split == name for row in rows)} {name}" for name in schemas.SPLITS)
    console.print(f"index: {count(len(rows), 'clip')} ({counts}){_left_over(ledger)}")
    stage.finish()


def find_clips(data: Data, *, marks: str) -> tuple[list[ClipRow], list[LedgerRow]]:
    """All clips of a study, labelled and split, and the ledger of what became none; the demo mill must have been made.

    Args:
        data: the study's section.
        marks: see `headers.read_headers`.

    Raises:
        RecordingError: as `build_index`.
        AnnotationError: as `build_index`.
        StudyError: as `build_index`.
    """
    recordings, rows, ledger = LAYOUTS[data.layout].find(data.folders)
    unlisted: list[LedgerRow] = []
    if data.split.csv is not None:
        table = data.locate(data.split.csv)
        recordings, unlisted = split_by_csv(recordings, read_split_csv(table), source=table)
    elif data.split.train_until is not None:
        recordings, unlisted = split_by_time(recordings, train_until=data.split.train_until)
    ledger += unlisted
    for clips, unused in cut_recordings(recordings, clip_s=data.clip_s, remainder=data.remainder, marks=marks):
        rows += clips
        ledger += unused
    if data.annotations is not None:
        rows = _annotated(rows, data.locate(data.annotations), ledger)
    _require_both_splits(rows, ledger)
    split = data.split
    rows = hold_out_validation(rows, fraction=split.validation_fraction, unit=split.validation_unit, seed=split.seed)
    return rows, ledger


def cut_recordings(
    recordings: Sequence[Recording], *, clip_s: float, remainder: Remainder, marks: str
) -> Iterator[tuple[list[ClipRow], list[LedgerRow]]]:
    """The clips of each recording in turn, and a ledger row for each part of it that is in none.

    Only headers are read. A recording that cannot be opened gives a ledger row with the reason.

    Raises:
        WorkersLost: as `headers.read_headers`.
    """
    headers = read_headers(recordings, marks=marks)
    with progress("index", len(recordings)) as ticker:
        for number, (recording, header) in enumerate(zip(recordings, headers, strict=True), start=1):
            if isinstance(header, str):
                yield [], [ledger_row(recording.path, "failed", header)]
            else:
                yield cut_recording(recording, header, clip_s=clip_s, remainder=remainder)
            ticker.update(number)


def index_recordings(
    run: AuditRun,
    recordings: Sequence[Recording],
    looks: Mapping[str, Look],
    *,
    clip_s: float,
    known: Inputs | None = None,
    left_out: Sequence[LedgerRow] | None = None,
) -> pa.Table:
    """Write the manifest of an audit of recordings, as far as that is not done yet: those that came are a new take.

    Args:
        run: what is audited.
        recordings: all of them.
        looks: what each file was when it was looked at, by its name.
        clip_s: length of a clip.
        known: the recordings that belong to the audit already, and stay; those of `inputs.parquet` by default.
        left_out: rows of the ledger about what else lies there; by default what `find_left_out` finds.

    Returns:
        The manifest. All clips are test clips, and have a label only where there are annotations.

    Raises:
        AnnotationError: the annotations cannot be understood or do not fit the recordings.
        WorkersLost: as `headers.read_headers`.
    """
    clips, ledger, known = _indexed_before(run, known)
    came = [recording for recording in recordings if recording.path not in known.files]
    ledger += find_left_out(run.recordings) if left_out is None else left_out
    new, still_written = schemas.MANIFEST.empty_table(), set[str]()
    if came:
        new, still_written = _cut_take(run, came, looks, ledger, clip_s=clip_s, before=clips, known=known)
    manifest = pa.concat_tables([located(clips, recordings), new])
    order = pc.sort_indices(manifest, sort_keys=[("recording", "ascending"), ("onset_s", "ascending")])
    manifest = manifest.take(order).combine_chunks()
    files = {recording.path: looks[recording.path] for recording in came if recording.path in looks}
    write_index(run.out, layout.MANIFEST, manifest)
    write_index(run.out, layout.INDEX_LEDGER, ledger_table(ledger))
    # Last: where a recording stands there, its clips are in the manifest.
    write_index(run.out, layout.INPUTS, inputs_table(known.having(files).without(still_written)))
    if came or not manifest.num_rows:
        n_recordings = pc.count_distinct(new["recording"]).as_py()
        in_all = f", {manifest.num_rows:,} in all" if clips.num_rows else ""
        said = f"{count(new.num_rows, 'clip')} of {count(n_recordings, 'recording')}{in_all}"
        console.print(f"index: {said}{_left_over(ledger)}")
    return manifest


def _indexed_before(run: AuditRun, known: Inputs | None) -> tuple[pa.Table, list[LedgerRow], Inputs]:
    """Clips, rows of the ledger and files of the recordings that belong to an audit already, and stay."""
    if not is_indexed(run.out):
        return schemas.MANIFEST.empty_table(), [], Inputs()
    stored = read_inputs(run.out)
    known = stored if known is None else known
    if stored.files.keys() - known.files.keys():
        write_index(run.out, layout.INPUTS, inputs_table(known))  # before anything else is written of those that leave
    names = pa.array(known.files, pa.string())
    clips = read_takes(run.out, run.audit.clips_per_shard)
    ledger = storage.read_table(storage.join(run.out, layout.INDEX_LEDGER))
    rows = ledger.filter(pc.is_in(ledger["recording"], value_set=names)).to_pylist()
    return clips.filter(pc.is_in(clips["recording"], value_set=names)), rows, known


def _cut_take(
    run: AuditRun,
    came: Sequence[Recording],
    looks: Mapping[str, Look],
    ledger: list[LedgerRow],
    *,
    clip_s: float,
    before: pa.Table,
    known: Inputs,
) -> tuple[pa.Table, set[str]]:
    """The clips of recordings that came, in shards of their own, and the recordings that somebody is writing.

    Adds to the ledger what is in no clip.
    """
    still_written: set[str] = set()
    marks = storage.join(run.out, layout.HEADER_ATTEMPTS)

    def cut() -> Iterator[ClipRow]:
        parts = cut_recordings(came, clip_s=clip_s, remainder=run.remainder, marks=marks)
        for recording, (clips, unused) in zip(came, parts, strict=True):
            if recording.path in looks and _was_touched(recording.uri, looks[recording.path]):
                still_written.add(recording.path)
                ledger.append(ledger_row(recording.path, "skipped", STILL_WRITTEN))
            else:
                ledger.extend(unused)
                yield from clips

    rows = cut()
    if run.annotations is not None:
        rows = iter(_annotated(list(rows), run.annotations, ledger, known=known.files))
    tables = [schemas.MANIFEST.empty_table()]
    while portion := list(islice(rows, _ROWS_AT_ONCE)):
        tables.append(manifest_table(portion))
    take = 1 + (pc.max(before["take"]).as_py() or 0)
    largest = run.audit.clips_per_shard
    return number_shards(pa.concat_tables(tables), largest=largest, take=take, first=next_shard(before)), still_written


def _was_touched(uri: str, look: Look) -> bool:
    """Whether a file was written since it was looked at. Objects of a store are replaced as a whole, if at all."""
    if storage.is_remote(uri) or look.fingerprint.bytes is None:
        return False
    try:
        return storage.size_and_time(uri) != (look.fingerprint.bytes, look.modified_ns)
    except OSError:
        return False  # it is gone, which its header says


def _annotated(
    rows: list[ClipRow], location: str, ledger: list[LedgerRow], *, known: Mapping[str, object] | None = None
) -> list[ClipRow]:
    """The clips with the labels of their annotations; says what could not be read, and which are in no clip.

    Those of recordings that are `known` already have their labels.
    """
    reference = read_reference(location)
    if known:
        find = look_up([*known, *(row.recording for row in rows), *(row["recording"] for row in ledger)])
        reference = Reference(of for of in reference if known.keys().isdisjoint(find(of.recording)))
    annotated = attach_annotations(rows, reference, ledger=ledger)
    for note in reference.notes:
        console.print(f"annotations: {note}")
    if lost := not_heard(rows, reference):
        names = listed([shown(name) for name in sorted({annotation.recording for annotation in lost})])
        of_all = f"{len(lost):,} of {count(len(reference), 'interval')}"
        console.print(f"annotations: {of_all} cannot be heard, since their recordings gave no clip there: {names}")
    return annotated


def opened_since(run: AuditRun, recordings: Sequence[Recording]) -> list[str]:
    """The recordings that could not be opened when an audit's manifest was made, and can be now."""
    ledger = storage.join(run.out, layout.INDEX_LEDGER)
    if not storage.exists(ledger):
        return []
    rows = storage.read_table(ledger, columns=["recording", "onset_s", "status"]).to_pylist()
    # A part that failed has an onset: its recording was opened.
    failed = {row["recording"] for row in rows if row["status"] == "failed" and row["onset_s"] is None}
    again = [recording for recording in recordings if recording.path in failed]
    headers = read_headers(again, marks=storage.join(run.out, layout.HEADER_ATTEMPTS))
    return [recording.path for recording, header in zip(again, headers, strict=True) if not isinstance(header, str)]


def _write(root: str, manifest: pa.Table, ledger: Sequence[LedgerRow]) -> None:
    require_still_alone()
    storage.write_table(manifest, storage.join(root, layout.MANIFEST), schema=schemas.MANIFEST)
    storage.write_table(ledger_table(ledger), storage.join(root, layout.INDEX_LEDGER), schema=schemas.LEDGER)


def _left_over(ledger: Sequence[LedgerRow]) -> str:
    n_remarks = sum(row["status"] == "done" for row in ledger)
    n_left = len(ledger) - n_remarks
    parts = count(n_left, "recording or part of one", "recordings or parts of them")
    left = f", {parts} skipped or failed ({unheard(ledger_table(ledger))})" if n_left else ""
    return left + (f", {count(n_remarks, 'header')} corrected" if n_remarks else "")


def _require_both_splits(rows: Sequence[ClipRow], ledger: Sequence[LedgerRow]) -> None:
    """Refuse a study without clips to train on or to test, with the reasons that the ledger holds."""
    for split in ("train", "test"):
        if not any(row.split == split for row in rows):
            reasons = listed([f"  {row['recording']}: {row['reason']}" for row in ledger], separator="\n")
            instead = f" What is there instead:\n{reasons}" if ledger else ""
            raise RecordingError(f"There is no {split} clip: not one usable recording.{instead}")
