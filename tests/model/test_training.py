"""Training: what an epoch does, when it stops, that it can go on, and that workers change nothing."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from faithad.errors import ConfigError
from faithad.model.masking import patch_masks
from faithad.model.skip_cae_transformer import SkipCAETransformer
from faithad.model.training import Training, TrainingSettings

SETTINGS = TrainingSettings(
    epochs=4,
    batch_size=8,
    learning_rate=1e-3,
    minimum_learning_rate=1e-5,
    weight_decay=0.01,
    restart_period=2,
    patience=10,
    minimum_improvement=1e-5,
    mask_ratio=None,
    patch=4,
    seed=0,
)


def sounds(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 16, 32, generator=torch.Generator().manual_seed(seed))


def new_training(settings: TrainingSettings = SETTINGS, network: nn.Module | None = None) -> Training:
    torch.manual_seed(5)
    return Training(network or SkipCAETransformer(16, 32), sounds(20), sounds(6, seed=1), settings)


def run(training: Training) -> Training:
    while not training.finished:
        training.run_epoch()
    return training


class Scale(nn.Module):
    """y = a x: a network whose every step can be followed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.25))

    def forward(self, x: Tensor) -> Tensor:
        return self.a * x


@pytest.mark.parametrize("mask_ratio", [None, 0.3])
def test_an_epoch_is_adamw_on_the_mean_loss_of_each_batch(mask_ratio: float | None) -> None:
    settings = replace(SETTINGS, epochs=1, batch_size=32, mask_ratio=mask_ratio)
    training = new_training(settings, Scale())
    epoch = training.run_epoch()

    # One batch: AdamW's first step is the learning rate times the gradient's sign, after the decay.
    x = sounds(20)
    a = 0.25
    decayed = a * (1 - settings.learning_rate * settings.weight_decay)
    weights = training.best_weights()
    # Hidden cells go in as zeros, so a has no part in their error: no step but the decay.
    step = settings.learning_rate if mask_ratio is None else 0.0
    assert weights["a"].item() == pytest.approx(decayed + step, rel=1e-5)
    if mask_ratio is None:
        assert epoch.train_loss == pytest.approx(float(((a - 1) * x).square().mean()), rel=1e-5)
    else:
        # The loss is x² over some 30 % of the cells.
        assert epoch.train_loss == pytest.approx(float(x.square().mean()), rel=0.05)


def test_validation_loss_of_an_mae_is_over_the_hidden_cells_alone_and_fixed() -> None:
    training = new_training(replace(SETTINGS, mask_ratio=0.3), Scale())
    first = training.validate()
    assert training.validate() == first
    masks = training._validation_masks
    assert masks is not None
    x = sounds(6, seed=1)
    total = 0.0
    for clip, mask in zip(x, masks, strict=True):
        hidden = [float(value) ** 2 for value in clip[mask]]
        assert len(hidden) == math.floor(0.3 * 32) * 16
        total += sum(hidden) / len(hidden)
    assert first == pytest.approx(total / 6, rel=1e-5)


def test_each_epoch_draws_fresh_masks() -> None:
    training = new_training(replace(SETTINGS, mask_ratio=0.5))
    drawn = [
        patch_masks(4, 16, 32, patch=4, ratio=0.5, generator=training._generator("masks", number)) for number in (1, 2)
    ]
    assert not torch.equal(*drawn)


def test_the_learning_rate_restarts_every_period() -> None:
    rates = [epoch.learning_rate for epoch in run(new_training()).history]
    expected = [1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * (number % 2) / 2)) / 2 for number in range(4)]
    assert rates == pytest.approx(expected)


def test_patience_and_the_best_epoch() -> None:
    training = new_training(replace(SETTINGS, epochs=50, patience=3, minimum_improvement=1e9))
    run(training)
    # Nothing improves by a thousand million: the first epoch is the best, three more are waited for.
    assert [epoch.best for epoch in training.history] == [True, False, False, False]
    first = new_training()
    first.run_epoch()
    for name, value in first.best_weights().items():
        assert torch.equal(value, training.best_weights()[name])


def test_a_loss_that_is_no_number_ends_the_training() -> None:
    network = Scale()
    training = new_training(replace(SETTINGS, epochs=50), network)
    training.run_epoch()
    with torch.no_grad():
        network.a.fill_(math.nan)
    assert not training.run_epoch().best
    assert training.finished
    assert math.isfinite(training.best_weights()["a"].item())


def test_a_small_last_batch_joins_the_one_before() -> None:
    training = new_training(replace(SETTINGS, batch_size=8))
    assert [len(batch) for batch in training._batches(1)] == [8, 8, 4]
    training = new_training(replace(SETTINGS, batch_size=9))
    assert [len(batch) for batch in training._batches(1)] == [9, 11]
    assert sorted(torch.cat(list(training._batches(2))).tolist()) == list(range(20))


@pytest.mark.parametrize("mask_ratio", [None, 0.3])
def test_a_training_that_was_saved_ends_where_it_would_have_ended(mask_ratio: float | None) -> None:
    settings = replace(SETTINGS, mask_ratio=mask_ratio)
    undisturbed = run(new_training(settings))

    interrupted = new_training(settings)
    interrupted.run_epoch()
    interrupted.run_epoch()
    file = io.BytesIO()
    torch.save(interrupted.state(), file)
    file.seek(0)
    state: dict[str, Any] = torch.load(file, weights_only=True)
    torch.manual_seed(99)
    resumed = Training(SkipCAETransformer(16, 32), sounds(20), sounds(6, seed=1), settings)
    resumed.restore(state)
    run(resumed)

    def losses(training: Training) -> list[tuple[float, float]]:
        return [(epoch.train_loss, epoch.validation_loss) for epoch in training.history]

    assert losses(resumed) == losses(undisturbed)
    for name, value in undisturbed.best_weights().items():
        assert torch.equal(value, resumed.best_weights()[name])


@pytest.mark.parametrize("kind", ["ae", "mae"])
def test_two_worker_processes_train_the_same_network_as_one(kind: str, tmp_path: Path) -> None:
    one, two = (_train_in_processes(tmp_path, kind, workers) for workers in (1, 2))
    torch.testing.assert_close(torch.tensor(two["losses"]), torch.tensor(one["losses"]), rtol=1e-9, atol=0)
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, rtol=1e-6, atol=1e-9, msg=name)


def test_splits_without_clips_and_too_many_workers_are_refused() -> None:
    with pytest.raises(ConfigError, match="found 0 and 6"):
        Training(Scale(), sounds(0), sounds(6), SETTINGS)
    with pytest.raises(ConfigError, match=r"5 workers cannot share a batch of 4 clips.*train\.workers"):
        Training(Scale(), sounds(20), sounds(6), SETTINGS, workers=5)


def _train_in_processes(folder: Path, kind: str, workers: int) -> dict[str, Any]:
    out = folder / f"{kind}-{workers}.pt"
    environment = {
        **os.environ,
        "WORLD_SIZE": str(workers),
        "INIT_METHOD": f"file://{folder}/rendezvous-{kind}-{workers}",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    script = Path(__file__).parent / "train_with_workers.py"
    processes = [
        subprocess.Popen([sys.executable, script, out, kind], env={**environment, "RANK": str(rank)})
        for rank in range(workers)
    ]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0] * workers
    finally:
        for process in processes:
            process.kill()
            process.wait()
    result: dict[str, Any] = torch.load(out, weights_only=True)
    return result
