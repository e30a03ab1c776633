"""Passes over clips: Ray Data streams shards through readers and through actors that hold the models.

The chain is run again as long as it brings something: machines may go away, and processes die more often than Ray makes
up for. Which shards are left is told by the ledgers alone.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, TaskPoolStrategy

from faithad import storage
from faithad.audit.steps import Step
from faithad.config.sections import Attribution, Audit
from faithad.errors import StudyError
from faithad.pipelines.audit import worker as audit_worker
from faithad.pipelines.audit.worker import ModelAudit, Work
from faithad.pipelines.cluster.machines import told, wait_for_machines
from faithad.pipelines.cluster.session import cluster_total, ray_is_ours, ray_session
from faithad.pipelines.shards.stream import Row, Tally, WorkersLost, consume, dataset, shard_size
from faithad.progress import progress
from faithad.runs import layout
from faithad.runs.attempts import count_deaths
from faithad.settings import FeatureSettings

# An actor computes nearly all of the time, a reader hardly ever: a clip is scored in 10 ms and read in 4. So there is
# an actor for each core, which claims most of it, and the readers share the rest.
_CPUS_PER_ACTOR = 0.75
_CPUS_PER_READER = 0.25

_LESS_GPU = "Lower audit.gpus_per_actor; 0 audits on CPUs."


class Plan(NamedTuple):
    """One step of one model's audit, and the clips that it is done to."""

    audit: ModelAudit
    step: Step
    clips: pa.Table


class Spread(NamedTuple):
    """How the work is spread over a cluster.

    Attributes:
        actors: with which it begins.
        most_actors: that there may be, should machines join.
        readers: tasks that read at once; None for as many as there is room for.
        threads: of each actor.
    """

    actors: int
    most_actors: int
    readers: int | None
    threads: int


def run_plans(
    plans: Sequence[Plan], *, attribution: Attribution, audit: Audit, features: FeatureSettings, title: str
) -> None:
    """Do what is not done yet, and return when all of it is.

    Raises:
        StudyError: an actor asks for more than the cluster has, a shard could not be processed, or what was written
            cannot be seen here.
        CheckpointError: a model is missing, damaged or not what is expected.
    """
    plans = [plan for plan in plans if plan.clips.num_rows]
    todo = [(number, shard) for number, plan in enumerate(plans) for shard in _left(plan, audit)]
    if not todo:
        return
    for number in sorted({number for number, _ in todo}):
        plans[number].audit.load()  # a model that does not fit is better found here than on a hundred workers
    run = uuid.uuid4().hex
    sizes = [shard_size(plan.clips.num_rows, largest=audit.clips_per_shard) for plan in plans]
    n_clips = sum(min(sizes[number], plans[number].clips.num_rows - shard * sizes[number]) for number, shard in todo)
    with ray_session(), progress(title, n_clips) as ticker:
        tally = Tally(ticker)
        works = [
            Work(plan.audit, plan.step, ray.put(plan.clips), plan.clips.num_rows, size)
            for plan, size in zip(plans, sizes, strict=True)
        ]
        while todo:
            before = len(todo), _deaths(plans)
            lost: WorkersLost | None = None
            try:
                rows = [{"work": number, "shard": shard} for number, shard in todo]
                chain = _chain(rows, works, attribution, audit, features, run)
                consume(chain, title=title, tally=tally)
            except WorkersLost as error:
                lost = error
            todo = [(number, shard) for number, plan in enumerate(plans) for shard in _left(plan, audit)]
            if todo and lost is None:
                raise StudyError(
                    f"{len(todo)} shards of the audit cannot be found in {plans[todo[0][0]].audit.out}. If the cluster "
                    "has several machines, that must be a folder that all of them share, or a URI such as "
                    "s3://bucket/folder."
                )
            if lost is not None and (len(todo), _deaths(plans)) == before:
                raise lost
    for plan in plans:
        storage.delete(storage.join(plan.audit.out, layout.ATTEMPTS))


