"""Layers for explaining on a CPU: same function and same gradient in the input as a trained network's, but faster.

A profile of PyTorch's own operations at (80, 400) showed what to replace:
1. The gradient of a convolution with few channels in its input costs ten times the convolution. It equals a convolution
   of the output's gradient with the kernels turned by 180 degrees and input and output channels swapped: done so.
2. Matrix products reach 40 % of the core's rate. oneDNN's, with weights packed once, reach twice that.
3. oneDNN's convolutions prefer images in channels-last layout, and can apply the activation themselves.
4. Batch norm in eval mode is one multiplication and addition per channel, computed beforehand.

Weights are copied and are constants: there are no gradients for them, and a network that is trained further needs a new
fast form.
"""

from __future__ import annotations

import copy
import functools
from typing import Any, cast

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from faithad.model.layers import SLOPE, Conv3x3, act


def with_fast_layers(network: nn.Module) -> nn.Module:
    """A copy of the network in eval mode whose layers are fast ones, wherever there is a fast one.

    The copy runs the network's own `forward`, so it computes whatever the network computes in eval mode. It is for
    CPUs, in float32 or float64.
    """
    network = copy.deepcopy(network).eval().requires_grad_(False)
    _replace_layers(network)
    network.fast_form = None  # type: ignore[assignment]
    return network


def _replace_layers(module: nn.Module) -> None:
    for name, child in module.named_children():
        if (layer := _fast_layer(child)) is not None:
            setattr(module, name, layer)
        elif not isinstance(child, nn.TransformerEncoder | nn.TransformerDecoder):  # they read their layers' settings
            _replace_layers(child)


def _fast_layer(module: nn.Module) -> nn.Module | None:
    """The fast form of a layer; None if there is none for its type and settings. A subclass may compute anything."""
    if type(module) is Conv3x3:
        return _Convolution(module)
    if type(module) is nn.ConvTranspose2d and _doubles(module):
        return _Upsampling(module)
    if type(module) is nn.BatchNorm2d and module.affine and module.track_running_stats:
        return _Affine(module)
    if type(module) is nn.TransformerEncoderLayer and _is_plain(module):
        return _Encoder(module)
    if type(module) is nn.TransformerDecoderLayer and _is_plain(module):
        return _Decoder(module)
    return None


def _doubles(module: nn.ConvTranspose2d) -> bool:
    usual = (module.stride, module.dilation, module.output_padding, module.groups) == ((2, 2), (1, 1), (0, 0), 1)
    return usual and module.bias is not None and len(set(module.padding)) == 1


def _is_plain(module: nn.TransformerEncoderLayer | nn.TransformerDecoderLayer) -> bool:
    """Whether a layer has PyTorch's default settings, but for the order of its axes."""
    has_bias = module.linear1.bias is not None
    return not module.norm_first and module.self_attn.batch_first and module.activation is functional.relu and has_bias


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
    def __init__(self, module: Conv3x3) -> None:
        super().__init__()
        weight = module.weight.detach()
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.turned = weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
        self.bias = cast(Tensor, module.bias).detach()
        self.activated = module.activated

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
            return functional.conv_transpose2d(x, layer.weight, layer.bias, stride=2, padding=layer.padding)
        x = x.contiguous(memory_format=torch.channels_last)
        y: Tensor = torch.ops.mkldnn._convolution_transpose_pointwise(
            x, layer.weight, layer.bias, [layer.padding] * 2, [0, 0], [2, 2], [1, 1], 1, "none", [], ""
        )
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        weight, padding = ctx.layer.weight, ctx.layer.padding
        if not _by_onednn(gradient):
            return functional.conv2d(gradient, weight, stride=2, padding=padding), None
        return _convolve(gradient, weight, None, padding=padding, stride=2), None


class _Upsampling(nn.Module):
    def __init__(self, module: nn.ConvTranspose2d) -> None:
        super().__init__()
        self.weight = module.weight.detach().contiguous(memory_format=torch.channels_last)
        self.bias = cast(Tensor, module.bias).detach()
        self.padding = int(module.padding[0])

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, _UpsamplingFunction.apply(x, self))  # type: ignore[no-untyped-call]


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, padding: int = 1, stride: int = 1, activated: bool = False
) -> Tensor:
    # Called by name, because PyTorch would choose another algorithm for one image than for several, with other
    # rounding. So a spectrogram's gradient is the same to the last bit in a batch of any size.
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
        # Without AVX-512, oneDNN rounds a row otherwise at another place among the rows, and so in another batch.
        self.packed = _by_onednn(weight) and torch.backends.cpu.get_cpu_capability() == "AVX512"
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
    return x.dtype == torch.float32 and has_onednn()


@functools.cache
def has_onednn() -> bool:
    """Whether this PyTorch has the operations by the names under which its own compiler calls them."""
    names = (
        "_linear_pointwise",
        "_reorder_linear_weight",
        "_convolution_pointwise",
        "_convolution_transpose_pointwise",
    )
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)
