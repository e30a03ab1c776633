"""Passes over clips: Ray Data streams shards through reading tasks and through actors that hold the models.

A run first checks the shards that are finished: damaged ones are named, and made again.

Machines may go away, and processes may die more often than Ray restarts them. So the chain is run again with the shards
that no ledger has, as long as each run gets further than the one before.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.data import ActorPoolStrategy, TaskPoolStrategy

from faithad import storage
from faithad.audit.steps import Step
from faithad.config.sections import Attribution, Audit
from faithad.errors import DamagedError, StudyError
from faithad.pipelines.audit import worker as audit_worker
from faithad.pipelines.audit.worker import ModelAudit, SharedPass
from faithad.pipelines.cluster.machines import resources_text, wait_for_machines
from faithad.pipelines.cluster.session import cluster_total, ray_is_ours, ray_session
from faithad.pipelines.shards.failures import WorkersLost
from faithad.pipelines.shards.stream import ShardRow, Tally, consume, dataset
from faithad.progress import console, progress
from faithad.runs import layout
from faithad.runs.attempts import count_deaths
from faithad.runs.lock import require_still_alone
from faithad.runs.lookahead import side_by_side
from faithad.runs.shards import at_once, check_shard
from faithad.runs.tables import shard_files
from faithad.settings import FeatureSettings

# Scoring a clip takes 10 ms, reading it 4 ms. So each core has an actor, which claims most of it, and the reading tasks
# share the rest.
_CPUS_PER_ACTOR = 0.75
_CPUS_PER_READER = 0.25

_LESS_GPU = "Lower audit.gpus_per_actor; 0 audits on CPUs."


@dataclass(frozen=True)
class Pass:
    """One step of one model's audit over some clips.

    Attributes:
        audit: which model, and where its tables go.
        step: what is done to the clips.
        clips: rows of the manifest, whose column `shard` says in which shard each of them is.
    """

    audit: ModelAudit
    step: Step
    clips: pa.Table

    @cached_property
    def in_order(self) -> pa.Table:
        """The clips shard by shard."""
        return self.clips.take(pc.sort_indices(self.clips["shard"])).combine_chunks()

    @cached_property
    def shards(self) -> dict[int, tuple[int, int]]:
        """Of each shard, its first row among the clips `in_order`, and how many it has."""
        numbers, first, n_rows = np.unique(self.in_order["shard"].to_numpy(), return_index=True, return_counts=True)
        return {int(number): (int(a), int(n)) for number, a, n in zip(numbers, first, n_rows, strict=True)}

    def ledger(self, shard: int) -> str:
        """Location of the ledger of a shard."""
        return storage.join(self.audit.out, self.step.ledger, layout.shard(shard))

    def finished(self) -> list[int]:
        """The shards that have a ledger."""
        names = self._names()
        return [shard for shard in self.shards if layout.shard(shard) in names]

    def surplus(self) -> list[str]:
        """Names of the files of shards that have a ledger, and none of these clips."""
        return sorted(self._names() - {layout.shard(shard) for shard in self.shards})

    def _names(self) -> set[str]:
        return {storage.name_of(file) for file in shard_files(storage.join(self.audit.out, self.step.ledger))}


class Spread(NamedTuple):
    """How the work is spread over a cluster.

    Attributes:
        actors: how many there are at first.
        most_actors: how many there may be when machines join.
        readers: how many reading tasks run at once; None for as many as there is room for.
        threads: of each actor.
    """

    actors: int
    most_actors: int
    readers: int | None
    threads: int


def run_passes(
    passes: Sequence[Pass], *, attribution: Attribution, audit: Audit, features: FeatureSettings, title: str
) -> None:
    """Do what is left of some passes, and return when all of it is done.

    Raises:
        StudyError: an actor asks for more than the cluster has, a shard could not be processed, or what was written
            cannot be seen here.
        CheckpointError: a model is missing, damaged or not what is expected.
    """
    for audit_pass in passes:
        _remove_surplus(audit_pass)
    passes = [audit_pass for audit_pass in passes if audit_pass.clips.num_rows]
    for ledger, problem in _damaged_shards(passes).items():
        console.print(f"{title}: {problem} The clips of this shard are audited again.")
        require_still_alone()
        storage.delete(ledger)
    todo = _missing_shards(passes)
    if not todo:
        _flush(passes)
        return
    for number in sorted({number for number, _ in todo}):
        passes[number].audit.load()  # a model that does not fit is better noticed here than on a hundred workers
    run = uuid.uuid4().hex
    n_clips = sum(passes[number].shards[shard][1] for number, shard in todo)
    with ray_session(), progress(title, n_clips) as ticker:
        tally = Tally(ticker)
        shared = [SharedPass(audit_pass.audit, audit_pass.step, ray.put(audit_pass.in_order)) for audit_pass in passes]
        while todo:
            before = len(todo), _count_deaths(passes)
            lost: WorkersLost | None = None
            try:
                rows = [_row(number, passes[number], shard) for number, shard in todo]
                consume(_chain(rows, shared, attribution, audit, features, run), title=title, tally=tally)
            except WorkersLost as error:
                lost = error
            todo = _missing_shards(passes)
            if todo and lost is None:
                raise StudyError(
                    f"{len(todo)} shards of the audit cannot be found in {passes[todo[0][0]].audit.out}. If the "
                    "cluster has several machines, that must be a folder that all of them share, or a URI such as "
                    "s3://bucket/folder."
                )
            if lost is not None and (len(todo), _count_deaths(passes)) == before:
                raise lost
    _flush(passes)
    for audit_pass in passes:
        storage.delete(storage.join(audit_pass.audit.out, layout.ATTEMPTS))


def _row(number: int, audit_pass: Pass, shard: int) -> ShardRow:
    first, n_clips = audit_pass.shards[shard]
    return {"pass": number, "shard": shard, "first": first, "n_clips": n_clips}


def _remove_surplus(audit_pass: Pass) -> None:
    """Delete shards all of whose clips have left the audit, each ledger after the tables that it lists."""
    for name in audit_pass.surplus():
        require_still_alone()
        for table in (*audit_pass.step.tables, audit_pass.step.ledger):
            storage.delete(storage.join(audit_pass.audit.out, table, name))


def _flush(passes: Sequence[Pass]) -> None:
    """Return when all tables of some passes are on the disk: their stage is about to be marked as done."""
    for audit_pass in passes:
        for folder in (*audit_pass.step.tables, audit_pass.step.ledger):
            storage.flush_files(storage.join(audit_pass.audit.out, folder))


def spread(audit: Audit, *, cpus: float, gpus: float, n_shards: int, grows: bool = False) -> Spread:
    """Divide a cluster among actors and readers.

    Args:
        audit: the settings, which may say how many of each.
        cpus: of the whole cluster.
        gpus: of the whole cluster.
        n_shards: how many shards are left to do.
        grows: whether machines may join while the work goes on.

    Raises:
        StudyError: an actor asks for more of a GPU than the cluster has.
    """
    # If actors claimed all cores, no task could read for them, and all would wait for ever.
    most = int(cpus / (_CPUS_PER_ACTOR + _CPUS_PER_READER))
    if audit.gpus_per_actor:
        if gpus < audit.gpus_per_actor:
            raise StudyError(
                f"An audit actor asks for {audit.gpus_per_actor:g} GPU, the cluster has {gpus:g}. {_LESS_GPU}"
            )
        most = min(most, int(gpus / audit.gpus_per_actor))
    actors = max(1, min(most, n_shards, audit.actors or most))
    # One core for each, because many small convolutions run best side by side; more where there are few actors.
    threads = max(1, int(cpus / actors))
    if grows:
        return Spread(actors, min(n_shards, audit.actors or n_shards), audit.readers, threads)
    rest = cpus - actors * _CPUS_PER_ACTOR
    room_for = max(1, int(rest / _CPUS_PER_READER))
    return Spread(actors, actors, min(room_for, n_shards, audit.readers or max(2, int(rest))), threads)


def wait_for_room(audit: Audit) -> None:
    """Return once the cluster has a machine that can hold an actor and a reader.

    Raises:
        StudyError: there is none, and none came.
    """
    room = {"CPU": _CPUS_PER_ACTOR + _CPUS_PER_READER}
    advice = "Add a machine with cores."
    if audit.gpus_per_actor:
        room["GPU"], advice = audit.gpus_per_actor, _LESS_GPU
    wait_for_machines(room, request=f"An audit actor asks for {resources_text(room)}", advice=advice)


def _chain(
    rows: Sequence[ShardRow],
    passes: list[SharedPass],
    attribution: Attribution,
    audit: Audit,
    features: FeatureSettings,
    run: str,
) -> ray.data.Dataset:
    """Rows that name shards → features, read by tasks → tables, written by actors, whose rows count clips."""
    wait_for_room(audit)
    room = spread(
        audit, cpus=cluster_total("CPU"), gpus=cluster_total("GPU"), n_shards=len(rows), grows=not ray_is_ours()
    )
    arguments = {"passes": passes, "features": features, "run": run}
    reading = dataset(rows).map(
        audit_worker.read_shard,
        fn_kwargs=arguments,
        compute=TaskPoolStrategy(size=room.readers),
        num_cpus=_CPUS_PER_READER,
    )
    # A shard that waits for one actor cannot go to another one, so few may wait. A growing pool only grows while every
    # actor has one waiting.
    actors = ActorPoolStrategy(min_size=room.actors, max_size=room.most_actors, max_tasks_in_flight_per_actor=2)
    return reading.map(
        audit_worker.Auditor,
        fn_constructor_kwargs={**arguments, "attribution": attribution, "audit": audit, "threads": room.threads},
        compute=actors,
        num_cpus=_CPUS_PER_ACTOR,
        num_gpus=audit.gpus_per_actor or None,
    )


def is_whole(audit_pass: Pass) -> bool:
    """Whether every shard of a pass is finished, and all its files are what was written."""
    return not _missing_shards([audit_pass]) and not _damaged_shards([audit_pass])


def _damaged_shards(passes: Sequence[Pass]) -> dict[str, str]:
    """The ledger of each finished shard that is damaged or holds other clips than it should, and what is wrong."""
    shards = [(audit_pass, number) for audit_pass in passes for number in audit_pass.finished()]

    def problem(shard: tuple[Pass, int]) -> str | None:
        audit_pass, number = shard
        ledger = audit_pass.ledger(number)
        try:
            rows = check_shard(audit_pass.audit.out, ledger)
        except DamagedError as error:
            return error.problem
        clips = audit_pass.in_order["clip_id"].slice(*audit_pass.shards[number])
        is_of_these = sorted(rows["clip_id"].to_pylist()) == sorted(clips.to_pylist())
        return None if is_of_these else f"{ledger} lists other clips."

    problems = side_by_side(
        problem,
        shards,
        at_once=at_once(passes[0].audit.out) if passes else 1,
        named=lambda shard: shard[0].ledger(shard[1]),
    )
    return {
        audit_pass.ledger(number): text
        for (audit_pass, number), text in zip(shards, problems, strict=True)
        if text is not None
    }


def _missing_shards(passes: Sequence[Pass]) -> list[tuple[int, int]]:
    """The shards that no ledger has yet, each with the number of its pass."""
    missing: list[tuple[int, int]] = []
    for number, audit_pass in enumerate(passes):
        finished = set(audit_pass.finished())
        missing += [(number, shard) for shard in audit_pass.shards if shard not in finished]
    return missing


def _count_deaths(passes: Sequence[Pass]) -> float:
    return sum(count_deaths(storage.join(audit_pass.audit.out, layout.ATTEMPTS)) for audit_pass in passes)
