"""The demo mill: WAV recordings of a planer that never was, with disturbances at known times.

One file per minute as in the published data set: mono, 20 kHz, 16 bit, `MPD_YY-MM-DD_HHMM_NNNNN.wav`, consecutive
minutes and numbers. `train/` is normal only; in `test/` runs of disturbed recordings lie among normal ones. The
annotation table has the published layout: one row per disturbed 10 s clip, whole seconds, `-` where the disturbance is
too faint to be heard. A recording follows from (seed, its number, its disturbances) alone: recordings can be made in
any order, many at once, and by several processes; `synthesize` goes on where it was stopped. It writes only into a
folder that is empty, or that holds the mark (`mill.json`, written first) of a mill that was made before.

Contents
    plan_recordings(...)         what each recording will hold
    annotate(planned)            what an expert would mark in it
    write_recording(planned)     one WAV file, unless it is already there
    synthesize(out, ...)         a whole mill, as one folder
    recordings_in(hours, ...)    how many recordings make so many hours
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import soundfile

from faithad import storage
from faithad.clips.annotations import Annotation, write_annotations
from faithad.demo.mark import refuse_foreign_folder, write_mark
from faithad.demo.motion import SAMPLE_RATE_HZ
from faithad.demo.sounds import planer_sound
from faithad.demo.timeline import BROKEN, STUCK, UNEVEN, Timeline, disturb, stream, timeline
from faithad.errors import ConfigError, StudyError
from faithad.vocabulary import AUDIO_SUFFIXES

CLIP_S = 10.0
# When the published recordings begin; a demo mill of another time would do as well.
DEMO_START = datetime(2019, 12, 2, 7, 0)

# Part of every file's fingerprint: raise it when the same settings shall sound different.
_SOUND_VERSION = 1
_DISTURBED_PER_BLOCK = 5
_RUNS = 400


@dataclass(frozen=True)
class PlannedRecording:
    """One file to be: where it goes and what is in it."""

    path: Path
    timeline: Timeline

    @property
    def fingerprint(self) -> str:
        """What the sound follows from, in short; stands in the file's comment."""
        return hashlib.sha256(f"{_SOUND_VERSION} {self.timeline!r}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class SyntheticMill:
    """Where a mill lies, and how many audible disturbances it has."""

    train: Path
    test: Path
    annotations: Path
    n_events: int


def recordings_in(hours: float, *, recording_s: float = 60.0, test_fraction: float = 1 / 3) -> tuple[int, int]:
    """How many train and test recordings make so many hours: `recordings_in(48)` is 1,920 and 960.

    At least two of each, however short: one to train and one to validate with, a normal and a disturbed one to test.

    Raises:
        ConfigError: the hours are negative or no number.
    """
    if not 0.0 <= hours < math.inf:
        raise ConfigError(f"hours is {hours}; a number of hours from 0 on is needed.")
    total = round(hours * 3600.0 / recording_s)
    n_test = max(2, round(total * test_fraction))
    return max(2, total - n_test), n_test


def synthesize(
    out: str | Path,
    *,
    train_recordings: int,
    test_recordings: int,
    seed: int,
    start: datetime = DEMO_START,
    recording_s: float = 60.0,
    disturbed_fraction: float = 0.4,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> SyntheticMill:
    """Write the recordings and the annotation table of a mill into a local folder.

    Files that are already whole and follow from the same settings stay as they are.

    Args:
        out: the folder; gets `mill.json`, `train/`, `test/` and `annotations.csv`.
        train_recordings: how many normal recordings come first.
        test_recordings: how many follow for the test.
        seed: the machine, the hall and everything that happens; not negative.
        start: wall clock of the first recording; the minute is in the file name.
        recording_s: length of each recording, at least one clip of 10 s.
        disturbed_fraction: share of the test recordings with disturbances, at least three where it is not 0:
            one of each type.
        workers: how many recordings are made at once, as threads.
        progress: called with (done, total) after each recording.

    Raises:
        ConfigError: a value is out of range.
        StudyError: the folder holds something else; nothing was written.
    """
    out = Path(storage.locate(str(out))[1])
    planned = plan_recordings(
        out,
        train_recordings=train_recordings,
        test_recordings=test_recordings,
        seed=seed,
        start=start,
        recording_s=recording_s,
        disturbed_fraction=disturbed_fraction,
    )
    if workers < 1:
        raise ConfigError(f"workers is {workers}; at least 1 is needed.")
    refuse_foreign_folder(out)
    _refuse_strangers(out, planned)
    write_mark(
        out,
        seed=seed,
        train_recordings=train_recordings,
        test_recordings=test_recordings,
        start=start.isoformat(),
        recording_s=recording_s,
        disturbed_fraction=disturbed_fraction,
    )
    with ThreadPoolExecutor(workers) as pool:
        for done, _ in enumerate(pool.map(write_recording, planned), start=1):
            if progress is not None:
                progress(done, len(planned))
    rows = [row for recording in planned for row in annotate(recording)]
    write_annotations(rows, str(out / "annotations.csv"))
    n_events = sum(disturbance.audible for recording in planned for disturbance in recording.timeline.disturbances)
    return SyntheticMill(out / "train", out / "test", out / "annotations.csv", n_events)


def plan_recordings(
    out: Path,
    *,
    train_recordings: int,
    test_recordings: int,
    seed: int,
    start: datetime = DEMO_START,
    recording_s: float = 60.0,
    disturbed_fraction: float = 0.4,
) -> list[PlannedRecording]:
    """What each recording will hold, in the order of the wall clock. Cheap; arguments as in `synthesize`.

    Raises:
        ConfigError: a value is out of range.
    """
    problems = [
        f"{name} is {value}; {allowed}."
        for name, value, fine, allowed in [
            ("train_recordings", train_recordings, train_recordings >= 0, "it cannot be negative"),
            ("test_recordings", test_recordings, test_recordings >= 0, "it cannot be negative"),
            ("seed", seed, seed >= 0, "it cannot be negative"),
            ("recording_s", recording_s, CLIP_S <= recording_s <= 3600.0, "10 to 3600 seconds are possible"),
            ("disturbed_fraction", disturbed_fraction, 0.0 <= disturbed_fraction <= 1.0, "it must lie in 0 to 1"),
        ]
        if not fine
    ]
    if problems:
        raise ConfigError("The mill cannot be made. " + " ".join(problems))
    types: list[str | None] = [None] * train_recordings
    types += list(_test_types(seed, test_recordings, disturbed_fraction))
    planned = []
    for index, anomaly_type in enumerate(types):
        whole_clips_s = recording_s // CLIP_S * CLIP_S
        disturbances = disturb(seed, index, anomaly_type, duration_s=whole_clips_s) if anomaly_type else ()
        at = start + timedelta(seconds=index * recording_s)
        folder = out / ("train" if index < train_recordings else "test")
        held = timeline(
            seed,
            index,
            duration_s=recording_s,
            hours=index * recording_s / 3600.0,
            disturbances=disturbances,
        )
        planned.append(PlannedRecording(folder / f"MPD_{at:%y-%m-%d_%H%M}_{index + 1:05d}.wav", held))
    return planned


def write_recording(planned: PlannedRecording) -> bool:
    """Write one recording, whole or not at all; False where the same one is there already."""
    n_samples = round(planned.timeline.duration_s * SAMPLE_RATE_HZ)
    if _holds(planned.path) == (planned.fingerprint, n_samples):
        return False
    samples = np.rint(planer_sound(planned.timeline) * np.float32(32767)).astype(np.int16)
    content = io.BytesIO()
    with soundfile.SoundFile(content, "w", SAMPLE_RATE_HZ, 1, "PCM_16", format="WAV") as file:
        file.comment = planned.fingerprint
        file.write(samples)
    storage.write_bytes(str(planned.path), content.getvalue())
    return True


def _holds(path: Path) -> tuple[str, int] | None:
    """Fingerprint and number of samples of a recording that is there, None where none can be read."""
    try:
        with soundfile.SoundFile(str(path)) as file:
            return file.comment, file.frames
    except (OSError, soundfile.SoundFileError):
        return None


def _refuse_strangers(out: Path, planned: list[PlannedRecording]) -> None:
    """Recordings that would be taken for part of this mill must not lie in its folders."""
    ours = {str(recording.path) for recording in planned}
    strangers = [
        path
        for folder in ("train", "test")
        for _, path in storage.list_files(str(out / folder), suffixes=AUDIO_SUFFIXES)
        if path not in ours
    ]
    if strangers:
        raise StudyError(
            f"{out} holds {len(strangers)} recording(s) that are not part of this mill, such as "
            f"{storage.name_of(strangers[0])}. They stem from other settings or another source: choose another folder, "
            "or move them away."
        )


def _test_types(seed: int, n_recordings: int, disturbed_fraction: float) -> Iterator[str | None]:
    """The disturbance of each test recording, None where it is normal.

    Drawn block by block, so that more recordings leave the earlier ones as they are. In each block the disturbed
    recordings of one type follow each other, as trouble does.
    """
    if disturbed_fraction == 0:
        yield from [None] * n_recordings
        return
    length = min(n_recordings, max(1, round(_DISTURBED_PER_BLOCK / disturbed_fraction)))
    for index in range(n_recordings):
        if index % length == 0:
            block = _block(stream(seed, _RUNS, index // length), length, disturbed_fraction, first=index == 0)
        yield block[index % length]


def _block(rng: np.random.Generator, length: int, disturbed_fraction: float, *, first: bool) -> list[str | None]:
    """Runs of disturbed recordings among normal ones. A board breaks in the first block and in every third after it."""
    n_disturbed = min(length, max(round(disturbed_fraction * length), 3))
    n_broken = int(n_disturbed >= 3 and (first or rng.random() < 1 / 3))
    n_stuck = int(n_disturbed >= 2) + int(n_disturbed >= 5 and rng.random() < 1 / 2)
    runs: list[list[str | None]] = [
        [BROKEN] * n_broken,
        [STUCK] * n_stuck,
        [UNEVEN] * (n_disturbed - n_broken - n_stuck),
    ]
    runs = [run for run in runs if run]
    pauses = rng.multinomial(length - n_disturbed, [1 / (len(runs) + 1)] * (len(runs) + 1))
    block: list[str | None] = [None] * int(pauses[0])
    for place, pause in zip(rng.permutation(len(runs)), pauses[1:], strict=True):
        block += [*runs[int(place)], *[None] * int(pause)]
    return block


def annotate(planned: PlannedRecording) -> Iterator[Annotation]:
    """A row of the annotation table for each disturbed clip: the seconds that can be heard, cut at the clip's ends."""
    for window in range(int(planned.timeline.duration_s // CLIP_S)):
        onset_s, offset_s = CLIP_S * window, CLIP_S * (window + 1)
        here = [
            disturbance
            for disturbance in planned.timeline.disturbances
            if disturbance.marked_s[0] < offset_s and disturbance.marked_s[1] > onset_s
        ]
        if here:
            marked = [disturbance.marked_s for disturbance in here if disturbance.audible]
            yield Annotation(
                recording=planned.path.name,
                window=window + 1,
                anomaly_type=here[0].anomaly_type,
                onset_s=onset_s,
                offset_s=offset_s,
                intervals=tuple((max(a, onset_s) - onset_s, min(b, offset_s) - onset_s) for a, b in marked),
            )
