"""The network: its size, its shapes, and its wiring against a second one written stage by stage from the paper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from faithad.errors import ConfigError, FaithadError
from faithad.model.fast_layers import with_fast_layers
from faithad.model.skip_cae_transformer import SkipCAETransformer


def seeded(n_mels: int, n_frames: int, *, dropout: float = 0.1) -> SkipCAETransformer:
    """A network whose batch normalisation has seen data, so that no part of it is the identity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SkipCAETransformer(n_mels, n_frames, dropout).train()
        with torch.no_grad():
            for _ in range(3):
                network(2 * torch.randn(4, n_mels, n_frames) - 1)
    return network.eval()


def clips(n_clips: int, n_mels: int, n_frames: int, *, seed: int = 1) -> Tensor:
    return torch.randn(n_clips, n_mels, n_frames, generator=torch.Generator().manual_seed(seed))


def attention(weights: dict[str, Tensor], name: str, query: Tensor, memory: Tensor, n_heads: int) -> Tensor:
    """Multi-head attention, head by head; query and memory (B, tokens, d)."""
    w_q, w_k, w_v = weights[f"{name}.in_proj_weight"].chunk(3)
    b_q, b_k, b_v = weights[f"{name}.in_proj_bias"].chunk(3)
    heads = []
    size = query.shape[-1] // n_heads
    for head in range(n_heads):
        rows = slice(head * size, (head + 1) * size)
        q = query @ w_q[rows].T + b_q[rows]
        k = memory @ w_k[rows].T + b_k[rows]
        v = memory @ w_v[rows].T + b_v[rows]
        heads.append(torch.softmax(q @ k.transpose(1, 2) / size**0.5, dim=-1) @ v)
    return torch.cat(heads, dim=-1) @ weights[f"{name}.out_proj.weight"].T + weights[f"{name}.out_proj.bias"]


