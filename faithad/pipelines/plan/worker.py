"""What Ray's processes do for a plan's measurement: the real work on a few clips; see also `plan.idle`."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import ray
import torch

from faithad.config.sections import Attribution, Audit
from faithad.config.study import parse_study
from faithad.model.table import MODELS
from faithad.model.training import Training
from faithad.pipelines.audit.worker import Auditor, ShardedPass, read_shard
from faithad.pipelines.training.worker import new_network
from faithad.settings import FeatureSettings, TrainingSettings

# Clips of a training's measurement; one whole batch at least.
_TRAIN_CLIPS, _VALIDATION_CLIPS = 24, 8
# After so many seconds nothing is timed once more.
_ENOUGH_S, _ENOUGH_EPOCHS_S = 0.7, 6.0


@dataclass(frozen=True)
class Trial:
    """What a process tries out: all of `works` in their order, each of one shard.

    Attributes:
        works: by name; those that only warm up have a name that begins with `_`.
        attribution: the settings of the explanations,
        audit: of the audit,
        features: and of the features.
    """

    works: Mapping[str, ShardedPass]
    attribution: Attribution
    audit: Audit
    features: FeatureSettings


@dataclass(frozen=True)
class Times:
    """Seconds to read and to audit each work, and the peak of the process's memory."""

    read_s: Mapping[str, float]
    audit_s: Mapping[str, float]
    memory_gib: float


def stand() -> None:
    """Be there: all that the work needs is imported with this module."""
    time.sleep(0.2)  # or one process would do it all


def time_audit(trial: Trial) -> Times:
    """Read and audit every work of a trial on one thread, and tell how long it took."""
    works = list(trial.works.values())
    shared: dict[str, Any] = {"passes": works, "features": trial.features, "run": "plan"}
    auditor = Auditor(attribution=trial.attribution, audit=trial.audit, threads=1, **shared)
    read_s, audit_s = {}, {}
    for number, (name, _) in enumerate(trial.works.items()):
        row = read_shard({"pass": number, "shard": 0}, **shared)
        read_s[name] = _seconds(lambda number=number: read_shard({"pass": number, "shard": 0}, **shared))  # type: ignore[misc]
        audit_s[name] = _seconds(lambda row=row: auditor(row))  # type: ignore[misc]
    memory_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return Times(read_s, audit_s, memory_gib)


def time_training(study_yaml: str, model: str, threads: int) -> tuple[float, float]:
    """Seconds for a clip to learn from and for one to validate on, in a training of so many threads."""
    study = parse_study(study_yaml, name="study.yaml")
    device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    n_train = max(_TRAIN_CLIPS, study.train.batch_size)
    train, validation = (
        torch.randn(n, study.features.n_mels, study.n_frames(model), device=device)
        for n in (n_train, _VALIDATION_CLIPS)
    )
    known = {field.name for field in fields(TrainingSettings)}
    values = {key: value for key, value in study.train.model_dump().items() if key in known} | {"seed": 0}
    values["mask_ratio"] = values["mask_ratio"] if MODELS[model].masked else None
    training = Training(new_network(study, model, device), train, validation, TrainingSettings(**values))
    training.run_epoch()
    epoch_s = _seconds(training.run_epoch, enough_s=_ENOUGH_EPOCHS_S)
    validation_s = _seconds(training.validate)
    return max(0.0, epoch_s - validation_s) / n_train, validation_s / _VALIDATION_CLIPS


def _seconds(do: Callable[[], object], *, enough_s: float = _ENOUGH_S) -> float:
    """The least of up to five times, of fewer where it takes long: whatever comes between can only add to it."""
    took: list[float] = []
    while not took or (len(took) < 5 and sum(took) < enough_s):
        started = time.perf_counter()
        do()
        took.append(time.perf_counter() - started)
    return min(took)
