"""Small ensembles of both linear models, for tests that need no recordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from faithad.evaluation.alarms import fit_promised_alarm, with_window_thresholds
from faithad.features import Normalization
from faithad.model.checkpoint import TrainedModel
from faithad.model.fast_network import fast_network
from faithad.model.linear import fit_linear
from faithad.model.state_alarm import StateAlarm
from faithad.model.table import MODELS, build_network
from faithad.scoring.choices import robust
from faithad.scoring.ensemble import add_up, fit_ensemble, with_rescoring
from faithad.scoring.pieces import piece_lengths, piece_scores
from faithad.scoring.score import ClipBatch, fit_detector
from faithad.scoring.state import centred, fit_state
from faithad.scoring.trained_ensemble import TrainedEnsemble
from faithad.settings import FeatureSettings

SETTINGS = FeatureSettings(sample_rate_hz=2000, n_fft=100, hop_samples=50, n_mels=16, clip_s=2.0)
F, T, N = 16, SETTINGS.n_frames, 24


def sound(n: int, seed: int) -> Tensor:
    """Log-mels (n, F, T) of sound that changes slowly."""
    generator = torch.Generator().manual_seed(seed)
    return 5.0 * torch.randn(n, F, T + 4, generator=generator).unfold(2, 5, 1).mean(dim=-1) - 60.0


def small_ensemble() -> TrainedEnsemble:
    """Fitted to made-up sound, with an alarm for what lasts."""
    ensemble = fitted_ensemble(sound(N, 0), [f"recording {k // 3}" for k in range(N)], SETTINGS, rate=0.1)
    return replace(ensemble, state=small_state())


def small_ensemble_with_mae(*, rescore_share: float) -> TrainedEnsemble:
    """The same with a network as its first member, whose weights are random."""
    recordings, names = [f"recording {k // 3}" for k in range(N)], ["mae", "frame_pca", "frame_ridge"]
    normals = sound(N, 0)
    return fitted_ensemble(normals, recordings, SETTINGS, rate=0.1, names=names, rescore_share=rescore_share)


def small_state() -> StateAlarm:
    """Fitted to minutes of made-up sound."""
    minutes = centred(sound(60, 1).median(dim=-1).values.numpy())
    alarm = fit_state([minutes], [[str(k // 6) for k in range(60)]], false_alarm_rate=0.1, share=0.5)
    assert alarm is not None
    return alarm


def fitted_ensemble(
    normals: Tensor,
    recordings: Sequence[str],
    settings: FeatureSettings,
    *,
    rate: float,
    names: Sequence[str] = ("frame_pca", "frame_ridge"),
    rescore_share: float = 1.0,
) -> TrainedEnsemble:
    """As `faithad train --normals` makes it, from log-mels (n, F, T); the weights of an `mae` are random."""
    normalization = Normalization.fit([normals])
    x = normalization.apply(normals)
    members, detectors, scores, pieces = {}, {}, [], []
    clips = ClipBatch(x, [f"normal {k}" for k in range(len(x))], recordings)
    for name in names:
        options = {"reference": "clip"} if MODELS[name].linear else {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network: Any = build_network(name, settings.n_mels, settings.n_frames, **options).eval()
        if MODELS[name].linear:
            fit_linear(network, [x], n_clips=len(x), seed=0)
        members[name] = TrainedModel(network, normalization, settings, name, 0, None, 0, "test")
        detector, of_normals = fit_detector(
            fast_network(network), robust(name), lambda: [clips], frames_per_s=settings.frames_per_s
        )
        detectors[name] = detector
        scores.append(of_normals)
        lengths = {duration_s: settings.frames_in(duration_s) for duration_s in piece_lengths(settings.clip_s)}
        own: Any = detector.normals
        pieces.append(piece_scores(detector, [clips], [settings.n_frames] * len(x), own.recordings, lengths))
    ensemble = fit_ensemble(detectors, torch.stack(scores))
    standardised, none = ensemble.standardise(torch.stack(scores)), torch.zeros(len(x), dtype=torch.bool)
    if rescore_share < 1:
        ensemble = with_rescoring(ensemble, standardised, none, rescore_share)
    totals, _ = ensemble.add_up(standardised, ensemble.rescored(standardised, none))
    by_length = {
        length_s: add_up(ensemble.standardise(torch.stack([of_member[length_s] for of_member in pieces])))[0].numpy()
        for length_s in pieces[0]
    }
    alarm = fit_promised_alarm(totals.numpy(), false_alarm_rate=rate, clip_s=settings.clip_s, pieces=by_length)
    columns = {"score": totals.numpy(), "worst_windows": torch.stack(scores, dim=1).tolist()}
    alarm = with_window_thresholds(alarm, pa.table(columns))
    return TrainedEnsemble(members, ensemble, 0, alarm, "test")
