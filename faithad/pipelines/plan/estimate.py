"""Clips, rates and machines → how long each stage takes, and what holds it up. Arithmetic alone: nothing is started."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from faithad.config.audit import AuditRun
from faithad.config.study import Study
from faithad.errors import StudyError
from faithad.model.table import MODELS
from faithad.pipelines.audit.passes import spread
from faithad.pipelines.features import CLIPS_PER_SHARD
from faithad.pipelines.plan.clips import Clips
from faithad.pipelines.plan.machines import Machines
from faithad.pipelines.plan.rates import Rates, Seconds, Speed
from faithad.pipelines.plan.simulation import Crew, Shard, bounds, simulate
from faithad.pipelines.shards.stream import shard_size
from faithad.pipelines.training.places import Places, divide
from faithad.runs import layout

START, ONE_PROCESS, NOT_KNOWN = "the start of processes", "one process that does it all", "its rate is not known"


@dataclass(frozen=True)
class Stage:
    """One stage of a plan. `wall_s` is None where a rate is not known; `limit` is what holds it up."""

    name: str
    wall_s: float | None
    cpu_s: float
    gpu_s: float
    limit: str


@dataclass(frozen=True)
class Pass:
    """One pass of an audit.

    Attributes:
        models: of the runs.
        clips: of each run.
        scored: whether they are scored, and which of the runs explain them.
    """

    models: tuple[str, ...]
    clips: int
    scored: bool
    explained: tuple[bool, ...]


@dataclass(frozen=True)
class Case:
    """What is planned.

    Attributes:
        of: the study or the audit.
        runs: its models and seeds.
        alarm_rate: the share of clips that are expected to alarm.
        clips: that it works on.
        machines: that it runs on.
        rates: of one core and one GPU.
        warm: whether Ray's processes stand already when the audit begins; None: where it follows a training on one
            machine.
    """

    of: Study | AuditRun
    runs: tuple[tuple[str, int], ...]
    alarm_rate: float
    clips: Clips
    machines: Machines
    rates: Rates
    warm: bool | None = None

    @property
    def explained_runs(self) -> list[str]:
        return [model for model, _ in self.runs if MODELS[model].explained]

    @property
    def n_explained(self) -> int:
        """Clips that each explained model explains."""
        explain, n = self.of.audit.explain, self.clips.test
        if explain.startswith("top:"):
            return min(n, int(explain.removeprefix("top:")))
        return {"all": n, "none": 0, "alarms": math.ceil(self.alarm_rate * n)}[explain]

    @property
    def annotated_share(self) -> float:
        return self.clips.annotated / self.clips.test if self.clips.test else 0.0

    @property
    def n_with_maps(self) -> int:
        maps = self.of.audit.maps
        return self.n_explained if maps < 0 else min(maps, self.n_explained)

    @property
    def passes(self) -> list[Pass]:
        """As `audit` and `audit.run` make them: one where a study explains all clips, else scores first."""
        models = tuple(model for model, _ in self.runs)
        if isinstance(self.of, Study) and self.of.audit.explain == "all":
            return [Pass(models, self.clips.test, True, tuple(MODELS[model].explained for model in models))]
        explained = tuple(self.explained_runs)
        found = [Pass(models, self.clips.test, True, (False,) * len(models))]
        if explained and self.n_explained:
            found.append(Pass(explained, self.n_explained, False, (True,) * len(explained)))
        return found

    @cached_property
    def places(self) -> Places:
        assert isinstance(self.of, Study)
        return divide(self.machines.nodes, self.of.train, len(self.runs))


def estimate(case: Case) -> list[Stage]:
    """The stages in their order.

    Raises:
        StudyError: the machines can never hold what the configuration asks for.
    """
    fixed = case.rates.fixed
    start_s = fixed.program + fixed.ray
    stages = [Stage("start", start_s, start_s, 0.0, START), _index(case)]
    if isinstance(case.of, Study):
        stages.append(_train(case, case.of))
    return [*stages, audit_stage(case), _conclude(case)]


def audit_stage(case: Case) -> Stage:
    """All passes of the audit."""
    audit = case.of.audit
    speed = case.rates.gpu if audit.gpus_per_actor else case.rates.cpu
    if speed is None or not _audit_is_known(case, speed):
        return Stage("audit", None, 0.0, 0.0, NOT_KNOWN)
    wall_s, cpu_s, gpu_s, limits = case.rates.fixed.stages.get("audit", 0.0), 0.0, 0.0, dict[str, float]()
    for number, part in enumerate(case.passes):
        shards = list(_shards(case, part, speed))
        if not shards:
            continue
        crew = _crew(case, len(shards), number)
        took_s = simulate(shards, crew)
        wall_s += took_s
        busy_s = sum(shard.audit_s for shard in shards)
        cpu_s += sum(shard.read_s for shard in shards) + busy_s * crew.threads + len(shards) * crew.dispatch_s
        gpu_s += busy_s * audit.gpus_per_actor
        least = bounds(shards, crew)
        limit = max(least, key=lambda name: least[name])
        limits[limit] = limits.get(limit, 0.0) + took_s
    wall_s = max(wall_s, 0.0)
    limit = max(limits, key=lambda name: limits[name]) if sum(limits.values()) > wall_s / 2 else START
    return Stage("audit", wall_s, cpu_s, gpu_s, limit)


def _audit_is_known(case: Case, speed: Speed) -> bool:
    scored = all(model in speed.score for model, _ in case.runs if not MODELS[model].classical)
    explained = speed.explain is not None or not case.n_explained or not case.explained_runs
    return case.rates.cpu.read is not None and scored and explained


def _shards(case: Case, part: Pass, speed: Speed) -> Iterator[Shard]:
    """What each shard of a pass takes; of a detector, which nobody measured, the reading alone."""
    scheduling, read_s = case.rates.scheduling, case.rates.cpu.read or 0.0
    size = shard_size(part.clips, largest=case.of.audit.clips_per_shard)
    n_shards = -(-part.clips // size)
    threads = _crew(case, n_shards * len(part.models), 0).threads
    share = min(1.0, case.of.audit.gpus_per_actor or 1.0)  # rates are of a whole GPU
    explain_s = (speed.explain or 0.0) + case.annotated_share * speed.annotated
    for model, explained in zip(part.models, part.explained, strict=True):
        clip_s = speed.score.get(model, 0.0) + (explain_s if explained else 0.0)
        for number in range(n_shards):
            n = min(size, part.clips - number * size)
            yield Shard(scheduling.reader + n * read_s, scheduling.actor + (speed.shard + n * clip_s / threads) / share)


def _crew(case: Case, n_shards: int, number: int) -> Crew:
    """Who does a pass, counted from 0."""
    warm = isinstance(case.of, Study) and case.machines.count == 1 if case.warm is None else case.warm
    found = spread(case.of.audit, cpus=case.machines.cpus, gpus=case.machines.gpus, n_shards=n_shards)
    scheduling = case.rates.scheduling
    return Crew(
        actors=found.actors,
        readers=found.readers or found.actors,
        cores=case.machines.cpus,
        dispatch_s=scheduling.driver,
        start_s=0.0 if warm or number > 0 else case.rates.fixed.process,
        threads=1 if case.of.audit.gpus_per_actor else found.threads,
    )


def _index(case: Case) -> Stage:
    driver, clips = case.rates.driver, case.clips
    synth_s = clips.to_make * driver.synth
    head = max(1.0, case.machines.groups[0].cpus)
    alone_s = clips.recordings * driver.index + case.rates.fixed.stages.get("index", 0.0)
    return Stage("index", synth_s / head + max(0.0, alone_s), synth_s + alone_s, 0.0, ONE_PROCESS)


def _conclude(case: Case) -> Stage:
    fixed = case.rates.fixed.stages
    wall_s = case.clips.test * len(case.runs) * case.rates.driver.conclude
    wall_s += fixed.get("evaluate", 0.0) + fixed.get("report", 0.0)
    return Stage("tables and report", wall_s, wall_s, 0.0, ONE_PROCESS)


def _train(case: Case, study: Study) -> Stage:
    """Features, then all trainings, as many side by side as the machines carry."""
    clips, places, on_gpu = case.clips, case.places, study.train.gpus_per_worker > 0
    read_s, features_s = case.rates.cpu.read, 0.0
    speed = case.rates.gpu if on_gpu else case.rates.cpu
    threads = 1 if on_gpu else places.threads
    trainings_s = [training_s(case, study, model, speed, threads) for model, _ in case.runs]
    if read_s is None or any(each is None for each in trainings_s):
        return Stage("train", None, 0.0, 0.0, NOT_KNOWN)
    shards = []
    for n in (clips.train, clips.validation):
        size = shard_size(max(1, n), largest=CLIPS_PER_SHARD)
        sizes = [min(size, n - start) for start in range(0, n, size)]
        shards += [Shard(case.rates.scheduling.reader + each * read_s, 0.0) for each in sizes]
    if shards:
        cores = max(1, int(case.machines.cpus))
        features_s = simulate(shards, Crew(1, cores, cores, case.rates.scheduling.driver / 2))
    known_s = [each for each in trainings_s if each is not None]
    side_by_side_s = _side_by_side(known_s, places.at_once)
    fixed_s = case.rates.fixed.process + case.rates.fixed.stages.get("train", 0.0)
    wall_s = max(0.0, features_s + side_by_side_s + fixed_s)
    held_s = sum(known_s) * places.workers
    limit = "the cores" if not on_gpu else "the GPUs"
    if max(known_s) > 0.8 * side_by_side_s:
        limit = f"one training on {threads} thread{'s' * (threads > 1)}" if not on_gpu else "one training on its GPU"
    if side_by_side_s < wall_s / 2:
        limit = START if features_s < wall_s / 2 else "features"
    cpu_s = sum(shard.read_s for shard in shards) + held_s * (1 if on_gpu else places.threads)
    return Stage("train", wall_s, cpu_s, held_s * study.train.gpus_per_worker, limit)


def training_s(case: Case, study: Study, model: str, speed: Speed | None, threads: int) -> Seconds | None:
    """One training to its last epoch; None where its rate is not known. A detector's is not measured, and left out."""
    if MODELS[model].classical:
        return 0.0
    if speed is None or not speed.train.get(model) or not speed.validation.get(model):
        return None
    learn_s, validate_s = (_at(by_threads[model], threads) for by_threads in (speed.train, speed.validation))
    epoch_s = case.clips.train * learn_s + case.clips.validation * validate_s
    share = min(1.0, study.train.gpus_per_worker or 1.0)  # rates are of a whole GPU
    return study.train.epochs * epoch_s / study.train.workers / share


