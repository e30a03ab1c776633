"""What a user is told of epochs that diverged."""

from __future__ import annotations

import math

import pytest

from faithad.model.training import Epoch
from faithad.pipelines.training.run import told_divergence


@pytest.mark.parametrize(
    ("diverged", "told"),
    [
        ([], ""),
        ([3], "; diverged in epoch 3 and went back to its best one"),
        ([3, 5], "; diverged in epoch 3 and went back to its best one, diverged again in epoch 5 and ended"),
    ],
)
def test_where_it_went_back_and_where_it_ended(diverged: list[int], told: str) -> None:
    epochs = [
        Epoch(number, 1.0, math.nan if number in diverged else 1.0, 1e-3, 0.1, number == 1, number in diverged)
        for number in range(1, 6)
    ]
    assert told_divergence([vars(epoch) for epoch in epochs]) == told
