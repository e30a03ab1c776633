"""Paths that begin at training clips."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from faithad.attribution import gradient_stream
from faithad.attribution.gradient_stream import attribute_batch
from faithad.attribution.methods import METHODS
from faithad.attribution.noise import Noise
from faithad.errors import ConfigError
from faithad.features import fill_up
from faithad.settings import AttributionSettings

F, T = 16, 40
IDS, LENGTHS = ["a0", "b1", "c2"], [40, 11, 40]
SETTINGS = AttributionSettings(3, 0.1, 11, 5, 0.09, occlusion_bands=8, occlusion_frames=20, baseline="normals")
PATHS = ("integrated_gradients", "gradient_shap")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Kinked(nn.Module):
    """Small, and far from linear: its gradient jumps in many places."""

    grad_cam_layer = "first"

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 1, 3, padding=1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x[:, None]).relu())[:, 0]
        return out


@pytest.fixture(scope="module")
def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Kinked().eval()


def clips(n: int, seed: int) -> Tensor:
    return torch.randn(n, F, T, generator=torch.Generator().manual_seed(seed))


X, NORMALS = clips(3, 1), clips(7, 2)


def attribute(
    network: nn.Module, x: Tensor = X, ids: list[str] = IDS, lengths: list[int] = LENGTHS, **changes: object
) -> dict[str, Tensor]:
    options = {"methods": PATHS, "settings": SETTINGS, "seed": 0, "normals": NORMALS} | changes
    return attribute_batch(network, x, clip_ids=ids, n_frames=lengths, **options)  # type: ignore[arg-type]


def error(network: nn.Module, points: Tensor) -> Tensor:
    """E of (N, F, own frames): (N,)."""
    rebuilt = network(fill_up(points, T))[..., : points.shape[-1]]
    return (rebuilt - points).square().mean(dim=(1, 2))


def gradient(network: nn.Module, point: Tensor) -> Tensor:
    point = point.detach().requires_grad_()
    return torch.autograd.grad(error(network, point[None]).sum(), point)[0]


def test_both_maps_are_their_formulas(network: nn.Module) -> None:
    double = copy.deepcopy(network).double()
    maps = attribute(double, X.double())
    nodes, weights = np.polynomial.legendre.leggauss(SETTINGS.integrated_gradients_steps)
    for clip, (clip_id, n) in enumerate(zip(IDS, LENGTHS, strict=True)):
        x = X[clip, :, :n].double()
        noise = Noise(0, clip_id, "gradient_shap", NORMALS.double())
        (first, *_) = baselines = noise.baselines(range(5), x)
        path = x - first
        expected = sum(
            weight / 2 * path * gradient(double, first + (node + 1) / 2 * path)
            for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True)
        )
        torch.testing.assert_close(maps["integrated_gradients"][clip, :, :n], expected, rtol=1e-7, atol=1e-10)
        normal, places = noise.draw(range(5), x)
        paths = [x + 0.09 * of_sample - baseline for of_sample, baseline in zip(normal, baselines, strict=True)]
        expected = sum(
            path * gradient(double, baseline + place * path) / 5
            for path, baseline, place in zip(paths, baselines, places, strict=True)
        )
        torch.testing.assert_close(maps["gradient_shap"][clip, :, :n], expected, rtol=1e-7, atol=1e-10)


def test_integrated_gradients_sum_to_the_change_from_the_baseline(network: nn.Module) -> None:
    maps = attribute(network, settings=replace(SETTINGS, integrated_gradients_steps=200))["integrated_gradients"]
    for clip, (clip_id, n) in enumerate(zip(IDS, LENGTHS, strict=True)):
        x = X[clip, :, :n]
        baseline = Noise(0, clip_id, "integrated_gradients", NORMALS).baselines([0], x)
        with torch.inference_mode():
            of_clip, of_start, of_zero = (error(network, at).item() for at in (x[None], baseline, 0 * baseline))
        assert maps[clip].sum().item() == pytest.approx(of_clip - of_start, abs=0.002 * of_clip)
        assert abs(of_start - of_zero) > 0.1 * of_clip


def test_a_clip_alone_in_another_order_and_beside_other_methods_has_the_same_maps(network: nn.Module) -> None:
    maps = attribute(network)
    reversed_maps = attribute(network, X.flip(0), IDS[::-1], LENGTHS[::-1], methods=tuple(METHODS)[1:6])
    for clip, clip_id in enumerate(IDS):
        alone = attribute(network, X[clip : clip + 1], [clip_id], LENGTHS[clip : clip + 1])
        for name in PATHS:
            assert torch.equal(alone[name][0], maps[name][clip])
            assert torch.equal(reversed_maps[name].flip(0)[clip], maps[name][clip])


@pytest.mark.parametrize("changes", [{"seed": 1}, {"ids": ["a1", "b2", "c3"]}])
def test_baselines_are_those_of_the_seed_and_the_clip(network: nn.Module, changes: dict[str, object]) -> None:
    own, other = (attribute(network, **options)["integrated_gradients"] for options in ({}, changes))  # type: ignore[arg-type]
    assert not torch.equal(own, other)


def test_all_normals_are_drawn_about_as_often() -> None:
    drawn = [Noise(0, str(clip), "integrated_gradients", NORMALS).baselines([0], X[0])[0] for clip in range(700)]
    counts = [sum(torch.equal(baseline, normal) for baseline in drawn) for normal in NORMALS]
    assert sum(counts) == 700
    assert min(counts) > 60


def test_normals_change_nothing_where_paths_begin_at_zero(network: nn.Module) -> None:
    zero = {"settings": replace(SETTINGS, baseline="zero"), "methods": tuple(METHODS)}
    maps, without = attribute(network, **zero), attribute(network, **zero, normals=None)
    drawn = attribute(network, methods=tuple(METHODS))
    for name in METHODS:
        assert torch.equal(maps[name], without[name])
        assert torch.equal(maps[name], drawn[name]) == (name not in PATHS), name


@pytest.mark.parametrize(("normals", "found"), [(None, "none"), (NORMALS[..., :39], r"\(7, 16, 39\)")])
def test_normals_that_are_missing_or_do_not_fit_are_refused(
    network: nn.Module, normals: Tensor | None, found: str
) -> None:
    with pytest.raises(ConfigError, match=f"baseline is 'normals', which needs normals .* 16, 40.; found {found}"):
        attribute(network, normals=normals)


@pytest.mark.parametrize(("baseline", "complete"), [("zero", 0.0005), ("normals", 0.0015)])
def test_each_clip_takes_the_steps_that_it_needs(
    network: nn.Module, baseline: str, complete: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """25, and twice as many until the map is complete; a clip does not depend on what the others need."""
    monkeypatch.setattr(gradient_stream, "_COMPLETE", complete)
    auto = replace(SETTINGS, integrated_gradients_steps="auto", baseline=baseline)  # type: ignore[arg-type]
    maps = attribute(network, settings=auto, methods=("integrated_gradients", "saliency"))
    assert list(maps) == ["integrated_gradients", "saliency"]
    needed = []
    for clip, (clip_id, n) in enumerate(zip(IDS, LENGTHS, strict=True)):
        alone = X[clip : clip + 1], [clip_id], [n]
        assert torch.equal(attribute(network, *alone, settings=auto)["integrated_gradients"][0], maps[PATHS[0]][clip])
        own = alone[0][..., :n]
        normals = NORMALS if baseline == "normals" else None
        start = Noise(0, clip_id, "integrated_gradients", normals).baselines([0], own[0]).expand_as(own)
        with torch.inference_mode():
            change = (error(network, own) - error(network, start)).item()
        for steps in (25, 50, 100, 200, 400):
            fixed = replace(auto, integrated_gradients_steps=steps)
            expected = attribute(network, *alone, settings=fixed)["integrated_gradients"][0]
            if abs(expected.double().sum().item() - change) <= complete * abs(change):
                break
        needed.append(steps)
        assert torch.equal(maps["integrated_gradients"][clip], expected), steps
    assert len(set(needed)) > 1
