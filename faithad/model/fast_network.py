"""The form of a network that is the fastest to explain with.

Any `nn.Module` that maps spectrograms (B, F, T) to reconstructions (B, F, T) can be explained. Its class may define:

    grad_cam_layer      the name of the layer that Grad-CAM explains, as `named_modules` gives it; the layer's output is
                        (B, channels, height, width). Without it, all methods but Grad-CAM are available.
    n_mels, n_frames    F and T, if the network takes one shape only.
    fast_form()         a copy for CPUs: same function in eval mode, same gradient in its input. `fast_form =
                        with_fast_layers` in a class that is made of the layers that `fast_layers` replaces gives one
                        whose results are the same to the last bit in a batch of any size. `forward` must then call a
                        transformer layer with (x) or (x, memory) only: its fast form takes no masks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from faithad.model.fast_layers import has_onednn
from faithad.settings import Compile, Precision


def fast_network(network: nn.Module, precision: Precision = "float32", compile: Compile = "none") -> nn.Module:
    """The network to explain with: its compiled form, its fast form where there is one, or the network itself.

    A fast form holds a copy of the weights: a network that is trained further needs a new one. It is to be used in
    eval mode, within `arithmetic(precision)` and `low_precision(precision)`, as `attribute_batch` does.

    Args:
        network: as it was trained; a fast or compiled form is given back.
        precision: of matrix products and convolutions. "float32". "tf32": float32 with 10 bits of mantissa in the
            products, on GPUs that have it; no different from float32 elsewhere. "bfloat16": products in bfloat16.
        compile: the mode of torch.compile, for GPUs.
    """
    if isinstance(network, CompiledNetwork):
        return network
    if compile != "none":
        return CompiledNetwork(network, compile)
    fast_form = getattr(network, "fast_form", None)
    on_cpu = all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in network.parameters())
    if fast_form is None or not on_cpu or precision == "bfloat16" or not has_onednn():
        return network
    return cast(nn.Module, fast_form())


class CompiledNetwork(nn.Module):
    """The network in eval mode by torch.compile, which fuses its many small operations; and the network itself.

    Args:
        network: on the device where it will be used. It is copied, so that a hook that watches one of its layers is not
            compiled.
        mode: of torch.compile.
        backend: of torch.compile.
    """

    def __init__(
        self, network: nn.Module, mode: str, *, backend: str | Callable[..., Callable[..., object]] = "inductor"
    ) -> None:
        super().__init__()
        self.watchable = network
        copied = copy.deepcopy(network).eval().requires_grad_(False)
        self.compiled = torch.compile(copied, mode=mode if backend == "inductor" else None, backend=backend)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, T) to (B, F, T)."""
        return cast(Tensor, self.compiled(x))


def watchable(network: nn.Module) -> nn.Module:
    """The network that calls the hooks of its layers, which a compiled one does not."""
    return network.watchable if isinstance(network, CompiledNetwork) else network
