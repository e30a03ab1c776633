"""Passes over clips: Ray Data streams shards through readers and through actors that hold the models.

The chain is run again as long as it brings something: machines may go away, and processes die more often than Ray makes
up for. Which shards are left is told by the ledgers alone.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, TaskPoolStrategy

from faithad import storage
from faithad.config_sections import Attribution, Audit
from faithad.errors import StudyError
from faithad.features import FeatureSettings
from faithad.pipelines import audit_worker
from faithad.pipelines.attempts import count_deaths
from faithad.pipelines.audit_worker import ATTEMPTS, ModelAudit, Step, Work
from faithad.pipelines.session import cluster_total, ray_session
from faithad.pipelines.shards import Row, Tally, WorkersLost, consume, dataset, shard_name, shard_size
from faithad.progress import progress

# An actor computes nearly all of the time, a reader hardly ever: a clip is scored in 10 ms and read in 4. So there is
# an actor for each core, which claims most of it, and the readers share the rest.
_CPUS_PER_ACTOR = 0.75
_CPUS_PER_READER = 0.25


class Plan(NamedTuple):
    """One step of one model's audit, and the clips that it is done to."""

    audit: ModelAudit
    step: Step
    clips: pa.Table


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
        storage.delete(storage.join(plan.audit.out, ATTEMPTS))


def _chain(
    rows: list[Row],
    works: list[Work],
    attribution: Attribution,
    audit: Audit,
    features: FeatureSettings,
    run: str,
) -> ray.data.Dataset:
    """Shards → features → tables; what comes out says how many clips were done."""
    n_actors = count_actors(audit, n_shards=len(rows))
    return (
        dataset(rows)
        .map(
            audit_worker.read_shard,
            fn_kwargs={"works": works, "features": features, "run": run},
            compute=TaskPoolStrategy(size=count_readers(audit, n_actors=n_actors, n_shards=len(rows))),
            num_cpus=_CPUS_PER_READER,
        )
        .map(
            audit_worker.Auditor,
            fn_constructor_kwargs={
                "works": works,
                "attribution": attribution,
                "audit": audit,
                "features": features,
                "threads": _threads(n_actors),
                "run": run,
            },
            # What waits for one actor is out of reach for all others.
            compute=ActorPoolStrategy(size=n_actors, max_tasks_in_flight_per_actor=2),
            num_cpus=_CPUS_PER_ACTOR,
            num_gpus=audit.gpus_per_actor or None,
        )
    )


def count_actors(audit: Audit, *, n_shards: int) -> int:
    """One for each of the cluster's cores, or as many as its GPUs carry; fewer where the settings say so.

    Raises:
        StudyError: an actor asks for more of a GPU than the cluster has.
    """
    # Were all of the cores claimed by actors, none could be read for them, and all would wait for ever.
    most = int(cluster_total("CPU") / (_CPUS_PER_ACTOR + _CPUS_PER_READER))
    if audit.gpus_per_actor:
        gpus = cluster_total("GPU")
        if gpus < audit.gpus_per_actor:
            raise StudyError(
                f"An audit actor asks for {audit.gpus_per_actor:g} GPU, the cluster has {gpus:g}. Lower "
                "audit.gpus_per_actor; 0 audits on CPUs."
            )
        most = min(most, int(gpus / audit.gpus_per_actor))
    return max(1, min(most, n_shards, audit.actors or most))


def count_readers(audit: Audit, *, n_actors: int, n_shards: int) -> int:
    """As many as the cores that actors leave, at least two where that much is left, or as the settings say."""
    left = cluster_total("CPU") - n_actors * _CPUS_PER_ACTOR
    most = max(1, int(left / _CPUS_PER_READER))
    return max(1, min(most, n_shards, audit.readers or max(2, int(left))))


def _threads(n_actors: int) -> int:
    """Cores for one actor: one, because many small convolutions run best side by side, or its share where few run."""
    return max(1, int(cluster_total("CPU") / n_actors))


def _left(plan: Plan, audit: Audit) -> list[int]:
    """The shards that no ledger speaks of yet."""
    n_clips = plan.clips.num_rows
    n_shards = -(-n_clips // shard_size(n_clips, largest=audit.clips_per_shard))
    folder = storage.join(plan.audit.out, plan.step.ledger)
    done = {name for name, _ in storage.list_files(folder, suffixes=[".parquet"])}
    return [number for number in range(n_shards) if shard_name(number) not in done]


def _deaths(plans: Sequence[Plan]) -> float:
    return sum(count_deaths(storage.join(plan.audit.out, ATTEMPTS)) for plan in plans)
