"""Batch normalisation as PyTorch's own, by one process; over several: test_training_in_processes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from faithad.model.shared_batch_norm import SharedBatchNorm2d, share_batch_norm

LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(4, 3, 6, 7), (2, 1, 5, 4), (1, 8, 1, 2), (3, 5, 1, 1)])
def test_it_takes_the_place_of_every_batch_norm_and_computes_the_same(
    shape: tuple[int, ...], layout: torch.memory_format
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, target = torch.randn(2, *shape, dtype=torch.float64, generator=generator) * 3 + 5
    networks = [nn.Sequential(nn.Sequential(nn.BatchNorm2d(shape[1], eps=1e-3, momentum=0.01))).double() for _ in "12"]
    plain, shared = networks
    with torch.no_grad():
        plain[0][0].weight.uniform_(-1, 2, generator=generator)
        plain[0][0].bias.uniform_(-1, 2, generator=generator)
    shared.load_state_dict(plain.state_dict())
    share_batch_norm(shared)
    assert isinstance(shared[0][0], SharedBatchNorm2d)

    def trained(network: nn.Module) -> list[Tensor]:
        """Two steps, so that running statistics add up; output and all gradients of the second."""
        for _ in range(2):
            network.zero_grad()
            given = x.clone(memory_format=layout).requires_grad_()
            y = network(given)
            (y - target).square().sum().backward()
        return [y, given.grad, *(parameter.grad for parameter in network.parameters())]

    for found, expected in zip(trained(shared), trained(plain), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    assert list(shared.state_dict()) == list(plain.state_dict())
    for name, expected in plain.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name], expected, rtol=1e-12, atol=1e-12, msg=name)
    torch.testing.assert_close(shared.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [nn.BatchNorm2d, SharedBatchNorm2d])
def test_statistics_of_bfloat16_are_summed_in_float32(kind: type[nn.BatchNorm2d], layout: torch.memory_format) -> None:
    # 80,000 cells a channel: in bfloat16 a sum of ones stops at 256, and next to 100 comes 100.5.
    x = torch.randn(2, 2, 100, 400, generator=torch.Generator().manual_seed(0)) + 100
    x = x.bfloat16().contiguous(memory_format=layout).requires_grad_()
    layer = kind(2, momentum=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.float().square().sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16
    assert layer.weight.grad.dtype == torch.float32
    exact = x.detach().double()
    torch.testing.assert_close(layer.running_mean, exact.mean(dim=(0, 2, 3)).float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(layer.running_var, exact.var(dim=(0, 2, 3)).float(), rtol=1e-4, atol=0)


def test_what_would_be_each_workers_own_is_refused() -> None:
    with pytest.raises(TypeError, match="1 is a BatchNorm1d"):
        share_batch_norm(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