def reconstruct(network: SkipCAETransformer, x: Tensor) -> Tensor:
    """The forward pass from the paper's table of stages, with plain formulas on the state dict."""
    w = network.state_dict()
    n_mels, n_frames = x.shape[1:]

    def conv(i: int, x: Tensor) -> Tensor:
        return functional.conv2d(x, w[f"conv{i}.weight"], w[f"conv{i}.bias"], padding=1)

    def act(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.01 * x)

    def bn(i: int, x: Tensor) -> Tensor:
        mean, variance, gain, offset = (
            w[f"bn{i}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * gain + offset

    def pool(x: Tensor) -> Tensor:
        x = x[..., : x.shape[-2] // 2 * 2, : x.shape[-1] // 2 * 2]
        return torch.stack([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]).amax(dim=0)

    def pad(x: Tensor, channels: int) -> Tensor:
        return torch.cat([x, x.new_zeros(len(x), channels - x.shape[1], *x.shape[2:])], dim=1)

    def up(i: int, x: Tensor) -> Tensor:
        y = x.new_empty(len(x), x.shape[1], 2 * x.shape[2], 2 * x.shape[3])
        for di in (0, 1):
            for dj in (0, 1):
                y[..., di::2, dj::2] = torch.einsum("bcij,co->boij", x, w[f"conv_t{i}.weight"][:, :, di, dj])
        return y + w[f"conv_t{i}.bias"][:, None, None]

    def norm(name: str, x: Tensor) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def feed_forward(name: str, x: Tensor) -> Tensor:
        return linear(f"{name}.linear2", linear(f"{name}.linear1", x).clamp(min=0))

    x = x[:, None]
    h1 = act(conv(1, x))
    h2 = act(conv(2, h1))
    h3 = act(conv(3, h2 + h1))
    h4 = act(conv(4, h3))
    e1 = pool(bn(1, h4 + h3 + pad(x, 4)))
    h6 = act(conv(5, e1))
    e2 = pool(bn(2, act(conv(6, h6)) + h6 + pad(e1, 8)))
    h9 = act(conv(7, e2))
    e3 = pool(bn(3, act(conv(8, h9)) + h9 + pad(e2, 16)))
    h12 = act(conv(9, e3))
    h13 = act(conv(10, h12))
    t = h13.flatten(2)
    t = norm("encoder.norm1", t + attention(w, "encoder.self_attn", t, t, network.n_heads))
    t = norm("encoder.norm2", t + feed_forward("encoder", t))
    a = t.view_as(h13)
    z = pool(bn(4, a + act(linear("linear_e", h12 + pad(e3, 32)))))

    h1 = act(conv(11, z))
    h2 = act(conv(12, h1))
    h3 = act(conv(13, h2 + h1))
    h4 = act(conv(14, h3))
    u1 = functional.adaptive_avg_pool2d(up(1, bn(5, h4 + h3 + z)), a.shape[2:])
    t, memory = u1.flatten(2), a.flatten(2)
    t = norm("decoder.norm1", t + attention(w, "decoder.self_attn", t, t, network.n_heads))
    t = norm("decoder.norm2", t + attention(w, "decoder.multihead_attn", t, memory, network.n_heads))
    d = norm("decoder.norm3", t + feed_forward("decoder", t)).view_as(a)
    h6 = act(conv(15, d))
    h7 = act(conv(16, h6))
    u2 = up(2, bn(6, h7 + act(linear("linear_d", h6 + d[:, :16]))))
    h9 = act(conv(17, u2))
    u3 = up(3, bn(7, act(conv(18, h9)) + h9 + u2[:, :8]))
    h12 = act(conv(19, u3))
    u4 = up(4, bn(8, act(conv(20, h12)) + h12 + u3[:, :4]))
    v = functional.interpolate(u4, (n_mels, n_frames), mode="bilinear", align_corners=False)
    h15 = act(conv(21, v))
    return conv(22, h15 + v[:, :2])[:, 0]


@pytest.mark.parametrize("shape", [(80, 400), (80, 401), (16, 40), (40, 100), (24, 61)])
def test_forward_is_the_table_of_stages(shape: tuple[int, int]) -> None:
    network, x = seeded(*shape).double(), clips(2, *shape).double()
    with torch.no_grad():
        torch.testing.assert_close(network(x), reconstruct(network, x), rtol=1e-9, atol=1e-9)


def test_size_at_the_papers_shape() -> None:
    network = SkipCAETransformer()
    assert (network.n_mels, network.n_frames, network.n_heads) == (80, 400, 10)
    assert sum(parameter.numel() for parameter in network.parameters()) == 7_233_831


def test_cost_at_the_papers_shape() -> None:
    network = seeded(80, 400)
    # with gradients, or the transformer runs as one fused operation that is not counted
    with FlopCounterMode(display=False) as counter:
        network(clips(1, 80, 400))
    assert counter.get_total_flops() / 1e9 == pytest.approx(0.567, abs=0.003)


HEADS = {
    (80, 400): 10,
    (80, 401): 10,
    (128, 312): 8,
    (128, 313): 8,
    (81, 123): 10,
    (16, 40): 10,
    (24, 17): 6,
    (40, 40): 5,
    (16, 16): 4,
    (56, 16): 2,
    (56, 56): 1,
}


@pytest.mark.parametrize(("shape", "n_heads"), HEADS.items())
def test_any_shape_comes_back(shape: tuple[int, int], n_heads: int) -> None:
    network = SkipCAETransformer(*shape).eval()
    with torch.no_grad():
        assert network(clips(2, *shape)).shape == (2, *shape)
    assert network.n_heads == n_heads


def test_the_fused_transformer_gives_the_same_numbers_and_does_not_stop_gradients() -> None:
    network, x = seeded(80, 401).requires_grad_(False), clips(2, 80, 401)
    with torch.no_grad():
        fused = network(x)
    x.requires_grad_()
    y = network(x)
    torch.testing.assert_close(y, fused, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad((y - x).square().mean(), x)
    assert gradient.isfinite().all()
    assert (gradient != 0).all()


def test_the_gradient_is_that_of_finite_differences() -> None:
    network, x = seeded(16, 40).double(), clips(1, 16, 40).double()
    direction = clips(1, 16, 40, seed=2).double()

    def error(x: Tensor) -> Tensor:
        return (network(x) - x).square().mean()

    x.requires_grad_()
    (gradient,) = torch.autograd.grad(error(x), x)
    with torch.no_grad():
        difference = (error(x + 1e-6 * direction) - error(x - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-6, atol=0)


def test_a_clip_is_the_same_alone_and_in_a_batch() -> None:
    network, x = seeded(80, 400), clips(5, 80, 400)
    with torch.no_grad():
        together = network(x)
        for i in range(5):
            torch.testing.assert_close(network(x[i : i + 1])[0], together[i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("width", "depth"), [(2, 1), (1, 3), (3, 2)])
def test_a_wider_and_a_deeper_network(width: int, depth: int) -> None:
    torch.manual_seed(0)
    paper = SkipCAETransformer(16, 41)
    torch.manual_seed(0)
    network, x = SkipCAETransformer(16, 41, width=width, depth=depth).train(), clips(4, 16, 41)
    network(x).square().mean().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []
    assert network.conv10.out_channels == 32 * width
    assert len(network.further_encoders) == len(network.further_decoders) == depth - 1
    assert paper.options == {"dropout": 0.1}
    assert network.options.items() <= {"dropout": 0.1, "width": width, "depth": depth}.items()
    same = SkipCAETransformer(16, 41, **network.options)
    same.load_state_dict(network.state_dict())
    if width == 1:  # the paper's part begins with the paper's weights
        torch.manual_seed(0)
        fresh = SkipCAETransformer(16, 41, depth=depth).state_dict()
        assert all(torch.equal(value, fresh[name]) for name, value in paper.state_dict().items())
    network.eval()
    torch.testing.assert_close(with_fast_layers(network)(x), same.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [{"width": 0}, {"depth": 17}, {"width": "much"}, {"depth": 1.5}])
def test_an_impossible_size_is_refused(size: Any) -> None:
    with pytest.raises(ConfigError, match="must be a whole number from 1 to 16"):
        SkipCAETransformer(16, 40, **size)


def test_dropout_acts_in_training_only() -> None:
    network, x = seeded(16, 40, dropout=0.5), clips(1, 16, 40)
    with torch.no_grad():
        assert torch.equal(network(x), network(x))
        network.train()
        assert not torch.equal(network(x), network(x))


def test_every_weight_is_used() -> None:
    network = SkipCAETransformer(16, 41).train()
    network(clips(4, 16, 41)).square().mean().backward()
    unused = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert unused == []


def test_grad_cam_looks_at_the_last_encoder_convolution() -> None:
    network = SkipCAETransformer(16, 40)
    assert network.get_submodule(network.grad_cam_layer) is network.conv10


@pytest.mark.parametrize("shape", [(2, 16, 41), (2, 40, 16), (16, 40), (2, 1, 16, 40)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(FaithadError, match=r"built for \(clips, 16 mel bands, 40 frames\) and was given"):
        SkipCAETransformer(16, 40)(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(15, 400), (80, 15)])
def test_a_shape_that_cannot_be_halved_four_times_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="at least 16"):
        SkipCAETransformer(*shape)
