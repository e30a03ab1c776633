"""What a user reads about epochs that diverged."""

from __future__ import annotations

import math

import pytest

from faithad.model.training import Epoch
from faithad.pipelines.training.run import divergence_note


@pytest.mark.parametrize(
    ("diverged", "note"),
    [
        ([], ""),
        ([3], "; diverged in epoch 3 and went back to its best one"),
        ([3, 5], "; diverged in epoch 3 and went back to its best one, diverged again in epoch 5 and ended"),
    ],
)
def test_where_it_went_back_and_where_it_ended(diverged: list[int], note: str) -> None:
    epochs = [
        Epoch(number, 1.0, math.nan if number in diverged else 1.0, 1e-3, 0.1, number == 1, number in diverged)
        for number in range(1, 6)
    ]
    assert divergence_note([vars(epoch) for epoch in epochs]) == note
