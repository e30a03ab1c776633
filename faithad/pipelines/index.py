"""Recordings → manifest: which clips there are, who trains, who tests, and what is known of them.

Only headers are read here, so threads do: the work is waiting for a disk or an object store. What cannot be used, and
every second that is in no clip, stands in `index_ledger.parquet` with its reason.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from faithad import schemas, storage
from faithad.clips.access import read_or_reason
from faithad.clips.inputs import find_left_out, find_recordings, find_spectrograms
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
from faithad.clips.recordings import AUDIO_SUFFIXES, Remainder, probe_recording
from faithad.clips.spectrograms import SPECTROGRAM_SUFFIX
from faithad.clips.splits import hold_out_validation, read_split_csv, split_by_csv, split_by_time
from faithad.config.study import Data, Study
from faithad.demo.mark import MARK
from faithad.demo.mill import SyntheticMill, synthesize
from faithad.errors import ConfigError, RecordingError, StudyError
from faithad.pipelines.cluster.session import usable_cores
from faithad.pipelines.cluster.shared_paths import require_visible
from faithad.progress import console, progress
from faithad.runs import layout
from faithad.runs.fingerprints import contents, folder_fingerprints
from faithad.runs.lookahead import side_by_side
from faithad.runs.stages import FILE_KEY, Stage, flatten

# When the published recordings begin; a demo mill of another time would do as well.
DEMO_START = datetime(2019, 12, 2, 7, 0)
_PROBES_AT_ONCE = 32


def clips_digest(manifest: pa.Table, splits: Sequence[str], columns: Sequence[str]) -> str:
    """Twelve hex digits that change with what some columns say of the clips of some splits."""
    return digest(manifest.filter(pc.is_in(manifest["split"], pa.array(splits))).select(columns))


def digest(table: pa.Table) -> str:
    """Twelve hex digits that change with any value of a table."""
    return hashlib.sha256(json.dumps(table.to_pylist(), default=str).encode()).hexdigest()[:12]


def check_index(study: Study) -> None:
    """Refuse to build upon an index that was made with other settings. Its files are not looked for: they may be away.

    Raises:
        StudyError: the index is not done, or its settings differ.
    """
    location = storage.join(study.root, "stages", "index.json")
    mark = json.loads(storage.read_text(location)) if storage.exists(location) else {}
    made_with = {key: value for key, value in mark.items() if not key.startswith(FILE_KEY)}
    if made_with != json.loads(json.dumps(index_settings(study))):
        raise StudyError(
            f"Stage 'index' is not done with these settings in {study.root}. "
            "Run `faithad index` with the same configuration first."
        )


def index_stage(study: Study) -> Stage:
    """The index's mark: its settings, and the fingerprints of all files that it reads."""
    data = study.data
    if data.synthetic is not None:
        synthesize_demo(data)
    files = {f"{FILE_KEY}{name}": found for name, found in _files(data).items()}
    settings = index_settings(study) | files
    outputs = (layout.MANIFEST, layout.INDEX_LEDGER)
    return Stage(study.root, "index", settings, outputs, result=layout.INDEX_LEDGER)


def require_study_visible(study: Study) -> None:
    """Refuse a study whose recordings or root some machine of the cluster cannot see; Ray must have been joined.

    Raises:
        StudyError: as `shared_paths.require_visible`.
    """
    data = study.data
    if data.synthetic is not None:
        require_visible([], [data.root, study.root])
    else:
        reads = [data.root] if data.layout == "planer" else [location for _, location in _sources(data)]
        require_visible(reads, [study.root])


def index_settings(study: Study) -> dict[str, Any]:
    """What the index depends on, apart from the files themselves."""
    return flatten("data", study.data.model_dump(mode="json"))


def build_index(study: Study, stage: Stage, *, redo: bool) -> None:
    """Write the manifest and the index's ledger.

    Raises:
        RecordingError: there are no recordings, or none that could train or test.
        AnnotationError: the annotation table cannot be understood or does not fit the recordings.
    """
    if not stage.begin(redo=redo):
        return
    rows, ledger = find_clips(study.data)
    storage.write_table(manifest_table(rows), storage.join(study.root, layout.MANIFEST), schema=schemas.MANIFEST)
    storage.write_table(ledger_table(ledger), storage.join(study.root, layout.INDEX_LEDGER), schema=schemas.LEDGER)
    counts = ", ".join(f"{sum(row.split == name for row in rows)} {name}" for name in schemas.SPLITS)
    troubled = f", {len(ledger)} parts skipped or failed" if ledger else ""
    console.print(f"index: {len(rows)} clips ({counts}){troubled}")
    stage.finish()


def find_clips(data: Data) -> tuple[list[ClipRow], list[LedgerRow]]:
    """All clips, labelled and split, and what became none; the demo mill must have been made.

    Raises:
        RecordingError: as `build_index`.
        AnnotationError: as `build_index`.
    """
    rows, ledger = _planer_clips(data) if data.layout == "planer" else _audio_clips(data)
    if data.annotations is not None:
        rows = attach_annotations(rows, read_reference(data.locate(data.annotations)), ledger=ledger)
    _refuse_useless(rows, ledger)
    split = data.split
    rows = hold_out_validation(rows, fraction=split.validation_fraction, unit=split.validation_unit, seed=split.seed)
    return rows, ledger


