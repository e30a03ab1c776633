"""The fast network against the network itself, and its gradient against torch.autograd's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from faithad.model import fast_layers
from faithad.model import fast_network as module
from faithad.model.fast_layers import with_fast_layers
from faithad.model.fast_network import CompiledNetwork, fast_network, watchable
from faithad.model.layers import Conv3x3
from faithad.model.precision import arithmetic, low_precision
from faithad.model.skip_cae_transformer import SkipCAETransformer
from faithad.model.table import build_network
from faithad.settings import Precision

FAST = ["ae", "cae", "skip_cae"]
SHAPES = [(16, 40), (24, 61), (33, 50), (80, 400)]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network_of(n_mels: int, n_frames: int, model: str = "ae") -> Any:
    """With running statistics and affine terms of batch norm that are not those of a new network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(model, n_mels, n_frames).eval().requires_grad_(False)
        for norm in (each for each in network.modules() if isinstance(each, nn.BatchNorm2d)):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            norm.weight.uniform_(-1.5, 1.5)
            norm.bias.normal_()
    return network


def clips(n_clips: int, n_mels: int, n_frames: int) -> Tensor:
    return torch.randn(n_clips, n_mels, n_frames, generator=torch.Generator().manual_seed(1))


def output_and_gradient(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    y = network(x)
    (gradient,) = torch.autograd.grad((y - x).square().mean(dim=(1, 2)).sum(), x)
    return y.detach(), gradient


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("model", FAST)
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradient_are_the_networks(shape: tuple[int, int], model: str) -> None:
    network, x = network_of(*shape, model), clips(3, *shape)
    exact_output, exact_gradient = output_and_gradient(network.double(), x.double())
    output, gradient = output_and_gradient(network.fast_form(), x.double())
    assert relative(output, exact_output) < 1e-12
    assert relative(gradient, exact_gradient) < 1e-9
    output, gradient = output_and_gradient(network.float().fast_form(), x)
    assert relative(output, exact_output) < 1e-5
    # An activation may be rounded to the other side of its kink; PyTorch's own float32 does not do better.
    plain = relative(output_and_gradient(network, x)[1], exact_gradient)
    assert relative(gradient, exact_gradient) < max(1e-5, 3 * plain)


@pytest.mark.parametrize("model", FAST)
@pytest.mark.parametrize("shape", SHAPES[:2])
def test_grad_cams_layer_is_the_last_convolution_before_its_activation(shape: tuple[int, int], model: str) -> None:
    network, x = network_of(*shape, model).double(), clips(2, *shape).double().requires_grad_()
    found: list[tuple[Tensor, Tensor]] = []
    for each in (network, network.fast_form()):
        outputs: list[Tensor] = []
        layer = each.get_submodule(network.grad_cam_layer)
        handle = layer.register_forward_hook(lambda module, inputs, output, to=outputs: to.append(output))
        error = (each(x) - x).square().mean()
        found.append((outputs[0], torch.autograd.grad(error, outputs)[0]))
        handle.remove()
    assert found[0][0].min() < -0.1  # not after an activation
    assert relative(found[1][0], found[0][0]) < 1e-12
    assert relative(found[1][1], found[0][1]) < 1e-9


@pytest.mark.parametrize("model", FAST)
def test_a_spectrogram_is_the_same_to_the_last_bit_in_any_batch(model: str) -> None:
    fast, x = network_of(24, 61, model).fast_form(), clips(7, 24, 61)
    together = output_and_gradient(fast, x)
    for start, stop in [(0, 1), (6, 7), (2, 4), (1, 7)]:
        for found, expected in zip(output_and_gradient(fast, x[start:stop].clone()), together, strict=True):
            assert torch.equal(found, expected[start:stop])


def test_it_is_a_copy_in_eval_mode() -> None:
    network, x = network_of(16, 40), clips(2, 16, 40)
    expected = network(x)
    network.train().requires_grad_(True)
    fast = fast_network(network)
    assert isinstance(fast, SkipCAETransformer)
    assert fast is not network
    assert network.training
    assert network.conv1.weight.requires_grad
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    with torch.no_grad():
        network.conv1.weight.zero_()
    torch.testing.assert_close(fast(x), expected)
    assert (fast.n_mels, fast.n_frames) == (16, 40)


def test_the_network_itself_is_used_where_there_is_no_fast_one(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(16, 40)
    fast = fast_network(network)
    assert fast_network(fast) is fast
    other = nn.Identity()
    assert fast_network(other) is other
    for each in (module, fast_layers):
        monkeypatch.setattr(each, "has_onednn", lambda: False)
    assert fast_network(network) is network
    x = clips(2, 16, 40)
    torch.testing.assert_close(network.fast_form()(x), network(x))
    double = network.double()
    assert fast_network(double) is double


def test_the_fast_form_of_a_subclass_computes_what_the_subclass_computes() -> None:
    class Other(SkipCAETransformer):
        def __init__(self, n_mels: int, n_frames: int) -> None:
            super().__init__(n_mels, n_frames)
            self.before = nn.Conv2d(1, 1, (5, 3), padding=(4, 2), dilation=2)

        def forward(self, x: Tensor) -> Tensor:
            return 0.5 * super().forward(self.before(x[:, None])[:, 0]) + x

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Other(16, 40).eval()
    x = clips(2, 16, 40)
    exact = output_and_gradient(copy.deepcopy(network).double(), x.double())
    fast = fast_network(network)
    assert fast is not network
    for found, plain, expected in zip(
        output_and_gradient(fast, x), output_and_gradient(network, x), exact, strict=True
    ):
        assert relative(found, expected) < max(1e-5, 3 * relative(plain, expected))


def test_a_layer_with_other_settings_stays_as_it_is() -> None:
    layers = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.ConvTranspose2d(2, 2, 3, 2, 1, output_padding=1),
        nn.ConvTranspose2d(2, 2, 2, 2, bias=False),
        nn.BatchNorm2d(2, affine=False),
        nn.TransformerEncoderLayer(16, 2, 8, norm_first=True, batch_first=True),
        nn.TransformerDecoderLayer(16, 2, 8, activation="gelu", batch_first=True),
    )
    fast = with_fast_layers(layers)
    assert [type(layer) for layer in fast.children()] == [type(layer) for layer in layers]


def test_a_subclass_of_a_layer_stays_as_it_is() -> None:
    layers = [
        Conv3x3(1, 2),
        nn.ConvTranspose2d(2, 2, 2, 2),
        nn.BatchNorm2d(2),
        nn.TransformerEncoderLayer(16, 2, 8, batch_first=True),
        nn.TransformerDecoderLayer(16, 2, 8, batch_first=True),
    ]
    for layer in with_fast_layers(nn.Sequential(*copy.deepcopy(layers))).children():
        assert type(layer).__module__ == fast_layers.__name__
    for layer in layers:
        layer.__class__ = type("Other", (type(layer),), {})
    fast = with_fast_layers(nn.Sequential(*layers))
    assert [type(layer) for layer in fast.children()] == [type(layer) for layer in layers]


def test_pytorchs_stacks_of_transformer_layers_stay_as_they_are() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Transformer(16, 2, 1, 1, 8, batch_first=True).eval()
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(with_fast_layers(network)(x, x), network(x, x))


def test_precisions() -> None:
    network, x = network_of(16, 40), clips(2, 16, 40)
    rough = fast_network(network, "bfloat16")
    assert rough is network
    with low_precision("bfloat16", x.device):
        y, gradient = output_and_gradient(rough, x)
    assert gradient.dtype == torch.float32
    assert 1e-5 < relative(y.float(), network(x)) < 0.05
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    for precision, allowed in (("float32", False), ("tf32", True)):
        with arithmetic(precision):  # type: ignore[arg-type]
            assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is allowed
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == flags


# torch.compile's own modules warn of themselves when they are imported.
@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_a_compiled_network_computes_the_same_and_is_watched_beside_it() -> None:
    graphs: list[str] = []

    def traced(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph.code)
        return graph.forward

    network, x = network_of(16, 40).double(), clips(3, 16, 40).double()
    expected = output_and_gradient(network, x)
    seen: list[Tensor] = []
    compiled = CompiledNetwork(network, "default", backend=traced)
    assert watchable(compiled) is network
    network.conv10.register_forward_hook(lambda module, inputs, output: seen.append(output))
    for found, exact in zip(output_and_gradient(compiled, x), expected, strict=True):
        assert relative(found, exact) < 1e-12
    # All in one graph, with no hook in it.
    assert (len(graphs), seen) == (1, [])
    assert not any(weight.requires_grad for weight in compiled.compiled.parameters())
    assert relative(watchable(compiled)(x), expected[0]) < 1e-12
    assert [each.shape[1] for each in seen] == [32]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_the_compiler_makes_computes_the_same(precision: Precision) -> None:
    network, x = network_of(16, 40), clips(3, 16, 40)
    exact = output_and_gradient(network_of(16, 40).double(), x.double())
    compiled, plain = fast_network(network, precision, "default"), fast_network(network, precision)
    assert isinstance(compiled, CompiledNetwork)
    assert watchable(compiled) is network
    with low_precision(precision, x.device):
        pairs = zip(output_and_gradient(compiled, x), output_and_gradient(plain, x), exact, strict=True)
    for found, by_hand, expected in pairs:
        # An activation may be rounded to the other side of its kink.
        assert relative(found, expected) < max(1e-5, 3 * relative(by_hand, expected))
