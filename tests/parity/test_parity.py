"""faithad's numbers are those of the method, as an independent implementation computed them once: see `generate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from faithad.attribution.gradient_stream import attribute_batch
from faithad.attribution.methods import PAPER_METHODS
from faithad.attribution.noise import Noise
from faithad.evaluation.faithfulness import errors_after_replacement, faithfulness_score, segment_masks
from faithad.evaluation.peaks import curve, peak_frames
from faithad.evaluation.temporal import localization
from faithad.model.masking import mean_per_clip
from faithad.settings import AttributionSettings
from tests.parity import generate

SETTINGS = AttributionSettings(
    smooth_grad_samples=generate.SAMPLES,
    integrated_gradients_steps=generate.STEPS,
    gradient_shap_samples=generate.SAMPLES,
)
EXPECTED = json.loads(generate.EXPECTED.read_text())
X = torch.from_numpy(generate.X)[None]


class Network(nn.Module):
    """The network of `generate`, in float64."""

    grad_cam_layer = "down"

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, generate.CHANNELS, 3, stride=2, padding=1, dtype=torch.float64)
        self.up = nn.ConvTranspose2d(generate.CHANNELS, 1, 2, stride=2, dtype=torch.float64)
        with torch.no_grad():
            self.down.weight.copy_(torch.from_numpy(generate.W1)[:, None])
            self.down.bias.copy_(torch.from_numpy(generate.B1))  # type: ignore[union-attr]
            self.up.weight.copy_(torch.from_numpy(generate.W2)[:, None])
            self.up.bias.fill_(generate.B2)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        return self.up(nn.functional.leaky_relu(self.down(x[:, None]), generate.SLOPE))[:, 0]  # type: ignore[no-any-return]


def formula_noise(noise: Noise, samples: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
    normal = torch.stack([torch.from_numpy(generate.normal(sample)) for sample in samples])
    return normal, torch.tensor([generate.alpha(sample) for sample in samples], dtype=torch.float64)[:, None, None]


@pytest.fixture(scope="module")
def maps() -> dict[str, Tensor]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Noise, "draw", formula_noise)
        return attribute_batch(Network(), X, methods=PAPER_METHODS, settings=SETTINGS, seed=0, clip_ids=["a"])


def test_reconstruction_and_score() -> None:
    with torch.inference_mode():
        rebuilt = Network()(X)
    np.testing.assert_allclose(rebuilt[0], EXPECTED["reconstruction"], atol=1e-7, rtol=0)
    score = mean_per_clip((rebuilt - X).square(), [generate.T], dtype=torch.float64)
    assert score.item() == pytest.approx(EXPECTED["score"], abs=1e-7)


@pytest.mark.parametrize("method", PAPER_METHODS)
def test_maps(method: str, maps: dict[str, Tensor]) -> None:
    expected = np.array(EXPECTED["maps"][method])
    np.testing.assert_allclose(maps[method][0] / abs(expected).max(), expected / abs(expected).max(), atol=1e-7, rtol=0)


@pytest.mark.parametrize("method", PAPER_METHODS)
def test_f_score_and_faithfulness(method: str, maps: dict[str, Tensor]) -> None:
    expected, network = EXPECTED["judged"][method], Network()
    peaks = peak_frames(curve(maps[method][0]), generate.PERCENTILES)
    found = localization(peaks, generate.INTERVALS, frames_per_s=generate.FRAMES_PER_S)
    np.testing.assert_allclose(found.f_score, expected["f_score"], atol=1e-7, rtol=0)
    with torch.inference_mode():
        rebuilt = network(X)
    options: dict[str, Any] = {"error_before": EXPECTED["score"], "micro_batch": 4}
    segments = segment_masks(peaks, generate.INTERVALS, generate.FRAMES_PER_S)
    for mode, masks in (("frame", peaks), ("segment", segments)):
        after = errors_after_replacement(network, X[0], rebuilt[0], masks, **options)
        np.testing.assert_allclose(faithfulness_score(EXPECTED["score"], after), expected[mode], atol=1e-7, rtol=0)
    assert max(expected["frame"]) > 0.05


def test_the_expected_numbers_are_those_of_their_generator() -> None:
    """Its slow loops take a second; all but the maps that need many gradients."""
    assert generate.score(generate.X) == pytest.approx(EXPECTED["score"], rel=1e-12)
    np.testing.assert_allclose(generate.reconstruct(generate.X), EXPECTED["reconstruction"], rtol=0, atol=1e-12)
    for method in ("error_map", "grad_cam"):
        for name, values in generate.judged(np.array(EXPECTED["maps"][method])).items():
            assert values == pytest.approx(EXPECTED["judged"][method][name], abs=1e-12)
