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
from collections.abc import Iterator
from typing import Any, Literal, cast

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from faithad.model.skip_cae_transformer import SkipCAETransformer

Precision = Literal["float32", "tf32", "bfloat16"]


def fast_network(network: ExplainedNetwork, precision: Precision = "float32") -> ExplainedNetwork:
    """The network to explain with: a `FastNetwork` where there is one, else the network itself.

    It is to be used in `frozen` mode and within `arithmetic(precision)`, as `attribute_batch` does.

    Args:
        network: as it was trained; already fast ones are given back.
        precision: of matrix products and convolutions. "float32". "tf32": float32 with 10 bits of mantissa in the
            products, on GPUs that have it; no different from float32 elsewhere. "bfloat16": products in bfloat16.
    """
    if not isinstance(network, SkipCAETransformer):
        return network
    if precision == "bfloat16":
        return LowPrecisionNetwork(network)
    parameters = list(network.parameters())
    if all(each.device.type == "cpu" and each.dtype == torch.float32 for each in parameters) and _has_onednn():
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
        self.n_mels, self.n_frames = network.n_mels, network.n_frames
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        for name, module in list(self.network.named_children()):
            if isinstance(module, nn.Conv2d):
                setattr(self.network, name, _Convolution(module))
            elif isinstance(module, nn.BatchNorm2d):
                setattr(self.network, name, _Affine(module))
            elif isinstance(module, nn.TransformerEncoderLayer):
                setattr(self.network, name, _Encoder(module))
            elif isinstance(module, nn.TransformerDecoderLayer):
                setattr(self.network, name, _Decoder(module))

    @property
    def grad_cam_layer(self) -> nn.Module:
        return self.network.grad_cam_layer

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, T) to (B, F, T)."""
        return cast(Tensor, self.network(x))


class LowPrecisionNetwork(nn.Module):
    """The network itself, its products in bfloat16; what goes in and comes out stays as it is."""

    def __init__(self, network: SkipCAETransformer) -> None:
        super().__init__()
        self.n_mels, self.n_frames = network.n_mels, network.n_frames
        self.network = network

    @property
    def grad_cam_layer(self) -> nn.Module:
        return self.network.grad_cam_layer

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, T) to (B, F, T)."""
        with torch.autocast(x.device.type, torch.bfloat16):
            return cast(Tensor, self.network(x)).to(x.dtype)


ExplainedNetwork = SkipCAETransformer | FastNetwork | LowPrecisionNetwork


class _ConvolutionFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, turned: Tensor) -> Tensor:
        ctx.turned = turned
        return functional.conv2d(x, weight, bias, padding=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return functional.conv2d(gradient, ctx.turned, padding=1), None, None, None


class _Convolution(nn.Module):
    def __init__(self, module: nn.Conv2d) -> None:
        super().__init__()
        weight = module.weight.detach()
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.turned = weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
        self.bias = cast(Tensor, module.bias).detach()

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return cast(Tensor, _ConvolutionFunction.apply(x, self.weight, self.bias, self.turned))


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
        self.packed = weight.dtype == torch.float32 and _has_onednn()
        if self.packed:
            rows = 256  # a hint for the block size: 8 spectrograms of 32 tokens
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, rows)
            self.transposed = torch.ops.mkldnn._reorder_linear_weight(self.transposed, rows)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, _LinearFunction.apply(x, self))

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


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
    )
