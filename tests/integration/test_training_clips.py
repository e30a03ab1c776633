"""The clips of trainings, shared by all workers of a machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch

from faithad import parquet, storage
from faithad.config.study import Study
from faithad.features import Normalization
from faithad.pipelines.training.clips import share_clips, training_clips
from faithad.pipelines.training.task import TrainingTask


@pytest.mark.usefixtures("local_ray")
def test_workers_read_one_copy_of_the_normalised_clips(small_study: Callable[..., Study]) -> None:
    study = small_study()
    # 100 clips: Ray copies what is smaller than 100 kB.
    log_mels = {"train": _written(study, "train", 100), "validation": _written(study, "validation", 3)}
    normalization = Normalization(torch.linspace(-1, 1, 16), torch.linspace(1, 2, 16))
    alone = TrainingTask(study, "mae", 0, normalization, threads=1, state="", fingerprint="")
    shared = replace(alone, clips=share_clips(study, normalization))
    for split, log_mel in log_mels.items():
        for task in (alone, shared):
            assert torch.equal(training_clips(task, split), normalization.apply(log_mel)[..., :100])
    assert torch.equal(training_clips(replace(shared, model="ae"), "train"), normalization.apply(log_mels["train"]))

    workers = [ray.remote(_mapped).remote(shared) for _ in range(2)]
    mapped, others = ray.get(workers)
    assert mapped == others, "both map the same file, at the same place in it"
    assert mapped[0].startswith("/")


def _written(study: Study, split: str, n_clips: int) -> torch.Tensor:
    """Features as the stage before leaves them, one file, and what they are."""
    log_mels = np.random.default_rng(n_clips).normal(size=(n_clips, 16, 101)).astype(np.float32)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(log_mels.reshape(-1)), 16 * 101)
    table = pa.table({"clip_id": [f"{number:04d}" for number in range(n_clips)], "log_mel": flat})
    parquet.write_table(table, storage.join(study.root, "features", split, "part-00000.parquet"), schema=table.schema)
    return torch.from_numpy(log_mels)


def _mapped(task: TrainingTask) -> tuple[str, int]:
    """The file that the training clips are mapped from, and where they start in it."""
    clips = training_clips(task, "train")
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, offset, _, _, *name = line.split(maxsplit=5)
        start, end = (int(part, 16) for part in span.split("-"))
        if start <= clips.data_ptr() < end:
            return " ".join(name), clips.data_ptr() - start + int(offset, 16)
    return "", 0
