"""What each process of a training does: it trains epoch by epoch, and the first one saves states, table and model."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import ray.train.torch
import torch

from faithad import parquet, schemas, storage
from faithad.config.study import Study
from faithad.errors import ConfigError
from faithad.model.checkpoint import load_model, read_state
from faithad.model.shared_batch_norm import share_batch_norm
from faithad.model.training import Training
from faithad.pipelines.features import TRAINING_SPLITS
from faithad.pipelines.training.clips import placed, training_clips
from faithad.pipelines.training.task import TrainingTask, Worker, network_of
from faithad.pipelines.training.trained import save_network
from faithad.runs import layout


def train_network(task: TrainingTask, worker: Worker) -> None:
    """Train to the end, from the last saved state if there is one.

    The state is our own file, with Ray Train's workers too: one way for one worker and for several, and for every
    storage that `faithad.storage` writes to.
    """
    training = open_training(task, worker, saved_state(task.state))
    is_first = worker.rank == 0
    if is_first and training.history:
        write_epochs(training, task)  # it may lack the last epoch: the state is written first
    with state_writer(task.state) as write_state:
        while not training.finished:
            epoch = training.run_epoch()
            if is_first:
                if training.finished or epoch.epoch % task.study.train.checkpoint_every == 0:
                    write_state(training.state())
                write_epochs(training, task)
    if is_first:
        save_network(training, task, device=worker.device)


def open_training(task: TrainingTask, worker: Worker, state: dict[str, Any] | None) -> Training:
    """A training with its clips in memory, at the state, or before its first epoch. With one worker it needs no Ray.

    Raises:
        StudyError: the workers read different states. Ray Train then starts all of them again.
    """
    if worker.device.type == "cpu":
        torch.set_num_threads(task.threads)
    torch.manual_seed(task.seed)
    network = new_network(task.study, task.model, worker.device, workers=worker.n_workers)
    if worker.n_workers > 1:
        # The buffers, which the wrapper would broadcast before each step, are equal on all workers already.
        options = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
        network = ray.train.torch.prepare_model(network, parallel_strategy_kwargs=options)
    train, validation = (placed(training_clips(task, split), worker.device) for split in TRAINING_SPLITS)
    training = Training(network, train, validation, task.settings, rank=worker.rank, workers=worker.n_workers)
    if state is not None:
        training.restore(state)
    # A process on a machine that was cut off may still have written a state, between the reads of two workers.
    training.require_same_epoch()
    return training


def saved_state(location: str) -> dict[str, Any] | None:
    """What a `state_writer` wrote last, None before the first time."""
    return read_state(location) if storage.exists(location) else None


def new_network(study: Study, model: str, device: torch.device, *, workers: int = 1) -> torch.nn.Module:
    """An untrained network as it is to be trained: laid out for the device, compiled where the study says so."""
    network = network_of(study, model)
    if study.train.init_from is not None:
        load_initial_weights(network, study, model)
    # With two to eight channels, oneDNN's and cuDNN's other layout is slow in the backward pass.
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    # With one GPU, or compiled, PyTorch's own batch normalisation is the faster one.
    if workers > 1 or (device.type == "cpu" and study.train.compile == "none"):
        share_batch_norm(network)
    if study.train.compile != "none":
        # In place: a wrapper would change the names of the weights.
        network.compile(mode=study.train.compile)
    return network


def load_initial_weights(network: torch.nn.Module, study: Study, model: str) -> None:
    """Give a network the weights of the model that `train.init_from` names.

    Raises:
        CheckpointError: there is no such model, or it has other features than the study.
        ConfigError: it is another network.
    """
    assert study.train.init_from is not None
    trained = load_model(study.train.init_from, expect={"features": study.feature_settings})
    try:
        network.load_state_dict(trained.network.state_dict())
    except RuntimeError as error:
        raise ConfigError(
            f"train.init_from {study.train.init_from} is a model {trained.name!r} of {trained.n_mels} mel bands x "
            f"{trained.n_frames} frames, whose weights do not fit {model!r} of {study.features.n_mels} x "
            f"{study.n_frames(model)}. Leave {model!r} out of models, or name another model."
        ) from error


@contextlib.contextmanager
def state_writer(location: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that writes states while the next epoch runs: an object store may take longer than an epoch.

    The states consist of tensors and plain values, ready for `saved_state`. Once the function returns, the state before
    is in place; once the block ends, the last one is.
    """
    writing = Future[None]()
    writing.set_result(None)

    def write(state: dict[str, Any]) -> None:
        nonlocal writing
        content = io.BytesIO()
        torch.save(state, content)
        writing.result()
        writing = pool.submit(storage.write_bytes, location, content.getvalue())

    with ThreadPoolExecutor(1) as pool:
        yield write
    writing.result()


def write_epochs(training: Training, task: TrainingTask) -> None:
    """The table of all epochs so far, which the driver shows while the training runs."""
    rows = [{"model": task.model, "seed": task.seed, **vars(epoch)} for epoch in training.history]
    location = storage.join(task.folder, layout.EPOCHS)
    parquet.write_table(pa.Table.from_pylist(rows, schema=schemas.EPOCHS), location, schema=schemas.EPOCHS)
