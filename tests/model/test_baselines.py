"""The model paper's networks: their sizes, any shape, and each against its description written another way."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from faithad.errors import ConfigError
from faithad.model.baselines import CAE, DenseAE, SkipCAE
from faithad.model.skip_cae_transformer import SkipCAETransformer
from faithad.model.table import MODELS, build_network

CLASSICAL = [name for name, row in MODELS.items() if not row.reconstructs]
BASELINES = [name for name, row in MODELS.items() if name not in ("ae", "mae") and not row.fitted]


def seeded(model: str, n_mels: int, n_frames: int) -> nn.Module:
    """A network whose batch normalisation has seen data, so that no part of it is the identity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(model, n_mels, n_frames).train()
        with torch.no_grad():
            for _ in range(3):
                network(2 * torch.randn(4, n_mels, n_frames) - 1)
    return network.eval()


def clips(n_clips: int, n_mels: int, n_frames: int) -> Tensor:
    return torch.randn(n_clips, n_mels, n_frames, generator=torch.Generator().manual_seed(1))


def test_the_names() -> None:
    assert all(row.name == name for name, row in MODELS.items())
    assert len({row.title for row in MODELS.values()}) == len(MODELS)
    assert CLASSICAL == ["one_class_svm", "isolation_forest"]
    assert not any(MODELS[name].explained or MODELS[name].masked for name in CLASSICAL)
    assert type(build_network("mae", 16, 16, dropout=0.2)) is SkipCAETransformer
    for model in ("vae", *CLASSICAL):
        with pytest.raises(ConfigError, match=f"no network '{model}' to train; allowed: ae, mae, dense_ae"):
            build_network(model, 16, 16)


# 267,928 is what the DCASE baseline has at its 128 bands.
SIZES = {
    ("dense_ae", 128): 267_928,
    ("dense_ae", 80): 206_248,
    ("cae", 80): 120_401,
    ("cae", 128): 120_401,
    ("skip_cae", 80): 116_635,
    ("skip_cae", 128): 116_635,
}


@pytest.mark.parametrize(("model", "n_mels"), SIZES)
def test_sizes(model: str, n_mels: int) -> None:
    network = build_network(model, n_mels, 401)
    assert sum(parameter.numel() for parameter in network.parameters()) == SIZES[model, n_mels]


@pytest.mark.parametrize("model", BASELINES)
@pytest.mark.parametrize("shape", [(80, 401), (128, 313), (17, 101), (16, 16)])
def test_any_shape_comes_back_and_every_weight_learns(model: str, shape: tuple[int, int]) -> None:
    network, x = build_network(model, *shape).train(), clips(2, *shape)
    assert (network.n_mels, network.n_frames) == shape
    y = network(x)
    assert y.shape == x.shape
    (y - x).square().mean().backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("model", BASELINES)
