"""Recordings → `manifest.parquet`, for a study and for an audit of recordings alike.

    files → headers, read by Ray tasks (see `headers`) → clips → labels → splits → manifest and `index_ledger.parquet`

The ledger holds what cannot be used and every second that is in no clip, each with its reason. What is particular to a
data set stands in its layout, see `clips.layouts`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from faithad import parquet, schemas, storage
from faithad.audit.inputs import Inputs, inputs_table, is_indexed, located, of_files, read_inputs, write_index
from faithad.audit.rejected_clips import Named, read_rejected_clips
from faithad.clips.channels import split_name
from faithad.clips.health_table import HealthRow, channel_line, health_row, health_table, problem_line
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
from faithad.runs.fingerprints import STILL_WRITTEN, Look, contents, folder_fingerprints, same_bytes
from faithad.runs.lock import require_still_alone
from faithad.runs.marks import read_mark
from faithad.runs.stages import FILE_KEY, Stage, flatten
from faithad.vocabulary import ChannelChoice, count, listed

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
    for audit in data.add_normals:
        for table in (layout.EVENTS, layout.DECISIONS):
            files |= {storage.join(audit, table): digest for digest in contents(storage.join(audit, table)).values()}
    settings = _settings(study) | {f"{FILE_KEY}{name}": digest for name, digest in files.items()}
    tables = (layout.MANIFEST, layout.INDEX_LEDGER)
    outputs = (*tables, layout.HEALTH, layout.HEADER_ATTEMPTS)
    # Earlier releases wrote no table `health`.
    needs = (*tables, layout.HEALTH) if storage.exists(storage.join(study.root, layout.HEALTH)) else tables
    return Stage(study.root, "index", settings, outputs, result=layout.INDEX_LEDGER, needs=needs)


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
    # The manifest that a release without these settings has made is as good.
    newer = {"data.channel": "auto", "data.synthetic.disturbed_fraction": 0.4, "data.add_normals": []}
    return {key: value for key, value in settings.items() if key not in newer or value != newer[key]}


def require_study_visible(study: Study) -> None:
    """Refuse a study of which some machine of the cluster cannot see the recordings, root or what else it learns from.

    Ray must have been joined.

    Raises:
        StudyError: as `shared_paths.require_visible`.
    """
    data, read = study.data, [*study.data.add_normals]
    read += [study.train.init_from] if study.train.init_from is not None else []
    if data.synthetic is not None:  # the index makes its recordings
        require_visible(read, [data.root, study.root])
    else:
        require_visible([*data.folders.locations, *read], [study.root])


def build_index(study: Study, stage: Stage, *, redo: bool) -> None:
    """Write a study's manifest, the health of its recordings and the index's ledger.

    Raises:
        RecordingError: there are no recordings, or none that could train or test, or a recording does both.
        AnnotationError: the annotation table cannot be understood or does not fit the recordings.
        StudyError: the headers of the recordings could not be read, see `headers.read_headers`.
    """
    is_unused = not redo and _is_unused(study.root, stage)
    if is_unused:
        console.print("index: files changed, and no model has learned from them yet: all are read again")
        for features in (layout.FEATURES, f"{layout.SEARCH}/{layout.FEATURES}"):
            storage.delete(storage.join(study.root, features))
    if not stage.begin(redo=redo or is_unused):
        return
    with ray_session():
        require_study_visible(study)
        rows, ledger, health = find_clips(study.data, marks=storage.join(study.root, layout.HEADER_ATTEMPTS))
    digests = {key.removeprefix(FILE_KEY): digest for key, digest in stage.settings.items() if key.startswith(FILE_KEY)}
    for audit in study.data.add_normals:
        digests |= {name: file.digest for name, file in read_inputs(audit).files.items()}
    copies = same_bytes({split_name(row.recording)[0]: row.uri for row in rows}, digests)
    _refuse_shared_recordings(rows, copies)
    checked = health_table(health, model_rate_hz=study.features.sample_rate_hz, same_bytes=copies)
    _write(study.root, manifest_table(rows), ledger, checked)
    counts = ", ".join(f"{sum(row.split == name for row in rows)} {name}" for name in schemas.SPLITS)
    console.print(f"index: {count(len(rows), 'clip')} ({counts}){_left_over(ledger)}")
    _tell_health(checked)
    stage.finish()


def _is_unused(root: str, stage: Stage) -> bool:
    """Whether there is an index of other files, with all else the same, whose clips no model learned from or judged."""
    mark = read_mark(storage.join(root, layout.STAGES, "index.json")) or {}
    differ = [key for key in {*mark, *stage.settings} if mark.get(key) != stage.settings.get(key)]
    if not mark or not differ or not all(key.startswith(FILE_KEY) for key in differ):
        return False
    return not any(storage.exists(storage.join(root, place)) for place in (layout.MODELS, layout.AUDITS, layout.TRIALS))


class Indexed(NamedTuple):
    """What an index makes of some recordings: their clips, rows of the ledger, and rows of the table `health`."""

    clips: list[ClipRow]
    ledger: list[LedgerRow]
    health: list[HealthRow]


def find_clips(data: Data, *, marks: str) -> Indexed:
    """All clips of a study, labelled and split, what became none, and the recordings' health; the demo mill must have
    been made.

    Args:
        data: the study's section.
        marks: see `headers.read_headers`.

    Raises:
        RecordingError: as `build_index`.
        AnnotationError: as `build_index`.
        StudyError: as `build_index`, and as `read_rejected_clips`.
    """
    recordings, rows, ledger = LAYOUTS[data.layout].find(data.folders)
    unlisted: list[LedgerRow] = []
    if data.split.csv is not None:
        table = data.locate(data.split.csv)
        recordings, unlisted = split_by_csv(recordings, read_split_csv(table), source=table)
    elif data.split.train_until is not None:
        recordings, unlisted = split_by_time(recordings, train_until=data.split.train_until)
    ledger += unlisted
    health: list[HealthRow] = []
    for cut in cut_recordings(
        recordings, clip_s=data.clip_s, remainder=data.remainder, channel=data.channel, marks=marks
    ):
        rows += cut.clips
        ledger += cut.ledger
        health += cut.health
    if data.annotations is not None:
        rows = _annotated(rows, data.locate(data.annotations), ledger)
    _require_both_splits(rows, ledger)
    if data.add_normals:
        besides = [Named(recording.path, recording.uri, recording.split) for recording in recordings]
        rejected = read_rejected_clips(data.add_normals, clip_s=data.clip_s, besides=besides)
        console.print(f"index: {count(len(rejected), 'clip')} of rejected events added to the training")
        rows += rejected
    split = data.split
    rows = hold_out_validation(rows, fraction=split.validation_fraction, unit=split.validation_unit, seed=split.seed)
    return Indexed(rows, ledger, health)


def cut_recordings(
    recordings: Sequence[Recording], *, clip_s: float, remainder: Remainder, channel: ChannelChoice, marks: str
) -> Iterator[Indexed]:
    """The clips of each recording in turn, a ledger row for each part of it that is in none, and its health.

    Only headers and some windows are read. A recording that cannot be opened gives a ledger row with the reason.

    Raises:
        WorkersLost: as `headers.read_headers`.
    """
    headers = read_headers(recordings, marks=marks)
    with progress("index", len(recordings)) as ticker:
        for number, (recording, header) in enumerate(zip(recordings, headers, strict=True), start=1):
            if isinstance(header, str):
                yield Indexed([], [ledger_row(recording.path, "failed", header)], [])
            else:
                cut = cut_recording(recording, header, clip_s=clip_s, remainder=remainder, channel=channel)
                yield Indexed(*cut, [health_row(recording.path, header, channel)])
            ticker.update(number)


class IndexedRun(Protocol):
    """What is said of recordings that are not those of a study, as `config.audit.AuditRun` says it."""

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
        sample_rate_hz: at which the model hears.
        clips_per_shard: how many clips a shard holds at most.
        known: the recordings that belong to the audit already, and stay; those of `inputs.parquet` by default.
        left_out: rows of the ledger about what else lies there; by default what `find_left_out` finds.

    Returns:
        The manifest. Clips have the split of their recordings, and a label only where there are annotations.

    Raises:
        AnnotationError: the annotations cannot be understood or do not fit the recordings.
        WorkersLost: as `headers.read_headers`.
    """
    before = _indexed_before(run.out, known, clips_per_shard)
    came = [recording for recording in recordings if recording.path not in before.inputs.files]
    ledger = [*before.ledger, *(find_left_out(run.recordings) if left_out is None else left_out)]
    take = _Take(schemas.MANIFEST.empty_table(), [], set())
    if came:
        take = _cut_take(run, came, looks, ledger, before, clip_s=clip_s, clips_per_shard=clips_per_shard)
    manifest = pa.concat_tables([located(before.clips, recordings), take.clips])
    order = pc.sort_indices(manifest, sort_keys=[("recording", "ascending"), ("onset_s", "ascending")])
    manifest = manifest.take(order).combine_chunks()
    came_looks = {recording.path: looks[recording.path] for recording in came if recording.path in looks}
    inputs = before.inputs.having(came_looks).without(take.still_written)
    health = None
    if came:
        health = _compared([*(before.health or []), *take.health], recordings, inputs, sample_rate_hz)
        write_index(run.out, layout.HEALTH, health)
    elif before.health is not None:  # a release before FORMAT 3 wrote none
        write_index(run.out, layout.HEALTH, pa.Table.from_pylist(before.health, schema=schemas.HEALTH))
    write_index(run.out, layout.MANIFEST, manifest)
    write_index(run.out, layout.INDEX_LEDGER, ledger_table(ledger))
    # Last: where a recording stands there, its clips are in the manifest.
    write_index(run.out, layout.INPUTS, inputs_table(inputs))
    if came or not manifest.num_rows:
        n_recordings = pc.count_distinct(take.clips["recording"]).as_py()
        in_all = f", {manifest.num_rows:,} in all" if before.clips.num_rows else ""
        said = f"{count(take.clips.num_rows, 'clip')} of {count(n_recordings, 'recording')}{in_all}"
        console.print(f"index: {said}{_left_over(ledger)}")
        if health is not None:
            _tell_health(health)
    return manifest


