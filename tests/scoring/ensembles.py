"""A small ensemble of both linear models, fitted to made-up sound, for tests that need no recordings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from faithad.evaluation.alarms import fit_promised_alarm
from faithad.features import Normalization
from faithad.model.checkpoint import TrainedModel
from faithad.model.linear import fit_linear
from faithad.model.table import build_network
from faithad.scoring.choices import robust
from faithad.scoring.ensemble import add_up, fit_ensemble
from faithad.scoring.score import Clips, fit_detector
from faithad.scoring.trained_ensemble import TrainedEnsemble
from faithad.settings import FeatureSettings

SETTINGS = FeatureSettings(sample_rate_hz=2000, n_fft=100, hop_samples=50, n_mels=16, clip_s=2.0)
F, T, N = 16, SETTINGS.n_frames, 24


def sound(n: int, seed: int) -> Tensor:
    """Log-mels (n, F, T) of sound that changes slowly."""
    generator = torch.Generator().manual_seed(seed)
    return 5.0 * torch.randn(n, F, T + 4, generator=generator).unfold(2, 5, 1).mean(dim=-1) - 60.0


def small_ensemble() -> TrainedEnsemble:
    normals = sound(N, 0)
    normalization = Normalization.fit([normals])
    x = normalization.apply(normals)
    members, detectors, scores = {}, {}, []
    clips = Clips(x, [f"normal {k}" for k in range(N)], [f"recording {k // 3}" for k in range(N)])
    for name in ("frame_pca", "frame_ridge"):
        network: Any = build_network(name, F, T, reference="clip").eval()
        fit_linear(network, [x], n_clips=N, seed=0)
        members[name] = TrainedModel(network, normalization, SETTINGS, name, 0, None, 0, "test")
        detectors[name], of_normals = fit_detector(network, robust(name), lambda: [clips], frames_per_s=40.0)
        scores.append(of_normals)
    ensemble = fit_ensemble(detectors, torch.stack(scores))
    totals, _ = add_up(ensemble.standardise(torch.stack(scores)))
    alarm = fit_promised_alarm(totals.numpy(), false_alarm_rate=0.1, clip_s=SETTINGS.clip_s)
    return TrainedEnsemble(members, ensemble, 0, alarm, "test")
