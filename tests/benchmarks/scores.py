"""What the linear models' score costs beside the AE's, and theirs and the MAE's together: CPU time for a clip, in one
process, turn by turn.

    python -m tests.benchmarks.scores

Both as an audit scores them, on clips of the paper's shape; the linear models compare each clip with 5,000 normal ones,
as many as a model keeps. With the MAE as a third member, all clips are scored by its inpainting, or a tenth of normal
sound (`rescore_share: 0.1`). The figures go to runs/bench/scores.json; it fails where the linear models score fewer
clips than the AE, or the three no twice as many with `rescore_share`.
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

from faithad.audit.model import prepare_audit
from faithad.audit.shard import audit_clips
from faithad.config.sections import Attribution, Audit
from faithad.features import Normalization
from faithad.model.alarm import AlarmThreshold
from faithad.model.checkpoint import TrainedModel
from faithad.model.fitted_score import MOST_NORMALS
from faithad.model.table import build_network
from faithad.scoring.calibration import NormalScores
from faithad.scoring.choices import robust
from faithad.scoring.ensemble import Ensemble, with_rescoring
from faithad.scoring.score import Detector
from faithad.scoring.trained_ensemble import AnyModel, TrainedEnsemble
from faithad.settings import FeatureSettings
from tests.scoring.ensembles import fitted_ensemble

SETTINGS = FeatureSettings()
N_CLIPS, N_FITTED, TURNS = 40, 60, 5


def sound(n: int, generator: torch.Generator) -> Tensor:
    return 5.0 * torch.randn(n, SETTINGS.n_mels, SETTINGS.n_frames, generator=generator) - 60.0


def with_many_normals(detector: Detector, generator: torch.Generator) -> Detector:
    own = detector.normals
    assert own is not None
    chosen = torch.arange(MOST_NORMALS) % len(own.scores)
    places = own.places[chosen] + torch.randn(MOST_NORMALS, SETTINGS.n_mels, generator=generator)
    return replace(detector, normals=NormalScores(own.scores[chosen], places, own.recordings[chosen]))


def linear_models(normals: Tensor, generator: torch.Generator) -> TrainedEnsemble:
    trained = fitted_ensemble(normals, [f"{k // 6}" for k in range(len(normals))], SETTINGS, rate=0.1)
    members = {name: with_many_normals(detector, generator) for name, detector in trained.ensemble.members.items()}
    return replace(trained, ensemble=replace(trained.ensemble, members=members))


def with_mae(linear: TrainedEnsemble, normals: Tensor, *, rescore_share: float) -> TrainedEnsemble:
    """An ensemble with a third member, whose scores of normal clips are 0: that does not change what it costs."""
    network = build_network("mae", SETTINGS.n_mels, SETTINGS.n_frames).eval()
    own = next(iter(linear.ensemble.members.values())).normals
    assert own is not None
    kept = NormalScores(torch.zeros_like(own.scores), own.places, own.recordings)
    weights = torch.ones(SETTINGS.n_mels, dtype=torch.float64)
    detector = Detector(network, robust("mae"), SETTINGS.frames_per_s, weights, kept)
    means, deviations = (
        torch.cat([values, torch.tensor([value], dtype=torch.float64)])
        for values, value in ((linear.ensemble.means, 0.0), (linear.ensemble.deviations, 1.0))
    )
    ensemble = Ensemble({**linear.ensemble.members, "mae": detector}, means, deviations)
    if rescore_share < 1.0:
        scores = linear.ensemble.standardised(linear.prepare(normals), [""] * len(normals))
        scores = torch.cat([scores, torch.zeros_like(scores[:1])])
        ensemble = with_rescoring(ensemble, scores, torch.zeros(len(normals), dtype=torch.bool), rescore_share)
    member = TrainedModel(network, linear.normalization, SETTINGS, "mae", 0, None, 1, "bench")
    return replace(linear, members={**linear.members, "mae": member}, ensemble=ensemble)


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
    linear = linear_models(normals, generator)
    all_models: dict[str, AnyModel] = {"linear": linear, "ae": autoencoder(normals)}
    all_models |= {
        name: with_mae(linear, normals, rescore_share=share) for name, share in (("with_mae", 1.0), ("rescored", 0.1))
    }
    models = {
        name: prepare_audit(trained, attribution=Attribution(), audit=Audit(explain="none"), device=torch.device("cpu"))
        for name, trained in all_models.items()
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
    figures["clips_rescored_against_with_mae"] = cost_ms["with_mae"] / cost_ms["rescored"]
    place = Path("runs/bench/scores.json")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    print(json.dumps(figures, indent=1))
    return int(figures["clips_against_ae"] < 1.0 or figures["clips_rescored_against_with_mae"] < 2.0)


if __name__ == "__main__":
    sys.exit(main())
