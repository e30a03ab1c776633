from __future__ import annotations

import pytest
import torch

from faithad.model.random_bits import random_bits


def splitmix64(seed: int, n: int) -> list[int]:
    """The reference: its state goes on by a constant, and each state is mixed to a number."""
    numbers = []
    for _ in range(n):
        seed = (seed + 0x9E3779B97F4A7C15) % 2**64
        z = (seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        numbers.append(z ^ (z >> 31))
    return numbers


@pytest.mark.parametrize("key", [0, 1234567, 2**63 + 5, 2**64 - 1])
def test_random_bits_are_those_of_splitmix64(key: int) -> None:
    drawn = random_bits(torch.tensor([3, 0, 40, 7]), key)
    numbers = splitmix64(key, 41)
    assert [each % 2**64 for each in drawn.tolist()] == [numbers[i] for i in (3, 0, 40, 7)]
