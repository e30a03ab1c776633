"""Training of one network, epoch by epoch, with or without other workers; knows nothing of clusters.

Source: Deschênes et al. 2026 (arXiv 2601.12660), section 3, and its published experiment. AdamW, a learning rate that
changes once an epoch, early stopping on the validation loss; the best epoch's weights are the result.

Shape letters: n clips of a split, B clips of a batch, F mel bands, T frames, p the edge of a patch.

The random numbers of an epoch are keyed: the order of the clips by (seed, epoch), the masks by (seed, epoch, clip), the
dropout by (seed, epoch, clip, layer). So a training that was killed and goes on from a saved state ends as it would
have ended, and none of them depends on the number of workers: these share each batch, and batch normalisation sums over
all of them. Every worker needs every clip: if each had a fixed share of the clips, the batches would change with the
number of workers. The clips of the paper's data set take half a GB.

A training diverges if the validation loss is not a finite number, or exceeds `divergence_factor` times the best one.
The first time, it goes back to the weights of the best epoch. The count of epochs goes on, so that order, masks and
schedule are not those that led to the divergence. The learning rate is halved from then on, and AdamW starts with empty
moments: those of the best epoch would double the size of each checkpoint, and the current ones led to the divergence.
The second time, or without a best epoch, the training ends with the best weights.

Departures from the published experiment:
1. Its loader re-seeds the mask from 5,000 values for each item, so that only about a hundred masks ever occur; here
   each clip has a new mask in each epoch. Validation masks are fixed, one per clip.
2. A last batch of less than half the size joins the one before it, so that no batch is too small for batch
   normalisation.
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from faithad.errors import ConfigError, StudyError
from faithad.model.keyed_dropout import key_dropout
from faithad.model.masking import apply_mask, cells_of, hidden_patches, masked_mse, mse_per_clip
from faithad.model.micro_batches import sent
from faithad.model.optimization import learning_rate, new_optimizer
from faithad.model.precision import arithmetic, low_precision, refuse_precision
from faithad.model.random_bits import random_bits
from faithad.settings import Precision, TrainingSettings

_RATE_AFTER_DIVERGENCE = 0.5
# Drawing the hidden patches of this many clips at once takes about 50 MB at 2,000 patches each.
_CLIPS_AT_ONCE = 512


@dataclass(frozen=True)
class Epoch:
    """The results of one epoch.

    `epoch` counts from 1. `best`: the validation loss is the lowest so far, by at least the minimum improvement.
    `diverged`: the epoch's weights were given up. `gradient_norm`: mean over the epoch's steps of the norm of the
    gradient of the batch's mean loss, over all weights; None in states of release 0.1.0.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    learning_rate: float
    duration_s: float
    best: bool
    diverged: bool = False
    gradient_norm: float | None = None


