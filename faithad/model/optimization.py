"""How a training takes its steps: the learning rate of each epoch, the optimiser, the precision.

Source: Deschênes et al. 2026 (arXiv 2601.12660), section 3, for `warm_restarts`, `float32` and `adamw`.
"""

from __future__ import annotations

import contextlib
import math
from typing import get_args

import torch
from torch import nn

from faithad.errors import ConfigError
from faithad.settings import Precision, TrainingSettings

SCHEDULES = ("warm_restarts", "warmup_cosine")
OPTIMIZERS = ("adamw", "fused_adamw")
_FUSED_DEVICES = ("cpu", "cuda")


def learning_rate(settings: TrainingSettings, epoch: int) -> float:
    """The learning rate of one epoch, counted from 1. It follows from the epoch alone, so checkpoints need not hold it.

    `warm_restarts`: a cosine from `learning_rate` towards `minimum_learning_rate`, which starts again every
    `restart_period` epochs (Loshchilov and Hutter 2017, equation 5). `warmup_cosine`: a straight line over
    `warmup_epochs` that reaches `learning_rate` in the epoch after them, then one cosine that reaches
    `minimum_learning_rate` in the last epoch.

    Raises:
        ConfigError: the schedule is unknown, or its warm-up leaves no epoch.
    """
    if settings.schedule == "warm_restarts":
        return _cosine(settings, (epoch - 1) % settings.restart_period / settings.restart_period)
    if settings.schedule != "warmup_cosine":
        raise ConfigError(f"There is no schedule {settings.schedule!r}; allowed: {', '.join(SCHEDULES)}.")
    first = settings.warmup_epochs + 1
    if first > settings.epochs:
        raise ConfigError(
            f"warmup_epochs is {settings.warmup_epochs}, and epochs {settings.epochs}: no epoch is left after the "
            "warm-up. Lower train.warmup_epochs or raise train.epochs."
        )
    if epoch < first:
        return settings.learning_rate * epoch / first
    return _cosine(settings, (epoch - first) / max(1, settings.epochs - first))


def new_optimizer(network: nn.Module, settings: TrainingSettings) -> torch.optim.AdamW:
    """A new AdamW, without moments; `fused_adamw` computes the same in one kernel.

    Raises:
        ConfigError: the optimiser is unknown, or does not work on the network's device.
    """
    if settings.optimizer not in OPTIMIZERS:
        raise ConfigError(f"There is no optimizer {settings.optimizer!r}; allowed: {', '.join(OPTIMIZERS)}.")
    fused, device = settings.optimizer == "fused_adamw", next(network.parameters()).device
    # PyTorch itself would fail only in the first step.
    if fused and device.type not in _FUSED_DEVICES:
        raise ConfigError(
            f"optimizer 'fused_adamw' works on {' and '.join(_FUSED_DEVICES)}, and the network is on {device.type!r}. "
            "Set train.optimizer to adamw."
        )
    return torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=fused
    )


def refuse_precision(network: nn.Module, precision: Precision) -> None:
    """Refuse a precision that would be ignored, or that the device could only emulate slowly.

    Raises:
        ConfigError: the precision is unknown, the network is not of float32, or its GPU has no bfloat16.
    """
    if precision not in get_args(Precision):
        raise ConfigError(f"There is no precision {precision!r}; allowed: {', '.join(get_args(Precision))}.")
    parameter = next(network.parameters())
    if precision != "float32" and parameter.dtype != torch.float32:
        raise ConfigError(f"precision {precision!r} is for networks of float32; this one is of {parameter.dtype}.")
    if precision == "bfloat16" and parameter.is_cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(
            f"precision 'bfloat16' needs a GPU of Ampere's generation or later, and this is a "
            f"{torch.cuda.get_device_name(parameter.device)}. Set train.precision to float32."
        )


def low_precision(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """The context for the forward pass: with `bfloat16`, matrix products and convolutions are computed in bfloat16.

    Weights, their gradients, the loss and the statistics of batch normalisation stay in float32. `tf32` concerns the
    backward pass, too: see `fast_network.arithmetic`.
    """
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else contextlib.nullcontext()


def _cosine(settings: TrainingSettings, progress: float) -> float:
    lowest = settings.minimum_learning_rate
    return lowest + (settings.learning_rate - lowest) * (1 + math.cos(math.pi * progress)) / 2
