"""Training: what an epoch does, when it stops, where it goes back, and that it can go on."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from faithad.errors import ConfigError
from faithad.model.masking import cells_of
from faithad.model.optimization import learning_rate
from faithad.model.skip_cae_transformer import SkipCAETransformer
from faithad.model.training import Training
from faithad.settings import Precision, TrainingSettings

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
    assert epoch.gradient_norm is not None
    if mask_ratio is None:
        gradient = 2 * (a - 1) * float(x.square().mean())
        assert epoch.gradient_norm == pytest.approx(abs(gradient), rel=1e-5)
        assert epoch.train_loss == pytest.approx(float(((a - 1) * x).square().mean()), rel=1e-5)
    else:
        assert epoch.gradient_norm == 0
        # The loss is x² over some 30 % of the cells.
        assert epoch.train_loss == pytest.approx(float(x.square().mean()), rel=0.05)


def test_validation_loss_of_an_mae_is_over_the_hidden_cells_alone_and_fixed() -> None:
    training = new_training(replace(SETTINGS, mask_ratio=0.3), Scale())
    first = training.validate()
    assert training.validate() == first
    assert training._validation_patches is not None
    masks = cells_of(training._validation_patches, 4)
    x = sounds(6, seed=1)
    total = 0.0
    for clip, mask in zip(x, masks, strict=True):
        hidden = [float(value) ** 2 for value in clip[mask]]
        assert len(hidden) == math.floor(0.3 * 32) * 16
        total += sum(hidden) / len(hidden)
    assert first == pytest.approx(total / 6, rel=1e-5)


def test_masks_are_keyed_by_seed_epoch_and_clip() -> None:
    def patches(clips: list[int], epoch: int, seed: int = 0) -> Tensor:
        drawn = new_training(replace(SETTINGS, mask_ratio=0.5, seed=seed))._hidden_patches(
            torch.tensor(clips), "masks", epoch
        )
        assert drawn is not None
        return drawn.flatten(1)

    first = patches([0, 1, 2, 3], 1)
    assert torch.equal(patches([2, 0], 1), first[[2, 0]])
    assert not (first[0] == first[1:]).all(dim=1).any()
    assert not (patches([0, 1, 2, 3], 2) == first).all(dim=1).any()
    assert not (patches([0, 1, 2, 3], 1, seed=1) == first).all(dim=1).any()


def test_a_batch_has_the_masks_of_its_clips() -> None:
    training = new_training(replace(SETTINGS, mask_ratio=0.5))
    everything = training._hidden_patches(torch.arange(20), "masks", 3)
    assert everything is not None
    batches = training._batches(3)
    drawn = training._hidden_patches(torch.cat(batches), "masks", 3)
    for batch, (x, mask) in zip(batches, training._inputs(sounds(20), batches, drawn), strict=True):
        assert torch.equal(x, sounds(20)[batch])
        assert mask is not None
        assert torch.equal(mask, cells_of(everything[batch], 4))


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


@pytest.mark.parametrize("value", [math.nan, 100.0])
def test_divergence_goes_back_to_the_best_epoch_once(value: float) -> None:
    network = Scale()
    training = new_training(replace(SETTINGS, epochs=50, divergence_factor=10.0, restart_period=5), network)
    first = training.run_epoch()

    def spoil() -> None:
        with torch.no_grad():
            network.a.fill_(value)

    assert first.best
    assert not first.diverged
    best = training.best_weights()["a"].item()
    spoil()
    second = training.run_epoch()
    assert second.diverged
    assert not second.best
    assert not training.finished
    assert network.a.item() == best
    assert training.state()["optimizer"]["state"] == {}, "AdamW remembers nothing of the way that led there"

    third = training.run_epoch()
    assert third.best, "it learns on from the best epoch's weights"
    assert third.learning_rate == learning_rate(training._settings, 3) / 2
    assert math.isfinite(third.train_loss)

    best = training.best_weights()["a"].item()
    spoil()
    assert training.run_epoch().diverged
    assert training.finished
    assert training.best_weights()["a"].item() == best
    assert training.best == third


def test_a_loss_below_the_factor_is_no_divergence() -> None:
    network = Scale()
    training = new_training(replace(SETTINGS, epochs=50, divergence_factor=10.0, learning_rate=1e-5), network)
    assert training.run_epoch().best
    with torch.no_grad():
        # The error goes with (1 - a)²: nine times that of a = 0.25.
        network.a.fill_(1 - 3 * 0.75)
    worse = training.run_epoch()
    assert worse.validation_loss > 8.9 * training.history[0].validation_loss
    assert not worse.diverged
    assert network.a.item() < -1


def test_a_training_that_diverges_at_once_ends_without_weights() -> None:
    network = Scale()
    with torch.no_grad():
        network.a.fill_(math.nan)
    training = new_training(replace(SETTINGS, epochs=50), network)
    assert training.run_epoch().diverged
    assert training.finished
    assert training.best is None
    assert training.best_weights() == {}


def test_patience_counts_from_where_the_training_went_back() -> None:
    network = Scale()
    settings = replace(SETTINGS, epochs=50, patience=3, minimum_improvement=1e9, divergence_factor=10.0)
    training = new_training(settings, network)
    for _ in range(3):
        training.run_epoch()
    with torch.no_grad():
        network.a.fill_(math.nan)
    run(training)
    assert [epoch.best for epoch in training.history] == [True] + [False] * 6
    assert [epoch.diverged for epoch in training.history] == [False, False, False, True, False, False, False]


def test_a_small_last_batch_joins_the_one_before() -> None:
    training = new_training(replace(SETTINGS, batch_size=8))
    assert [len(batch) for batch in training._batches(1)] == [8, 8, 4]
    training = new_training(replace(SETTINGS, batch_size=9))
    assert [len(batch) for batch in training._batches(1)] == [9, 11]
    assert sorted(torch.cat(list(training._batches(2))).tolist()) == list(range(20))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mask_ratio": 0.3},
        {"mask_ratio": 0.3, "optimizer": "fused_adamw", "precision": "bfloat16"},
        {"schedule": "warmup_cosine", "warmup_epochs": 2},
    ],
)
def test_a_training_that_was_saved_ends_where_it_would_have_ended(changes: dict[str, Any]) -> None:
    settings = replace(SETTINGS, **changes)
    undisturbed = run(new_training(settings))

    interrupted = new_training(settings)
    interrupted.run_epoch()
    interrupted.run_epoch()
    resumed = resume(interrupted, SkipCAETransformer(16, 32))

    assert losses(resumed) == losses(undisturbed)
    for name, value in undisturbed.best_weights().items():
        assert torch.equal(value, resumed.best_weights()[name])


def test_a_training_that_went_back_can_be_saved_at_any_time() -> None:
    # Steps of a fifth bring a from 0.25 close to 1, and the restart's carry it beyond; half of them do not.
    settings = replace(SETTINGS, epochs=6, learning_rate=0.2, divergence_factor=3.0)
    undisturbed = run(new_training(settings, Scale()))
    diverged = [epoch.diverged for epoch in undisturbed.history]
    assert diverged == [False, False, True, False, False, False]
    for n_epochs in range(1, 6):
        interrupted = new_training(settings, Scale())
        for _ in range(n_epochs):
            interrupted.run_epoch()
        resumed = resume(interrupted, Scale())
        assert losses(resumed) == losses(undisturbed)
        assert resumed.best_weights() == undisturbed.best_weights()


@pytest.mark.parametrize(
    ("precision", "optimizer"), [("tf32", "adamw"), ("bfloat16", "adamw"), ("float32", "fused_adamw")]
)
def test_it_trains_in_any_precision_and_with_any_optimizer(precision: Precision, optimizer: str) -> None:
    def trained(settings: TrainingSettings) -> Training:
        torch.manual_seed(5)
        bands = 2 * torch.sin(torch.arange(16) / 3)[:, None]
        return run(
            Training(SkipCAETransformer(16, 32), bands + sounds(20) / 4, bands + sounds(6, seed=1) / 4, settings)
        )

    settings = replace(SETTINGS, mask_ratio=0.3, learning_rate=3e-3, seed=3)
    plain, training = trained(settings), trained(replace(settings, precision=precision, optimizer=optimizer))
    expected, found = plain.history[0], training.history[0]
    tolerance = 0.01 if precision == "bfloat16" else 1e-4
    assert found.train_loss == pytest.approx(expected.train_loss, rel=tolerance)
    assert found.validation_loss == pytest.approx(expected.validation_loss, rel=tolerance)
    assert training.history[-1].train_loss < 0.9 * found.train_loss
    assert training.history[-1].validation_loss < 0.9 * found.validation_loss
    if precision == "bfloat16":
        assert found.train_loss != expected.train_loss
    assert {value.dtype for name, value in training.best_weights().items() if "tracked" not in name} == {torch.float32}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_clips_on_the_host_train_as_those_on_the_gpu() -> None:
    found = []
    for where in ("cuda", "cpu"):
        torch.manual_seed(5)
        network = SkipCAETransformer(16, 32, dropout=0.0).cuda()
        settings = replace(SETTINGS, mask_ratio=0.3)
        found.append(losses(run(Training(network, sounds(20).to(where), sounds(6, seed=1).to(where), settings))))
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(found[1]))


def test_splits_without_clips_and_too_many_workers_are_refused() -> None:
    with pytest.raises(ConfigError, match="found 0 and 6"):
        Training(Scale(), sounds(0), sounds(6), SETTINGS)
    with pytest.raises(ConfigError, match=r"5 workers cannot share a batch of 4 clips.*train\.workers"):
        Training(Scale(), sounds(20), sounds(6), SETTINGS, workers=5)


def test_a_training_goes_on_with_the_threads_that_it_began_with() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        state = new_training(network=Scale()).state()
        torch.set_num_threads(1)
        new_training(network=Scale()).restore(state)
        assert torch.get_num_threads() == 2
        del state["threads"]  # as release 0.1.0 wrote it
        torch.set_num_threads(1)
        new_training(network=Scale()).restore(state)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def losses(training: Training) -> list[tuple[float, float]]:
    return [(epoch.train_loss, epoch.validation_loss) for epoch in training.history]


def resume(training: Training, network: nn.Module) -> Training:
    """Bring its saved state to an end, in another training."""
    file = io.BytesIO()
    torch.save(training.state(), file)
    file.seek(0)
    state: dict[str, Any] = torch.load(file, weights_only=True)
    torch.manual_seed(99)
    resumed = Training(network, sounds(20), sounds(6, seed=1), training._settings)
    resumed.restore(state)
    return run(resumed)