class Training:
    """A training that can be saved after any epoch and continued elsewhere.

    Args:
        network: (B, F, T) → (B, F, T); wrapped for gradient exchange where there are several workers. Its dropout is
            replaced by keyed dropout, see `keyed_dropout`.
        train: (n, F, T), normalised; on the network's device, or on the host, from which each batch is copied.
        validation: the clips whose loss stops the training; shape and place as for `train`.
        settings: the constants.
        rank: this worker, from 0.
        workers: how many share the training; more than one needs an initialised process group.

    Raises:
        ConfigError: a split is empty, a batch has fewer clips than there are workers, or a setting is impossible.
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
        refuse_precision(network, settings.precision)
        learning_rate(settings, 1)
        self.network = network
        self.history: list[Epoch] = []
        self._train, self._validation, self._settings = train, validation, settings
        self._rank, self._workers = rank, workers
        self._device = next(network.parameters()).device
        self._dropout = key_dropout(_unwrapped(network))
        self._optimizer = new_optimizer(network, settings)
        self._best_weights: dict[str, Tensor] = {}
        self._validated = torch.arange(len(validation))[rank::workers]
        self._validation_patches = self._hidden_patches(self._validated, "validation")

    @property
    def best(self) -> Epoch | None:
        return next((epoch for epoch in reversed(self.history) if epoch.best), None)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, patience ran out after the best epoch, or the training diverged for good."""
        if not self.history:
            return False
        best, diverged = self.best, [epoch.epoch for epoch in self.history if epoch.diverged]
        if diverged and (len(diverged) > 1 or best is None):
            return True
        # Patience starts anew where the training went back to the best epoch.
        since = max([0 if best is None else best.epoch, *diverged])
        last = self.history[-1].epoch
        return last >= self._settings.epochs or last - since >= self._settings.patience

    def run_epoch(self) -> Epoch:
        """Train one more epoch and validate; if that diverged, go back to the best epoch's weights."""
        started = time.monotonic()
        number = len(self.history) + 1
        rate = learning_rate(self._settings, number)
        if any(epoch.diverged for epoch in self.history):
            rate *= _RATE_AFTER_DIVERGENCE
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        train_loss, gradient_norm = self._train_epoch(number)
        validation_loss = self.validate()
        lowest = self.best.validation_loss if self.best else math.inf
        improved = validation_loss < lowest - self._settings.minimum_improvement
        # With an infinite factor and a lowest loss of 0 the limit is NaN, and no loss is above it.
        diverged = not math.isfinite(validation_loss) or validation_loss > self._settings.divergence_factor * lowest
        if improved:
            self._best_weights = {name: value.detach().cpu().clone() for name, value in _weights(self.network).items()}
        elif diverged and self._best_weights:
            _unwrapped(self.network).load_state_dict(self._best_weights)
            self._optimizer = new_optimizer(self.network, self._settings)
        took = time.monotonic() - started
        epoch = Epoch(number, train_loss, validation_loss, rate, took, improved, diverged, gradient_norm)
        self.history.append(epoch)
        return epoch

    def validate(self) -> float:
        """Mean loss over the validation clips, the same on every worker; in float32, as the model will be used."""
        was_training = self.network.training
        self.network.eval()
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        # With fewer clips than workers, some workers have none.
        batches = self._validated.split(self._settings.batch_size) if len(self._validated) else ()
        with torch.inference_mode(), arithmetic("float32"):
            for x, mask in self._inputs(self._validation, batches, self._validation_patches):
                # Unwrapped: the wrapper for gradient exchange needs equally many calls on every worker.
                total += _loss_per_clip(_unwrapped(self.network), x, mask).double().sum()
        self.network.train(was_training)
        return float(self._summed(total)) / len(self._validation)

    def best_weights(self) -> dict[str, Tensor]:
        """The weights of the best epoch, on the CPU; empty before there is one."""
        return self._best_weights

    def state(self) -> dict[str, Any]:
        """All that `restore` needs: tensors, numbers and lists, which `torch.load(weights_only=True)` reads."""
        return {
            "network": _weights(self.network),
            "best_weights": self._best_weights,
            "optimizer": self._optimizer.state_dict(),
            "history": [asdict(epoch) for epoch in self.history],
            "threads": torch.get_num_threads(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned; on a CPU with as many threads, which decide how sums are rounded."""
        _unwrapped(self.network).load_state_dict(state["network"])
        self._best_weights = state["best_weights"]
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        if self._device.type == "cpu":
            torch.set_num_threads(state.get("threads", torch.get_num_threads()))  # states of 0.1.0 have none

    def require_same_epoch(self) -> None:
        """Check that all workers go on from the same epoch: from different ones they would train nonsense.

        Raises:
            StudyError: they do not; raised on every worker.
        """
        if self._workers > 1:
            n_epochs = len(self.history)
            bounds = torch.tensor([n_epochs, -n_epochs], device=self._device)
            dist.all_reduce(bounds, op=dist.ReduceOp.MAX)
            if bounds.sum():
                raise StudyError(f"The workers of a training read different states; this one's has {n_epochs} epochs.")

    def _train_epoch(self, number: int) -> tuple[float, float]:
        """The mean loss of the clips and the mean norm of the gradient."""
        self.network.train()
        # For networks that draw random numbers by themselves.
        torch.manual_seed(_key(self._settings.seed, "worker", number, self._rank))
        total, norms = torch.zeros((2,), dtype=torch.float64, device=self._device)
        batches = self._batches(number)
        mine = [batch[self._rank :: self._workers] for batch in batches]
        clips = torch.cat(mine)
        patches = self._hidden_patches(clips, "masks", number)
        noise = random_bits(sent(clips, self._device), _key(self._settings.seed, "dropout", number))
        keys = noise.split([len(batch) for batch in mine])
        with arithmetic(self._settings.precision):
            inputs = self._inputs(self._train, mine, patches)
            for batch, clip_keys, (x, mask) in zip(batches, keys, inputs, strict=True):
                for layer in self._dropout:
                    layer.clips = clip_keys
                losses, norm = self._learn(x, mask, batch_size=len(batch))
                total += losses.double().sum()
                norms += norm
        # Each worker has the gradient of the whole batch.
        return float(self._summed(total)) / len(self._train), float(norms) / len(batches)

    def _learn(self, x: Tensor, mask: Tensor | None, *, batch_size: int) -> tuple[Tensor, Tensor]:
        """Do one step on this worker's share of a batch.

        Returns:
            The losses of the share's clips, and the norm of the whole batch's gradient.
        """
        losses = _loss_per_clip(self.network, x, mask, self._settings.precision)
        # The gradients of all workers are averaged; with this weight the average is that of the whole batch.
        loss = losses.sum() * (self._workers / batch_size)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradients = [weight.grad for weight in self.network.parameters() if weight.grad is not None]
        self._optimizer.step()
        return losses.detach(), nn.utils.get_total_norm(gradients)

    def _batches(self, number: int) -> list[Tensor]:
        """The numbers of the clips in each batch, for all workers together."""
        generator = torch.Generator().manual_seed(_key(self._settings.seed, "order", number))
        batches = list(torch.randperm(len(self._train), generator=generator).split(self._settings.batch_size))
        if len(batches) > 1 and len(batches[-1]) < math.ceil(self._settings.batch_size / 2):
            batches[-2:] = [torch.cat(batches[-2:])]
        return batches

    def _inputs(
        self, split: Tensor, batches: Sequence[Tensor], patches: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The clips and the masks of each batch, on the network's device.

        Args:
            split: (n, F, T).
            batches: the numbers of the clips in each batch.
            patches: the hidden patches of all these clips, in the same order.
        """
        if not batches:
            return
        sizes = [len(batch) for batch in batches]
        numbers = sent(torch.cat(list(batches)), split.device).split(sizes)
        hidden = [None] * len(sizes) if patches is None else patches.split(sizes)
        for clips, parts in zip(numbers, hidden, strict=True):
            # If the clips are on the host, they are copied while the step before is computed.
            x = split[clips] if split.device == self._device else sent(split[clips], self._device)
            yield x, None if parts is None else cells_of(parts, self._settings.patch)

    def _hidden_patches(self, clips: Tensor, purpose: str, number: int = 0) -> Tensor | None:
        """(B, F/p, T/p) bool on the network's device, for all clips of an epoch at once, which is fast on a GPU."""
        if self._settings.mask_ratio is None:
            return None
        n_mels, n_frames = self._train.shape[1:]
        key = _key(self._settings.seed, purpose, number)
        parts = [
            hidden_patches(part, n_mels, n_frames, patch=self._settings.patch, ratio=self._settings.mask_ratio, key=key)
            for part in sent(clips, self._device).split(_CLIPS_AT_ONCE)
        ]
        return torch.cat(parts)

    def _summed(self, total: Tensor) -> Tensor:
        if self._workers > 1:
            dist.all_reduce(total)
        return total


def _loss_per_clip(network: nn.Module, x: Tensor, mask: Tensor | None, precision: Precision = "float32") -> Tensor:
    """(B,): the mean squared error over all cells, or over the hidden cells, in the precision of x."""
    with low_precision(precision, x.device):
        y = network(x if mask is None else apply_mask(x, mask))
    y = y.to(x.dtype)
    return mse_per_clip(y, x) if mask is None else masked_mse(y, x, mask)


def _unwrapped(network: nn.Module) -> nn.Module:
    inner = getattr(network, "module", network)
    assert isinstance(inner, nn.Module)
    return inner


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in _unwrapped(network).state_dict().items()}


def _key(seed: int, purpose: str, number: int, rank: int = 0) -> int:
    """A seed of 63 bits that depends on all four arguments."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{number}/{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
