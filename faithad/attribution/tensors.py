"""The parts of the attribution methods that need torch or numpy themselves, and not only the tensors' own methods.

`faithad.attribution.methods` imports this module inside functions, so that its table can be read without torch.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from faithad.model.micro_batches import sent


def gauss_legendre(n: int, chosen: list[int], like: Tensor) -> tuple[Tensor, Tensor]:
    """The chosen ones of n Gauss-Legendre nodes on [0, 1] and their weights, (N, 1, 1), in the type of `like`."""
    nodes, weights = _nodes_and_weights(n)
    return _column(nodes[chosen], like), _column(weights[chosen], like)


def resized(maps: Tensor, shape: tuple[int, int]) -> Tensor:
    """Bilinear resize of (N, channels, height, width) to (N, channels, F, T), align_corners false."""
    return functional.interpolate(maps, shape, mode="bilinear", align_corners=False)


def patch_numbers(clip: Tensor, height: int, width: int) -> Tensor:
    """For each cell of a clip (F, T) the number of the patch that it lies in, row by row; int64."""
    bands, frames = (torch.arange(size, device=clip.device) for size in clip.shape)
    patches_per_row = -(-len(frames) // width)
    return (bands // height)[:, None] * patches_per_row + (frames // width)[None, :]


@lru_cache
def _nodes_and_weights(n: int) -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return (nodes + 1) / 2, weights / 2


def _column(values: np.ndarray, like: Tensor) -> Tensor:
    return sent(torch.from_numpy(values).to(like.dtype), like.device)[:, None, None]