class _Before(NamedTuple):
    """What an index holds of the recordings that belong to an audit already, and stay; `health` None: it has none."""

    clips: pa.Table
    ledger: list[LedgerRow]
    health: list[HealthRow] | None
    inputs: Inputs


class _Take(NamedTuple):
    """Clips and health of recordings that came, and those of them that somebody is writing."""

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
    came: Sequence[Recording],
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
        parts = cut_recordings(came, clip_s=clip_s, remainder=run.remainder, channel=run.channel, marks=marks)
        for recording, part in zip(came, parts, strict=True):
            if recording.path in looks and _was_touched(recording.uri, looks[recording.path]):
                still_written.add(recording.path)
                ledger.append(ledger_row(recording.path, "skipped", STILL_WRITTEN))
            else:
                ledger.extend(part.ledger)
                health.extend(part.health)
                yield from part.clips

    rows = cut()
    if run.annotations is not None:
        rows = iter(_annotated(list(rows), run.annotations, ledger, known=before.inputs.files))
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
    rows = parquet.read_table(ledger, columns=["recording", "onset_s", "status"]).to_pylist()
    # A part that failed has an onset: its recording was opened.
    failed = {row["recording"] for row in rows if row["status"] == "failed" and row["onset_s"] is None}
    again = [recording for recording in recordings if recording.path in failed]
    headers = read_headers(again, marks=storage.join(run.out, layout.HEADER_ATTEMPTS))
    return [recording.path for recording, header in zip(again, headers, strict=True) if not isinstance(header, str)]


