"""Batch normalisation over the batch of all workers, so that 1 and N workers train the same network.

`torch.nn.SyncBatchNorm` does this on GPUs alone; this one sums over any process group that can all-reduce, gloo on CPUs
among them. Mean and variance are those of the cells of all workers, whatever each one's share of the batch
(Ioffe and Szegedy 2015, algorithm 1, with the batch taken as the global one).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Takes the place of a `BatchNorm2d`, with the same parameters and buffers."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W); in training mode with the statistics of all workers' cells."""
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        count = torch.full((1,), x.numel() / x.shape[1], dtype=x.dtype, device=x.device)
        sums = all_reduce(torch.cat([x.sum(dim=(0, 2, 3)), count]))
        n = sums[-1].detach()
        mean = sums[:-1] / n
        # In a second round, from the common mean: the difference of two large sums would lose digits.
        centred = x - mean[:, None, None]
        variance = all_reduce(centred.square().sum(dim=(0, 2, 3))) / n
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (n / (n - 1)), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normalised: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return normalised


def share_batch_norm(network: nn.Module) -> nn.Module:
    """Replace every `BatchNorm2d` of the network, in place; needs an initialised process group to train."""
    if not dist.is_initialized():
        raise RuntimeError("share_batch_norm needs an initialised process group")
    for name, child in network.named_children():
        if type(child) is nn.BatchNorm2d:
            shared = SharedBatchNorm2d(child.num_features, eps=child.eps, momentum=child.momentum)
            shared.load_state_dict(child.state_dict())
            setattr(network, name, shared.to(child.weight.device))
        else:
            share_batch_norm(child)
    return network
