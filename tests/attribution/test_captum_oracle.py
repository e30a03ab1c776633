"""Each map against its formula, point by point with torch.autograd.grad, given the same noise."""

from __future__ import annotations

import gc
import random
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from faithad.attribution.methods import METHODS
from faithad.attribution.noise import Noise
from faithad.errors import ConfigError
from faithad.model.skip_cae_transformer import SkipCAETransformer
from faithad.settings import AttributionSettings
from tests.attribution import captum_oracle
from tests.attribution.captum_oracle import attribute

DEFAULTS = AttributionSettings()
CLIP_ID = "0123456789abcdef"
STOCHASTIC = {name for name, method in METHODS.items() if method.stochastic}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: on a busy machine, threads that wait for each other make this module many times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def spectrograms(n_clips: int, n_mels: int, n_frames: int, *, seed: int) -> Tensor:
    """Smooth noise with an event: bands and frames hang together, as in a normalised spectrogram."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n_clips, 1, n_mels + 4, n_frames + 4, generator=generator)
    smooth = torch.nn.functional.avg_pool2d(noise, 5, stride=1)[:, 0] * 4
    smooth[:, n_mels // 2, n_frames // 3 : n_frames // 2] += 3
    return smooth


def fitted(n_mels: int, n_frames: int, *, steps: int) -> SkipCAETransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SkipCAETransformer(n_mels, n_frames).train()
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        x = spectrograms(4, n_mels, n_frames, seed=1)
        for _ in range(steps):
            optimizer.zero_grad()
            (network(x) - x).square().mean().backward()
            optimizer.step()
    network.zero_grad()
    return network.eval()


@pytest.fixture(scope="module")
def network() -> SkipCAETransformer:
    return fitted(16, 40, steps=40)


@pytest.fixture(scope="module")
def double(network: SkipCAETransformer) -> SkipCAETransformer:
    """In float64, where rounding does not push an activation over its kink."""
    double = SkipCAETransformer(16, 40).double().eval()
    double.load_state_dict(network.state_dict())
    return double


@pytest.fixture(scope="module")
def x() -> Tensor:
    return spectrograms(1, 16, 40, seed=2)[0]


def error(network: SkipCAETransformer, x: Tensor) -> Tensor:
    return (network(x[None])[0] - x).square().mean()


def gradient(network: SkipCAETransformer, point: Tensor) -> Tensor:
    point = point.detach().clone().requires_grad_()
    return torch.autograd.grad(error(network, point), point)[0]


def map_by_formula(network: SkipCAETransformer, x: Tensor, method: str, settings: AttributionSettings) -> Tensor:
    if method == "error_map":
        with torch.no_grad():
            return (network(x[None])[0] - x) ** 2
    if method == "saliency":
        return gradient(network, x).abs()
    if method == "smooth_grad":
        normal, _ = Noise(0, CLIP_ID, method).draw(range(settings.smooth_grad_samples), x)
        return sum(gradient(network, x + settings.smooth_grad_sigma * each).abs() for each in normal) / len(normal)
    if method == "integrated_gradients":
        nodes, weights = np.polynomial.legendre.leggauss(settings.integrated_gradients_steps)
        path = zip((nodes + 1) / 2, weights / 2, strict=True)
        return x * sum(weight * gradient(network, alpha * x) for alpha, weight in path)
    if method == "gradient_shap":
        n = settings.gradient_shap_samples
        normal, places = Noise(0, CLIP_ID, method).draw(range(n), x)
        noisy = x + settings.gradient_shap_sigma * normal
        return sum(each * gradient(network, alpha * each) for alpha, each in zip(places, noisy, strict=True)) / n
    if method == "input_x_gradient":
        return x * gradient(network, x)
    if method == "occlusion":
        return occlusion_by_formula(network, x, settings)
    activations: list[Tensor] = []
    hook = network.conv10.register_forward_hook(lambda module, inputs, output: activations.append(output))
    (slopes,) = torch.autograd.grad(error(network, x.clone().requires_grad_()), activations)
    hook.remove()
    coarse = (slopes[0].mean(dim=(1, 2))[:, None, None] * activations[0][0].detach()).sum(dim=0)
    return bilinear(coarse, *x.shape)


@torch.no_grad()
def occlusion_by_formula(network: SkipCAETransformer, x: Tensor, settings: AttributionSettings) -> Tensor:
    drops = torch.zeros_like(x)
    for band in range(0, x.shape[0], settings.occlusion_bands):
        for frame in range(0, x.shape[1], settings.occlusion_frames):
            patch = slice(band, band + settings.occlusion_bands), slice(frame, frame + settings.occlusion_frames)
            hidden = x.clone()
            hidden[patch] = 0
            drops[patch] = error(network, x) - error(network, hidden)
    return drops


def bilinear(coarse: Tensor, n_mels: int, n_frames: int) -> Tensor:
    """Resize with the centres of the corner cells half a cell from the edge (align_corners false)."""

    def weights(n_in: int, n_out: int) -> Tensor:
        matrix = torch.zeros(n_out, n_in, dtype=coarse.dtype)
        for i in range(n_out):
            place = min(max((i + 0.5) * n_in / n_out - 0.5, 0.0), n_in - 1.0)
            below = int(place)
            matrix[i, below] += 1 - (place - below)
            matrix[i, min(below + 1, n_in - 1)] += place - below
        return matrix

    return weights(coarse.shape[0], n_mels) @ coarse @ weights(coarse.shape[1], n_frames).T


def attribute_all(
    network: SkipCAETransformer, x: Tensor, *, settings: AttributionSettings = DEFAULTS
) -> dict[str, Tensor]:
    return attribute(network, x, methods=METHODS, settings=settings, seed=0, clip_id=CLIP_ID)


@pytest.mark.long
@pytest.mark.parametrize(
    "settings", [DEFAULTS, AttributionSettings(7, 0.3, 11, 13, 0.2, 5, 7)], ids=["defaults", "others"]
)
def test_every_map_is_its_formula(double: SkipCAETransformer, x: Tensor, settings: AttributionSettings) -> None:
    # not closer, since Captum rounds the weights of the path integral to float32
    maps = attribute_all(double, x.double(), settings=settings)
    for name in METHODS:
        expected = map_by_formula(double, x.double(), name, settings)
        assert maps[name].shape == x.shape
        torch.testing.assert_close(maps[name], expected, rtol=1e-6, atol=1e-7 * expected.abs().max().item())


@pytest.mark.long
@pytest.mark.parametrize("shape", [(80, 400), (24, 61)])
def test_every_map_is_its_formula_at_other_shapes(shape: tuple[int, int]) -> None:
    settings = AttributionSettings(
        smooth_grad_samples=3, integrated_gradients_steps=4, gradient_shap_samples=12 if shape == (24, 61) else 2
    )
    network, x = fitted(*shape, steps=1), spectrograms(1, *shape, seed=3)[0]
    maps = attribute_all(network, x, settings=settings)
    for name in METHODS:
        expected = map_by_formula(network, x, name, settings).float()
        torch.testing.assert_close(maps[name], expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def test_maps_have_the_sign_that_their_method_says(network: SkipCAETransformer) -> None:
    """Of several clips together: Grad-CAM's map of one clip may have one sign only."""
    settings = AttributionSettings(occlusion_bands=4, occlusion_frames=5)
    clips = [spectrograms(1, 16, 40, seed=seed)[0] for seed in range(2, 6)]
    maps = [attribute_all(network, clip, settings=settings) for clip in clips]
    for name, method in METHODS.items():
        maps_of_method = torch.stack([each[name] for each in maps])
        assert maps_of_method.isfinite().all()
        assert (maps_of_method.std(dim=(1, 2)) > 0).all()
        if method.signed:
            assert maps_of_method.min() < 0 < maps_of_method.max()
        else:
            assert maps_of_method.min() >= 0


