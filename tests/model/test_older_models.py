"""Models that releases saved: they load, score and are explained as on the day they were made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from faithad.attribution.gradient_stream import attribute_batch
from faithad.model.checkpoint import load_model
from faithad.settings import AttributionSettings


def test_a_model_of_release_0_1_0_scores_and_is_explained_as_it_was() -> None:
    trained = load_model(str(Path(__file__).parent / "release-0.1.0"), expect={"name": "mae", "seed": 3})
    assert trained.alarm is not None
    assert (trained.alarm.rule, trained.alarm.threshold, trained.best_epoch) == ("quantile", 0.75, 7)
    log_mels = torch.arange(2 * 16 * 17).reshape(2, 16, 17).float().mul(0.37).sin() * 10 - 30
    x = trained.prepare(log_mels)
    with torch.no_grad():
        scores = (trained.network(x) - x).square().mean(dim=(1, 2))
    # Printed by the release; up to the rounding of another processor.
    assert scores.tolist() == pytest.approx([0.8452618718147278, 0.8549486994743347], rel=1e-5)
    maps = attribute_batch(
        trained.network,
        x,
        methods=["saliency", "grad_cam"],
        settings=AttributionSettings(),
        seed=0,
        clip_ids=["a", "b"],
    )
    assert maps["saliency"].abs().sum(dim=(1, 2)).tolist() == pytest.approx([1.6303052, 1.6520355], rel=1e-3)
    assert maps["grad_cam"].abs().sum(dim=(1, 2)).tolist() == pytest.approx([0.057336189, 0.072773226], rel=1e-3)
