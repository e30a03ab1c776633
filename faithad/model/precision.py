"""Arithmetic of less than float32, for those who ask for it: TF32 and bfloat16."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import get_args

import torch
from torch import nn

from faithad.errors import ConfigError
from faithad.settings import Precision


@contextlib.contextmanager
def arithmetic(precision: Precision) -> Iterator[None]:
    """Whether a GPU may round the factors of products to TF32.

    PyTorch's default is yes for convolutions, and ours is no.
    """
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def low_precision(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """For a forward pass, in the thread that runs it: `bfloat16` computes products and convolutions in bfloat16.

    Weights, their gradients, the loss and the statistics of batch normalisation stay in float32. `tf32` also concerns
    the backward pass: see `arithmetic`.
    """
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else contextlib.nullcontext()


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
