"""How fast the work itself goes on this machine while all of its cores do the same, and what Ray takes for a shard."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from faithad.audit.steps import EXPLAIN, SCORE, Step
from faithad.config.audit import AuditRun
from faithad.config.sections import Audit
from faithad.config.study import Study
from faithad.model.table import MODELS
from faithad.pipelines.audit.passes import Spread, spread, stream
from faithad.pipelines.audit.worker import ModelAudit, ShardedPass
from faithad.pipelines.plan.idle import Idle, pass_on, task_seconds
from faithad.pipelines.plan.machines import Machines
from faithad.pipelines.plan.rates import Scheduling, Seconds
from faithad.pipelines.plan.worker import Times, Trial, stand, time_audit, time_training
from faithad.pipelines.shards.stream import ShardRow
from faithad.pipelines.training.places import divide
from faithad.settings import FeatureSettings

# So many that what the driver does before the first one counts for little.
_IDLE_SHARDS = 200


@dataclass(frozen=True)
class _Try:
    """A shard of so many clips, and what is done to them."""

    clips: int
    step: Step
    annotated: bool = False
    with_maps: bool = False


# In this order: the first one of an explained model warms up, too.
_EXPLAINING = {
    "with maps": _Try(1, EXPLAIN, with_maps=True),
    "plain": _Try(3, EXPLAIN),
    "annotated": _Try(2, EXPLAIN, annotated=True),
}
# Where no clip of the sample has any.
_INTERVALS = [{"onset_s": 1.0, "offset_s": 2.0}, {"onset_s": 4.0, "offset_s": 7.0}]
_SCORING = {"one": _Try(1, SCORE), "few": _Try(8, SCORE)}


@dataclass(frozen=True)
class AuditSpeed:
    """What auditing takes.

    Attributes:
        read_s: seconds to read a clip.
        speed: the rest, for `plan.rates.Speed`.
        tables: the folder of the tables of each try.
        memory_gib: of one process, at the most.
    """

    read_s: Seconds
    speed: dict[str, Any]
    tables: Mapping[str, str]
    memory_gib: float


@dataclass(frozen=True)
class IdlePass:
    """A pass in which nothing is done: how long it took, the driver's computing, and that of a process for a shard."""

    wall_s: Seconds
    driver_s: Seconds
    reader_s: Seconds
    actor_s: Seconds


def time_processes(here: Machines) -> Seconds:
    """Seconds until a process stands on each core. Where they are there already, on a Ray that others used, none."""
    started = time.monotonic()
    ray.get([ray.remote(stand).remote() for _ in range(max(1, int(here.cpus)))])
    return time.monotonic() - started


def time_audits(
    of: Study | AuditRun,
    models: Mapping[str, str],
    sample: pa.Table,
    features: FeatureSettings,
    here: Machines,
    folder: Path,
) -> AuditSpeed:
    """Let a process for each core (or GPU) read, score and explain some clips, all at the same time.

    Args:
        of: the study or the audit.
        models: folders of trained models, by name.
        sample: clips that can be read, rows of a manifest.
        features: of the models.
        here: what there is.
        folder: for what they write.
    """
    gpus = of.audit.gpus_per_actor
    n = max(1, int(here.gpus / gpus if gpus else here.cpus))
    task = ray.remote(time_audit).options(num_cpus=1, num_gpus=gpus or None)
    trials = [Trial(_works(models, sample, folder / f"{k}"), of.attribution, of.audit, features) for k in range(n)]
    found = ray.get([task.remote(trial) for trial in trials])
    return AuditSpeed(
        read_s=_median(found, lambda times: times.read_s["few"]) / _SCORING["few"].clips,
        speed=_speed(found, list(models)),
        tables={name: work.audit.out for name, work in trials[0].works.items()},
        memory_gib=max(times.memory_gib for times in found),
    )


def _works(models: Mapping[str, str], sample: pa.Table, folder: Path) -> dict[str, ShardedPass]:
    """Every try with the first model, or the first that is explained; of the others a score tells enough."""
    first = next((model for model in models if MODELS[model].explained), next(iter(models)))
    wanted = {**(_EXPLAINING if MODELS[first].explained else {}), **_SCORING}
    works = {name: _work(models[first], sample, each, folder / name) for name, each in wanted.items()}
    others = [model for model in models if model != first]
    return works | {f"few {model}": _work(models[model], sample, _SCORING["few"], folder / model) for model in others}


