"""The error of each cell of a clip, in several ways: rows of `RESIDUALS`.

Shape letters: B clips, F mel bands, T frames, K groups of patches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, nn

    from faithad.model.table import ModelRow

# Patches of 4 x 4 cells in 4 groups: each forward hides a quarter of the clip, about what the MAE was trained with.
PATCH = 4
GROUPS = 4


class Residual(NamedTuple):
    """How the error of each cell is computed. A new residual is a row of `RESIDUALS`.

    Attributes:
        title: in reports.
        compute: (network, clips (B, F, T), their ids) to the error (B, F, T).
        fits: whether a model that reconstructs has it.
    """

    title: str
    compute: Callable[[nn.Module, Tensor, Sequence[str]], Tensor]
    fits: Callable[[ModelRow], bool] = lambda row: True


def _reconstruction(network: nn.Module, x: Tensor, clip_ids: Sequence[str]) -> Tensor:
    """(f(x) - x)², the paper's (Deschênes et al. 2026, arXiv 2601.12660)."""
    error: Tensor = (network(x) - x).square()
    return error


def _inpainting(network: nn.Module, x: Tensor, clip_ids: Sequence[str]) -> Tensor:
    """(f(x with the cell's group of patches set to zero) - x)²: each cell is predicted from its surroundings."""
    import torch

    errors = []
    for clip, clip_id in zip(x, clip_ids, strict=True):
        hidden = inpainting_groups(clip, clip_id)
        rebuilt: Tensor = network(clip.masked_fill(hidden, 0.0))
        errors.append(((rebuilt - clip).square() * hidden).sum(dim=0))
    return torch.stack(errors)


def _context(network: nn.Module, x: Tensor, clip_ids: Sequence[str]) -> Tensor:
    """The error of the whole context of each frame, which `frame_pca` reconstructs."""
    error: Tensor = network.context_error(x)  # type: ignore[operator]
    return error


RESIDUALS = {
    "reconstruction": Residual("reconstruction error", _reconstruction),
    "inpainting": Residual("inpainting error", _inpainting, lambda row: row.masked),
    "context": Residual("error of each frame's context", _context, lambda row: row.name == "frame_pca"),
}


def inpainting_groups(clip: Tensor, clip_id: str, *, seed: int = 0) -> Tensor:
    """The patches of a clip (F, T), dealt at random into K groups whose sizes differ by one at the most.

    Returns:
        (K, F, T) bool, true in one of the groups for each cell. The same for the same seed and clip id, whatever else
        is computed. The last patches are cut at the clip's edge.
    """
    import torch

    from faithad.model.random_bits import key_of, random_bits

    n_mels, n_frames = clip.shape
    rows, columns = -(-n_mels // PATCH), -(-n_frames // PATCH)
    numbers = torch.arange(rows * columns, device=clip.device)
    order = random_bits(numbers, key_of(seed, clip_id, "inpainting")).argsort()
    group = torch.empty_like(order)
    group[order] = numbers % GROUPS
    cells = group.view(rows, columns).repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1)[:n_mels, :n_frames]
    return cells == torch.arange(GROUPS, device=clip.device)[:, None, None]
