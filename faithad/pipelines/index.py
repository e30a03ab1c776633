"""Recordings → manifest: which clips there are, who trains, who tests, and what is known of them.

Only headers are read here, so threads do: the work is waiting for a disk or an object store. What cannot be used, and
every second that is in no clip, stands in `index_ledger.parquet` with its reason.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from faithad import schemas, storage
from faithad.clips.annotations import read_annotations
from faithad.clips.inputs import find_recordings, find_spectrograms
from faithad.clips.manifest import (
    ClipRow,
    LedgerRow,
    Recording,
    attach_annotations,
    cut_recording,
    ledger_table,
    manifest_table,
)
from faithad.clips.recordings import AUDIO_SUFFIXES, probe_recording
from faithad.clips.spectrograms import SPECTROGRAM_SUFFIX
from faithad.clips.splits import hold_out_validation, read_split_csv, split_by_csv, split_by_time
from faithad.clips.synthetic import SyntheticMill, synthesize
from faithad.config import Data, Study
from faithad.errors import ConfigError, RecordingError, StudyError
from faithad.pipelines.session import usable_cores
from faithad.pipelines.stages import Stage, flatten
from faithad.progress import console, progress

# When the published recordings begin; a demo mill of another time would do as well.
_DEMO_START = datetime(2019, 12, 2, 7, 0)
_PROBES_AT_ONCE = 32
# Key of the index's settings that stands for the files which it found.
FILES = "data.files (hash of names and sizes)"


def manifest_location(root: str) -> str:
    return storage.join(root, "manifest.parquet")


def clips_digest(manifest: pa.Table, splits: Sequence[str], columns: Sequence[str]) -> str:
    """Twelve hex digits that change with what some columns say of the clips of some splits."""
    return digest(manifest.filter(pc.is_in(manifest["split"], pa.array(splits))).select(columns))


def digest(table: pa.Table) -> str:
    """Twelve hex digits that change with any value of a table."""
    return hashlib.sha256(json.dumps(table.to_pylist(), default=str).encode()).hexdigest()[:12]


def index_ledger_location(root: str) -> str:
    return storage.join(root, "index_ledger.parquet")


def check_index(study: Study) -> None:
    """Refuse to build upon an index that was made with other settings. Its files are not looked for: they may be away.

    Raises:
        StudyError: the index is not done, or its settings differ.
    """
    location = storage.join(study.root, "stages", "index.json")
    made_with = json.loads(storage.read_text(location)) if storage.exists(location) else {}
    made_with.pop(FILES, None)
    if made_with != json.loads(json.dumps(index_settings(study))):
        raise StudyError(
            f"Stage 'index' is not done with these settings in {study.root}. "
            "Run `faithad index` with the same configuration first."
        )


def index_stage(study: Study) -> Stage:
    """The index's mark: its settings, and names and sizes of all files that it reads."""
    data = study.data
    if data.synthetic is not None:
        synthesize_demo(data)
    settings = index_settings(study) | {FILES: _files_digest(data)}
    outputs = ("manifest.parquet", "index_ledger.parquet")
    return Stage(study.root, "index", settings, outputs, result="index_ledger.parquet")


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
    data = study.data
    rows, ledger = _planer_clips(data) if data.layout == "planer" else _audio_clips(data)
    if data.annotations is not None:
        rows = attach_annotations(rows, read_annotations(data.locate(data.annotations)), ledger=ledger)
    _refuse_useless(rows, ledger)
    split = data.split
    rows = hold_out_validation(rows, fraction=split.validation_fraction, unit=split.validation_unit, seed=split.seed)
    storage.write_table(manifest_table(rows), manifest_location(study.root), schema=schemas.MANIFEST)
    storage.write_table(ledger_table(ledger), index_ledger_location(study.root), schema=schemas.LEDGER)
    counts = ", ".join(f"{sum(row.split == name for row in rows)} {name}" for name in schemas.SPLITS)
    troubled = f", {len(ledger)} parts skipped or failed" if ledger else ""
    console.print(f"index: {len(rows)} clips ({counts}){troubled}")
    stage.finish()


def synthesize_demo(data: Data) -> SyntheticMill:
    """Make the demo mill at `data.root` as far as it is not there yet."""
    assert data.synthetic is not None
    return synthesize_mill(data.root, **data.synthetic.model_dump())


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
            start=_DEMO_START,
            workers=usable_cores(),
            progress=lambda done, _: ticker.update(done),
        )


def _audio_clips(data: Data) -> tuple[list[ClipRow], list[LedgerRow]]:
    """Clips of the recordings in the configured folders, with their split."""
    recordings = find_recordings(_sources(data))
    ledger: list[LedgerRow] = []
    if data.split.csv is not None:
        table = data.locate(data.split.csv)
        recordings, left_out = split_by_csv(recordings, read_split_csv(table), source=table)
        ledger += left_out
    elif data.split.train_until is not None:
        recordings, left_out = split_by_time(recordings, train_until=data.split.train_until)
        ledger += left_out
    rows: list[ClipRow] = []
    with ThreadPoolExecutor(_PROBES_AT_ONCE) as pool, progress("index", len(recordings)) as ticker:
        for number, (clips, unused) in enumerate(pool.map(lambda one: _cut(one, data), recordings), start=1):
            rows += clips
            ledger += unused
            ticker.update(number)
    return rows, ledger


def _planer_clips(data: Data) -> tuple[list[ClipRow], list[LedgerRow]]:
    return find_spectrograms(data.root, training_folders=data.training_folders)


def _cut(recording: Recording, data: Data) -> tuple[list[ClipRow], list[LedgerRow]]:
    try:
        header = probe_recording(recording.uri)
    except RecordingError as error:
        return [], [LedgerRow(recording.path, "failed", str(error))]
    return cut_recording(recording, header, clip_s=data.clip_s, remainder=data.remainder)


def _sources(data: Data) -> list[tuple[str | None, str]]:
    named: list[tuple[str | None, Sequence[str]]] = [
        ("train", data.train),
        ("test", data.test),
        (None, data.recordings),
    ]
    return [(split, data.locate(folder)) for split, folders in named for folder in folders]


def _files_digest(data: Data) -> str:
    """Names and sizes of all files below the inputs: cheap, and enough to notice a recording that came or went."""
    suffixes = [SPECTROGRAM_SUFFIX] if data.layout == "planer" else list(AUDIO_SUFFIXES)
    folders = [data.root] if data.layout == "planer" else [location for _, location in _sources(data)]
    tables = [data.locate(path) for path in (data.annotations, data.split.csv) if path is not None]
    facts: list[Any] = [storage.sizes(folder, suffixes=suffixes) for folder in folders]
    facts += [hashlib.sha256(storage.read_bytes(table)).hexdigest() for table in tables if storage.exists(table)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def _refuse_useless(rows: Sequence[ClipRow], ledger: Sequence[LedgerRow]) -> None:
    """A study without clips to train on or to test ends here, with the reasons that the ledger holds."""
    for split in ("train", "test"):
        if any(row.split == split for row in rows):
            continue
        reasons = "\n".join(f"  {row.recording}: {row.reason}" for row in ledger[:10])
        more = f"\n  and {len(ledger) - 10} more" if len(ledger) > 10 else ""
        found = f" What was found instead:\n{reasons}{more}" if ledger else ""
        raise RecordingError(f"There is no {split} clip: not one usable recording.{found}")