def synthesize_demo(data: Data) -> None:
    """Make the demo mill at `data.root` as far as it is not there yet.

    Raises:
        StudyError: something else is there.
    """
    assert data.synthetic is not None
    settings = data.synthetic.model_dump()
    if not storage.is_remote(data.root):
        synthesize_mill(data.root, **settings)
        return
    mark = storage.join(data.root, MARK)  # the last that is copied there
    if storage.exists(mark) and json.loads(storage.read_text(mark)).items() >= settings.items():
        return
    with tempfile.TemporaryDirectory() as folder:
        synthesize_mill(folder, **settings)
        made = dict(storage.list_files(folder, suffixes=[""]))
        there = [name for name, _ in storage.list_files(data.root, suffixes=AUDIO_SUFFIXES)]
        if strangers := sorted(set(there) - set(made)):
            raise StudyError(
                f"{data.root} holds {strangers[0]}, which is not part of this demo mill. Give data.root another folder."
            )
        for name in sorted(made, key=lambda name: name == MARK):
            storage.write_bytes(storage.join(data.root, name), storage.read_bytes(made[name]))


def synthesize_mill(out: str, *, train_recordings: int, test_recordings: int, seed: int) -> SyntheticMill:
    """Make a mill on all cores, with a progress bar.

    Raises:
        ConfigError: the folder is not a local one.
    """
    if storage.is_remote(out):
        raise ConfigError(f"The demo mill is made on this machine's disk, not at {out!r}: give a local folder.")
    with progress("synth", train_recordings + test_recordings) as ticker:
        return synthesize(
            out,
            train_recordings=train_recordings,
            test_recordings=test_recordings,
            seed=seed,
            start=DEMO_START,
            workers=usable_cores(),
            progress=lambda done, _: ticker.update(done),
        )


def _audio_clips(data: Data) -> tuple[list[ClipRow], list[LedgerRow]]:
    """Clips of the recordings in the configured folders, with their split."""
    recordings = find_recordings(_sources(data))
    ledger = find_left_out([location for _, location in _sources(data)])
    if data.split.csv is not None:
        table = data.locate(data.split.csv)
        recordings, left_out = split_by_csv(recordings, read_split_csv(table), source=table)
        ledger += left_out
    elif data.split.train_until is not None:
        recordings, left_out = split_by_time(recordings, train_until=data.split.train_until)
        ledger += left_out
    rows: list[ClipRow] = []
    for clips, unused in cut_recordings(recordings, clip_s=data.clip_s, remainder=data.remainder):
        rows += clips
        ledger += unused
    return rows, ledger


def _planer_clips(data: Data) -> tuple[list[ClipRow], list[LedgerRow]]:
    return find_spectrograms(data.root, training_folders=data.training_folders)


def cut_recordings(
    recordings: Sequence[Recording], *, clip_s: float, remainder: Remainder
) -> Iterator[tuple[list[ClipRow], list[LedgerRow]]]:
    """The clips of each recording in turn, and a ledger row for each part of it that is in none.

    Only headers are read. A recording that cannot be opened gives a ledger row with the reason.

    Raises:
        StorageError: the folder of the recordings cannot be reached.
    """

    def cut(recording: Recording) -> tuple[list[ClipRow], list[LedgerRow]]:
        header = read_or_reason(recording.path, recording.uri, lambda: probe_recording(recording.uri))
        if isinstance(header, str):
            return [], [LedgerRow(recording.path, "failed", header)]
        return cut_recording(recording, header, clip_s=clip_s, remainder=remainder)

    with progress("index", len(recordings)) as ticker:
        for number, found in enumerate(side_by_side(cut, recordings, at_once=_PROBES_AT_ONCE), start=1):
            yield found
            ticker.update(number)


def _sources(data: Data) -> list[tuple[str | None, str]]:
    named: list[tuple[str | None, Sequence[str]]] = [
        ("train", data.train),
        ("test", data.test),
        (None, data.recordings),
    ]
    return [(split, data.locate(folder)) for split, folders in named for folder in folders]


def _files(data: Data) -> dict[str, str]:
    """Fingerprints of all files below the inputs, by name: enough to notice one that came, went or is another now."""
    suffixes = [SPECTROGRAM_SUFFIX] if data.layout == "planer" else list(AUDIO_SUFFIXES)
    folders = [data.root] if data.layout == "planer" else [location for _, location in _sources(data)]
    found = folder_fingerprints(folders, suffixes=suffixes)
    for table in (data.annotations, data.split.csv):
        if table is not None:
            found |= contents(data.locate(table))
    return found


def _refuse_useless(rows: Sequence[ClipRow], ledger: Sequence[LedgerRow]) -> None:
    """A study without clips to train on or to test ends here, with the reasons that the ledger holds."""
    for split in ("train", "test"):
        if any(row.split == split for row in rows):
            continue
        reasons = "\n".join(f"  {row.recording}: {row.reason}" for row in ledger[:10])
        more = f"\n  and {len(ledger) - 10} more" if len(ledger) > 10 else ""
        found = f" What was found instead:\n{reasons}{more}" if ledger else ""
        raise RecordingError(f"There is no {split} clip: not one usable recording.{found}")
