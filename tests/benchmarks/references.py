"""What models are to subtract from a clip, and scores to be compared with.

    python -m tests.benchmarks.references [--sounds mill field] [--references NAME ...] [--networks]
        [--epochs 60] [--threads N]

Tried on a synthesised mill (normal: 8 recordings of 10 minutes; 3 of 30 minutes, from four hours later on) and on
../shared/data/field_sounds, at the threshold of a promised 5 % of false alarms: both linear models, their scores added
as `faithad train --normals` adds them; with `--networks` also the AE and the MAE, with the paper's score and the
recommended one, whose threshold rests on one normal recording in five that they are not trained on. Subtracted is, in
each mel band,

    none            the training's mean, for all clips alike
    clip            the median of the clip
    recording       the median over two minutes of the recording's clips, as `faithad.recording_spectrum`
    recording_10    the same for 10 minutes of the recording in a row
    recorder        the median of the clips' medians over this clip and the last ten minutes before it

Said are the shares of clips that alarm: normal ones; normal ones with another gain, for the whole recording or from its
middle on, and with another colour (a tilt from -6 to +6 dB over the bands, 3 dB at random in each band); ones with a
short disturbance (`evaluation.disturbances`); and ones in which five bands side by side are louder, for a clip, a
minute, and ten minutes. Of the linear models then also for scores less the median of the recorder's last ones, with
sound that slowly drifts, and with rubbing for a clip, a minute and ten minutes.

The mill's log-mels take minutes to make, and are kept in runs/bench/mill_references.npz. The figures go to
runs/bench/references.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faithad.evaluation.alarms import fit_promised_alarm
from faithad.features import Normalization
from faithad.model.linear import fit_linear
from faithad.model.table import build_network
from faithad.scoring.choices import PAPER, Score, robust
from faithad.scoring.ensemble import Ensemble, add_up, fit_ensemble
from faithad.scoring.score import ClipBatch, Detector, fit_detector
from tests.benchmarks.detection import LINEAR, RATE, train_network
from tests.benchmarks.reference_trials import (
    BANDS,
    HALF_HOUR,
    LENGTHS,
    OUTPUT,
    REFERENCES,
    TEN,
    Recording,
    Reference,
    field_sounds,
    mean,
    mill,
    on_field_sounds,
    on_the_mill,
)
from tests.field_sounds import FOLDER, SETTINGS

LAST, FEWEST = (60, 360), 30  # scores that one is compared with
OF_NETWORKS = ("none", "clip", "recording")

Figures = dict[str, dict[str, float]]


class Fitted(NamedTuple):
    """Detectors with a threshold; several are added up."""

    reference: Reference
    normalization: Normalization
    detectors: Sequence[Detector]
    ensemble: Ensemble | None
    threshold: float

    def scores(self, recording: Recording, clips: Iterable[int] | None = None) -> npt.NDArray[np.float64]:
        """Of some clips of a recording, all of which the reference may rest on."""
        z, offsets = inputs(recording, self.reference, self.normalization, clips)
        found = []
        with torch.inference_mode():
            for detector in self.detectors:
                x = z[..., : detector.network.n_frames]
                found.append(detector.calibrated(x, [f"{k}" for k in range(len(x))], offsets=offsets))
        scores = found[0] if self.ensemble is None else add_up(self.ensemble.standardise(torch.stack(found)))[0]
        values: npt.NDArray[np.float64] = scores.numpy()
        return values


def inputs(
    recording: Recording, reference: Reference, normalization: Normalization, clips: Iterable[int] | None = None
) -> tuple[Tensor, Tensor | None]:
    """What the models take in of some clips, (n, F, T), and what was subtracted from them, (n, F)."""
    chosen = np.arange(len(recording.clips)) if clips is None else np.array(list(clips))
    subtracted = reference(recording)
    references = None if subtracted is None else torch.from_numpy(subtracted[chosen].astype(np.float32))
    return normalization.apply(torch.from_numpy(recording.clips[chosen]), references), normalization.offsets(references)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sounds", nargs="+", choices=["mill", "field"], default=["mill", "field"])
    parser.add_argument("--references", nargs="+", choices=list(REFERENCES), default=list(REFERENCES))
    parser.add_argument("--networks", action="store_true", help="train networks too: hours on one core")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    figures: Figures = {}
    sounds = {"mill": (mill, on_the_mill), "field": (field_sounds, on_field_sounds)}
    for place in arguments.sounds:
        if place == "field" and not FOLDER.is_dir():
            print(f"{FOLDER} is not on this machine: nothing is measured of it.")
            continue
        read, tried = sounds[place]
        train, test = read()
        for name in arguments.references:
            reference = REFERENCES[name]
            linear = fit_linear_models(train, reference)
            say(figures, f"{place} linear {name}", tried(linear.scores, linear.threshold, test))
            if name == "clip" and place == "mill":
                say(figures, "running medians", running_medians(linear, train, test))
            if not arguments.networks or name not in OF_NETWORKS:
                continue
            for model in ("ae", "mae"):
                for score, fitted in fit_networks(model, train, reference, epochs=arguments.epochs).items():
                    say(figures, f"{place} {model} {score} {name}", tried(fitted.scores, fitted.threshold, test))


def say(figures: Figures, name: str, found: dict[str, float]) -> None:
    figures[name] = found
    print(name, json.dumps({key: round(value, 3) for key, value in found.items()}), flush=True)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / "references.json").write_text(json.dumps(figures, indent=1))


def normals_of(train: Sequence[Recording], reference: Reference) -> tuple[Normalization, ClipBatch]:
    normalization = Normalization.fit([recording.clips for recording in train])
    parts = [inputs(recording, reference, normalization) for recording in train]
    z = torch.cat([part for part, _ in parts])
    subtracted = [own for _, own in parts if own is not None]
    names = [str(k) for k, recording in enumerate(train) for _ in recording.clips]
    ids = [f"train {k}" for k in range(len(z))]
    return normalization, ClipBatch(z, ids, names, offsets=torch.cat(subtracted) if subtracted else None)


def fit_linear_models(train: Sequence[Recording], reference: Reference) -> Fitted:
    normalization, clips = normals_of(train, reference)
    detectors, scores = {}, []
    for name in LINEAR:
        network: Any = build_network(name, *clips.x.shape[1:], reference="none").eval()
        fit_linear(network, [clips.x], n_clips=len(clips.x), seed=0)
        detectors[name], of_normals = fit_detector(
            network, robust(name), lambda: [clips], frames_per_s=SETTINGS.frames_per_s
        )
        scores.append(of_normals)
    ensemble = fit_ensemble(detectors, torch.stack(scores))
    total = add_up(ensemble.standardise(torch.stack(scores)))[0].numpy()
    return Fitted(reference, normalization, list(detectors.values()), ensemble, threshold_of(total))


def fit_networks(model: str, train: Sequence[Recording], reference: Reference, *, epochs: int) -> dict[str, Fitted]:
    """A trained network with the paper's score and with the recommended one."""
    normalization, clips = normals_of(train, reference)
    held = {str(k) for k in range(len(train))[::5]}
    is_validation = torch.tensor([recording in held for recording in clips.recordings])
    network: Any = train_network(model, clips.x, is_validation, seed=0, epochs=epochs)
    clips = clips.__class__(clips.x[..., : network.n_frames], clips.clip_ids, clips.recordings, offsets=clips.offsets)
    found = {}
    chosen: dict[str, Score] = {"paper": PAPER, "robust": robust(model)}
    for name, score in chosen.items():
        detector, normals = fit_detector(network, score, lambda: [clips], frames_per_s=SETTINGS.frames_per_s)
        threshold = threshold_of(normals[is_validation].numpy())
        found[name] = Fitted(reference, normalization, [detector], None, threshold)
    return found


def threshold_of(scores: npt.NDArray[np.float64]) -> float:
    return fit_promised_alarm(scores, false_alarm_rate=RATE, clip_s=SETTINGS.clip_s).threshold


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
            figures[f"{name}_last_{last}"] = mean(part.mean() for part in over)
            if n == TEN:
                figures[f"{name}_end_last_{last}"] = mean(part[-6:].mean() for part in over)
    return figures


def less_median(scores: npt.NDArray[np.float64], last: int) -> npt.NDArray[np.float64]:
    """Scores from the 31st on, less the median of as many before them; 0: as they are."""
    if not last:
        return scores[FEWEST:]
    return np.array([scores[k] - np.median(scores[max(0, k - last) : k]) for k in range(FEWEST, len(scores))])


if __name__ == "__main__":
    main()
