"""Patches, masks and losses: what makes an MAE of the autoencoder.

A mask is a boolean (B, F, T), true where a cell is hidden from the network. It is made of square patches of `patch`
bands by `patch` frames (He et al. 2022; Deschênes et al. 2026, section 2).
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from faithad.errors import ConfigError


def patch_masks(
    n_clips: int, n_mels: int, n_frames: int, *, patch: int, ratio: float, generator: torch.Generator
) -> Tensor:
    """Random masks, each hiding exactly floor(ratio * n) of the n patches.

    Args:
        n_clips: B.
        n_mels: F.
        n_frames: T.
        patch: edge of a patch, in bands and in frames; divides F and T.
        ratio: share of the patches to hide, between 0 and 1.
        generator: the only source of randomness; the masks are made on its device.

    Returns:
        (B, F, T) bool, true where hidden.

    Raises:
        ConfigError: the patch does not divide the spectrogram, or the ratio hides no patch or all of them.
    """
    if patch < 1 or n_mels % patch or n_frames % patch:
        raise ConfigError(
            f"patch is {patch}; it must divide the spectrogram's {n_mels} mel bands and {n_frames} frames."
        )
    rows, columns = n_mels // patch, n_frames // patch
    n_hidden = n_hidden_patches(rows * columns, ratio)
    # The patches with the smallest of n random keys: every set of n_hidden patches is equally likely.
    keys = torch.rand(n_clips, rows * columns, generator=generator, device=generator.device)
    hidden = torch.zeros_like(keys, dtype=torch.bool)
    hidden.scatter_(1, keys.topk(n_hidden, dim=1, largest=False, sorted=False).indices, True)
    grid = hidden.view(n_clips, rows, columns)
    return grid.repeat_interleave(patch, dim=1).repeat_interleave(patch, dim=2)


def n_hidden_patches(n_patches: int, ratio: float) -> int:
    """Return floor(ratio * n_patches), counted exactly with the ratio as it is written in decimal.

    In binary floating point 0.29 * 100 is 28.999...96: a patch would be lost.

    Raises:
        ConfigError: the ratio is outside (0, 1), or hides no patch at all.
    """
    if not 0.0 < ratio < 1.0:
        raise ConfigError(f"ratio is {ratio}; it must be above 0 and below 1.")
    n_hidden = math.floor(Fraction(str(ratio)) * n_patches)
    if n_hidden == 0:
        raise ConfigError(
            f"ratio is {ratio}: of {n_patches} patches that hides none. Raise it to {1 / n_patches:.3g} at least, "
            "or make the patches smaller."
        )
    return n_hidden


def apply_mask(x: Tensor, mask: Tensor) -> Tensor:
    """The spectrograms (B, F, T) with the hidden cells set to zero."""
    return x.masked_fill(mask, 0.0)


def masked_mse(y: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the hidden cells of each clip, (B,).

    Where all clips hide equally many cells, as `patch_masks` does, the mean of these is the mean over all hidden cells
    of the batch: the MAE's loss.

    Args:
        y: (B, F, T), reconstruction of the masked input.
        x: (B, F, T), the input before masking.
        mask: (B, F, T) bool, true where hidden.
    """
    return ((y - x).square() * mask).sum(dim=(-2, -1)) / mask.sum(dim=(-2, -1))


def mse_per_clip(y: Tensor, x: Tensor) -> Tensor:
    """Mean squared error of each clip, (B,): E(x), the anomaly score, where y is the reconstruction of x."""
    return (y - x).square().mean(dim=(-2, -1))
