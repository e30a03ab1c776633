"""The recordings of a study → `manifest.parquet` and `index_ledger.parquet`.

    recordings → clips (see `cutting`) → splits → manifest

What is particular to a data set is in its layout, see `clips.layouts`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from faithad import parquet, schemas, storage
from faithad.audit.inputs import read_inputs
from faithad.audit.rejected_clips import Named, read_rejected_clips
from faithad.clips.channels import split_name
from faithad.clips.health_table import HealthRow, health_table
from faithad.clips.layouts import LAYOUTS
from faithad.clips.ledger import LedgerRow, ledger_table
from faithad.clips.manifest import ClipRow, manifest_table
from faithad.clips.splits import hold_out_validation, read_split_csv, split_by_csv, split_by_time
from faithad.config.data import Data
from faithad.config.study import Study
from faithad.errors import RecordingError, StudyError, shown
from faithad.pipelines.cluster.session import ray_session, usable_cores
from faithad.pipelines.cluster.shared_paths import require_visible
from faithad.pipelines.cutting import Indexed, annotated_clips, cut_recordings, left_over, tell_health
from faithad.progress import console
from faithad.runs import layout
from faithad.runs.fingerprints import contents, folder_fingerprints, same_bytes
from faithad.runs.lock import require_still_alone
from faithad.runs.marks import read_mark
from faithad.runs.stages import FILE_KEY, ResumableStage, flatten
from faithad.vocabulary import count, listed


def index_stage(study: Study) -> ResumableStage:
    """The index's mark: its settings, and the fingerprints of all files that it reads. Makes the demo mill first."""
    data = study.data
    if data.synthetic is not None:
        from faithad.demo.making import make_mill  # most studies have recordings of their own

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
    return ResumableStage(study.root, "index", settings, outputs, result=layout.INDEX_LEDGER, needs=needs)


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


def build_index(study: Study, stage: ResumableStage, *, redo: bool) -> None:
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
    console.print(f"index: {count(len(rows), 'clip')} ({counts}){left_over(ledger)}")
    tell_health(checked)
    stage.finish()


def _is_unused(root: str, stage: ResumableStage) -> bool:
    """Whether there is an index of other files, with all else the same, whose clips no model learned from or judged."""
    mark = read_mark(storage.join(root, layout.STAGES, "index.json")) or {}
    differ = [key for key in {*mark, *stage.settings} if mark.get(key) != stage.settings.get(key)]
    if not mark or not differ or not all(key.startswith(FILE_KEY) for key in differ):
        return False
    return not any(storage.exists(storage.join(root, place)) for place in (layout.MODELS, layout.AUDITS, layout.TRIALS))


def find_clips(data: Data, *, marks: str) -> Indexed:
    """All clips of a study, labelled and split; the parts that became no clip; and the recordings' health. The demo
    mill must have been made before.

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
        rows = annotated_clips(rows, data.locate(data.annotations), ledger)
    _require_both_splits(rows, ledger)
    if data.add_normals:
        besides = [Named(recording.path, recording.uri, recording.split) for recording in recordings]
        rejected = read_rejected_clips(data.add_normals, clip_s=data.clip_s, besides=besides)
        console.print(f"index: {count(len(rejected), 'clip')} of rejected events added to the training")
        rows += rejected
    split = data.split
    rows = hold_out_validation(rows, fraction=split.validation_fraction, unit=split.validation_unit, seed=split.seed)
    return Indexed(rows, ledger, health)


def _write(root: str, manifest: pa.Table, ledger: Sequence[LedgerRow], health: pa.Table) -> None:
    require_still_alone()
    parquet.write_table(health, storage.join(root, layout.HEALTH), schema=schemas.HEALTH)
    parquet.write_table(manifest, storage.join(root, layout.MANIFEST), schema=schemas.MANIFEST)
    parquet.write_table(ledger_table(ledger), storage.join(root, layout.INDEX_LEDGER), schema=schemas.LEDGER)


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


def _require_both_splits(rows: Sequence[ClipRow], ledger: Sequence[LedgerRow]) -> None:
    """Refuse a study without clips to train on or to test, with the reasons that the ledger holds."""
    for split in ("train", "test"):
        if not any(row.split == split for row in rows):
            reasons = listed([f"  {row['recording']}: {row['reason']}" for row in ledger], separator="\n")
            instead = f" What is there instead:\n{reasons}" if ledger else ""
            raise RecordingError(f"There is no {split} clip: not one usable recording.{instead}")
