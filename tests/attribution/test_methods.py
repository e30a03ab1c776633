from __future__ import annotations

import pytest
import torch
from torch import nn

from faithad.attribution.gradient_stream import frozen
from faithad.attribution.methods import METHODS, PAPER_METHODS, choose_methods
from faithad.attribution.noise import Noise
from faithad.errors import ConfigError
from faithad.settings import AttributionSettings


def test_the_table_is_keyed_by_name_and_begins_with_the_papers_methods() -> None:
    assert all(method.name == name for name, method in METHODS.items())
    assert len({method.title for method in METHODS.values()}) == len(METHODS)
    assert len(PAPER_METHODS) == 6
    assert tuple(METHODS)[:6] == PAPER_METHODS
    assert all(method.points is not None for method in METHODS.values() if method.stochastic)


def test_a_clip_needs_100_gradients_beside_the_one_at_the_clip_itself() -> None:
    points = {name: method.n_points(AttributionSettings(), (80, 400)) for name, method in METHODS.items()}
    assert {name: n for name, n in points.items() if METHODS[name].points is not None} == {
        "smooth_grad": 25,
        "integrated_gradients": 50,
        "gradient_shap": 25,
        "occlusion": 4 * 20,
    }
    assert {n for name, n in points.items() if METHODS[name].points is None} == {0}


def test_occlusion_hides_every_cell_once_and_cuts_patches_at_the_edge() -> None:
    clip, settings = torch.randn(18, 43), AttributionSettings(occlusion_bands=5, occlusion_frames=20)
    method = METHODS["occlusion"]
    n = method.n_points(settings, (18, 43))
    assert n == 4 * 3
    assert method.points is not None
    points = method.points(clip, range(n), settings, Noise(0, "clip", "occlusion"))
    assert torch.equal(points.factor.sum(dim=0), torch.ones(18, 43))
    assert torch.equal(points.at, clip * (1 - points.factor))
    assert points.factor.sum(dim=(1, 2)).unique().tolist() == [3 * 3, 5 * 3, 3 * 20, 5 * 20]


def test_methods_are_chosen_in_the_order_asked_for() -> None:
    assert [method.name for method in choose_methods(["grad_cam", "error_map"])] == ["grad_cam", "error_map"]
    assert choose_methods([]) == []


def test_unknown_methods_are_all_named_with_what_is_allowed() -> None:
    with pytest.raises(ConfigError, match=r"lime, gradcam\. Allowed: error_map, saliency, .*grad_cam"):
        choose_methods(["lime", "saliency", "gradcam"])


def test_frozen_puts_each_module_and_weight_back_as_it_was() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
    network[1].eval()
    network[0].bias.requires_grad_(False)

    def state() -> list[bool]:
        modes = [module.training for module in network.modules()]
        return modes + [parameter.requires_grad for parameter in network.parameters()]

    before = state()
    assert True in before
    with frozen(network):
        assert not any(state())
    assert state() == before
    with pytest.raises(ZeroDivisionError), frozen(network):
        1 / 0  # noqa: B018
    assert state() == before


def test_frozen_leaves_no_weight_gradients() -> None:
    network = nn.Linear(3, 1)
    x = torch.ones(1, 3, requires_grad=True)
    with frozen(network):
        network(x).sum().backward()
    assert network.weight.grad is None
    assert x.grad is not None