def test_integrated_gradients_add_up_to_the_error_gained_on_the_path(network: SkipCAETransformer, x: Tensor) -> None:
    with torch.no_grad():
        gained = error(network, x) - error(network, torch.zeros_like(x))
    gaps = []
    for steps in (50, 400):
        settings = AttributionSettings(integrated_gradients_steps=steps)
        maps = attribute(network, x, methods=["integrated_gradients"], settings=settings, seed=0, clip_id=CLIP_ID)
        gaps.append(((maps["integrated_gradients"].sum() - gained) / gained).abs().item())
    # Not zero: the gradient jumps where an activation or a maximum changes sides.
    assert gaps[0] < 8e-2
    assert gaps[1] < 2e-2


def test_the_error_map_averages_to_the_score(network: SkipCAETransformer, x: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(attribute_all(network, x)["error_map"].mean(), error(network, x))


def test_a_clip_has_the_same_maps_whatever_came_before(network: SkipCAETransformer, x: Tensor) -> None:
    first = attribute_all(network, x)
    other = spectrograms(1, 16, 40, seed=9)[0]
    attribute(network, other, methods=METHODS, settings=DEFAULTS, seed=5, clip_id="other")
    torch.rand(3)
    np.random.rand(3)
    again = attribute_all(network, x)
    alone = {
        name: attribute(network, x, methods=[name], settings=DEFAULTS, seed=0, clip_id=CLIP_ID)[name]
        for name in reversed(list(METHODS))
    }
    for name in METHODS:
        assert torch.equal(first[name], again[name])
        assert torch.equal(first[name], alone[name])


@pytest.mark.parametrize(("seed", "clip_id"), [(1, CLIP_ID), (0, "fedcba9876543210")])
def test_noise_is_that_of_the_seed_and_the_clip(
    network: SkipCAETransformer, x: Tensor, seed: int, clip_id: str
) -> None:
    mine = attribute_all(network, x)
    others = attribute(network, x, methods=METHODS, settings=DEFAULTS, seed=seed, clip_id=clip_id)
    assert {name for name in METHODS if not torch.equal(mine[name], others[name])} == STOCHASTIC


@pytest.mark.parametrize("micro_batch", [1, 1_000])
def test_micro_batches_do_not_change_the_maps(
    double: SkipCAETransformer, x: Tensor, micro_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = attribute_all(double, x.double())
    monkeypatch.setattr(captum_oracle, "MICRO_BATCH", micro_batch)
    for name, found in attribute_all(double, x.double()).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-6, atol=1e-9 * expected[name].abs().max().item())


def test_only_the_asked_for_methods_are_computed_in_their_order(network: SkipCAETransformer, x: Tensor) -> None:
    maps = attribute(network, x, methods=["grad_cam", "error_map"], settings=DEFAULTS, seed=0, clip_id=CLIP_ID)
    assert list(maps) == ["grad_cam", "error_map"]


def test_an_unknown_method_is_refused(network: SkipCAETransformer, x: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"lime\. Allowed: error_map, "):
        attribute(network, x, methods=["saliency", "lime"], settings=DEFAULTS, seed=0, clip_id=CLIP_ID)


def test_nothing_is_left_behind(x: Tensor) -> None:
    network = fitted(16, 40, steps=1).train()
    network.bn3.eval()
    network.conv5.weight.requires_grad_(False)
    x = x.clone()

    def state() -> list[object]:
        values: list[object] = [module.training for module in network.modules()]
        values += [(parameter.requires_grad, parameter.grad is None) for parameter in network.parameters()]
        values += [tensor.clone() for tensor in network.state_dict().values()]
        numpy_state = np.random.get_state()
        values += [torch.get_rng_state(), torch.from_numpy(numpy_state[1].copy()), numpy_state[2:], random.getstate()]
        values += [x.requires_grad, x.grad is None, x.clone(), torch.is_grad_enabled()]
        return values + [len(module._forward_hooks) for module in network.modules()]

    before = state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        maps = attribute_all(network, x)
    for now, then in zip(state(), before, strict=True):
        assert torch.equal(now, then) if isinstance(now, Tensor) else now == then  # type: ignore[arg-type]
    assert all(found.grad_fn is None and not found.requires_grad for found in maps.values())
    graphs = [thing for thing in gc.get_objects() if type(thing) is Tensor and thing.grad_fn is not None]
    assert graphs == []


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_the_callers_grad_mode_does_not_matter(network: SkipCAETransformer, x: Tensor, context: type) -> None:
    expected = attribute_all(network, x)
    with context():
        inside = attribute_all(network, x + 0)
    for name in METHODS:
        assert torch.equal(inside[name], expected[name])


def test_digital_silence_is_explained_too(network: SkipCAETransformer) -> None:
    maps = attribute_all(network, torch.zeros(16, 40))
    assert all(found.isfinite().all() for found in maps.values())
    assert (maps["integrated_gradients"] == 0).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_maps_on_a_gpu(network: SkipCAETransformer, x: Tensor) -> None:
    expected = attribute_all(network, x)
    on_gpu = SkipCAETransformer(16, 40).eval().cuda()
    on_gpu.load_state_dict(network.state_dict())
    before = torch.cuda.get_rng_state()
    first, again = attribute_all(on_gpu, x.cuda()), attribute_all(on_gpu, x.cuda())
    assert torch.equal(torch.cuda.get_rng_state(), before)
    for name, method in METHODS.items():
        torch.testing.assert_close(first[name], again[name], rtol=1e-4, atol=1e-6)
        if not method.stochastic:  # a GPU's generator draws other noise from the same seed
            torch.testing.assert_close(
                first[name].cpu(), expected[name], rtol=1e-2, atol=1e-3 * expected[name].abs().max().item()
            )