def _write(root: str, manifest: pa.Table, ledger: Sequence[LedgerRow], health: pa.Table) -> None:
    require_still_alone()
    parquet.write_table(health, storage.join(root, layout.HEALTH), schema=schemas.HEALTH)
    parquet.write_table(manifest, storage.join(root, layout.MANIFEST), schema=schemas.MANIFEST)
    parquet.write_table(ledger_table(ledger), storage.join(root, layout.INDEX_LEDGER), schema=schemas.LEDGER)


def _tell_health(health: pa.Table) -> None:
    for name, line in (("health", problem_line(health)), ("channels", channel_line(health))):
        if line is not None:
            console.print(f"{name}: {line}")


def _refuse_shared_recordings(rows: Iterable[ClipRow], copies: Sequence[Sequence[str]]) -> None:
    """Refuse a study that is tested with copies of what it learns from."""
    splits = {split_name(row.recording)[0]: row.split for row in rows}
    shared = [
        f"{shown(name)} ({splits[name]}) and {shown(other)} (test)"
        for group in copies
        for name in group
        for other in group
        if splits[name] != "test" and splits[other] == "test"
    ]
    if shared:
        raise RecordingError(
            f"The same recording is in training and in test, byte by byte: {listed(shared, separator='; ')}. "
            "Remove one of each: a model knows what it was trained on."
        )


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
