"""What the linear models are to subtract from a clip, and scores to be compared with: on a synthesised mill.

    python -m tests.benchmarks.references [--threads N]

Both linear models, their scores added as `faithad train --normals` adds them, with the threshold for 5 % of the normal
clips of 8 recordings of 10 minutes; tried on 3 of 30 minutes, from four hours later on. Subtracted is, in each
mel band,

    none        nothing
    clip        the median of the clip
    recording   the median of the clips' medians over 10 minutes in a row (a recording of the training), or over the
                whole 30 minutes
    recorder    the same over this clip and the last ten minutes before it

Said are the shares of clips that alarm: normal ones; normal ones with another gain, for the whole recording or from its
middle on; ones with a short disturbance (`evaluation.disturbances`); and ones in which five bands side by side are
louder, for a clip, a minute, and ten minutes. Then the same for scores less the median of the recorder's last ones,
with sound that slowly drifts, and with rubbing for a clip, a minute and ten minutes.

The mill's log-mels take minutes to make, and are kept in runs/bench/mill_references.npz. The figures go to
runs/bench/references.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faithad.demo.mill import DEMO_START, plan_recordings
from faithad.demo.sounds import planer_sound
from faithad.evaluation.alarms import fit_promised_alarm
from faithad.evaluation.detection import auc
from faithad.evaluation.disturbances import KINDS, disturb
from faithad.features import Normalization, log_mel
from faithad.model.linear import fit_linear
from faithad.model.table import build_network
from faithad.scoring.choices import robust
from faithad.scoring.ensemble import Ensemble, add_up, fit_ensemble
from faithad.scoring.score import Clips, Detector, fit_detector, places_of
from tests.field_sounds import SETTINGS

OUTPUT = Path("runs/bench")
RATE, BANDS = 0.05, 5
TEN, HALF_HOUR = 60, 180  # clips
GAINS_DB, CHANGES_DB = (-12, -6, -3, 3, 6, 12), (3, 6, 12)
LENGTHS = {"clip": 1, "minute": 6, "ten_minutes": TEN}
LAST, FEWEST = (60, 360), 30  # scores that one is compared with

Floats = npt.NDArray[np.float32]
# From the median spectra of the clips of a recording, (n, F) in decibels, to what is subtracted from each clip, (n, F).
Reference = Callable[[Floats], Floats]


class Recording(NamedTuple):
    """The clips of a recording, (n, F, T) in decibels, and their medians over the frames, (n, F)."""

    clips: Floats
    medians: Floats

    @classmethod
    def of(cls, clips: Floats) -> Recording:
        return cls(clips, np.median(clips, axis=2))

    def louder(self, by_db: Any) -> Recording:
        """Each clip louder by (n, F) decibels, or what can be broadcast to it."""
        medians = self.medians + np.asarray(by_db, dtype=np.float32)
        return Recording(self.clips + (medians - self.medians)[..., None], medians)

    def with_disturbed(self, kinds: dict[int, str], *, seed: int, name: str) -> Recording:
        """With a disturbance of a kind in some clips, by their numbers."""
        clips, medians = self.clips.copy(), self.medians.copy()
        for k, kind in kinds.items():
            clips[k] = disturb(self.clips[k], kind, settings=SETTINGS, seed=seed, clip_id=f"{name} {k}")
            medians[k] = np.median(clips[k], axis=1)
        return Recording(clips, medians)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    train, test = mill()
    figures: dict[str, dict[str, float]] = {}
    for name, reference in REFERENCES.items():
        fitted = fit(train, reference)
        figures[name] = gains_and_disturbances(fitted, test)
        print(name, json.dumps(figures[name]), flush=True)
        if name == "clip":
            figures["running"] = running_medians(fitted, train, test)
            print("running", json.dumps(figures["running"]), flush=True)
    (OUTPUT / "references.json").write_text(json.dumps(figures, indent=1))


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


def _stretches(medians: Floats, length: int) -> Floats:
    parts = [medians[start : start + length] for start in range(0, len(medians), length)]
    return np.concatenate([np.broadcast_to(np.median(part, axis=0), part.shape) for part in parts])


def _last_ten_minutes(medians: Floats) -> Floats:
    return np.stack([np.median(medians[max(0, k + 1 - TEN) : k + 1], axis=0) for k in range(len(medians))])


REFERENCES: dict[str, Reference] = {
    "none": np.zeros_like,
    "clip": lambda medians: medians,
    "recording_10": lambda medians: _stretches(medians, TEN),
    "recording_30": lambda medians: _stretches(medians, HALF_HOUR),
    "recorder": _last_ten_minutes,
}


class Fitted(NamedTuple):
    reference: Reference
    normalization: Normalization
    ensemble: Ensemble
    threshold: float

    def scores(self, recording: Recording, clips: Sequence[int] | None = None) -> npt.NDArray[np.float64]:
        """Of some clips of a recording, all of which the reference may rest on."""
        z, x = inputs(recording, self.reference, self.normalization, clips)
        places = places_of(x)
        with torch.inference_mode():
            members = self.ensemble.members.values()
            scores = torch.stack([member.calibrate(member.raw(z, [""] * len(z)), places) for member in members])
        total: npt.NDArray[np.float64] = add_up(self.ensemble.standardise(scores))[0].numpy()
        return total

    def alarms(self, recording: Recording, clips: Sequence[int] | None = None) -> float:
        """The share of the clips that alarm."""
        return float((self.scores(recording, clips) > self.threshold).mean())


def inputs(
    recording: Recording, reference: Reference, normalization: Normalization, clips: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """What the models take in of some clips, and what these sound like: less the reference, and as they are."""
    chosen = np.arange(len(recording.clips)) if clips is None else np.array(clips)
    log_mels = recording.clips[chosen]
    less = torch.from_numpy(log_mels - reference(recording.medians)[chosen, :, None].astype(np.float32))
    return less / normalization.std[:, None], normalization.apply(torch.from_numpy(log_mels))


def fit(train: Sequence[Recording], reference: Reference) -> Fitted:
    normalization = Normalization.fit([recording.clips for recording in train])
    parts = [inputs(recording, reference, normalization) for recording in train]
    z, x = (torch.cat(of_kind) for of_kind in zip(*parts, strict=True))
    names = [str(k) for k, recording in enumerate(train) for _ in recording.clips]
    detectors, scores = {}, []
    for name in ("frame_pca", "frame_ridge"):
        network: Any = build_network(name, *z.shape[1:], reference="none").eval()
        fit_linear(network, [z], n_clips=len(z), seed=0)
        clips = Clips(z, [""] * len(z), names)
        detector, _ = fit_detector(
            network, robust(name), lambda clips=clips: [clips], frames_per_s=SETTINGS.frames_per_s
        )
        detectors[name], of_normals = as_they_sound(detector, x)
        scores.append(of_normals)
    ensemble = fit_ensemble(detectors, torch.stack(scores))
    total = add_up(ensemble.standardise(torch.stack(scores)))[0].numpy()
    alarm = fit_promised_alarm(total, false_alarm_rate=RATE, clip_s=SETTINGS.clip_s)
    return Fitted(reference, normalization, ensemble, alarm.threshold)


def as_they_sound(detector: Detector, x: Tensor) -> tuple[Detector, Tensor]:
    """The detector whose clips are compared with those that sound alike, nothing subtracted; and its normal scores."""
    normals = detector.normals
    assert normals is not None
    normals = normals.__class__(normals.scores, places_of(x), normals.recordings)
    return Detector(detector.network, detector.score, detector.frames_per_s, detector.weights, normals), (
        normals.of_themselves()
    )


def gains_and_disturbances(fitted: Fitted, test: Sequence[Recording]) -> dict[str, float]:
    third = list(range(0, HALF_HOUR, 3))
    normal = np.concatenate([fitted.scores(recording, third) for recording in test])
    figures = {"normal": float((normal > fitted.threshold).mean())}
    for gain_db in GAINS_DB:
        figures[f"gain_{gain_db:+d}"] = _mean(fitted.alarms(recording.louder(gain_db), third) for recording in test)
    half = HALF_HOUR // 2
    step_db = np.where(np.arange(HALF_HOUR) < half, 0, 6)[:, None]
    figures["gain_+6_from_middle"] = _mean(
        fitted.alarms(recording.louder(step_db), range(half, HALF_HOUR, 3)) for recording in test
    )
    kinds = {k: KINDS[k // 9 % len(KINDS)] for k in range(5, HALF_HOUR, 9)}
    disturbed = [recording.with_disturbed(kinds, seed=0, name=str(k)) for k, recording in enumerate(test)]
    short = np.concatenate([fitted.scores(recording, list(kinds)) for recording in disturbed])
    figures["short_auc"] = auc(np.concatenate([normal, short]), np.repeat([0, 1], [len(normal), len(short)]))
    figures["short"] = float((short > fitted.threshold).mean())
    for name, n in LENGTHS.items():
        for change_db in CHANGES_DB:
            shares = []
            for k, recording in enumerate(test):
                rng = np.random.default_rng([k, n, change_db])
                for first in rng.integers(TEN, HALF_HOUR - n + 1, 2 if n == TEN else 6).tolist():
                    change, low = np.zeros_like(recording.medians), int(rng.integers(0, 81 - BANDS))
                    change[first : first + n, low : low + BANDS] = change_db
                    clips = range(first, first + n, 6 if n == TEN else 1)
                    shares.append(fitted.alarms(recording.louder(change), clips))
            figures[f"{name}_{change_db}"] = _mean(shares)
    return figures


def running_medians(fitted: Fitted, train: Sequence[Recording], test: Sequence[Recording]) -> dict[str, float]:
    """Of scores as they are, and less the median of the recorder's last ones, by how many these are."""
    drift_db = np.zeros((HALF_HOUR, 80))
    drift_db[:, 20 : 20 + BANDS] = np.linspace(0, 6, HALF_HOUR)[:, None]
    tried = {"normal": list(test), "drift_of_five_bands": [recording.louder(drift_db) for recording in test]}
    for name, n in LENGTHS.items():
        kinds = dict.fromkeys(range(100, 100 + n), "rubbing")
        tried[f"rubbing_{name}"] = [recording.with_disturbed(kinds, seed=1, name="") for recording in test]
    figures: dict[str, float] = {}
    normals = [fitted.scores(recording) for recording in train]
    scores = {name: [fitted.scores(recording) for recording in recordings] for name, recordings in tried.items()}
    for last in (0, *LAST):
        threshold = float(np.quantile(np.concatenate([less_median(own, last) for own in normals]), 1 - RATE))
        for name, of_recordings in scores.items():
            n = LENGTHS.get(name.removeprefix("rubbing_"), HALF_HOUR // 2)
            inside = slice(100, 100 + n) if name.startswith("rubbing") else slice(HALF_HOUR - n, HALF_HOUR)
            over = [(less_median(own, last) > threshold)[inside.start - FEWEST : inside.stop - FEWEST]
                    for own in of_recordings]  # fmt: skip
            figures[f"{name}_last_{last}"] = _mean(part.mean() for part in over)
            if n == TEN:
                figures[f"{name}_end_last_{last}"] = _mean(part[-6:].mean() for part in over)
    return figures


def less_median(scores: npt.NDArray[np.float64], last: int) -> npt.NDArray[np.float64]:
    """Scores from the 31st on, less the median of as many before them; 0: as they are."""
    if not last:
        return scores[FEWEST:]
    return np.array([scores[k] - np.median(scores[max(0, k - last) : k]) for k in range(FEWEST, len(scores))])


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


if __name__ == "__main__":
    main()
