"""The trained network once more, for explaining: same function, same gradient in its input, faster on a CPU.

What a profile of PyTorch's own operations showed at (80, 400), and what is done about it:
1. The gradient of a convolution with few channels in its input costs ten times the convolution. It equals a convolution
   of the output's gradient with the kernels turned by 180 degrees and input and output channels swapped: done so.
2. Matrix products reach 40 % of the core's rate. oneDNN's, with weights packed once, reach twice that.
3. Images are kept channels-last, which suits oneDNN's convolutions; activations are fused into them.
4. Batch norm in eval mode is one multiplication and addition per channel, fixed beforehand.

The weights are copied as they are at the time: a network that is trained on needs a new fast one. There are no
gradients for weights. The original is kept for what the fast one does not do: other devices, other arithmetic, a
PyTorch without these operations.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from faithad.model.skip_cae_transformer import _SLOPE as SLOPE
from faithad.model.skip_cae_transformer import SkipCAETransformer, act, first, halve, pad

Precision = Literal["float32", "tf32", "bfloat16"]


def fast_network(network: ExplainedNetwork, precision: Precision = "float32") -> ExplainedNetwork:
    """The network to explain with: a `FastNetwork` where there is one, else the network itself.

    It is to be used in `frozen` mode and within `arithmetic(precision)`, as `attribute_batch` does.

    Args:
        network: as it was trained; already fast ones are given back.
        precision: of matrix products and convolutions. "float32". "tf32": float32 with 10 bits of mantissa in the
            products, on GPUs that have it; no different from float32 elsewhere. "bfloat16": products in bfloat16.
    """
    if isinstance(network, FastNetwork | LowPrecisionNetwork):
        return network
    if precision == "bfloat16":
        return LowPrecisionNetwork(network)
    of_float32 = all(each.device.type == "cpu" and each.dtype == torch.float32 for each in network.parameters())
    # A subclass may compute something else.
    if type(network) is SkipCAETransformer and of_float32 and _has_onednn():
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
            setattr(self, name, _fast(name, module))

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


def _fast(name: str, module: nn.Module) -> nn.Module:
    if isinstance(module, nn.Conv2d):
        return _Convolution(module, activated=name not in ("conv10", "conv22"))
    if isinstance(module, nn.ConvTranspose2d):
        return _Upsampling(module)
    if isinstance(module, nn.BatchNorm2d):
        return _Affine(module)
    if isinstance(module, nn.TransformerEncoderLayer):
        return _Encoder(module)
    if isinstance(module, nn.TransformerDecoderLayer):
        return _Decoder(module)
    return module


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


ExplainedNetwork = SkipCAETransformer | FastNetwork | LowPrecisionNetwork


class _ConvolutionFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: _Convolution) -> Tensor:
        y = layer.convolve(x)
        ctx.layer = layer
        if layer.activated:
            ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if ctx.layer.activated:
            (y,) = ctx.saved_tensors
            gradient = torch.ops.aten.leaky_relu_backward(gradient, y, SLOPE, True)
        return ctx.layer.convolve_back(gradient), None


class _Convolution(nn.Module):
    def __init__(self, module: nn.Conv2d, *, activated: bool) -> None:
        super().__init__()
        weight = module.weight.detach()
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.turned = weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
        self.bias = cast(Tensor, module.bias).detach()
        self.activated = activated

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, _ConvolutionFunction.apply(x, self))  # type: ignore[no-untyped-call]

    def convolve(self, x: Tensor) -> Tensor:
        if not _by_onednn(x):
            y = functional.conv2d(x, self.weight, self.bias, padding=1)
            return act(y) if self.activated else y
        return _convolve(x, self.weight, self.bias, activated=self.activated)

    def convolve_back(self, gradient: Tensor) -> Tensor:
        if not _by_onednn(gradient):
            return functional.conv2d(gradient, self.turned, padding=1)
        return _convolve(gradient, self.turned, None)


class _UpsamplingFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: _Upsampling) -> Tensor:
        ctx.layer = layer
        if not _by_onednn(x):
            return functional.conv_transpose2d(x, layer.weight, layer.bias, stride=2)
        x = x.contiguous(memory_format=torch.channels_last)
        y: Tensor = torch.ops.mkldnn._convolution_transpose_pointwise(
            x, layer.weight, layer.bias, [0, 0], [0, 0], [2, 2], [1, 1], 1, "none", [], ""
        )
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if not _by_onednn(gradient):
            return functional.conv2d(gradient, ctx.layer.weight, stride=2), None
        return _convolve(gradient, ctx.layer.weight, None, padding=0, stride=2), None


class _Upsampling(nn.Module):
    def __init__(self, module: nn.ConvTranspose2d) -> None:
        super().__init__()
        self.weight = module.weight.detach().contiguous(memory_format=torch.channels_last)
        self.bias = cast(Tensor, module.bias).detach()

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, _UpsamplingFunction.apply(x, self))  # type: ignore[no-untyped-call]


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, padding: int = 1, stride: int = 1, activated: bool = False
) -> Tensor:
    # Called by name: PyTorch's own choice would be another algorithm for one image than for several, with other
    # roundings. So a spectrogram's gradient is the same to the last bit in a batch of any size.
    x = x.contiguous(memory_format=torch.channels_last)
    ending: tuple[str, list[float], str] = ("leaky_relu", [SLOPE], "") if activated else ("none", [], "")
    y: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, [padding] * 2, [stride] * 2, [1, 1], 1, *ending
    )
    return y


class _Affine(nn.Module):
    def __init__(self, module: nn.BatchNorm2d) -> None:
        super().__init__()
        variance, mean = cast(Tensor, module.running_var), cast(Tensor, module.running_mean)
        scale = (module.weight / (variance + module.eps).sqrt()).detach()
        self.scale = scale[:, None, None]
        self.shift = (module.bias - mean * scale).detach()[:, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.scale)


class _LinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: _Linear) -> Tensor:
        ctx.layer = layer
        return layer.product(x, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        layer: _Linear = ctx.layer
        return layer.product(gradient, layer.transposed, None), None


class _Linear(nn.Module):
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.transposed = weight.detach().contiguous(), weight.detach().t().contiguous()
        self.bias = None if bias is None else bias.detach()
        self.packed = _by_onednn(weight)
        if self.packed:
            rows = 256  # a hint for the block size: 8 spectrograms of 32 tokens
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, rows)
            self.transposed = torch.ops.mkldnn._reorder_linear_weight(self.transposed, rows)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, _LinearFunction.apply(x, self))  # type: ignore[no-untyped-call]

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self.packed:
            return functional.linear(x, weight, bias)
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        y: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
        return y.view(*x.shape[:-1], -1)


class _Attention(nn.Module):
    def __init__(self, module: nn.MultiheadAttention) -> None:
        super().__init__()
        self.n_heads, d = module.num_heads, module.embed_dim
        weight, bias = cast(Tensor, module.in_proj_weight), cast(Tensor, module.in_proj_bias)
        self.query = _Linear(weight[:d], bias[:d])
        self.key_value = _Linear(weight[d:], bias[d:])
        self.out = _Linear(module.out_proj.weight, module.out_proj.bias)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        parts = (self.query(x), *self.key_value(memory).chunk(2, dim=-1))
        query, key, value = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in parts)
        attended = functional.scaled_dot_product_attention(query, key, value)
        return cast(Tensor, self.out(attended.transpose(1, 2).flatten(2)))


class _FeedForward(nn.Module):
    def __init__(self, layer: nn.TransformerEncoderLayer | nn.TransformerDecoderLayer) -> None:
        super().__init__()
        self.rise = _Linear(layer.linear1.weight, layer.linear1.bias)
        self.fall = _Linear(layer.linear2.weight, layer.linear2.bias)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fall(functional.relu(self.rise(x))))


class _Encoder(nn.Module):
    def __init__(self, layer: nn.TransformerEncoderLayer) -> None:
        super().__init__()
        self.attention, self.feed_forward = _Attention(layer.self_attn), _FeedForward(layer)
        self.norm1, self.norm2 = layer.norm1, layer.norm2

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, x))
        return cast(Tensor, self.norm2(x + self.feed_forward(x)))


class _Decoder(nn.Module):
    def __init__(self, layer: nn.TransformerDecoderLayer) -> None:
        super().__init__()
        self.attention, self.cross_attention = _Attention(layer.self_attn), _Attention(layer.multihead_attn)
        self.feed_forward = _FeedForward(layer)
        self.norm1, self.norm2, self.norm3 = layer.norm1, layer.norm2, layer.norm3

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, x))
        x = self.norm2(x + self.cross_attention(x, memory))
        return cast(Tensor, self.norm3(x + self.feed_forward(x)))


def _by_onednn(x: Tensor) -> bool:
    return x.dtype == torch.float32 and _has_onednn()


@functools.cache
def _has_onednn() -> bool:
    """Whether this PyTorch has the operations by the names under which its own compiler calls them."""
    names = (
        "_linear_pointwise",
        "_reorder_linear_weight",
        "_convolution_pointwise",
        "_convolution_transpose_pointwise",
    )
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)
