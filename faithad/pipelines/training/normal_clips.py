"""Normal recordings → the clips that a model, or the alarm of one, is fitted to.

`faithad train --normals` and `faithad calibrate` both write their manifest, features and ledger below the folder of the
new model; the features go when the model is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from faithad import parquet, schemas, storage
from faithad.audit.inputs import write_index
from faithad.audit.ledger import count_ledger, merge_ledgers
from faithad.audit.minutes import recorder_minutes
from faithad.audit.raised_alarm import say_alarm, say_state
from faithad.clips.manifest import Recording
from faithad.errors import RecordingError, StudyError, shown
from faithad.features import Normalization
from faithad.model.alarm import AlarmThreshold
from faithad.model.state_alarm import StateAlarm
from faithad.model.training_sound import TrainingSound, mean_spectra, median_spectrum
from faithad.pipelines.audit.takes import next_shard, number_shards
from faithad.pipelines.audit_index import IndexedRun, index_recordings
from faithad.pipelines.features import CLIPS_PER_SHARD, count_features, load_references, read_features, read_inputs
from faithad.pipelines.training.scores import chosen_clips
from faithad.progress import console
from faithad.runs import layout
from faithad.runs.fingerprints import Look
from faithad.runs.tables import read_manifest
from faithad.scoring.calibration import choose_normals
from faithad.scoring.pieces import piece_lengths
from faithad.scoring.score import ClipBatch
from faithad.scoring.state import FEWEST_MINUTES, LEAST_PAST, fit_state
from faithad.settings import FeatureSettings
from faithad.vocabulary import FEW_RECORDINGS, count, listed

SPLIT = "train"
# What a folder holds in addition to the model.
TABLES = (
    *(layout.MANIFEST, layout.INDEX_LEDGER, layout.HEALTH, layout.INPUTS, layout.FEATURES, layout.LEDGER, layout.MODEL),
    *(layout.HEADER_ATTEMPTS, layout.VALIDATION_SCORES, layout.PIECE_SCORES),
)
NEEDED_TABLES = (layout.MANIFEST, layout.LEDGER, layout.VALIDATION_SCORES)
_FEWEST_CLIPS = 20
_STATE_SHARE, _MOST_MINUTES_ALARM = 0.5, 0.5
# A single recording is cut into this many stretches, which count as recordings.
_STRETCHES = 10


@dataclass(frozen=True)
class Normals:
    """Normal clips whose features are written; sent to Ray's tasks.

    Attributes:
        root: below which the features are.
        features: their settings.
        n_frames: T of what the model takes in, at most that of the features.
        normalization: of the features.
        sound: what the clips sound like.
        minutes: of each recorder, their spectra and the recordings in which they begin, see `fit_state`.
        clips: of each clip with features its recording and the frames that hold sound, in the order of clip_id.
        chosen: the clips that scores are calibrated with, by their numbers in this order.
        is_one_recording: whether all clips come from one, whose stretches then stand for recordings.
    """

    root: str
    features: FeatureSettings
    n_frames: int
    normalization: Normalization
    sound: TrainingSound
    minutes: list[tuple[np.ndarray, list[str]]]
    clips: dict[str, tuple[str, int]]
    chosen: np.ndarray
    is_one_recording: bool

    def parts(self) -> Iterator[Tensor]:
        """All clips as the model takes them in, (b, F, T), in the order of clip_id."""
        for part in read_inputs(self.root, SPLIT, self.features, self.normalization):
            yield part[..., : self.n_frames]

    def chosen_parts(self) -> Iterator[ClipBatch]:
        """The chosen clips."""
        offsets = self.normalization.offsets(load_references(self.root, SPLIT, self.features))
        return chosen_clips(self.parts(), self.clips, self.chosen, offsets)

    @property
    def chosen_n_frames(self) -> list[int]:
        """How many frames of each chosen clip hold sound."""
        n_frames = [n for _, n in self.clips.values()]
        return [n_frames[number] for number in self.chosen]

    @property
    def chosen_are_short(self) -> Tensor:
        """Which chosen clips are shorter than a whole one, (N,) bool."""
        return torch.tensor(self.chosen_n_frames) < self.n_frames

    @property
    def piece_lengths(self) -> dict[float, int]:
        """The frames of pieces, by their duration in seconds."""
        features = self.features
        lengths = piece_lengths(features.clip_s)
        return {duration_s: min(self.n_frames, features.frames_in(duration_s)) for duration_s in lengths}

    @property
    def n_clips(self) -> int:
        return count_features(self.root, SPLIT)

    def fit_state(self, *, false_alarm_rate: float, share: float | None) -> StateAlarm | None:
        """The alarm for what lasts with this share of a rate of false alarms, in minutes; None without a share, or
        where there are too few minutes. By default half, where minutes can be compared with a recorder's own past:
        normal minutes of other days alone are no measure of what is normal today.
        """
        if share == 0:
            return None
        needs_past, share = share is None, _STATE_SHARE if share is None else share
        recorders, recordings = zip(*self.minutes, strict=True) if self.minutes else ((), ())
        # A rate of clips may be more than there are minutes.
        rate = min(_MOST_MINUTES_ALARM, false_alarm_rate * share)
        alarm = fit_state(recorders, recordings, false_alarm_rate=rate, share=share)
        return None if alarm is None or (needs_past and alarm.against_past is None) else alarm


def index_normals(
    run: IndexedRun, recordings: Sequence[Recording], inputs: Mapping[str, Look], features: FeatureSettings
) -> pa.Table:
    """Write the manifest of normal recordings, and return it.

    Raises:
        RecordingError: none of them gave a clip.
    """
    manifest = index_recordings(
        run,
        recordings,
        inputs,
        clip_s=features.clip_s,
        sample_rate_hz=features.sample_rate_hz,
        clips_per_shard=CLIPS_PER_SHARD,
    )
    if not manifest.num_rows:
        reasons = parquet.read_table(storage.join(run.out, layout.INDEX_LEDGER)).to_pylist()
        lines = [f"  {shown(row['recording'])}: {row['reason']}" for row in reasons]
        raise RecordingError(f"Not one recording gave a clip.\n{listed(lines, separator=chr(10))}")
    return manifest


def add_clips(root: str, manifest: pa.Table, clips: pa.Table) -> pa.Table:
    """Write the manifest with further clips, of recordings that are none of `inputs.parquet`, and return it.

    Args:
        root: below which the manifest is.
        manifest: of the normal recordings.
        clips: as schemas.MANIFEST.
    """
    if not clips.num_rows:
        return manifest
    first = next_shard(manifest)
    take = number_shards(clips, largest=CLIPS_PER_SHARD, take=1 + pc.max(manifest["take"]).as_py(), first=first)
    order = [("recording", "ascending"), ("onset_s", "ascending")]
    manifest = pa.concat_tables([manifest, take]).sort_by(order).combine_chunks()
    write_index(root, layout.MANIFEST, manifest)
    return manifest


def read_normals(
    root: str,
    manifest: pa.Table,
    features: FeatureSettings,
    *,
    seed: int,
    n_frames: int | None = None,
    normalization: Normalization | None = None,
) -> Normals:
    """The normal clips to fit to, once the features are written.

    Args:
        root: below which the features are.
        manifest: of the clips.
        features: their settings.
        seed: draws the clips that scores are calibrated with, where there are too many.
        n_frames: T of what the model takes in; that of the features by default.
        normalization: of the model; fitted to these clips by default.

    Raises:
        StudyError: the clips are too few.
    """
    n_frames = features.n_frames if n_frames is None else n_frames
    if normalization is None:
        normalization = Normalization.fit(read_features(root, SPLIT, features))
    clip_ids = parquet.read_table(storage.join(root, layout.features(SPLIT)), columns=["clip_id"])["clip_id"]
    manifest = manifest.filter(pc.is_in(manifest["clip_id"], value_set=clip_ids.combine_chunks())).sort_by("clip_id")
    rows = manifest.select(["clip_id", "recording", "onset_s", "duration_s"]).to_pylist()
    if len(rows) < _FEWEST_CLIPS:
        raise StudyError(
            f"There are {count(len(rows), 'normal clip')}, and {_FEWEST_CLIPS} are needed; an hour of sound makes "
            f"{3600 / features.clip_s:.0f}. Give more recordings of normal operation."
        )
    is_one_recording = len({row["recording"] for row in rows}) == 1
    if is_one_recording:
        end_s = max(row["onset_s"] + row["duration_s"] for row in rows)
        for row in rows:
            row["recording"] += f" {int(_STRETCHES * row['onset_s'] / end_s)}"
    clips = {row["clip_id"]: (row["recording"], min(n_frames, features.frames_in(row["duration_s"]))) for row in rows}
    chosen = choose_normals(len(clips), seed=seed)
    # In the order of clip_id, a hash, every second clip is a random sample.
    spectra = mean_spectra(read_features(root, SPLIT, features), features)
    sound = TrainingSound.fit(spectra[::2], spectra[1::2])
    minutes = _minutes(root, manifest, features, clips)
    return Normals(root, features, n_frames, normalization, sound, minutes, clips, chosen, is_one_recording)


def _minutes(
    root: str, manifest: pa.Table, features: FeatureSettings, clips: Mapping[str, tuple[str, int]]
) -> list[tuple[np.ndarray, list[str]]]:
    all_clips = (clip for part in read_features(root, SPLIT, features) for clip in part)
    medians = [
        median_spectrum(clip[:, :n_frames], features).numpy()
        for clip, (_, n_frames) in zip(all_clips, clips.values(), strict=True)
    ]
    spectra = pa.table({"clip_id": list(clips), "median_db": pa.array(medians, pa.list_(pa.float32()))})
    return [
        (minutes.spectra, [clips[clip_id][0] for clip_id in minutes.first_clips])
        for minutes in recorder_minutes(manifest, spectra, clip_s=features.clip_s)
    ]


def write_ledger(root: str) -> None:
    """Write what became of every second of the recordings."""
    failures = storage.join(root, layout.FEATURES), storage.name_of(layout.FEATURES_LEDGER)
    ledger = merge_ledgers(root, read_manifest(root), [], others=[failures])
    parquet.write_table(ledger, storage.join(root, layout.LEDGER), schema=schemas.LEDGER)


def say_promise(normals: Normals, alarm: AlarmThreshold, state: StateAlarm | None, *, share: float | None) -> None:
    """Say which rate of false alarms is promised, and what it rests on.

    Args:
        normals: the clips.
        alarm: of clips.
        state: for what lasts; None where there is none.
        share: of the false alarms that it was to have, see `Normals.fit_state`.
    """
    say_alarm(alarm, clip_s=normals.features.clip_s)
    if state is not None:
        say_state(state, clip_s=normals.features.clip_s)
    elif share != 0:
        n = sum(len(recordings) for _, recordings in normals.minutes)
        needed = f"{FEWEST_MINUTES} minutes or more of 2 recordings"
        if share is None:
            needed = f"{LEAST_PAST + FEWEST_MINUTES} minutes or more of one recorder, by the clock"
        console.print(
            f"state: no alarm for what lasts: it needs {needed}; the normal recordings make {count(n, 'whole minute')}"
        )
    n_recordings = len({recording for recording, _ in normals.clips.values()})
    if normals.is_one_recording or n_recordings < FEW_RECORDINGS:
        of = "1 recording" if normals.is_one_recording else count(n_recordings, "recording")
        console.print(f"alarm: the normal clips come from {of}: other days may well be noisier than these promise")


def clips_fitted(root: str) -> str:
    """How many clips were used, and what was not; for the last line for the user."""
    location = storage.join(root, layout.LEDGER)
    counts = count_ledger(location)
    skipped = f", {count(counts.clips_skipped, 'clip')} left out" if counts.clips_skipped else ""
    failed = f", {count(counts.clips_failed, 'clip')} failed" if counts.clips_failed else ""
    unheard = f". Not heard: {counts.unheard}" if counts.unheard else ""
    see = f" (see {location})" if failed or skipped or unheard else ""
    return f"{count(counts.clips_done, 'clip')} fitted{skipped}{failed}{see}{unheard}"
