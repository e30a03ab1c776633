"""Patches, masks and losses, which turn the autoencoder into a masked autoencoder (MAE).

A mask is a boolean (B, F, T), true where a cell is hidden from the network. It is made of square patches of `patch`
bands by `patch` frames (He et al. 2022; Deschênes et al. 2026, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from faithad.errors import ConfigError
from faithad.model.random_bits import random_bits
from faithad.settings import n_hidden_patches


def patch_masks(clips: Tensor, n_mels: int, n_frames: int, *, patch: int, ratio: float, key: int) -> Tensor:
    """Random masks, each hiding exactly floor(ratio * n) of the n patches.

    Args:
        clips: (B,) int64, the clips' numbers. A clip's mask depends on its number and on the key, neither on the other
            clips nor on the device.
        n_mels: F.
        n_frames: T.
        patch: edge of a patch, in bands and in frames; divides F and T.
        ratio: share of the patches to hide, between 0 and 1.
        key: any number of 64 bits; each key gives other masks.

    Returns:
        (B, F, T) bool, true where hidden; on the device of `clips`.

    Raises:
        ConfigError: the patch does not divide the spectrogram, or the ratio hides no patch or all of them.
    """
    return cells_of(hidden_patches(clips, n_mels, n_frames, patch=patch, ratio=ratio, key=key), patch)


def hidden_patches(clips: Tensor, n_mels: int, n_frames: int, *, patch: int, ratio: float, key: int) -> Tensor:
    """The masks of `patch_masks` with one cell for each patch: (B, F / patch, T / patch) bool."""
    if patch < 1 or n_mels % patch or n_frames % patch:
        raise ConfigError(
            f"patch is {patch}; it must divide the spectrogram's {n_mels} mel bands and {n_frames} frames."
        )
    rows, columns = n_mels // patch, n_frames // patch
    n_hidden = n_hidden_patches(rows * columns, ratio)
    numbers = torch.arange(rows * columns, device=clips.device)
    drawn = random_bits(clips[:, None] * len(numbers) + numbers, key)
    # The patches with the n_hidden smallest numbers are hidden: all sets of that size are equally likely, and no two
    # numbers are equal.
    return (drawn <= drawn.kthvalue(n_hidden, dim=1, keepdim=True).values).view(-1, rows, columns)


def cells_of(hidden: Tensor, patch: int) -> Tensor:
    """The cells (B, F, T) of patches (B, F / patch, T / patch)."""
    b, rows, columns = hidden.shape
    spread = hidden[:, :, None, :, None].expand(b, rows, patch, columns, patch)
    return spread.reshape(b, rows * patch, columns * patch)


def apply_mask(x: Tensor, mask: Tensor) -> Tensor:
    """The spectrograms (B, F, T) with the hidden cells set to zero."""
    return x.masked_fill(mask, 0.0)


def masked_mse(y: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the hidden cells of each clip, (B,).

    If equally many cells are hidden in all clips, as `patch_masks` does it, the mean of these errors is the mean over
    all hidden cells of the batch: the MAE's loss.

    Args:
        y: (B, F, T), reconstruction of the masked input.
        x: (B, F, T), the input before masking.
        mask: (B, F, T) bool, true where hidden.
    """
    return ((y - x).square() * mask).sum(dim=(-2, -1)) / mask.sum(dim=(-2, -1))


def mean_per_clip(error: Tensor, n_frames: Sequence[int] = (), *, dtype: torch.dtype | None = None) -> Tensor:
    """Mean of each clip's error over the mel bands and the frames that hold sound, (B,): its anomaly score.

    Args:
        error: the squared error of each cell, (B, F, T).
        n_frames: how many frames of each clip hold sound, (B,), all T by default; the others only fill up short clips.
        dtype: to compute in; that of the error by default.
    """
    means = error.mean(dim=(-2, -1), dtype=dtype)
    for clip, n in enumerate(n_frames):
        if n < error.shape[-1]:
            means[clip] = error[clip, :, :n].mean(dtype=dtype)
    return means


def mse_per_clip(y: Tensor, x: Tensor) -> Tensor:
    """Mean squared error of each clip, (B,): E(x), the anomaly score, where y is the reconstruction of x."""
    return (y - x).square().mean(dim=(-2, -1))