def spread(audit: Audit, *, cpus: float, gpus: float, n_shards: int, grows: bool = False) -> Spread:
    """Divide a cluster among actors and readers.

    Args:
        audit: the settings, which may say how many of each.
        cpus: of the whole cluster.
        gpus: likewise.
        n_shards: that are left to do.
        grows: whether machines may join while the work goes on.

    Raises:
        StudyError: an actor asks for more of a GPU than the cluster has.
    """
    # Were all of the cores claimed by actors, none could be read for them, and all would wait for ever.
    most = int(cpus / (_CPUS_PER_ACTOR + _CPUS_PER_READER))
    if audit.gpus_per_actor:
        if gpus < audit.gpus_per_actor:
            raise StudyError(
                f"An audit actor asks for {audit.gpus_per_actor:g} GPU, the cluster has {gpus:g}. {_LESS_GPU}"
            )
        most = min(most, int(gpus / audit.gpus_per_actor))
    actors = max(1, min(most, n_shards, audit.actors or most))
    # One core for each, because many small convolutions run best side by side, or its share where few run.
    threads = max(1, int(cpus / actors))
    if grows:
        return Spread(actors, min(n_shards, audit.actors or n_shards), audit.readers, threads)
    left = cpus - actors * _CPUS_PER_ACTOR
    carried = max(1, int(left / _CPUS_PER_READER))
    return Spread(actors, actors, min(carried, n_shards, audit.readers or max(2, int(left))), threads)


def wait_for_room(audit: Audit) -> None:
    """Return once the cluster has a machine that can hold an actor and a reader.

    Raises:
        StudyError: there is none, and none came.
    """
    each = {"CPU": _CPUS_PER_ACTOR + _CPUS_PER_READER}
    advice = "Add a machine with cores."
    if audit.gpus_per_actor:
        each["GPU"], advice = audit.gpus_per_actor, _LESS_GPU
    wait_for_machines(each, request=f"An audit actor asks for {told(each)}", advice=advice)


def stream(
    rows: Sequence[Row],
    read: Callable[..., Row],
    read_options: Row,
    actor: type,
    actor_options: Row,
    *,
    spread: Spread,
    gpus_per_actor: float,
) -> ray.data.Dataset:
    """Rows that name shards → read by tasks → what actors make of them."""
    return (
        dataset(rows)
        .map(
            read,
            fn_kwargs=read_options,
            compute=TaskPoolStrategy(size=spread.readers),
            num_cpus=_CPUS_PER_READER,
        )
        .map(
            actor,
            fn_constructor_kwargs=actor_options,
            # What waits for one actor is out of reach for all others. A pool may grow as long as all have such a shard.
            compute=ActorPoolStrategy(
                min_size=spread.actors, max_size=spread.most_actors, max_tasks_in_flight_per_actor=2
            ),
            num_cpus=_CPUS_PER_ACTOR,
            num_gpus=gpus_per_actor or None,
        )
    )


def _chain(
    rows: Sequence[Row],
    works: list[Work],
    attribution: Attribution,
    audit: Audit,
    features: FeatureSettings,
    run: str,
) -> ray.data.Dataset:
    """Shards → features → tables; what comes out says how many clips were done."""
    wait_for_room(audit)
    found = spread(
        audit, cpus=cluster_total("CPU"), gpus=cluster_total("GPU"), n_shards=len(rows), grows=not ray_is_ours()
    )
    shared = {"works": works, "features": features, "run": run}
    return stream(
        rows,
        audit_worker.read_shard,
        shared,
        audit_worker.Auditor,
        {**shared, "attribution": attribution, "audit": audit, "threads": found.threads},
        spread=found,
        gpus_per_actor=audit.gpus_per_actor,
    )


def _left(plan: Plan, audit: Audit) -> list[int]:
    """The shards that no ledger speaks of yet."""
    n_clips = plan.clips.num_rows
    n_shards = -(-n_clips // shard_size(n_clips, largest=audit.clips_per_shard))
    folder = storage.join(plan.audit.out, plan.step.ledger)
    done = {name for name, _ in storage.list_files(folder, suffixes=[".parquet"])}
    return [number for number in range(n_shards) if layout.shard(number) not in done]


def _deaths(plans: Sequence[Plan]) -> float:
    return sum(count_deaths(storage.join(plan.audit.out, layout.ATTEMPTS)) for plan in plans)