def test_a_clip_is_the_same_alone_and_in_a_batch(model: str) -> None:
    network, x = seeded(model, 16, 41), clips(3, 16, 41)
    with torch.no_grad():
        for alone, together in zip(x[:, None], network(x), strict=True):
            torch.testing.assert_close(network(alone)[0], together, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("network", [DenseAE, CAE, SkipCAE])
def test_other_shapes_are_refused(network: type[nn.Module]) -> None:
    for shape in ((2, 16, 41), (2, 40, 16), (16, 40), (2, 1, 16, 40)):
        with pytest.raises(ConfigError, match=r"built for \(clips, 16 mel bands, 40 frames\) and was given"):
            network(16, 40)(torch.zeros(shape))
    for shape in ((15, 400), (80, 15)):
        with pytest.raises(ConfigError, match="at least 16"):
            network(*shape)


@pytest.mark.parametrize("shape", [(16, 41), (80, 401)])
def test_the_error_of_the_dense_autoencoder_is_that_of_all_its_windows(shape: tuple[int, int]) -> None:
    """As the DCASE baseline computes it: dense layers on stacked frames, the mean over the windows of a clip."""
    network, x = seeded("dense_ae", *shape).double(), clips(2, *shape).double()
    weights = list(network.state_dict().values())
    n_mels, n_frames = shape

    def dense(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return h @ weight.flatten(1).T + bias

    expected = []
    for clip in x:
        windows = torch.stack([clip[:, start : start + 5].flatten() for start in range(n_frames - 4)])
        h = dense(windows, *weights[:2])
        for layer in range(9):
            gain, offset, mean, variance, _, weight, bias = weights[2 + 7 * layer : 9 + 7 * layer]
            h = dense(((h - mean) / (variance + 1e-3).sqrt() * gain + offset).clamp(min=0), weight, bias)
        assert h.shape == (n_frames - 4, 5 * n_mels)
        expected.append((h - windows).square().mean())
    assert len(weights) == 2 + 7 * 9
    with torch.no_grad():
        found = (network(x) - x).square().mean(dim=(1, 2))
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-9, atol=0)


def test_the_dense_autoencoder_learns_from_the_error_of_its_windows() -> None:
    network, x = seeded("dense_ae", 16, 41).double(), clips(2, 16, 41).double()
    windows = x.unfold(2, 5, 1).transpose(2, 3)
    losses = (network(x) - x).square().mean(), (network.reconstruct_windows(x) - windows).square().mean()
    parameters = list(network.parameters())
    for one, other in zip(*(torch.autograd.grad(loss, parameters) for loss in losses), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-12)


def test_the_dense_autoencoder_survives_a_perfect_reconstruction() -> None:
    network, x = seeded("dense_ae", 16, 20), torch.zeros(2, 16, 20)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    loss = (network(x) - x).square().mean()
    loss.backward()
    assert loss < 1e-10
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_the_skip_cae_is_the_transformers_network_without_the_transformer() -> None:
    """METHOD's table of stages with plain formulas, the layers in the order of their numbers."""
    network, x = seeded("skip_cae", 24, 61).double(), clips(2, 24, 61).double()
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    up = [module for module in network.modules() if isinstance(module, nn.ConvTranspose2d)]
    assert (len(convolutions), len(norms), len(up)) == (22, 8, 4)

    def conv(i: int, h: Tensor) -> Tensor:
        return functional.conv2d(h, convolutions[i - 1].weight, convolutions[i - 1].bias, padding=1)

    def act(h: Tensor) -> Tensor:
        return torch.where(h > 0, h, 0.01 * h)

    def pad(h: Tensor, channels: int) -> Tensor:
        return torch.cat([h, h.new_zeros(len(h), channels - h.shape[1], *h.shape[2:])], dim=1)

    def pool(i: int, h: Tensor) -> Tensor:
        return functional.max_pool2d(norms[i - 1](h), 2)

    h = x[:, None]
    h1 = act(conv(1, h))
    h2 = act(conv(2, h1))
    h3 = act(conv(3, h2 + h1))
    h4 = act(conv(4, h3))
    e1 = pool(1, h4 + h3 + pad(h, 4))
    h6 = act(conv(5, e1))
    e2 = pool(2, act(conv(6, h6)) + h6 + pad(e1, 8))
    h9 = act(conv(7, e2))
    e3 = pool(3, act(conv(8, h9)) + h9 + pad(e2, 16))
    h12 = act(conv(9, e3))
    z = pool(4, act(conv(10, h12)) + h12 + pad(e3, 32))
    h1 = act(conv(11, z))
    h2 = act(conv(12, h1))
    h3 = act(conv(13, h2 + h1))
    h4 = act(conv(14, h3))
    u1 = up[0](norms[4](h4 + h3 + z))
    h6 = act(conv(15, u1))
    u2 = up[1](norms[5](act(conv(16, h6)) + h6 + u1[:, :16]))
    h9 = act(conv(17, u2))
    u3 = up[2](norms[6](act(conv(18, h9)) + h9 + u2[:, :8]))
    h12 = act(conv(19, u3))
    u4 = up[3](norms[7](act(conv(20, h12)) + h12 + u3[:, :4]))
    v = functional.interpolate(u4, (24, 61), mode="bilinear", align_corners=False)
    expected = conv(22, act(conv(21, v)) + v[:, :2])[:, 0]
    with torch.no_grad():
        torch.testing.assert_close(network(x), expected, rtol=1e-9, atol=1e-9)


def test_the_code_of_the_cae_is_an_eighth_of_its_input() -> None:
    network = CAE(80, 400).eval()
    with torch.no_grad():
        code = network.encoder(torch.zeros(1, 1, 80, 400))
        assert code.shape == (1, 32, 5, 25)
        assert network.decoder(code).shape == (1, 16, 80, 400)


@pytest.mark.parametrize("model", BASELINES)
def test_a_network_learns_one_kind_of_sound(model: str) -> None:
    """Clips of one hum in noise: the loss falls, and a clip with a burst stands out."""
    generator = torch.Generator().manual_seed(2)
    hum = torch.linspace(-2, 2, 16)[:, None].expand(16, 40)
    normal = hum + 0.1 * torch.randn(24, 16, 40, generator=generator)
    burst = normal[:1].clone()
    burst[:, :, 20:24] += 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(model, 16, 40).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = (network(normal[:20]) - normal[:20]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    network.eval()
    with torch.no_grad():
        errors = (network(torch.cat([normal[20:], burst])) - torch.cat([normal[20:], burst])).square().mean(dim=(1, 2))
    assert errors[-1] > errors[:-1].max()
