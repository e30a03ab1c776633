"""The trained network once more, for explaining: same function, same gradient in its input, faster on a CPU.

The layers are those of `fast_layers`. The weights are copied as they are at the time: a network that is trained on
needs a new fast one. There are no gradients for weights. The original is kept for what the fast one does not do: other
devices, other arithmetic, a PyTorch without these operations. On a GPU it may be compiled instead.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from faithad.model.fast_layers import fast_layer, has_onednn
from faithad.model.skip_cae_transformer import SkipCAETransformer, act, first, halve, pad
from faithad.settings import Compile, Precision


def fast_network(
    network: ExplainedNetwork, precision: Precision = "float32", compile: Compile = "none"
) -> ExplainedNetwork:
    """The network to explain with: a `FastNetwork` where there is one, else the network itself.

    It is to be used in `frozen` mode and within `arithmetic(precision)`, as `attribute_batch` does.

    Args:
        network: as it was trained; already fast ones are given back.
        precision: of matrix products and convolutions. "float32". "tf32": float32 with 10 bits of mantissa in the
            products, on GPUs that have it; no different from float32 elsewhere. "bfloat16": products in bfloat16.
        compile: the mode of torch.compile, for GPUs.
    """
    if isinstance(network, FastNetwork | LowPrecisionNetwork | CompiledNetwork):
        return network
    if compile != "none":
        return CompiledNetwork(LowPrecisionNetwork(network) if precision == "bfloat16" else network, compile)
    if precision == "bfloat16":
        return LowPrecisionNetwork(network)
    of_float32 = all(each.device.type == "cpu" and each.dtype == torch.float32 for each in network.parameters())
    # A subclass may compute something else.
    if type(network) is SkipCAETransformer and of_float32 and has_onednn():
        return FastNetwork(network)
    return network


@contextlib.contextmanager
def arithmetic(precision: Precision) -> Iterator[None]:
    """Whether a GPU may round the factors of products to TF32. PyTorch's default is yes in convolutions; ours, no."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


class FastNetwork(nn.Module):
    """Reconstructs as `network` does in eval mode; differentiable in its input alone.

    Args:
        network: on a CPU, in float32 or float64.
    """

    def __init__(self, network: SkipCAETransformer) -> None:
        super().__init__()
        network = copy.deepcopy(network).eval().requires_grad_(False)
        self.n_mels, self.n_frames = network.n_mels, network.n_frames
        for name, module in network.named_children():
            setattr(self, name, fast_layer(module, activated=name not in ("conv10", "conv22")))

    if TYPE_CHECKING:  # the children have the names that they have in the original

        def __getattr__(self, name: str) -> nn.Module: ...

    @property
    def grad_cam_layer(self) -> nn.Module:
        """As the network's."""
        return self.conv10

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, T) to (B, F, T)."""
        attended, z = self._encode(x[:, None])
        return self._decode(z, attended)[:, 0]

    # Line by line what SkipCAETransformer does. All convolutions but conv10 and conv22 end with their activation.

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h1 = self.conv1(x)
        h2 = self.conv2(h1)
        h3 = self.conv3(h2 + h1)
        h4 = self.conv4(h3)
        e1 = halve(self.bn1(h4 + h3 + pad(x, 4)))

        h6 = self.conv5(e1)
        h7 = self.conv6(h6)
        e2 = halve(self.bn2(h7 + h6 + pad(e1, 8)))

        h9 = self.conv7(e2)
        h10 = self.conv8(h9)
        e3 = halve(self.bn3(h10 + h9 + pad(e2, 16)))

        h12 = self.conv9(e3)
        h13 = act(self.conv10(h12))
        attended = self.encoder(h13.flatten(2)).view(h13.shape)
        z = halve(self.bn4(attended + act(self.linear_e(h12 + pad(e3, 32)))))
        return attended, z

    def _decode(self, z: Tensor, attended: Tensor) -> Tensor:
        h1 = self.conv11(z)
        h2 = self.conv12(h1)
        h3 = self.conv13(h2 + h1)
        h4 = self.conv14(h3)
        u1 = self.conv_t1(self.bn5(h4 + h3 + z))
        if u1.shape != attended.shape:
            u1 = functional.adaptive_avg_pool2d(u1, (attended.shape[2], attended.shape[3]))

        d = self.decoder(u1.flatten(2), attended.flatten(2)).view(attended.shape)
        h6 = self.conv15(d)
        h7 = self.conv16(h6)
        u2 = self.conv_t2(self.bn6(h7 + act(self.linear_d(h6 + first(d, 16)))))

        h9 = self.conv17(u2)
        h10 = self.conv18(h9)
        u3 = self.conv_t3(self.bn7(h10 + h9 + first(u2, 8)))

        h12 = self.conv19(u3)
        h13 = self.conv20(h12)
        v = self.conv_t4(self.bn8(h13 + h12 + first(u3, 4)))
        if v.shape[2:] != (self.n_mels, self.n_frames):
            v = functional.interpolate(v, size=(self.n_mels, self.n_frames), mode="bilinear", align_corners=False)

        h15 = self.conv21(v)
        return cast(Tensor, self.conv22(h15 + first(v, 2)))


class LowPrecisionNetwork(nn.Module):
    """The network itself, its products in bfloat16; what goes in and comes out stays as it is."""

    def __init__(self, network: SkipCAETransformer) -> None:
        super().__init__()
        self.n_mels, self.n_frames = network.n_mels, network.n_frames
        self.network = network

    @property
    def grad_cam_layer(self) -> nn.Module:
        """As the network's."""
        return self.network.grad_cam_layer

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, T) to (B, F, T)."""
        with torch.autocast(x.device.type, torch.bfloat16):
            return cast(Tensor, self.network(x)).to(x.dtype)


class CompiledNetwork(nn.Module):
    """The network in eval mode by torch.compile, which joins its many small operations; and as it is, to be watched.

    Args:
        network: on the device where it will be used. It is copied: a hook that watches a layer of the one is not to be
            compiled into the other.
        mode: of torch.compile.
        backend: of torch.compile.
    """

    def __init__(
        self,
        network: SkipCAETransformer | LowPrecisionNetwork,
        mode: str,
        *,
        backend: str | Callable[..., Callable[..., object]] = "inductor",
    ) -> None:
        super().__init__()
        self.n_mels, self.n_frames = network.n_mels, network.n_frames
        self.watchable = network
        copied = copy.deepcopy(network).eval().requires_grad_(False)
        self.compiled = torch.compile(copied, mode=mode if backend == "inductor" else None, backend=backend)

    @property
    def grad_cam_layer(self) -> nn.Module:
        """Of the network that is not compiled."""
        return self.watchable.grad_cam_layer

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, T) to (B, F, T)."""
        return cast(Tensor, self.compiled(x))


ExplainedNetwork = SkipCAETransformer | FastNetwork | LowPrecisionNetwork | CompiledNetwork


def watchable(network: ExplainedNetwork) -> nn.Module:
    """What computes the same, in such a way that hooks of its layers are called."""
    return network.watchable if isinstance(network, CompiledNetwork) else network
