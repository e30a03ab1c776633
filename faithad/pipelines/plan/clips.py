"""How many clips a study or an audit is about to work on, without doing any of it.

From the manifest where there is one, else from the recordings' headers as the index reads them, or from what the demo
mill will hold. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from faithad import storage
from faithad.clips.inputs import find_recordings
from faithad.clips.manifest import ClipRow, Recording, attach_annotations, cut_recording, manifest_table
from faithad.clips.recordings import AudioHeader
from faithad.clips.splits import hold_out_validation
from faithad.config.audit import AuditRun
from faithad.config.study import Study
from faithad.demo.mill import DEMO_START, PlannedRecording, annotate, plan_recordings
from faithad.errors import FaithadError
from faithad.pipelines.index import check_index, cut_recordings, find_clips
from faithad.runs import layout
from faithad.runs.tables import read_manifest


@dataclass(frozen=True)
class Clips:
    """What there is to work on.

    Attributes:
        train: clips to learn from,
        validation: to validate on,
        test: and to audit;
        annotated: how many of those have reference intervals.
        recordings: files that they lie in.
        to_make: how many of these are a demo mill's that has yet to be made.
        source: where these numbers come from, for people.
        sample: some of the clips as rows of the manifest, to try things out on; empty where nothing is there yet.
    """

    train: int
    validation: int
    test: int
    annotated: int
    recordings: int
    to_make: int
    source: str
    sample: pa.Table

    @property
    def total(self) -> int:
        return self.train + self.validation + self.test


def clips_of_study(study: Study) -> Clips:
    """The clips of a study.

    Raises:
        RecordingError: there are no recordings, or none that could train or test.
        AnnotationError: the annotation table cannot be understood or does not fit the recordings.
    """
    if storage.exists(storage.join(study.root, layout.MANIFEST)) and _is_current(study):
        return count_manifest(read_manifest(study.root), source="the study's manifest")
    if study.data.synthetic is not None:
        planned = _planned_mill(study)
        missing = [recording for recording in planned if not recording.path.is_file()]
        source = f"the demo mill's plan ({len(missing)} of {len(planned)} recordings have yet to be made)"
        return count_manifest(_mill_clips(study, planned), source=source, absent={str(one.path) for one in missing})
    rows, _ = find_clips(study.data, marks=storage.join(study.root, layout.HEADER_ATTEMPTS))
    return count_manifest(manifest_table(rows), source="the names and headers of the recordings")


def clips_of_audit(run: AuditRun, *, clip_s: float) -> Clips:
    """The clips of an audit, all of them test clips.

    Raises:
        RecordingError: there are no recordings.
    """
    recordings = find_recordings([("test", location) for location in run.recordings])
    is_there = storage.exists(storage.join(run.out, layout.MANIFEST))
    if is_there and _speaks_of(manifest := read_manifest(run.out), recordings):
        return count_manifest(manifest, source="the audit's manifest")
    marks = storage.join(run.out, layout.HEADER_ATTEMPTS)
    found = cut_recordings(recordings, clip_s=clip_s, remainder=run.remainder, marks=marks)
    rows = [row for clips, _ in found for row in clips]
    return count_manifest(manifest_table(rows), source="the recordings' headers")


def _is_current(study: Study) -> bool:
    try:
        check_index(study)
    except FaithadError:
        return False
    return True


def _speaks_of(manifest: pa.Table, recordings: Sequence[Recording]) -> bool:
    return set(pc.unique(manifest["uri"]).to_pylist()) <= {recording.uri for recording in recordings}


def count_manifest(manifest: pa.Table, *, source: str, absent: Set[str] = frozenset()) -> Clips:
    """What a manifest comes to; of the recordings in `absent` nothing is there yet."""
    splits = {row["values"]: row["counts"] for row in pc.value_counts(manifest["split"]).to_pylist()}
    uris = pc.unique(manifest["uri"])
    there = manifest.filter(pc.invert(pc.is_in(manifest["uri"], value_set=pa.array(sorted(absent), pa.string()))))
    of_tests = there.filter(pc.equal(there["split"], "test"))
    return Clips(
        train=splits.get("train", 0),
        validation=splits.get("validation", 0),
        test=splits.get("test", 0),
        annotated=pc.sum(pc.and_(manifest["annotated"], pc.equal(manifest["split"], "test"))).as_py() or 0,
        recordings=len(pc.unique(manifest["recording"])),
        to_make=len(absent & set(uris.to_pylist())),
        source=source,
        sample=_spread(of_tests if of_tests.num_rows else there, 32),
    )


def _spread(table: pa.Table, n: int) -> pa.Table:
    """At most n rows, from all over a table."""
    step = max(1, table.num_rows // n)
    return table.take(pa.array(range(0, min(table.num_rows, n * step), step), pa.int64()))


def _planned_mill(study: Study) -> list[PlannedRecording]:
    assert study.data.synthetic is not None
    return plan_recordings(Path(study.data.root), start=DEMO_START, **study.data.synthetic.model_dump())


def _mill_clips(study: Study, planned: Sequence[PlannedRecording]) -> pa.Table:
    """The manifest of a demo mill."""
    rows: list[ClipRow] = []
    for one in planned:
        path = one.path.relative_to(study.data.root)
        recording = Recording(path.as_posix(), str(one.path), path.parts[0])
        header = AudioHeader(one.timeline.duration_s, 1, 1, 1)
        rows += cut_recording(recording, header, clip_s=study.data.clip_s, remainder=study.data.remainder)[0]
    if study.data.annotations is not None:
        rows = attach_annotations(rows, [row for one in planned for row in annotate(one)])
    split = study.data.split
    rows = hold_out_validation(rows, fraction=split.validation_fraction, unit=split.validation_unit, seed=split.seed)
    return manifest_table(rows)
