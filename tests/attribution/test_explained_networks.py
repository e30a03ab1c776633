"""Which networks can be explained: each model whose row says so, and any module that reconstructs spectrograms."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from faithad.attribution.gradient_stream import attribute_batch
from faithad.attribution.methods import METHODS
from faithad.errors import ConfigError
from faithad.model.linear import fit_linear
from faithad.model.table import MODELS, build_network
from faithad.settings import AttributionSettings
from tests.attribution import captum_oracle

SETTINGS = AttributionSettings(3, 0.1, 4, 2, 0.09, occlusion_bands=7, occlusion_frames=13)
EXPLAINED = [name for name, row in MODELS.items() if row.explained]
WITHOUT_LAYER = [name for name, method in METHODS.items() if method.needs != "activations"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: on a busy machine, threads that wait for each other make this module many times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Plain(nn.Module):
    """Knows nothing of faithad, and takes spectrograms of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.rise = nn.Conv2d(1, 3, 5, padding=2)
        self.fall = nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        reconstruction: Tensor = self.fall(self.rise(x[:, None]).tanh())
        return reconstruction[:, 0]


class Watched(Plain):
    grad_cam_layer = "rise"


def seeded(network_class: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return network_class().double().eval()


def clips(n_mels: int, n_frames: int) -> Tensor:
    return torch.randn(2, n_mels, n_frames, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def attribute(network: nn.Module, x: Tensor, methods: list[str]) -> dict[str, Tensor]:
    return attribute_batch(network, x, methods=methods, settings=SETTINGS, seed=3, clip_ids=["p", "q"])


def check_with_captum(network: nn.Module, x: Tensor, methods: list[str]) -> None:
    maps = attribute(network, x, methods)
    assert list(maps) == methods
    for clip, clip_id, row in zip(x, ["p", "q"], range(len(x)), strict=True):
        expected = captum_oracle.attribute(network, clip, methods=methods, settings=SETTINGS, seed=3, clip_id=clip_id)
        for name in methods:
            # Not closer, since Captum rounds weights to float32.
            tolerance = 1e-6 * expected[name].abs().max().item()
            torch.testing.assert_close(maps[name][row], expected[name], rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("model", EXPLAINED)
@pytest.mark.parametrize("shape", [(16, 40), (24, 61)])
def test_every_map_of_an_explained_model_is_captums(model: str, shape: tuple[int, int]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(model, *shape).train()
        x = torch.randn(4, *shape)
        with torch.no_grad():
            fit_linear(network, [x], n_clips=4, seed=0) if MODELS[model].linear else network(x)
    check_with_captum(network.double().eval(), clips(*shape), list(METHODS))


@pytest.mark.parametrize("model", [name for name in EXPLAINED if not MODELS[name].linear])
def test_grad_cam_explains_the_encoders_last_convolution_before_its_activation(model: str) -> None:
    network = build_network(model, 32, 48).eval()
    outputs: list[Tensor] = []
    layer = network.get_submodule(network.grad_cam_layer)
    layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.no_grad():
        network(torch.randn(2, 32, 48))
    # Three poolings by two come before it, and an activation would leave next to nothing below zero.
    assert [output.shape for output in outputs] == [(2, 32, 4, 6)]
    assert outputs[0].min() < -0.1 * outputs[0].max()


@pytest.mark.parametrize(("model", "shape"), [("frame_pca", (2, 40, 1, 48)), ("frame_ridge", (2, 3, 32, 48))])
def test_grad_cam_explains_what_a_linear_model_knows_of_a_frame(model: str, shape: tuple[int, ...]) -> None:
    network = build_network(model, 32, 48)
    outputs: list[Tensor] = []
    network.get_submodule(network.grad_cam_layer).register_forward_hook(
        lambda _, inputs, output: outputs.append(output)
    )
    network(torch.randn(2, 32, 48))
    assert [output.shape for output in outputs] == [shape]


@pytest.mark.parametrize("shape", [(16, 40), (19, 33)])
def test_any_module_that_reconstructs_is_explained_by_all_methods_but_grad_cam(shape: tuple[int, int]) -> None:
    network = seeded(Plain)
    check_with_captum(network, clips(*shape), WITHOUT_LAYER)
    with pytest.raises(
        ConfigError, match=r"grad_cam explains one layer.* and Plain does not say which.* grad_cam_layer is None"
    ):
        attribute(network, clips(*shape), ["saliency", "grad_cam"])
    check_with_captum(seeded(Watched), clips(*shape), list(METHODS))


def test_a_layer_that_the_network_does_not_call_cannot_be_explained() -> None:
    class Idle(Watched):
        grad_cam_layer = "idle"

        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Conv2d(1, 3, 5)

    class WithoutGradients(Watched):
        """Calls the layer in passes without gradients only."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if not torch.is_grad_enabled() else x.tanh()

    for network in (seeded(Idle), seeded(WithoutGradients)):
        with pytest.raises(
            ConfigError, match=rf"{type(network).__name__} does not call the layer .*{network.grad_cam_layer}"
        ):
            attribute(network, clips(19, 33), ["occlusion", "grad_cam"])
        assert list(attribute(network, clips(19, 33), ["saliency"])) == ["saliency"]


def test_float32_is_explained_too() -> None:
    network, x = seeded(Watched), clips(19, 33)
    exact, found = attribute(network, x, list(METHODS)), attribute(network.float(), x.float(), list(METHODS))
    for name in METHODS:
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(
            found[name].double(), exact[name], rtol=1e-3, atol=1e-4 * exact[name].abs().max().item(), msg=name
        )


def test_a_module_that_changes_the_shape_is_refused() -> None:
    class Wider(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, None]

    with pytest.raises(ConfigError, match=r"must map .* to the same shape.*\(1, 1, 19, 33\)"):
        attribute(Wider(), clips(19, 33), ["error_map"])
    with pytest.raises(ConfigError, match="any number of mel bands"):
        attribute(seeded(Plain), clips(19, 33)[0], ["error_map"])
