"""What a plan could be instead: other numbers of workers, and changes that leave every result as it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from faithad.config.audit import AuditRun
from faithad.config.study import Study
from faithad.pipelines.audit.passes import spread
from faithad.pipelines.plan.estimate import Case


def with_workers(case: Case, workers: int) -> Case:
    """The same audit with so many actors, and as many cores (or GPUs) as they need."""
    audit = case.of.audit.model_copy(update={"actors": None, "readers": None})
    group = case.machines.groups[0].model_copy(update={"name": "worker", "cpus": 1, "gpus": 0, "count": workers})
    if audit.gpus_per_actor:
        per_gpu = case.machines.cpus / case.machines.gpus if case.machines.gpus else 4.0
        group = group.model_copy(update={"cpus": per_gpu * audit.gpus_per_actor, "gpus": audit.gpus_per_actor})
    machines = case.machines.model_copy(update={"groups": (group,)})
    return replace(case, of=case.of.model_copy(update={"audit": audit}), machines=machines, warm=False)


def changes(case: Case) -> Iterator[tuple[str, Case]]:
    """What would change the time, but no score, no explanation and no event."""
    yield "twice as many of these machines", replace(case, machines=case.machines.times(2))
    audit = case.of.audit
    if audit.actors is not None or audit.readers is not None:
        free = audit.model_copy(update={"actors": None, "readers": None})
        yield "audit.actors and audit.readers left out", replace(case, of=_with(case, "audit", free))
    n_readers = spread(audit, cpus=case.machines.cpus, gpus=case.machines.gpus, n_shards=case.clips.test).readers or 1
    readers = audit.model_copy(update={"readers": 2 * n_readers})
    yield f"audit.readers: {readers.readers}", replace(case, of=_with(case, "audit", readers))
    larger = audit.model_copy(update={"clips_per_shard": 4 * audit.clips_per_shard})
    yield (
        f"audit.clips_per_shard: {larger.clips_per_shard} (before anything is audited)",
        replace(case, of=_with(case, "audit", larger)),
    )
    if isinstance(case.of, Study):
        train = case.of.train
        if train.trainings_at_once is not None or train.cpus_per_worker is not None:
            free_train = train.model_copy(update={"trainings_at_once": None, "cpus_per_worker": None})
            yield (
                "train.trainings_at_once and train.cpus_per_worker left out",
                replace(case, of=_with(case, "train", free_train)),
            )


def _with(case: Case, section: str, value: object) -> Study | AuditRun:
    return case.of.model_copy(update={section: value})
