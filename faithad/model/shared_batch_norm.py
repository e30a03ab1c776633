"""Batch normalisation over the batch of all workers, so that 1 and N workers train the same network.

`torch.nn.SyncBatchNorm` does this on GPUs alone; this one gathers over any process group, gloo on CPUs among them. Mean
and variance are those of the cells of all workers, whatever each one's share of the batch (Ioffe and Szegedy 2015,
algorithm 1, with the batch taken as the global one). One exchange on the way forward, one on the way back.

It serves a single worker on a CPU as well: PyTorch's own (2.11) goes through channels-last images of few channels one
cell at a time, and takes a sixth of a training step for it; this one takes a thirtieth.

Shape letters: B images, C channels, H by W cells.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Takes the place of a `BatchNorm2d`, with the same parameters and buffers."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W); in training mode with the statistics of all workers' cells.

        Statistics are those of the weights' precision at least, where autocast made x a bfloat16.
        """
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        normalised: Tensor
        normalised, n, mean, variance = _Normalisation.apply(  # type: ignore[no-untyped-call]
            x, self.weight, self.bias, self.eps
        )
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (n / (n - 1)), self.momentum)
        return normalised


class _Normalisation(torch.autograd.Function):
    """The normalised x, and the number, mean and variance of all workers' cells; only the first has a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.dtype = x.dtype
        x = x.to(torch.promote_types(x.dtype, weight.dtype))
        local_n = torch.full((1,), x.numel() / x.shape[1], dtype=x.dtype, device=x.device)
        local_mean = _sums(x) / local_n
        # From the mean: the difference of two large sums would lose digits.
        centred = x - _along(local_mean, x)
        squares = _sums(centred * centred)
        parts = _gathered(torch.cat([local_n, local_mean, squares]))
        # Chan et al. 1979: means and sums of squares of several sets merge without cancellation.
        ns, means, squares = parts[:, :1], parts[:, 1 : 1 + x.shape[1]], parts[:, 1 + x.shape[1] :]
        n = ns.sum(dim=0)
        mean = (ns * means).sum(dim=0) / n
        variance = (squares + ns * (means - mean).square()).sum(dim=0) / n
        reciprocal_std = torch.rsqrt(variance + eps)
        scale, offset = weight * reciprocal_std, local_mean - mean
        normalised = torch.addcmul(_along(bias + offset * scale, x), centred, _along(scale, x))
        ctx.save_for_backward(centred, weight, reciprocal_std, offset, n)
        ctx.mark_non_differentiable(n, mean, variance)
        return normalised.to(ctx.dtype), n, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        centred, weight, reciprocal_std, offset, n = ctx.saved_tensors
        gradient = gradient.to(centred.dtype)
        of_bias = _sums(gradient)
        of_weight = (_sums(gradient * centred) + offset * of_bias) * reciprocal_std
        # Each worker's gradients of weight and bias are its own: whoever averages gradients does so with these.
        mean_of_bias, mean_of_weight = (_gathered(torch.cat([of_bias, of_weight])).sum(dim=0) / n).chunk(2)
        scale = weight * reciprocal_std
        slope = mean_of_weight * reciprocal_std
        of_x = torch.addcmul(
            _along(-scale * (mean_of_bias + offset * slope), centred), gradient, _along(scale, centred)
        )
        of_x.addcmul_(centred, _along(-scale * slope, centred))
        return of_x.to(ctx.dtype), of_weight, of_bias, None


def _sums(x: Tensor) -> Tensor:
    """(C,): over images and cells."""
    return x.sum(dim=(0, 2, 3))


def _along(values: Tensor, x: Tensor) -> Tensor:
    """Values (C,), to be broadcast over x.

    Channels-last, they are repeated for a row of cells: else a CPU would step through x a few channels at a time.
    """
    values = values[None, :, None, None]
    if x.device.type != "cpu" or x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return values
    return values.expand(1, -1, 1, x.shape[3]).contiguous(memory_format=torch.channels_last)


def _gathered(values: Tensor) -> Tensor:
    """(workers, n): the values (n,) of each worker."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values[None]
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values)
    return torch.stack(parts)


@functools.cache
def _keep_from_compiler() -> None:
    """torch.compile (2.11) loses the gradients of sums over workers: it is to leave the layer as it is.

    No decorator, which would import the compiler, over a second, in every process that imports this module.
    """
    SharedBatchNorm2d.forward = torch.compiler.disable(SharedBatchNorm2d.forward)  # type: ignore[method-assign]


def share_batch_norm(network: nn.Module) -> nn.Module:
    """Replace every `BatchNorm2d` of the network, in place.

    Raises:
        TypeError: the network has another kind of batch normalisation, which would be each worker's own.
    """
    for name, child in network.named_children():
        if type(child) is nn.BatchNorm2d:
            _keep_from_compiler()
            shared = SharedBatchNorm2d(child.num_features, eps=child.eps, momentum=child.momentum)
            shared.to(child.weight.device, child.weight.dtype)
            shared.load_state_dict(child.state_dict())
            setattr(network, name, shared)
        elif isinstance(child, nn.modules.batchnorm._BatchNorm) and not isinstance(child, SharedBatchNorm2d):
            raise TypeError(f"{name} is a {type(child).__name__}; only BatchNorm2d is shared among workers")
        else:
            share_batch_norm(child)
    return network