def _at(by_threads: dict[int, Seconds], threads: int) -> Seconds:
    """The rate for so many threads: as measured; of the next lower number that was, since more may gain nothing; or,
    below all of them, as if that many less were that much slower.
    """
    lower = [measured for measured in by_threads if measured <= threads]
    nearest = max(lower) if lower else min(by_threads)
    return by_threads[nearest] * (1.0 if lower else nearest / threads)


def _side_by_side(durations_s: list[Seconds], at_once: int) -> Seconds:
    """Until all have ended, so many at a time, each started in its turn."""
    ends: list[Seconds] = []
    for each in durations_s:
        begins = heapq.heappop(ends) if len(ends) >= at_once else 0.0
        heapq.heappush(ends, begins + each)
    return max(ends, default=0.0)


def total_s(stages: Sequence[Stage]) -> Seconds:
    """Of all stages whose time is known."""
    return sum(stage.wall_s for stage in stages if stage.wall_s is not None)


def written(case: Case) -> dict[str, float]:
    """Bytes of each table."""
    clips, rates, found = case.clips, case.rates.bytes, dict[str, float]()
    _refuse_unknown_tables(case)

    def add(table: str, n_bytes: float) -> None:
        found[table] = found.get(table, 0.0) + n_bytes

    for table, n, files in (("manifest", clips.total, 1), ("report", 0, 1)):
        if table in rates:
            add(table, rates[table].file * files + rates[table].clip * n)
    if isinstance(case.of, Study):
        for n in (clips.train, clips.validation):
            n_shards = -(-n // shard_size(max(1, n), largest=CLIPS_PER_SHARD))
            add("features", rates["features"].file * n_shards + rates["features"].clip * n)
        add("models", rates["models"].file * len(case.runs))
    for part in case.passes:
        for explained in part.explained:
            for table, n_bytes in _pass_bytes(case, part, explained):
                add(table, n_bytes)
    return found


def _refuse_unknown_tables(case: Case) -> None:
    needed = {"scores", "ledger"} | ({"features", "models"} if isinstance(case.of, Study) else set())
    if case.explained_runs and case.n_explained:
        needed |= set(layout.EXPLANATIONS)
    if lacking := sorted(needed - set(case.rates.bytes)):
        raise StudyError(
            f"The rates say nothing of the bytes of {', '.join(lacking)}. Add them under `bytes`, or measure this "
            "configuration with --save-rates."
        )


def _pass_bytes(case: Case, part: Pass, explained: bool) -> Iterator[tuple[str, float]]:
    """What one run's share of a pass writes."""
    n, size = part.clips, shard_size(part.clips, largest=case.of.audit.clips_per_shard)
    n_shards = -(-n // size)
    annotated, maps = case.annotated_share * n, float(case.n_with_maps)
    for table in (*(("scores",) if part.scored else ()), "ledger", *(layout.EXPLANATIONS if explained else ())):
        each = case.rates.bytes[table]
        # Of a table in which most clips have no row, a shard without any has no file.
        n_files = n_shards if each.clip else n_shards * (1 - (1 - case.annotated_share) ** size)
        explanations = annotated * each.annotated + maps * each.maps if explained else 0.0
        yield table, n_files * each.file + n * each.clip + explanations
