"""How a training takes its steps: the learning rate of each epoch and the optimiser.

Source: Deschênes et al. 2026 (arXiv 2601.12660), section 3, for `warm_restarts` and `adamw`.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from faithad.errors import ConfigError
from faithad.settings import TrainingSettings

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


def _cosine(settings: TrainingSettings, progress: float) -> float:
    lowest = settings.minimum_learning_rate
    return lowest + (settings.learning_rate - lowest) * (1 + math.cos(math.pi * progress)) / 2
