"""The residuals: inpainting cell by cell, its groups, and what they do not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from faithad.scoring.residuals import GROUPS, PATCH, RESIDUALS, inpainting_groups


class Smooth(nn.Module):
    """Each cell as the mean of the 7 x 7 cells around it."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x[:, None], 7, 1, 3)[:, 0]


def clip(shape: tuple[int, int] = (16, 40), seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(16, 40), (80, 400), (19, 33), (16, 17)])
def test_each_cell_is_in_one_of_four_groups_of_whole_patches(shape: tuple[int, int]) -> None:
    groups = inpainting_groups(clip(shape), "a")
    assert groups.shape == (GROUPS, *shape)
    assert (groups.sum(dim=0) == 1).all()
    corners = groups[:, ::PATCH, ::PATCH]
    spread = corners.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)[:, : shape[0], : shape[1]]
    assert torch.equal(groups, spread)
    sizes = corners.sum(dim=(1, 2)).tolist()
    assert max(sizes) - min(sizes) <= 1


def test_the_groups_are_dealt_at_random_by_seed_and_clip() -> None:
    dealt = {(clip_id, seed): inpainting_groups(clip(), clip_id, seed=seed) for clip_id in "ab" for seed in (0, 1)}
    assert torch.equal(dealt["a", 0], inpainting_groups(clip(seed=5), "a"))
    keys = list(dealt)
    assert not any(torch.equal(dealt[p], dealt[q]) for k, p in enumerate(keys) for q in keys[:k])
    # A cell is in each group equally often.
    share = np.mean([inpainting_groups(clip(), str(k)).numpy() for k in range(400)], axis=0)
    assert abs(share - 0.25).max() < 0.12


def test_inpainting_predicts_each_cell_while_its_group_is_hidden() -> None:
    x, network = clip((16, 24)), Smooth()
    groups = inpainting_groups(x, "a")
    error = RESIDUALS["inpainting"].compute(network, x[None], ["a"])[0]
    for band in range(16):
        for t in range(24):
            group = next(k for k in range(GROUPS) if groups[k, band, t])
            seen = x.clone()
            seen[groups[group]] = 0.0
            around = torch.zeros(22, 30)
            around[3:-3, 3:-3] = seen
            expected = (around[band : band + 7, t : t + 7].mean() - x[band, t]) ** 2
            assert error[band, t].item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_reconstruction_is_the_papers() -> None:
    x, network = clip(), Smooth()
    expected = (network(x[None])[0] - x).square()
    assert torch.equal(RESIDUALS["reconstruction"].compute(network, x[None], ["a"])[0], expected)
