"""What one Ray Train worker does: load the features, train epoch by epoch, report and save after each."""

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
from faithad.config import parse_study
from faithad.features import Normalization
from faithad.model.shared_batch_norm import share_batch_norm
from faithad.model.skip_cae_transformer import SkipCAETransformer
from faithad.model.training import Training, TrainingSettings
from faithad.pipelines.features import load_features

STATE_FILE = "state.pt"


class Progress:
    """An actor that holds the last epoch that rank 0 spoke of, for the driver to show."""

    def __init__(self) -> None:
        self._last: dict[str, Any] = {}

    def push(self, last: dict[str, Any]) -> None:
        self._last = last

    def last(self) -> dict[str, Any]:
        return self._last


def train_worker(arguments: Mapping[str, Any]) -> None:
    """Train on this worker's share of each batch until the training is finished.

    Args:
        arguments: `study` (YAML), `model`, `seed`, `settings` (of `TrainingSettings`), `mean` and `std` of the
            normalisation, `threads`, and `progress`, an actor to push to.
    """
    study = parse_study(arguments["study"], name="study.yaml")
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(arguments["threads"])

    torch.manual_seed(arguments["seed"])
    n_frames = study.n_frames(arguments["model"])
    network: torch.nn.Module = SkipCAETransformer(study.features.n_mels, n_frames)
    # With two to eight channels, oneDNN's and cuDNN's other layout is slow in the backward pass.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if workers > 1:
        share_batch_norm(network)
    network = ray.train.torch.prepare_model(network)
    normalization = Normalization(torch.tensor(arguments["mean"]), torch.tensor(arguments["std"]))
    train, validation = (
        normalization.apply(load_features(study.root, split, study.feature_settings)[..., :n_frames]).to(device)
        for split in ("train", "validation")
    )
    settings = TrainingSettings(**arguments["settings"])
    training = Training(network, train, validation, settings, rank=rank, workers=workers)
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        training.restore(read_checkpoint(checkpoint))

    while not training.finished:
        epoch = training.run_epoch()
        if rank == 0:
            _write_epochs(training, study.root, arguments["model"], arguments["seed"])
            note = f"loss {epoch.train_loss:.4g}, validation {epoch.validation_loss:.4g}"
            arguments["progress"].push.remote({"epoch": epoch.epoch, "note": note})
        _report(training, rank)


def read_checkpoint(checkpoint: ray.train.Checkpoint) -> dict[str, Any]:
    """The state that a training saved; tensors and plain values only."""
    with checkpoint.as_directory() as folder:
        state: dict[str, Any] = torch.load(os.path.join(folder, STATE_FILE), map_location="cpu", weights_only=True)
    return state


def epochs_location(root: str, model: str, seed: int) -> str:
    return storage.join(root, "models", f"{model}-{seed}", "epochs.parquet")


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


def _write_epochs(training: Training, root: str, model: str, seed: int) -> None:
    rows = [{"model": model, "seed": seed, **vars(epoch)} for epoch in training.history]
    table = pa.Table.from_pylist(rows, schema=schemas.EPOCHS)
    storage.write_table(table, epochs_location(root, model, seed), schema=schemas.EPOCHS)
