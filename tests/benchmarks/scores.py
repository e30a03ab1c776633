"""What the linear models' score costs beside the AE's: CPU time for a clip, in one process, turn by turn.

    python -m tests.benchmarks.scores

Both as an audit scores them, on clips of the paper's shape; the linear models compare each clip with 5,000 normal ones,
as many as a model keeps. The figures go to runs/bench/scores.json; it fails where the linear models score fewer clips.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from faithad.audit.shard import audit_clips, prepare_audit
from faithad.config.sections import Attribution, Audit
from faithad.features import Normalization
from faithad.model.alarm import AlarmThreshold
from faithad.model.checkpoint import TrainedModel
from faithad.model.fitted_score import MOST_NORMALS
from faithad.model.table import build_network
from faithad.scoring.calibration import Normals
from faithad.scoring.score import Detector
from faithad.scoring.trained_ensemble import TrainedEnsemble
from faithad.settings import FeatureSettings
from tests.scoring.ensembles import fitted_ensemble

SETTINGS = FeatureSettings()
N_CLIPS, N_FITTED, TURNS = 16, 60, 5


def sound(n: int, generator: torch.Generator) -> Tensor:
    return 5.0 * torch.randn(n, SETTINGS.n_mels, SETTINGS.n_frames, generator=generator) - 60.0


def with_many_normals(detector: Detector, generator: torch.Generator) -> Detector:
    own = detector.normals
    assert own is not None
    chosen = torch.arange(MOST_NORMALS) % len(own.scores)
    places = own.places[chosen] + torch.randn(MOST_NORMALS, SETTINGS.n_mels, generator=generator)
    return replace(detector, normals=Normals(own.scores[chosen], places, own.recordings[chosen]))


def linear_models(normals: Tensor, generator: torch.Generator) -> TrainedEnsemble:
    trained = fitted_ensemble(normals, [f"{k // 6}" for k in range(len(normals))], SETTINGS, rate=0.1)
    members = {name: with_many_normals(detector, generator) for name, detector in trained.ensemble.members.items()}
    return replace(trained, ensemble=replace(trained.ensemble, members=members))


def autoencoder(normals: Tensor) -> TrainedModel:
    network = build_network("ae", SETTINGS.n_mels, SETTINGS.n_frames).eval()
    alarm = AlarmThreshold("quantile", "mean", 0.05, 1e12, 18.0, 100)
    return TrainedModel(network, Normalization.fit([normals]), SETTINGS, "ae", 0, alarm, 1, "bench")


def main() -> int:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    normals, clips = sound(N_FITTED, generator), sound(N_CLIPS, generator)
    rows: list[dict[str, Any]] = [
        {"clip_id": f"{k:016x}", "recording": "a.wav", "onset_s": 10.0 * k, "duration_s": 10.0, "intervals": None}
        for k in range(N_CLIPS)
    ]
    models = {
        name: prepare_audit(trained, attribution=Attribution(), audit=Audit(explain="none"), device=torch.device("cpu"))
        for name, trained in (("linear", linear_models(normals, generator)), ("ae", autoencoder(normals)))
    }
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(1 + TURNS):  # the first one warms up
        for name, model in models.items():
            started = time.process_time()
            audit_clips(model, rows, clips, explain=False)
            seconds[name].append(time.process_time() - started)
    cost_ms = {name: 1000 * statistics.median(of_model[1:]) / N_CLIPS for name, of_model in seconds.items()}
    figures = {f"{name}_ms_a_clip": cost for name, cost in cost_ms.items()}
    figures["clips_against_ae"] = cost_ms["ae"] / cost_ms["linear"]
    place = Path("runs/bench/scores.json")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    print(json.dumps(figures, indent=1))
    return int(figures["clips_against_ae"] < 1.0)


if __name__ == "__main__":
    sys.exit(main())
