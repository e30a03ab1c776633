"""One worker of small trainings, run as a process by test_training_workers: `python train_with_workers.py OUT KIND...`.

Reads RANK, WORLD_SIZE and, with several workers, INIT_METHOD. Rank 0 writes losses and weights of each kind to OUT:
`ae`, `mae`, `diverging` (it goes back once), `small`, `small_compiled` (by torch.compile, whose graphs are run as is).
With several workers, it also writes whether each of them notices that another one restored a different state.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from faithad.errors import StudyError
from faithad.model.shared_batch_norm import share_batch_norm
from faithad.model.skip_cae_transformer import SkipCAETransformer
from faithad.model.training import Training
from faithad.settings import TrainingSettings


def main() -> None:
    out, kinds = Path(sys.argv[1]), sys.argv[2:]
    rank, workers = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    # Adam's first steps have the gradient's sign, which rounding alone can turn; in 64 bits nothing hides behind that.
    torch.set_default_dtype(torch.float64)
    if workers > 1:
        dist.init_process_group("gloo", init_method=os.environ["INIT_METHOD"], rank=rank, world_size=workers)
    results = {kind: train(kind, rank, workers) for kind in kinds}
    if workers > 1:
        results["notices"] = notices_a_different_state(rank, workers)
    if rank == 0:
        torch.save(results, out)
    # The networks are gone by now: the destructor of a network that outlives its process group can hang.
    if workers > 1:
        # Without it, rank 1 aborted in 5 of 18 runs: gloo was shut down on one side while the other still used it.
        dist.barrier()
        dist.destroy_process_group()


class SmallNetwork(torch.nn.Module):
    """Compiled in seconds; normalises its batches, and drops cells, in training."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = (torch.nn.Conv2d(*channels, 3, padding=1) for channels in ((1, 3), (3, 1)))
        self.bn, self.dropout = torch.nn.BatchNorm2d(3), torch.nn.Dropout(0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.dropout(torch.relu(self.bn(self.first(x[:, None])))))[:, 0]


def notices_a_different_state(rank: int, workers: int) -> list[bool]:
    """By rank: whether a worker raises once the first one alone restored the state of a later epoch."""
    training, other = (open_training("small", rank, workers) for _ in range(2))
    training.run_epoch()
    training.require_same_epoch()
    if rank == 0:
        other.restore(training.state())
    notices = torch.zeros(workers)
    try:
        other.require_same_epoch()
    except StudyError:
        notices[rank] = 1
    dist.all_reduce(notices)
    return [bool(noticed) for noticed in notices]


def train(kind: str, rank: int, workers: int) -> dict[str, Any]:
    training = open_training(kind, rank, workers)
    while not training.finished:
        training.run_epoch()
    losses = [(epoch.train_loss, epoch.validation_loss, epoch.gradient_norm) for epoch in training.history]
    diverged = [epoch.diverged for epoch in training.history]
    return {"losses": losses, "diverged": diverged, "weights": training.best_weights()}


def open_training(kind: str, rank: int, workers: int) -> Training:
    torch.manual_seed(0)
    network: torch.nn.Module = SmallNetwork() if kind.startswith("small") else SkipCAETransformer(16, 32)
    if kind == "small_compiled":
        network.compile(backend="eager")
    if workers > 1:
        network = DistributedDataParallel(share_batch_norm(network))
    sounds = torch.randn(21, 16, 32, generator=torch.Generator().manual_seed(1))
    settings = TrainingSettings(
        epochs=4,
        batch_size=8,
        learning_rate=1e-3,
        minimum_learning_rate=1e-5,
        weight_decay=0.01,
        restart_period=5,
        patience=5,
        minimum_improvement=0.0,
        mask_ratio=None if kind == "ae" else 0.3,
        patch=4,
        seed=3,
        divergence_factor=1.0 if kind == "diverging" else math.inf,
    )
    return Training(network, sounds[:16], sounds[16:], settings, rank=rank, workers=workers)


main()
