"""Learning rates, optimisers and precisions: their values, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from faithad.errors import ConfigError
from faithad.model.optimization import learning_rate, new_optimizer
from faithad.model.training import Training
from faithad.settings import TrainingSettings

SETTINGS = TrainingSettings(
    epochs=12,
    batch_size=8,
    learning_rate=1e-3,
    minimum_learning_rate=1e-5,
    weight_decay=0.01,
    restart_period=5,
    patience=10,
    minimum_improvement=1e-5,
    mask_ratio=None,
    patch=4,
    seed=0,
)


def test_warm_restarts_are_those_of_pytorch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=5, eta_min=1e-5)
    for epoch in range(1, 13):
        assert learning_rate(SETTINGS, epoch) == pytest.approx(schedule.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        schedule.step()


def test_the_warm_up_is_a_line_and_then_one_cosine() -> None:
    warming = replace(SETTINGS, schedule="warmup_cosine", warmup_epochs=3)
    rates = [learning_rate(warming, epoch) for epoch in range(1, 13)]
    assert rates[:4] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])
    assert rates[7] == pytest.approx((1e-3 + 1e-5) / 2, rel=1e-9), "half way down after four of eight steps"
    assert rates[11] == pytest.approx(1e-5)


@given(epochs=st.integers(1, 40), warmup=st.integers(0, 39), lowest=st.floats(0, 1e-3))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_the_rate_rises_once_and_falls_once(epochs: int, warmup: int, lowest: float) -> None:
    warming = replace(
        SETTINGS, schedule="warmup_cosine", epochs=epochs, warmup_epochs=warmup, minimum_learning_rate=lowest
    )
    if warmup >= epochs:
        with pytest.raises(ConfigError, match=rf"warmup_epochs is {warmup}, and epochs {epochs}"):
            learning_rate(warming, 1)
        return
    rates = [learning_rate(warming, epoch) for epoch in range(1, epochs + 1)]
    peak = rates.index(max(rates))
    assert rates[warmup] == pytest.approx(1e-3)
    assert peak == warmup or lowest == pytest.approx(1e-3)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert all(
        after <= before * (1 + 1e-12) for before, after in zip(rates[warmup:], rates[warmup + 1 :], strict=False)
    )
    if epochs > warmup + 1:
        assert rates[-1] == pytest.approx(lowest, abs=1e-18)


def test_fused_adamw_steps_as_adamw() -> None:
    weights = []
    for name in ("adamw", "fused_adamw"):
        torch.manual_seed(0)
        layer = nn.Linear(7, 3)
        optimizer = new_optimizer(layer, replace(SETTINGS, optimizer=name))
        assert bool(optimizer.defaults["fused"]) == (name == "fused_adamw")
        for step in range(4):
            optimizer.zero_grad()
            layer(torch.full((2, 7), step - 1.5)).square().sum().backward()
            optimizer.step()
        weights.append(layer.weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "dtype", "message"),
    [
        ({"precision": "bfloat16"}, torch.float64, r"'bfloat16' is for networks of float32.*float64"),
        ({"precision": "float16"}, torch.float32, r"no precision 'float16'; allowed: float32, tf32, bfloat16"),
        (
            {"optimizer": "fused_adamw"},
            torch.float32,
            r"'fused_adamw' works on cpu and cuda.*on 'meta'.*train\.optimizer",
        ),
        ({"optimizer": "sgd"}, torch.float32, "no optimizer 'sgd'; allowed: adamw, fused_adamw"),
        ({"schedule": "linear"}, torch.float32, "no schedule 'linear'; allowed: warm_restarts, warmup_cosine"),
        (
            {"schedule": "warmup_cosine", "warmup_epochs": 12},
            torch.float32,
            r"warmup_epochs is 12, and epochs 12.*Lower train\.warmup_epochs",
        ),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, object], dtype: torch.dtype, message: str) -> None:
    device = "meta" if "optimizer" in changes else "cpu"
    network, clips = nn.Linear(4, 4, device=device, dtype=dtype), torch.zeros(8, 4, 4, device=device, dtype=dtype)
    with pytest.raises(ConfigError, match=message):
        Training(network, clips, clips, replace(SETTINGS, **changes))


def test_the_first_rate_is_never_none() -> None:
    """A single epoch has nothing to fall towards."""
    alone = replace(SETTINGS, schedule="warmup_cosine", epochs=1, warmup_epochs=0)
    assert learning_rate(alone, 1) == 1e-3
    assert math.isclose(learning_rate(replace(alone, epochs=2), 2), 1e-5)