def _work(model: str, sample: pa.Table, each: _Try, folder: Path) -> ShardedPass:
    rows = sample.to_pylist()
    marked: dict[str, Any] = {"annotated": False, "intervals": []}
    if each.annotated:
        own = [row for row in rows if row["annotated"]]
        rows, marked = own or rows, {} if own else {"annotated": True, "intervals": _INTERVALS}
    chosen = [{**rows[k % len(rows)], **marked, "clip_id": f"{k:016x}"} for k in range(each.clips)]
    clips = pa.Table.from_pylist(chosen, schema=sample.schema)
    clips = clips.append_column("keep_maps", pa.array([each.with_maps] * each.clips))
    return ShardedPass(ModelAudit(model, str(folder), None), each.step, ray.put(clips), each.clips)


def _speed(found: Sequence[Times], models: list[str]) -> dict[str, Any]:
    """Rates of a clip out of the times of shards."""
    first = next((model for model in models if MODELS[model].explained), models[0])

    def took(name: str) -> Seconds:
        return _median(found, lambda times: times.audit_s[name])

    n = _SCORING["few"].clips
    score = max(0.0, took("few") - took("one")) / (n - 1)
    shard = max(0.0, took("one") - score)
    scores = {model: max(0.0, took(f"few {model}") - shard) / n for model in models if model != first}
    speed: dict[str, Any] = {"shard": shard, "score": {first: score, **scores}}
    if MODELS[first].explained:
        plain, annotated = ((took(name) - shard) / _EXPLAINING[name].clips for name in ("plain", "annotated"))
        speed |= {"explain": max(0.0, plain - score), "annotated": max(0.0, annotated - plain)}
    return speed


def time_trainings(study: Study, machines: Machines, here: Machines) -> dict[str, dict[str, dict[int, Seconds]]]:
    """Seconds for a clip in a training of each model, side by side as they will be, as far as there is room here.

    Args:
        study: the study.
        machines: that it is planned for.
        here: what there is.

    Returns:
        `train` and `validation` of `plan.rates.Speed`.
    """
    models = [model for model in study.models if not MODELS[model].classical]
    gpus = study.train.gpus_per_worker
    wanted = {divide(each.nodes, study.train, len(study.runs)).threads for each in (machines, here)}
    most = max(1, int(max(node["CPU"] for node in here.nodes)))
    found: dict[str, dict[str, dict[int, Seconds]]] = {"train": {}, "validation": {}}
    for threads in sorted({1} if gpus else {min(each, most) for each in wanted}):
        room = max(1, int(here.gpus / gpus if gpus else here.cpus // threads))
        # As many at a time as will be: with fewer models than places each is there more than once.
        together = (
            [models[k % len(models)] for k in range(max(len(models), min(room, len(study.runs))))] if models else []
        )
        task = ray.remote(time_training).options(num_cpus=threads, num_gpus=gpus or None)
        took = ray.get([task.remote(study.to_yaml(), model, threads) for model in together])
        for model in models:
            times = [each for name, each in zip(together, took, strict=True) if name == model]
            for position, part in enumerate(("train", "validation")):
                found[part].setdefault(model, {})[threads] = statistics.median(each[position] for each in times)
    return found


def time_scheduling(audit: Audit, here: Machines) -> Scheduling:
    """What a shard takes of the driver and of each process when nothing is done to it."""
    crew = spread(audit, cpus=here.cpus, gpus=here.gpus, n_shards=_IDLE_SHARDS)
    found = idle_pass(_IDLE_SHARDS, Idle, spread=crew, gpus_per_actor=audit.gpus_per_actor)
    return Scheduling(driver=found.driver_s / _IDLE_SHARDS, reader=found.reader_s, actor=found.actor_s)


def idle_pass(n_shards: int, actor: type[Idle], *, spread: Spread, gpus_per_actor: float = 0.0) -> IdlePass:
    """Send shards through readers that read nothing and through actors that do as good as nothing."""
    rows: list[ShardRow] = [{"pass": 0, "shard": number} for number in range(n_shards)]
    before_s, started = time.process_time(), time.monotonic()
    came = list(stream(rows, pass_on, {}, actor, {}, spread=spread, gpus_per_actor=gpus_per_actor).iter_rows())
    return IdlePass(
        wall_s=time.monotonic() - started,
        driver_s=time.process_time() - before_s,
        reader_s=task_seconds(came, "reader"),
        actor_s=task_seconds(came, "actor"),
    )


def _median(found: Sequence[Times], value: Any) -> float:
    return float(statistics.median(value(times) for times in found))
