from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from faithad.errors import ConfigError
from faithad.model.masking import apply_mask, masked_mse, mse_per_clip, patch_masks
from faithad.settings import n_hidden_patches

CLIP = torch.tensor([0])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(deadline=None, max_examples=60)
@given(
    n_clips=st.integers(1, 5),
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    patch=st.integers(1, 6),
    hundredths=st.integers(1, 99),
    key=st.integers(0, 2**64 - 1),
)
def test_exactly_the_asked_share_of_whole_patches_is_hidden(
    n_clips: int, rows: int, columns: int, patch: int, hundredths: int, key: int
) -> None:
    n_hidden = hundredths * rows * columns // 100
    arguments = {"patch": patch, "ratio": hundredths / 100, "key": key}
    if n_hidden == 0:
        with pytest.raises(ConfigError, match="hides none"):
            patch_masks(torch.arange(n_clips), rows * patch, columns * patch, **arguments)
        return
    masks = patch_masks(torch.arange(n_clips), rows * patch, columns * patch, **arguments)
    assert masks.shape == (n_clips, rows * patch, columns * patch)
    assert masks.dtype == torch.bool
    tiles = masks.view(n_clips, rows, patch, columns, patch).transpose(2, 3).flatten(3)
    assert torch.equal(tiles.any(dim=-1), tiles.all(dim=-1))
    assert (tiles.all(dim=-1).sum(dim=(1, 2)) == n_hidden).all()


@pytest.mark.parametrize("ratio", [0.15, 0.29, 0.3, 0.5, 0.57, 0.75, 0.9])
@pytest.mark.parametrize("n_patches", [20, 100, 2_000, 2_496])
def test_the_share_is_counted_in_decimal(n_patches: int, ratio: float) -> None:
    assert n_hidden_patches(n_patches, ratio) == math.floor(Fraction(round(ratio * 100), 100) * n_patches)


def test_the_papers_masks() -> None:
    masks = patch_masks(torch.arange(32), 80, 400, patch=4, ratio=0.30, key=0)
    assert (masks.sum(dim=(1, 2)) == 600 * 16).all()
    assert len({mask.numpy().tobytes() for mask in masks}) == 32


def test_every_patch_is_as_likely_as_any_other() -> None:
    n = 4_000
    masks = patch_masks(torch.arange(n), 4, 5, patch=1, ratio=0.25, key=0)
    shares = masks.float().mean(dim=0)
    # five standard deviations of a share
    assert (shares - 0.25).abs().max() < 5 * math.sqrt(0.25 * 0.75 / n)


def test_a_clips_mask_depends_on_its_number_and_the_key_alone() -> None:
    def masks(clips: list[int], key: int) -> Tensor:
        return patch_masks(torch.tensor(clips), 16, 40, patch=4, ratio=0.3, key=key)

    state = torch.get_rng_state()
    first = masks([0, 1, 2, 3], 7)
    assert torch.equal(masks([3, 1], 7), first[[3, 1]])
    assert torch.equal(torch.get_rng_state(), state)
    assert not (masks([0, 1, 2, 3], 8) == first).flatten(1).all(dim=1).any()


@pytest.mark.parametrize("patch", [0, -4, 3, 32])
def test_a_patch_that_does_not_divide_is_refused(patch: int) -> None:
    with pytest.raises(ConfigError, match=f"patch is {patch}; it must divide"):
        patch_masks(CLIP, 80, 400, patch=patch, ratio=0.3, key=0)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_an_impossible_ratio_is_refused(ratio: float) -> None:
    with pytest.raises(ConfigError, match="above 0 and below 1"):
        patch_masks(CLIP, 80, 400, patch=4, ratio=ratio, key=0)


def test_hidden_cells_are_zero_and_the_others_untouched() -> None:
    x = torch.randn(2, 8, 12, generator=generator()) + 5
    mask = patch_masks(torch.arange(2), 8, 12, patch=2, ratio=0.5, key=0)
    masked = apply_mask(x, mask)
    assert (masked[mask] == 0).all()
    assert torch.equal(masked[~mask], x[~mask])
    assert (x != 0).all()


def test_losses_are_their_sums() -> None:
    x = torch.randn(3, 4, 6, dtype=torch.float64, generator=generator(1))
    y = torch.randn(3, 4, 6, dtype=torch.float64, generator=generator(2))
    mask = patch_masks(torch.arange(3), 4, 6, patch=2, ratio=0.5, key=3)
    hidden = [(b, f, t) for b in range(3) for f in range(4) for t in range(6) if mask[b, f, t]]
    expected = sum((y[cell] - x[cell]).item() ** 2 for cell in hidden) / len(hidden)
    assert masked_mse(y, x, mask).mean().item() == pytest.approx(expected)
    for b in range(3):
        expected = sum((y[b, f, t] - x[b, f, t]).item() ** 2 for f in range(4) for t in range(6)) / 24
        assert mse_per_clip(y, x)[b].item() == pytest.approx(expected)


def test_visible_cells_do_not_train() -> None:
    x = torch.randn(1, 4, 4, generator=generator())
    mask = patch_masks(CLIP, 4, 4, patch=2, ratio=0.5, key=0)
    y = torch.zeros(1, 4, 4, requires_grad=True)
    masked_mse(y, x, mask).sum().backward()
    assert y.grad is not None
    assert torch.equal(y.grad != 0, mask)
