"""The demo mill: synthetic WAV recordings of a planer with disturbances at known times.

One file per minute as in the published data set: mono, 20 kHz, 16 bit, `MPD_YY-MM-DD_HHMM_NNNNN.wav`, consecutive
minutes and numbers. `train/` is normal only; `test/` has runs of disturbed recordings among normal ones. The annotation
table has the published layout: one row per disturbed 10 s clip, whole seconds, `-` for a disturbance that is too faint
to hear. A recording depends only on (seed, its number, its disturbances), so recordings can be made in any order, by
several threads or processes, and `synthesize` continues where it was stopped. It writes only into an empty folder or
into one with the mark of an earlier mill (`mill.json`, written first).

Contents
    plan_recordings(...)        what each recording will contain
    annotate(planned)           what an expert would mark in it
    write_recording(planned)    one WAV file, unless it is already there
    synthesize(out, ...)        a whole mill in one folder
    recordings_in(hours)        how many recordings make this many hours
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
from faithad.demo.mark import refuse_foreign_folder, refuse_strangers, write_mark
from faithad.demo.motion import SAMPLE_RATE_HZ
from faithad.demo.sounds import planer_sound
from faithad.demo.timeline import BROKEN, STUCK, UNEVEN, Timeline, disturb, stream, timeline
from faithad.errors import ConfigError

CLIP_S = 10.0
# The first published recordings are of this time; any other time would do.
DEMO_START = datetime(2019, 12, 2, 7, 0)

# Part of every file's fingerprint: raise it when the same settings must sound different.
_SOUND_VERSION = 1
# Test recordings are drawn in blocks; of 12, 5 are disturbed if nothing else is asked for.
_BLOCK_RECORDINGS = 12
DISTURBED_FRACTION = 0.4
_RUNS = 400


@dataclass(frozen=True)
class PlannedRecording:
    """A file that is not yet written, and what it will contain."""

    path: Path
    timeline: Timeline

    @property
    def fingerprint(self) -> str:
        """A hash of everything that determines the sound; written into the file's comment."""
        return hashlib.sha256(f"{_SOUND_VERSION} {self.timeline!r}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class SyntheticMill:
    """The places of a mill, and how many audible disturbances it has."""

    train: Path
    test: Path
    annotations: Path
    n_events: int


def recordings_in(hours: float) -> tuple[int, int]:
    """How many train and test recordings of a minute make this many hours: `recordings_in(48)` is 1,920 and 960.

    There are at least two of each: one to train and one to validate, a normal and a disturbed one to test.

    Raises:
        ConfigError: the hours are negative or no number.
    """
    if not 0.0 <= hours < math.inf:
        raise ConfigError(f"hours is {hours}; a number of hours from 0 on is needed.")
    total = round(hours * 60.0)
    n_test = max(2, round(total / 3))
    return max(2, total - n_test), n_test


def synthesize(
    out: str | Path,
    *,
    train_recordings: int,
    test_recordings: int,
    seed: int,
    start: datetime = DEMO_START,
    recording_s: float = 60.0,
    disturbed_fraction: float = DISTURBED_FRACTION,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> SyntheticMill:
    """Write the recordings and the annotation table of a mill into a local folder.

    Complete files of the same settings are kept.

    Args:
        out: the folder; gets `mill.json`, `train/`, `test/` and `annotations.csv`.
        train_recordings: how many normal recordings come first.
        test_recordings: how many follow for the test.
        seed: determines the machine, the hall and everything that happens; not negative.
        start: wall clock of the first recording; the file name contains the minute.
        recording_s: length of each recording, at least one clip of 10 s.
        disturbed_fraction: of the test recordings, from 0.25 to 1; if possible each type of anomaly is among them.
        workers: how many threads make recordings.
        progress: called with (done, total) after each recording.

    Raises:
        ConfigError: a value is out of range.
        StudyError: the folder contains something else; nothing was written.
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
    refuse_strangers(str(out), {recording.path.relative_to(out).as_posix() for recording in planned})
    write_mark(
        str(out),
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
    disturbed_fraction: float = DISTURBED_FRACTION,
) -> list[PlannedRecording]:
    """What each recording will contain, in the order of the wall clock. Fast; the arguments are those of `synthesize`.

    Raises:
        ConfigError: a value is out of range.
    """
    problems = [
        f"{name} is {value}; {allowed}."
        for name, value, valid, allowed in [
            ("train_recordings", train_recordings, train_recordings >= 0, "it cannot be negative"),
            ("test_recordings", test_recordings, test_recordings >= 0, "it cannot be negative"),
            ("seed", seed, seed >= 0, "it cannot be negative"),
            ("recording_s", recording_s, CLIP_S <= recording_s <= 3600.0, "10 to 3600 seconds are possible"),
            ("disturbed_fraction", disturbed_fraction, 0.25 <= disturbed_fraction <= 1.0, "0.25 to 1 is possible"),
        ]
        if not valid
    ]
    if problems:
        raise ConfigError("The mill cannot be made. " + " ".join(problems))
    whole_clips_s = recording_s // CLIP_S * CLIP_S
    planned = []
    for index, anomaly_type in enumerate(
        [*[None] * train_recordings, *_test_types(seed, test_recordings, disturbed_fraction)]
    ):
        disturbances = disturb(seed, index, anomaly_type, duration_s=whole_clips_s) if anomaly_type else ()
        at = start + timedelta(seconds=index * recording_s)
        folder = out / ("train" if index < train_recordings else "test")
        hours = index * recording_s / 3600.0
        events = timeline(seed, index, duration_s=recording_s, hours=hours, disturbances=disturbances)
        planned.append(PlannedRecording(folder / f"MPD_{at:%y-%m-%d_%H%M}_{index + 1:05d}.wav", events))
    return planned


def write_recording(planned: PlannedRecording) -> None:
    """Write one recording as a complete file, unless the same recording is already there."""
    n_samples = round(planned.timeline.duration_s * SAMPLE_RATE_HZ)
    if _content(planned.path) == (planned.fingerprint, n_samples):
        return
    samples = np.rint(planer_sound(planned.timeline) * np.float32(32767)).astype(np.int16)
    content = io.BytesIO()
    with soundfile.SoundFile(content, "w", SAMPLE_RATE_HZ, 1, "PCM_16", format="WAV") as file:
        file.comment = planned.fingerprint
        file.write(samples)
    storage.write_bytes(str(planned.path), content.getvalue())


def _content(path: Path) -> tuple[str, int] | None:
    """Fingerprint and number of samples of a recording; None if there is none that can be read."""
    try:
        with soundfile.SoundFile(str(path)) as file:
            return file.comment, file.frames
    except (OSError, soundfile.SoundFileError):
        return None


def _test_types(seed: int, n_recordings: int, disturbed_fraction: float) -> list[str | None]:
    """The disturbance of each test recording, None for a normal one.

    They are drawn block by block, so that a longer mill begins with the recordings of a shorter one.
    """
    length = min(n_recordings, _BLOCK_RECORDINGS)
    types: list[str | None] = []
    while len(types) < n_recordings:
        types += _block(stream(seed, _RUNS, len(types) // length), length, disturbed_fraction, first=not types)
    return types[:n_recordings]


def _block(rng: np.random.Generator, length: int, disturbed_fraction: float, *, first: bool) -> list[str | None]:
    """Runs of disturbed recordings of one type among normal ones.

    A board breaks in the first block and in about every third one after it.
    """
    n_disturbed = min(length, max(round(disturbed_fraction * length), 3))
    n_broken = int(n_disturbed >= 3 and (first or rng.random() < 1 / 3))
    n_stuck = int(n_disturbed >= 2) + int(n_disturbed >= 5 and rng.random() < 1 / 2)
    lengths = {BROKEN: n_broken, STUCK: n_stuck, UNEVEN: n_disturbed - n_broken - n_stuck}
    runs = [[anomaly_type] * n for anomaly_type, n in lengths.items() if n]
    pauses = rng.multinomial(length - n_disturbed, [1 / (len(runs) + 1)] * (len(runs) + 1))
    block: list[str | None] = [None] * int(pauses[0])
    for index, pause in zip(rng.permutation(len(runs)), pauses[1:], strict=True):
        block += [*runs[int(index)], *[None] * int(pause)]
    return block


def annotate(planned: PlannedRecording) -> Iterator[Annotation]:
    """A row of the annotation table for each disturbed clip: its audible seconds."""
    for window in range(int(planned.timeline.duration_s // CLIP_S)):
        onset_s, offset_s = CLIP_S * window, CLIP_S * (window + 1)
        in_clip = [
            disturbance
            for disturbance in planned.timeline.disturbances
            if disturbance.marked_s[0] < offset_s and disturbance.marked_s[1] > onset_s
        ]
        if in_clip:
            marked = [disturbance.marked_s for disturbance in in_clip if disturbance.audible]
            yield Annotation(
                recording=planned.path.name,
                window=window + 1,
                anomaly_type=in_clip[0].anomaly_type,
                onset_s=onset_s,
                offset_s=offset_s,
                intervals=tuple((max(a, onset_s) - onset_s, min(b, offset_s) - onset_s) for a, b in marked),
            )
