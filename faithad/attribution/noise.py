"""Noise and baselines that are a function of keys, so that a clip's maps do not depend on what else is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from faithad.model.micro_batches import sent
from faithad.model.random_bits import key_of, random_bits


@dataclass(frozen=True)
class Noise:
    """The noise of one method for one clip: every sample has a key of its own.

    Sample 7 of a clip is the same in every batch, order, process and number of samples. It is drawn on the device that
    uses it, since copying it to a GPU would take longer than the gradients. The random bits are the same on all
    devices, the normal values up to the rounding of logarithms and cosines.

    Attributes:
        seed: of the study.
        clip_id: of the clip.
        method: name in the table of methods.
        normals: (N, F, at least T), training clips that baselines are drawn from; None for a baseline of zero.
    """

    seed: int
    clip_id: str
    method: str
    normals: Tensor | None = None

    def draw(self, samples: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
        """Noise with the shape (F, T), dtype and device of `like`, float32 or float64; drawn in float32 for both.

        Args:
            samples: N numbers of samples.
            like: (F, T).

        Returns:
            Standard normal values (N, F, T), and one number in [0, 1) per sample, (N, 1, 1).
        """
        keys = [key_of(self.seed, self.clip_id, self.method, sample) for sample in samples]
        n_pairs = -(-like.numel() // 2)
        counter = torch.arange(n_pairs + 1, device=like.device)
        bits = random_bits(counter, sent(torch.tensor(keys, dtype=torch.int64), like.device)[:, None])
        # The number after the last pair is the sample's own. 24 bits: as a float32 more could come out as 1.
        uniform = ((bits[:, -1] >> 40) & 0xFFFFFF).float() * 2.0**-24
        normal = _normal_pairs(bits[:, :-1]).flatten(1)[:, : like.numel()]
        return normal.view(-1, *like.shape).to(like.dtype), uniform[:, None, None].to(like.dtype)

    def baselines(self, samples: Sequence[int], like: Tensor) -> Tensor:
        """Where the path of each sample to a clip begins; all path methods draw the same normal for a clip's sample.

        Args:
            samples: N numbers of samples.
            like: the clip, (F, T).

        Returns:
            As many first frames of normals as the clip has, (N, F, T); or 0, (1, 1, 1).
        """
        if self.normals is None:
            return like.new_zeros(1, 1, 1)
        drawn = [key_of(self.seed, self.clip_id, "baseline", sample) % len(self.normals) for sample in samples]
        return torch.stack([self.normals[number, :, : like.shape[1]] for number in drawn])


def _normal_pairs(bits: Tensor) -> Tensor:
    """Two independent standard normal values of each 64 random bits: (N, pairs) to (N, 2, pairs), float32.

    Source: Box and Muller 1958, "A note on the generation of random normal deviates". With 32 bits for each, no value
    exceeds 6.8.
    """
    above_0 = ((bits >> 32) & 0xFFFFFFFF).float().add_(0.5).mul_(2.0**-32)
    radius = above_0.log_().mul_(-2.0).sqrt_()
    angle = (bits & 0xFFFFFFFF).float().mul_(2.0**-32 * 2.0 * math.pi)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
