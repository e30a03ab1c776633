"""One worker of a small training, run as a process by test_training: `python train_with_workers.py OUT KIND`.

Reads RANK, WORLD_SIZE and, with several workers, INIT_METHOD. Rank 0 writes the losses and the weights to OUT.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from faithad.model.shared_batch_norm import share_batch_norm
from faithad.model.skip_cae_transformer import SkipCAETransformer
from faithad.model.training import Training, TrainingSettings


def main() -> None:
    out, kind = Path(sys.argv[1]), sys.argv[2]
    rank, workers = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    # Adam's first steps have the gradient's sign, which rounding alone can turn; in 64 bits nothing hides behind that.
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    # Dropout is drawn by each worker: without it, the workers' number must not matter at all.
    network: torch.nn.Module = SkipCAETransformer(16, 32, dropout=0.0)
    if workers > 1:
        dist.init_process_group("gloo", init_method=os.environ["INIT_METHOD"], rank=rank, world_size=workers)
        network = DistributedDataParallel(share_batch_norm(network))
    sounds = torch.randn(21, 16, 32, generator=torch.Generator().manual_seed(1))
    settings = TrainingSettings(
        epochs=3,
        batch_size=8,
        learning_rate=1e-3,
        minimum_learning_rate=1e-5,
        weight_decay=0.01,
        restart_period=5,
        patience=5,
        minimum_improvement=0.0,
        mask_ratio=0.3 if kind == "mae" else None,
        patch=4,
        seed=3,
    )
    training = Training(network, sounds[:16], sounds[16:], settings, rank=rank, workers=workers)
    while not training.finished:
        training.run_epoch()
    if rank == 0:
        losses = [(epoch.train_loss, epoch.validation_loss) for epoch in training.history]
        torch.save({"losses": losses, "weights": training.best_weights()}, out)
    if workers > 1:
        dist.destroy_process_group()


main()
