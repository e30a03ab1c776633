from __future__ import annotations

import pytest
import torch
from torch import nn

from faithad.attribution.methods import METHODS, AttributionSettings, choose_methods, frozen, noise_seed
from faithad.errors import ConfigError


def test_the_table_is_keyed_by_name_and_complete() -> None:
    assert list(METHODS) == [
        "error_map",
        "saliency",
        "smooth_grad",
        "integrated_gradients",
        "gradient_shap",
        "grad_cam",
    ]
    assert all(method.name == name for name, method in METHODS.items())
    assert len({method.title for method in METHODS.values()}) == len(METHODS)


def test_signed_and_stochastic_methods() -> None:
    assert {name for name, method in METHODS.items() if method.signed} == {
        "integrated_gradients",
        "gradient_shap",
        "grad_cam",
    }
    assert {name for name, method in METHODS.items() if method.stochastic} == {"smooth_grad", "gradient_shap"}


def test_a_clip_needs_101_gradients_since_grad_cam_shares_that_of_saliency() -> None:
    settings = AttributionSettings()
    points = {name: method.n_points(settings) for name, method in METHODS.items()}
    assert sum(points.values()) - points["grad_cam"] == 1 + 25 + 50 + 25


def test_methods_are_chosen_in_the_order_asked_for() -> None:
    assert [method.name for method in choose_methods(["grad_cam", "error_map"])] == ["grad_cam", "error_map"]
    assert choose_methods([]) == []


def test_unknown_methods_are_all_named_with_what_is_allowed() -> None:
    with pytest.raises(ConfigError, match=r"lime, gradcam\. Allowed: error_map, saliency, .*grad_cam"):
        choose_methods(["lime", "saliency", "gradcam"])


def test_noise_differs_between_seeds_clips_and_methods() -> None:
    seeds = {
        noise_seed(seed, clip_id, method)
        for seed in (0, 1, 11)
        for clip_id in ("0123456789abcdef", "0123456789abcdee", "1")
        for method in METHODS
    }
    assert len(seeds) == 3 * 3 * len(METHODS)
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_noise_is_the_same_in_every_process_and_version() -> None:
    assert noise_seed(0, "clip", "smooth_grad") == 2149327238


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
