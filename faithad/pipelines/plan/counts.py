"""How many clips there are to work on: by a manifest, by the headers of the recordings, or by the demo mill's plan."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from faithad import schemas
from faithad.clips.inputs import find_recordings
from faithad.clips.manifest import Recording, attach_annotations, cut_recording, manifest_table
from faithad.clips.recordings import AudioHeader
from faithad.clips.splits import hold_out_validation
from faithad.config.audit import AuditRun
from faithad.config.sections import Section
from faithad.config.study import Study
from faithad.demo.mill import annotate, plan_recordings
from faithad.errors import RecordingError, StudyError
from faithad.pipelines.index import check_index, cut_recordings, find_clips
from faithad.runs.tables import read_manifest


class Counts(Section):
    """Clips of each split, test clips with reference intervals, recordings, and those of a demo mill yet to be made."""

    train: int = Field(0, ge=0)
    validation: int = Field(0, ge=0)
    test: int = Field(ge=1)
    annotated: int = Field(0, ge=0)
    recordings: int = Field(ge=1)
    to_make: int = Field(0, ge=0)
    source: str = "the file of rates"


def count_study(study: Study) -> tuple[Counts, pa.Table]:
    """The clips of a study, and their rows of the manifest where their recordings are there.

    Raises:
        RecordingError: there are no recordings, or none that could train or test.
        AnnotationError: the annotation table cannot be understood or does not fit the recordings.
    """
    with contextlib.suppress(StudyError):  # it is not indexed yet, or with other settings
        check_index(study)
        manifest = read_manifest(study.root)
        return count_manifest(manifest, source="the study's manifest"), manifest
    if study.data.synthetic is not None:
        manifest, n, to_make = _planned_mill(study)
        if to_make:
            source = f"the demo mill's plan ({to_make} of {n} recordings have yet to be made)"
            return count_manifest(manifest, source=source, to_make=to_make), schemas.MANIFEST.empty_table()
    with tempfile.TemporaryDirectory() as marks:
        manifest = manifest_table(find_clips(study.data, marks=marks)[0])
    return count_manifest(manifest, source="the names and headers of the recordings"), manifest


def count_audit(run: AuditRun, *, clip_s: float) -> tuple[Counts, pa.Table]:
    """The clips of an audit, all of them test clips, and their rows of the manifest.

    Raises:
        RecordingError: there are no recordings, or not one of them gives a clip.
    """
    recordings = find_recordings([("test", location) for location in run.recordings])
    with tempfile.TemporaryDirectory() as marks:
        clips = cut_recordings(recordings, clip_s=clip_s, remainder=run.remainder, marks=marks)
        manifest = manifest_table([row for rows, _ in clips for row in rows])
    if not manifest.num_rows:
        raise RecordingError("There is nothing to audit: not one recording gives a clip.")
    return count_manifest(manifest, source="the headers of the recordings"), manifest


def count_manifest(manifest: pa.Table, *, source: str, to_make: int = 0) -> Counts:
    splits = manifest["split"].to_pylist()
    return Counts(
        **{split: splits.count(split) for split in schemas.SPLITS},
        annotated=pc.sum(pc.and_(manifest["annotated"], pc.equal(manifest["split"], "test"))).as_py(),
        recordings=len(pc.unique(manifest["recording"])),
        to_make=to_make,
        source=source,
    )


def _planned_mill(study: Study) -> tuple[pa.Table, int, int]:
    """The manifest of a demo mill, how many recordings it has, and how many of them have yet to be made."""
    data, split = study.data, study.data.split
    assert data.synthetic is not None
    planned = plan_recordings(Path(data.root), **data.synthetic.model_dump())
    rows = []
    for recording in planned:
        path = recording.path.relative_to(data.root)
        header = AudioHeader(recording.timeline.duration_s, 1, 1, 1)
        source = Recording(path.as_posix(), str(recording.path), path.parts[0])
        rows += cut_recording(source, header, clip_s=data.clip_s, remainder=data.remainder)[0]
    if data.annotations is not None:
        rows = attach_annotations(rows, [row for recording in planned for row in annotate(recording)])
    rows = hold_out_validation(rows, fraction=split.validation_fraction, unit=split.validation_unit, seed=split.seed)
    return manifest_table(rows), len(planned), sum(not recording.path.is_file() for recording in planned)
