"""Dropout whose noise is keyed by the clip, so that 1 and N workers train the same network.

PyTorch draws dropout from one generator for a batch: how the batch is shared among workers would decide what each clip
loses. Here the noise of a clip depends on its key and on the layer alone (`random_bits`), as its mask does.

It concerns `nn.Dropout` and the dropout inside `nn.MultiheadAttention`, the transformer layers' among them. A function
such as `torch.nn.functional.dropout` in a network's own `forward` stays as it is: each worker draws it for itself.

Shape letters: B clips, L tokens, d their size.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from faithad.model.random_bits import key_of, random_bits

# Each number of 64 random bits makes four decisions of 16 bits.
_LEVELS, _DECISIONS = 1 << 16, 4


class KeyedDropout(nn.Module):
    """Takes the place of `nn.Dropout`. Sets cells to zero with the probability `p`, and scales the others.

    Args:
        p: between 0 and 1, rounded to a multiple of 1 / 65,536.
        layer: of this dropout; each has its own noise. The noise is the same each time that a forward pass calls it.
    """

    def __init__(self, p: float, layer: int) -> None:
        super().__init__()
        self.p, self.layer = p, layer
        self.clips: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Any shape whose first axis is the B clips, or B times as many of something, clip after clip."""
        if not self.training or self.p == 0:
            return x
        if self.clips is None or x.shape[0] % len(self.clips):
            return functional.dropout(x, self.p)
        n_dropped = round(self.p * _LEVELS)
        if n_dropped == _LEVELS:
            return torch.zeros_like(x)
        per_clip = x.numel() // len(self.clips)
        position = torch.arange(math.ceil(per_clip / _DECISIONS), device=x.device)
        bits = random_bits(position, (self.clips + self.layer)[:, None]).view(torch.int16)
        dropped = (bits < n_dropped - _LEVELS // 2)[:, :per_clip].reshape(x.shape)
        return x.masked_fill(dropped, 0.0) * (_LEVELS / (_LEVELS - n_dropped))


class KeyedAttention(nn.MultiheadAttention):
    """Takes the place of `nn.MultiheadAttention`, with the same parameters; the attention weights' dropout is keyed."""

    keyed: KeyedDropout

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from query (B, L, d) to key and value (B, S, d).

        PyTorch's own attention runs in eval mode, with masks, and with settings that no transformer layer has.
        """
        if not self.training or not self._is_plain or key_padding_mask is not None or attn_mask is not None:
            options = (key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)
            return super().forward(query, key, value, *options)
        weights, biases = cast(Tensor, self.in_proj_weight).chunk(3), cast(Tensor, self.in_proj_bias).chunk(3)
        parts = (functional.linear(*each) for each in zip((query, key, value), weights, biases, strict=True))
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        attention = self.keyed((q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)).softmax(dim=-1))
        attended: Tensor = self.out_proj((attention @ v).transpose(1, 2).flatten(2))
        if not need_weights:
            return attended, None
        return attended, attention.mean(dim=1) if average_attn_weights else attention

    @property
    def _is_plain(self) -> bool:
        has_weights = self.in_proj_weight is not None and self.in_proj_bias is not None
        return has_weights and self.batch_first and self.bias_k is None and not self.add_zero_attn


def key_dropout(network: nn.Module) -> list[KeyedDropout]:
    """Replace dropout wherever it can be keyed, in place.

    Returns:
        Its layers, whose `clips` are to be set before each forward pass in training mode: the keys of the clips, (B,)
        int64.
    """
    keyed = []
    for name, module in list(network.named_modules()):
        for child_name, child in module.named_children():
            path = f"{name}.{child_name}"
            if type(child) is nn.Dropout:
                layer = KeyedDropout(child.p, key_of("dropout", path))
                setattr(module, child_name, layer.train(child.training))
                keyed.append(layer)
            elif type(child) is nn.MultiheadAttention and child.dropout > 0:
                # In place, because gradient exchange and optimiser hold these very parameters.
                child.__class__ = KeyedAttention
                child.keyed = KeyedDropout(child.dropout, key_of("dropout", path)).train(child.training)
                keyed.append(child.keyed)
    return keyed
