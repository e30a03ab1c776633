from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from faithad.attribution.methods import METHODS
from faithad.attribution.noise import Noise, _normal_pairs
from faithad.model.random_bits import key_of, random_bits


def test_keys_differ_between_seeds_clips_methods_and_samples() -> None:
    keys = {
        key_of(seed, clip_id, method, sample)
        for seed in (0, 1, 11)
        for clip_id in ("0123456789abcdef", "0123456789abcdee", "1")
        for method in METHODS
        for sample in (0, 1, 25)
    }
    assert len(keys) == 3 * 3 * len(METHODS) * 3
    assert all(-(2**63) <= key < 2**63 for key in keys)


@pytest.mark.parametrize("shape", [(2, 3), (1, 3), (1, 1)])
def test_noise_is_the_same_in_every_process_and_version(shape: tuple[int, int]) -> None:
    key = key_of(0, "clip", "smooth_grad", 3)
    assert key == 592265842359085651
    n_pairs = math.ceil(math.prod(shape) / 2)
    *pairs, last = (bits % 2**64 for bits in random_bits(torch.arange(n_pairs + 1), key).tolist())
    radii = [math.sqrt(-2 * math.log(((bits >> 32) + 0.5) / 2**32)) for bits in pairs]
    angles = [2 * math.pi * (bits % 2**32) / 2**32 for bits in pairs]
    values = [r * math.cos(a) for r, a in zip(radii, angles, strict=True)]
    values += [r * math.sin(a) for r, a in zip(radii, angles, strict=True)]
    normal, uniform = Noise(0, "clip", "smooth_grad").draw([3], torch.empty(shape))
    assert normal.shape == (1, *shape)
    assert normal.flatten().tolist() == pytest.approx(values[: math.prod(shape)], abs=2e-6)
    assert uniform.item() == (last >> 40) / 2**24


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("shape", [(16, 40), (81, 401)])
def test_a_sample_is_the_same_whichever_are_drawn_beside_it(shape: tuple[int, int], n_threads: int) -> None:
    noise, like = Noise(0, "clip", "smooth_grad"), torch.empty(shape, dtype=torch.float64)
    normal, uniform = noise.draw(range(6), like)
    assert normal.dtype == uniform.dtype == like.dtype
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        some, places = noise.draw([4, 1], like)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(some, normal[[4, 1]])
    assert torch.equal(places, uniform[[4, 1]])
    assert torch.equal(noise.draw(range(6), like.float())[0].double(), normal)
    assert len(uniform.unique()) == 6


def test_no_bits_give_an_infinite_value() -> None:
    values = _normal_pairs(torch.tensor([[0, -1, 1 << 32, -(1 << 32)]]))
    assert values.isfinite().all()
    assert values[0, 0, 0].item() == pytest.approx(math.sqrt(-2 * math.log(0.5 / 2**32)))


def test_normal_values_are_normal_and_places_uniform() -> None:
    like = torch.empty(80, 400)
    drawn = [Noise(0, f"{clip}", "gradient_shap").draw(range(25), like) for clip in range(8)]
    normal = torch.cat([values for values, _ in drawn])
    assert stats.kstest(normal.flatten().numpy(), "norm").pvalue > 0.01
    # The tails, where few values are: beyond three and four deviations.
    for limit in (3, 4):
        expected = 2 * stats.norm.sf(limit) * normal.numel()
        assert abs((normal.abs() > limit).sum().item() - expected) < 4 * math.sqrt(expected)
    places = torch.cat([values for _, values in drawn]).flatten()
    assert stats.kstest(places.numpy(), "uniform").pvalue > 0.01
    assert places.min() >= 0
    assert places.max() < 1


def test_cells_samples_and_clips_do_not_hang_together() -> None:
    like = torch.empty(80, 400)
    normal = torch.cat([Noise(0, f"{clip}", "smooth_grad").draw(range(10), like)[0] for clip in range(4)])
    n = normal.numel()
    half = 80 * 400 // 2
    flat = normal.flatten(1)
    neighbours = {
        "in time": (normal[:, :, 1:], normal[:, :, :-1]),
        "in frequency": (normal[:, 1:], normal[:, :-1]),
        "of one pair": (flat[:, :half], flat[:, half:]),
        "of two samples": (normal[1:], normal[:-1]),
        "of two clips": (normal[10:], normal[:-10]),
    }
    for values, others in neighbours.values():
        for each in (lambda x: x, torch.square):
            # Five deviations of what independent values would have.
            correlation = torch.corrcoef(torch.stack([each(values).flatten(), each(others).flatten()]))[0, 1]
            assert abs(correlation) < 5 / math.sqrt(n / 2)
