"""Training of one network, epoch by epoch, with or without other workers; knows nothing of clusters.

Source: Deschênes et al. 2026 (arXiv 2601.12660), section 3, and its published experiment. AdamW, cosine annealing with
warm restarts stepped once an epoch, early stopping on the validation loss; the best epoch's weights are the result.

Shape letters: n clips of a split, B clips of a batch, F mel bands, T frames.

What an epoch draws (its order of clips, its masks, its dropout) is keyed by (seed, epoch), so a run that was killed and
goes on from a saved state ends where it would have ended. Order and masks do not depend on the number of workers, each
batch is shared among them, and batch normalisation sums over all of them; dropout alone is drawn by each worker.

Departures from the published experiment:
1. Its loader re-seeds the mask from 5,000 values for each item, so that about a hundred masks ever occur; here each
   clip has a fresh mask in each epoch. Validation masks are fixed, one per clip.
2. A last batch of less than half the size joins the one before: no batch is too small for statistics.
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from faithad.errors import ConfigError
from faithad.model.masking import apply_mask, masked_mse, mse_per_clip, patch_masks


@dataclass(frozen=True)
class TrainingSettings:
    """Constants of one training. `mask_ratio` None trains a plain autoencoder."""

    epochs: int
    batch_size: int
    learning_rate: float
    minimum_learning_rate: float
    weight_decay: float
    restart_period: int
    patience: int
    minimum_improvement: float
    mask_ratio: float | None
    patch: int
    seed: int
    schedule: str = "warm_restarts"
    warmup_epochs: int = 0
    divergence_factor: float = math.inf
    precision: str = "float32"
    optimizer: str = "adamw"


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to.

    `epoch` counts from 1; `best`: the validation loss is the lowest so far, by the minimum improvement.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    learning_rate: float
    duration_s: float
    best: bool


class Training:
    """A training that can be saved after any epoch and continued elsewhere.

    Args:
        network: (B, F, T) → (B, F, T), on the device of the data; wrapped for gradient exchange where there are
            several workers.
        train: (n, F, T), normalised, on the network's device.
        validation: the same, for the loss that stops the training.
        settings: the constants.
        rank: this worker, from 0.
        workers: how many share the training; more than one needs an initialised process group.

    Raises:
        ConfigError: a split is empty, or a batch has fewer clips than there are workers.
    """

    def __init__(
        self,
        network: nn.Module,
        train: Tensor,
        validation: Tensor,
        settings: TrainingSettings,
        *,
        rank: int = 0,
        workers: int = 1,
    ) -> None:
        if not len(train) or not len(validation):
            raise ConfigError(
                f"Training needs clips to learn from and to validate on, found {len(train)} and {len(validation)}."
            )
        smallest = min(len(train), math.ceil(settings.batch_size / 2))
        if workers > smallest:
            raise ConfigError(f"{workers} workers cannot share a batch of {smallest} clips: lower train.workers.")
        self.network = network
        self.history: list[Epoch] = []
        self._train, self._validation, self._settings = train, validation, settings
        self._rank, self._workers = rank, workers
        self._optimizer = torch.optim.AdamW(
            network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
            self._optimizer, T_0=settings.restart_period, eta_min=settings.minimum_learning_rate
        )
        self._best_weights: dict[str, Tensor] = {}
        self._validation_masks = self._fixed_masks()

    @property
    def best(self) -> Epoch | None:
        return next((epoch for epoch in reversed(self.history) if epoch.best), None)

    @property
    def finished(self) -> bool:
        """All epochs are done, patience has run out, or the loss is no longer a number."""
        if not self.history:
            return False
        last = self.history[-1]
        waited = last.epoch - (self.best.epoch if self.best else 0)
        diverged = not math.isfinite(last.validation_loss)
        return last.epoch >= self._settings.epochs or waited >= self._settings.patience or diverged

    def run_epoch(self) -> Epoch:
        """Train one more epoch and validate."""
        started = time.monotonic()
        number = len(self.history) + 1
        learning_rate = float(self._optimizer.param_groups[0]["lr"])
        train_loss = self._train_epoch(number)
        self._schedule.step()
        validation_loss = self.validate()
        lowest = self.best.validation_loss if self.best else math.inf
        improved = validation_loss < lowest - self._settings.minimum_improvement
        if improved:
            self._best_weights = {name: value.detach().cpu().clone() for name, value in _weights(self.network).items()}
        took = time.monotonic() - started
        epoch = Epoch(number, train_loss, validation_loss, learning_rate, took, improved)
        self.history.append(epoch)
        return epoch

    def validate(self) -> float:
        """Mean loss over the validation clips, the same on every worker."""
        was_training = self.network.training
        self.network.eval()
        total = torch.zeros((), dtype=torch.float64, device=self._validation.device)
        with torch.inference_mode():
            mine = torch.arange(len(self._validation))[self._rank :: self._workers]
            for indices in mine.split(self._settings.batch_size):
                x = self._validation[indices]
                mask = None if self._validation_masks is None else self._validation_masks[indices]
                # Unwrapped: the wrapper for gradient exchange would want every worker to call equally often.
                total += _loss_per_clip(_unwrapped(self.network), x, mask).double().sum()
        self.network.train(was_training)
        return float(self._summed(total)) / len(self._validation)

    def best_weights(self) -> dict[str, Tensor]:
        """The weights of the best epoch, on the CPU; empty before one."""
        return self._best_weights

    def state(self) -> dict[str, Any]:
        """All that is needed to go on: plain tensors, numbers and lists, fit for `torch.load(weights_only=True)`."""
        return {
            "network": _weights(self.network),
            "best_weights": self._best_weights,
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "history": [asdict(epoch) for epoch in self.history],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        _unwrapped(self.network).load_state_dict(state["network"])
        self._best_weights = state["best_weights"]
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self._schedule.load_state_dict(state["schedule"])
        self.history = [Epoch(**epoch) for epoch in state["history"]]

    def _train_epoch(self, number: int) -> float:
        self.network.train()
        torch.manual_seed(_key(self._settings.seed, "dropout", number, self._rank))
        total = torch.zeros((), dtype=torch.float64, device=self._train.device)
        masks = self._generator("masks", number)
        for batch in self._batches(number):
            mine = batch[self._rank :: self._workers].to(self._train.device)
            mask = self._masks(len(batch), masks)
            losses = _loss_per_clip(
                self.network, self._train[mine], None if mask is None else mask[self._rank :: self._workers]
            )
            # The gradients of all workers are averaged: weighted so, the average is that of the whole batch.
            loss = losses.sum() * (self._workers / len(batch))
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._optimizer.step()
            total += losses.detach().double().sum()
        return float(self._summed(total)) / len(self._train)

    def _batches(self, number: int) -> Iterator[Tensor]:
        order = torch.randperm(len(self._train), generator=torch.Generator().manual_seed(self._seed("order", number)))
        batches = list(order.split(self._settings.batch_size))
        if len(batches) > 1 and len(batches[-1]) < math.ceil(self._settings.batch_size / 2):
            batches[-2:] = [torch.cat(batches[-2:])]
        return iter(batches)

    def _masks(self, n_clips: int, generator: torch.Generator) -> Tensor | None:
        ratio = self._settings.mask_ratio
        if ratio is None:
            return None
        n_mels, n_frames = self._train.shape[1:]
        return patch_masks(n_clips, n_mels, n_frames, patch=self._settings.patch, ratio=ratio, generator=generator)

    def _fixed_masks(self) -> Tensor | None:
        return self._masks(len(self._validation), self._generator("validation"))

    def _generator(self, purpose: str, number: int = 0) -> torch.Generator:
        return torch.Generator(device=self._train.device).manual_seed(self._seed(purpose, number))

    def _seed(self, purpose: str, number: int) -> int:
        return _key(self._settings.seed, purpose, number, 0)

    def _summed(self, total: Tensor) -> Tensor:
        if self._workers > 1:
            dist.all_reduce(total)
        return total


def _loss_per_clip(network: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """(B,): the mean squared error of all cells, or of the hidden ones."""
    if mask is None:
        return mse_per_clip(network(x), x)
    return masked_mse(network(apply_mask(x, mask)), x, mask)


def _unwrapped(network: nn.Module) -> nn.Module:
    inner = getattr(network, "module", network)
    assert isinstance(inner, nn.Module)
    return inner


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in _unwrapped(network).state_dict().items()}


def _key(seed: int, purpose: str, number: int, rank: int) -> int:
    """63 bits that depend on all four, for one generator."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{number}/{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
