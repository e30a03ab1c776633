"""The recordings, references and changes of sound of `tests.benchmarks.references`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from faithad.demo.mill import DEMO_START, plan_recordings
from faithad.demo.sounds import planer_sound
from faithad.evaluation.detection import auc
from faithad.evaluation.disturbances import KINDS, disturb
from faithad.features import log_mel
from tests.field_sounds import SETTINGS, read_split

OUTPUT = Path("runs/bench")
BANDS, HEARD = 5, 12  # clips whose spectrum is that of a recording: two minutes
TEN, HALF_HOUR = 60, 180  # clips
GAINS_DB, CHANGES_DB = (-12, -6, -3, 3, 6, 12), (3, 6, 12)
LENGTHS = {"clip": 1, "minute": 6, "ten_minutes": TEN}

Floats = npt.NDArray[np.float32]


class Recording(NamedTuple):
    """The clips of a recording, (n, F, T) in decibels, their medians over the frames, (n, F), and which are anomalous,
    (n,).
    """

    clips: Floats
    medians: Floats
    anomalous: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, clips: Floats, anomalous: npt.NDArray[np.bool_] | None = None) -> Recording:
        labels = np.zeros(len(clips), dtype=bool) if anomalous is None else anomalous
        return cls(clips, np.median(clips, axis=2), labels)

    def louder(self, by_db: Any) -> Recording:
        """Each clip louder by (n, F) decibels, or what can be broadcast to it."""
        medians = self.medians + np.asarray(by_db, dtype=np.float32)
        return self._replace(clips=self.clips + (medians - self.medians)[..., None], medians=medians)

    def with_disturbed(self, kinds: dict[int, str], *, seed: int, name: str) -> Recording:
        """With a disturbance of a kind in some clips, by their numbers."""
        clips, medians = self.clips.copy(), self.medians.copy()
        for k, kind in kinds.items():
            clips[k] = disturb(self.clips[k], kind, settings=SETTINGS, seed=seed, clip_id=f"{name} {k}")
            medians[k] = np.median(clips[k], axis=1)
        return self._replace(clips=clips, medians=medians)

    def parts(self, length: int) -> Iterator[Recording]:
        for start in range(0, len(self.clips), length):
            part = slice(start, start + length)
            yield Recording(self.clips[part], self.medians[part], self.anomalous[part])


# From a recording to what is subtracted from each of its clips, (n, F); None for nothing.
Reference = Callable[[Recording], Floats | None]
# From some clips of a recording, by their numbers, to their scores, (n,).
Scores = Callable[[Recording, Sequence[int]], npt.NDArray[np.float64]]


def _spectra(recording: Recording, length: int) -> Floats:
    """The spectrum of a recording as `faithad.recording_spectrum` computes it, for parts of some clips in a row."""
    spectra = []
    for part in recording.parts(length):
        n = min(len(part.clips), HEARD)
        heard = [k * (len(part.clips) - 1) // max(1, n - 1) for k in range(n)]
        spectrum = np.median(np.concatenate(list(part.clips[heard]), axis=1), axis=1)
        spectra.append(np.broadcast_to(spectrum, part.medians.shape))
    return np.concatenate(spectra)


def _last_ten_minutes(recording: Recording) -> Floats:
    medians = recording.medians
    return np.stack([np.median(medians[max(0, k + 1 - TEN) : k + 1], axis=0) for k in range(len(medians))])


REFERENCES: dict[str, Reference] = {
    "none": lambda recording: None,
    "clip": lambda recording: recording.medians,
    "recording_10": lambda recording: _spectra(recording, TEN),
    "recording": lambda recording: _spectra(recording, HALF_HOUR),
    "recorder": _last_ten_minutes,
}


def mill() -> tuple[list[Recording], list[Recording]]:
    """The normal recordings, and those that are tried."""
    location = OUTPUT / "mill_references.npz"
    if not location.exists():
        OUTPUT.mkdir(parents=True, exist_ok=True)
        made = {}
        for name, skipped, n, seconds in (("train", 0, 8, 600.0), ("test", 8, 3, 1800.0)):
            planned = plan_recordings(
                Path("mill"), train_recordings=skipped + n, test_recordings=0, seed=7, start=DEMO_START,
                recording_s=seconds,
            )[skipped:]  # fmt: skip
            for k, recording in enumerate(planned):
                sound = torch.from_numpy(planer_sound(recording.timeline)).float()
                made[f"{name}{k}"] = log_mel(sound.view(-1, SETTINGS.clip_samples), SETTINGS).numpy()
        np.savez(location, **made)  # type: ignore[arg-type]
    with np.load(location) as kept:
        train, test = (
            [Recording.of(kept[key]) for key in sorted(kept) if key.startswith(name)] for name in ("train", "test")
        )
    return train, test


def field_sounds() -> tuple[list[Recording], list[Recording]]:
    """The same of real sound: recordings of half a minute, anomalous clips among those that are tried."""
    found = []
    for name in ("train", "test"):
        split = read_split(name)
        of = np.array(split.recordings)
        found.append([Recording.of(split.log_mels.numpy()[of == each], split.anomalous[of == each])
                      for each in sorted(set(split.recordings))])  # fmt: skip
    return found[0], found[1]


def gains_and_colours(seed: int) -> dict[str, Floats | int]:
    """Decibels that are added to all of a recording: other gains, and the colours of other microphones."""
    tilt = np.linspace(-6, 6, SETTINGS.n_mels, dtype=np.float32)
    colour = np.random.default_rng(seed).normal(0, 3, SETTINGS.n_mels).astype(np.float32)
    changes: dict[str, Floats | int] = {f"gain_{gain_db:+d}": gain_db for gain_db in GAINS_DB}
    return changes | {"tilt_up": tilt, "tilt_down": -tilt, "colour": colour}


def on_field_sounds(scores: Scores, threshold: float, test: Sequence[Recording]) -> dict[str, float]:
    """The AUC, and the shares of normal and of anomalous clips that alarm: as recorded, and with other gains."""
    figures = {}
    labels = np.concatenate([recording.anomalous for recording in test])
    for name in ("as_recorded", *gains_and_colours(0)):
        changed = [
            recording.louder(({"as_recorded": 0} | gains_and_colours(k))[name]) for k, recording in enumerate(test)
        ]
        found = np.concatenate([scores(recording, range(len(recording.clips))) for recording in changed])
        figures[f"{name}_auc"] = auc(found, labels)
        for kind, chosen in (("false", ~labels), ("caught", labels)):
            figures[f"{name}_{kind}"] = float((found[chosen] > threshold).mean())
    return figures


def on_the_mill(scores: Scores, threshold: float, test: Sequence[Recording]) -> dict[str, float]:
    """The shares of clips that alarm: with other gains, with disturbances, and with louder bands."""

    def alarms(recording: Recording, clips: Sequence[int]) -> float:
        return float((scores(recording, clips) > threshold).mean())

    third = range(0, HALF_HOUR, 3)
    normal = np.concatenate([scores(recording, third) for recording in test])
    figures = {"normal": float((normal > threshold).mean())}
    for name in gains_and_colours(0):
        figures[name] = mean(alarms(each.louder(gains_and_colours(k)[name]), third) for k, each in enumerate(test))
    half = HALF_HOUR // 2
    step_db = np.where(np.arange(HALF_HOUR) < half, 0, 6)[:, None]
    figures["gain_+6_from_middle"] = mean(alarms(each.louder(step_db), range(half, HALF_HOUR, 3)) for each in test)
    kinds = {k: KINDS[k // 9 % len(KINDS)] for k in range(5, HALF_HOUR, 9)}
    disturbed = [recording.with_disturbed(kinds, seed=0, name=str(k)) for k, recording in enumerate(test)]
    short = np.concatenate([scores(recording, list(kinds)) for recording in disturbed])
    figures["short_auc"] = auc(np.concatenate([normal, short]), np.repeat([0, 1], [len(normal), len(short)]))
    figures["short"] = float((short > threshold).mean())
    for name, n in LENGTHS.items():
        for change_db in CHANGES_DB:
            shares = []
            for k, recording in enumerate(test):
                rng = np.random.default_rng([k, n, change_db])
                for first in rng.integers(TEN, HALF_HOUR - n + 1, 2 if n == TEN else 6).tolist():
                    change, low = np.zeros_like(recording.medians), int(rng.integers(0, 81 - BANDS))
                    change[first : first + n, low : low + BANDS] = change_db
                    shares.append(alarms(recording.louder(change), range(first, first + n, 6 if n == TEN else 1)))
            figures[f"{name}_{change_db}"] = mean(shares)
    return figures


def mean(values: Any) -> float:
    return float(np.mean(list(values)))
