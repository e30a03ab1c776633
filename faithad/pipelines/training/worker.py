"""What one worker does: train epoch by epoch on the clips that all of a machine share, report and save."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from faithad import schemas, storage
from faithad.config.study import Study, parse_study
from faithad.model.checkpoint import read_state
from faithad.model.shared_batch_norm import share_batch_norm
from faithad.model.table import build_network
from faithad.model.training import Training
from faithad.pipelines.features import TRAINING_SPLITS
from faithad.pipelines.training.clips import placed, training_clips
from faithad.pipelines.training.trained import save_network
from faithad.runs import layout
from faithad.settings import TrainingSettings

STATE_FILE = "state.pt"


def train_worker(arguments: Mapping[str, Any]) -> None:
    """Train on this worker's share of each batch until the training is finished, as one of Ray Train's workers.

    Args:
        arguments: as `open_training` takes them, and `root`, `fingerprint` and `checkpoint_every`.
    """
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    training = open_training(arguments, device=device, rank=rank, workers=workers)
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        training.restore(read_checkpoint(checkpoint))
    while not training.finished:
        epoch = training.run_epoch()
        if rank == 0:
            write_epochs(training, arguments)
        if training.finished or epoch.epoch % arguments["checkpoint_every"] == 0:
            _report(training, rank)
    if rank == 0:
        save_network(training, arguments, device=device)


def open_training(arguments: Mapping[str, Any], *, device: torch.device, rank: int = 0, workers: int = 1) -> Training:
    """A training at its start, the clips in memory; needs neither Ray nor Ray Train where there is one worker.

    Args:
        arguments: `study` (YAML), `model`, `seed`, `settings` (of `TrainingSettings`), `threads`, and what
            `training_clips` reads.
        device: where the network goes, and the clips where they fit.
        rank: this worker, from 0.
        workers: how many share the training.
    """
    study = parse_study(arguments["study"], name="study.yaml")
    if device.type == "cpu":
        torch.set_num_threads(arguments["threads"])
    torch.manual_seed(arguments["seed"])
    network = new_network(study, arguments["model"], device, workers=workers)
    if workers > 1:
        # What the wrapper would send around before each step, the buffers, is the same everywhere already.
        options = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
        network = ray.train.torch.prepare_model(network, parallel_strategy_kwargs=options)
    train, validation = (placed(training_clips(arguments, study, split), device) for split in TRAINING_SPLITS)
    settings = TrainingSettings(**arguments["settings"])
    return Training(network, train, validation, settings, rank=rank, workers=workers)


def new_network(study: Study, model: str, device: torch.device, *, workers: int = 1) -> torch.nn.Module:
    """An untrained network as it is to be trained: laid out for the device, compiled where the study says so."""
    network = build_network(model, study.features.n_mels, study.n_frames(model))
    # With two to eight channels, oneDNN's and cuDNN's other layout is slow in the backward pass.
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    # With one GPU, or compiled, PyTorch's own batch normalisation is the faster one.
    if workers > 1 or (device.type == "cpu" and study.train.compile == "none"):
        share_batch_norm(network)
    if study.train.compile != "none":
        # In place: a wrapper around it would add to the names of the weights.
        network.compile(mode=study.train.compile)
    return network


def read_checkpoint(checkpoint: ray.train.Checkpoint) -> dict[str, Any]:
    """The state that a training saved; tensors and plain values only."""
    with checkpoint.as_directory() as folder:
        return read_state(os.path.join(folder, STATE_FILE))


def _report(training: Training, rank: int) -> None:
    last = training.history[-1]
    metrics = {"epoch": last.epoch, "train_loss": last.train_loss, "validation_loss": last.validation_loss}
    if dist.is_initialized():
        dist.barrier()
    if rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.save(training.state(), os.path.join(folder, STATE_FILE))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def write_epochs(training: Training, arguments: Mapping[str, Any]) -> None:
    """The table of all epochs so far, for people and for the driver that shows them."""
    root, model, seed = arguments["root"], arguments["model"], arguments["seed"]
    rows = [{"model": model, "seed": seed, **vars(epoch)} for epoch in training.history]
    table = pa.Table.from_pylist(rows, schema=schemas.EPOCHS)
    storage.write_table(table, storage.join(root, layout.epochs(model, seed)), schema=schemas.EPOCHS)
