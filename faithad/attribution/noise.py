"""The noise of an attribution, keyed so that a clip's maps never depend on what is computed before or beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Noise:
    """What one method draws for one clip: every sample has a generator of its own.

    Sample 7 of a clip is the same in every batch, order, process and number of samples, and on every device, because
    the generators are the CPU's and draw float32. (PyTorch's normal draws may differ in the last bit between CPUs of
    different vector width, as all its float32 arithmetic does.)

    Attributes:
        seed: of the study.
        clip_id: of the clip.
        method: name in the table of methods.
    """

    seed: int
    clip_id: str
    method: str

    def draw(self, samples: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
        """Noise with the shape (F, T), dtype and device of `like`.

        Args:
            samples: N numbers of samples.
            like: (F, T).

        Returns:
            Standard normal values (N, F, T), and one number in [0, 1) per sample, (N, 1, 1).
        """
        normal, uniform = torch.empty(len(samples), *like.shape), torch.empty(len(samples), 1, 1)
        generator = torch.Generator()
        for row, sample in enumerate(samples):
            generator.manual_seed(noise_seed(self.seed, self.clip_id, self.method, sample))
            normal[row].normal_(generator=generator)
            uniform[row].uniform_(generator=generator)
        return normal.to(like), uniform.to(like)


def noise_seed(seed: int, clip_id: str, method: str, sample: int) -> int:
    """A seed of 32 bits for one sample of one method on one clip: the same in every process and on every machine."""
    key = f"{seed}|{clip_id}|{method}|{sample}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "big")
