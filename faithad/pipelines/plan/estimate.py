"""Counts x rates / machines: how long each stage takes, what limits it, and what it writes. Nothing is started."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from faithad.audit.sounds import sounds_bytes
from faithad.config.audit import AuditRun
from faithad.config.sections import Train
from faithad.config.study import Study
from faithad.evaluation.disturbances import n_disturbed
from faithad.model.table import MODELS
from faithad.pipelines.audit.passes import spread
from faithad.pipelines.plan.sections import Cost, Counts, Machines, Rates
from faithad.pipelines.search.plan import KEPT_CELLS, MODEL, all_trials, trial_train
from faithad.pipelines.shards.stream import shard_size
from faithad.pipelines.training.disk import WEIGHTS_IN_STATE
from faithad.pipelines.training.places import Places, divide
from faithad.settings import NOT_CHECKED, Checks, FeatureSettings

# Seconds on AMD EPYC cores (family 26): of the driver for a recording in the index, for a shard that it hands out (8 to
# 11 ms with 1 to 64 actors), and for a clip of a model in the last tables.
INDEX_S, HAND_OUT_S, CONCLUDE_S = 0.002, 0.01, 0.0005
# A network's forward pass alone, as a share of what it takes to learn from a clip.
FORWARD = 0.25
LAST = "tables and report"


@dataclass(frozen=True)
class Plan:
    """A `study`, a `search` or an `audit` with so many clips, on these machines, at these rates.

    `alarm_rate`: the share of clips that are expected to alarm. `audited`: the audit's model and its seed.
    """

    command: str
    of: Study | AuditRun
    features: FeatureSettings
    alarm_rate: float
    audited: tuple[str, int]
    clips: Counts
    machines: Machines
    rates: Rates

    @property
    def runs(self) -> list[tuple[str, int]]:
        """Model and seed of each training, or of the audit's model."""
        if not isinstance(self.of, Study):
            return [self.audited]
        return [(MODEL, trial.seed) for trial in all_trials(self.of)] if self.command == "search" else self.of.runs

    @property
    def train(self) -> Train:
        """How trainings are spread: a search has its own settings for this."""
        assert isinstance(self.of, Study)
        return trial_train(self.of) if self.command == "search" else self.of.train

    @property
    def places(self) -> Places:
        return divide(self.machines.nodes, self.train, len(self.runs))

    @property
    def read_s(self) -> float:
        """Seconds of a core that a clip's features take, with its part of the spectrum of its recording."""
        return self.rates.read + self.rates.spectrum * self.clips.recordings / self.clips.all_splits

    @property
    def n_features(self) -> int:
        """Clips whose features are kept: a search scores the test clips after each training."""
        clips = self.clips
        return clips.train + clips.validation + (clips.test if self.command == "search" else 0)

    @property
    def n_explained(self) -> int:
        """Clips that each explained model explains."""
        explain, n = self.of.audit.explain, self.clips.test
        if explain.startswith("top:"):
            return min(n, int(explain.removeprefix("top:")))
        alarms = math.ceil(self.alarm_rate * n)
        return {"all": n, "annotated": self.clips.annotated, "alarms": alarms, "none": 0}[explain]


class Stage(NamedTuple):
    """`limit` says what the stage waits for."""

    name: str
    seconds: float
    limit: str


def estimate(plan: Plan) -> list[Stage]:
    """The stages in their order.

    Raises:
        StudyError: the machines can never hold what the configuration asks for.
    """
    stages = [Stage("start", 0.0, ""), Stage("index", plan.clips.recordings * INDEX_S, "the driver")]
    if plan.command != "audit":
        stages.append(_train(plan))
    if plan.command != "search":
        stages += [_audit(plan), Stage(LAST, plan.clips.test * len(plan.runs) * CONCLUDE_S, "the driver")]
    fixed = [plan.rates.fixed.get(stage.name, 0.0) for stage in stages]
    return [
        Stage(name, max(0.0, seconds + fixed_s), limit if seconds > fixed_s else "the start of processes")
        for (name, seconds, limit), fixed_s in zip(stages, fixed, strict=True)
    ]


def total_s(plan: Plan) -> float:
    """Seconds of all stages."""
    return sum(stage.seconds for stage in estimate(plan))


def _train(plan: Plan) -> Stage:
    """Features, then the trainings of a study or a search, as many side by side as there is room for."""
    clips, rates, train, places, searches = plan.clips, plan.rates, plan.train, plan.places, plan.command == "search"
    validated, tested = clips.validation, 0
    if searches:
        validated, tested = validated + n_disturbed(validated), clips.test
    learned = train.epochs * (clips.train + FORWARD * validated) + FORWARD * tested
    # Fewer threads than were measured are slower by as much; more gain little.
    slower = 1.0 if train.gpus_per_worker else max(1.0, rates.threads / places.threads)
    networks = [model for model, _ in plan.runs if not MODELS[model].fitted]
    trainings_s = [learned * rates.learn[model] * slower for model in networks] or [0.0]
    rounds = math.ceil(len(trainings_s) / places.at_once)
    read_s = plan.n_features * plan.read_s / max(1.0, plan.machines.total("CPU"))
    limit = "one training" if rounds == 1 else "the GPUs" if train.gpus_per_worker else "the cores"
    return Stage("search" if searches else "train", read_s + max(rounds * fmean(trainings_s), *trainings_s), limit)


class ModelPass(NamedTuple):
    """A model's part of a pass over the clips: all are scored, or some are explained, in shards, and some of these are
    checked.
    """

    cost: Cost
    clips: int
    shards: int
    explains: bool
    checks: Checks = NOT_CHECKED

    @property
    def seconds(self) -> float:
        cost = self.cost
        checks_s = self.checks.deep * cost.deep_s + self.checks.sanity * cost.sanity_s
        return self.clips * cost.clip_s + self.shards * cost.shard_s + checks_s


def _audit(plan: Plan) -> Stage:
    """All passes: cores read, actors on cores or GPUs score and explain, and the driver hands out the shards."""
    audit, gpus, cpus = plan.of.audit, plan.of.audit.gpus_per_actor, max(1.0, plan.machines.total("CPU"))
    seconds: dict[str, float] = {}
    for model_passes in audit_passes(plan):
        n_shards, n_clips = sum(p.shards for p in model_passes), sum(p.clips for p in model_passes)
        model_s = sum(model_pass.seconds for model_pass in model_passes)
        crew = spread(audit, cpus=cpus, gpus=plan.machines.total("GPU"), n_shards=n_shards)
        actor_s = math.ceil(n_shards / crew.actors) * model_s / n_shards / (1 if gpus else crew.threads)
        driver_s = n_shards * HAND_OUT_S
        took_s, limit = max(
            ((n_clips * plan.read_s + driver_s + (0.0 if gpus else model_s)) / cpus, "the cores"),
            (actor_s, "the GPUs" if gpus else "the actors"),
            (driver_s, "the driver, which hands out the shards"),
        )
        seconds[limit] = seconds.get(limit, 0.0) + took_s
    return Stage("audit", sum(seconds.values()), max(seconds, key=lambda limit: seconds[limit]))


def audit_passes(plan: Plan) -> list[list[ModelPass]]:
    """One pass where a study explains all clips; else all clips are scored first, and the chosen ones explained."""
    explained = [run for run in plan.runs if MODELS[run[0]].explained and plan.n_explained]

    def model_pass(run: tuple[str, int], explains: bool) -> ModelPass:
        n, costs = (plan.n_explained, plan.rates.explain) if explains else (plan.clips.test, plan.rates.score)
        n_shards = math.ceil(n / shard_size(n, largest=plan.of.audit.clips_per_shard))
        checks = _n_checks(plan, run[1]) if explains else NOT_CHECKED
        return ModelPass(costs[run[0]], n, n_shards, explains, checks)

    if plan.command == "study" and plan.of.audit.explain == "all":
        return [[model_pass(run, run in explained) for run in plan.runs]]
    passes = [[model_pass(run, False) for run in plan.runs], [model_pass(run, True) for run in explained]]
    return [model_passes for model_passes in passes if model_passes]


def _n_checks(plan: Plan, seed: int) -> Checks:
    """How many clips a model with this seed checks."""
    if not isinstance(plan.of, Study):
        return NOT_CHECKED
    checks = plan.of.checks(seed)
    return Checks(*(min(plan.n_explained, n) for n in checks))


def written(plan: Plan) -> dict[str, float]:
    """Bytes of the features, the models with the states of their trainings, the audit's tables, the whole maps that are
    kept, its sounds, and the report. As many events are expected as alarms of normal sound.
    """
    rates, kept, sizes = plan.rates.bytes, plan.of.audit.maps, {"report": plan.rates.bytes["report"]}
    if plan.command != "audit":
        sizes["features"] = rates["features"] * plan.n_features
        n_kept, n_copies = len(plan.runs), 0
        if plan.command == "search" and isinstance(
            plan.of, Study
        ):  # the trials of the best cells keep theirs, and the best one is copied
            n_kept, n_copies = min(n_kept, KEPT_CELLS * len(plan.of.seeds)), 1
        of_state = WEIGHTS_IN_STATE * plan.train.ends_anywhere
        sizes["models"] = rates["models"] * (n_kept * (1 + of_state) + n_copies)
    if plan.command != "search":
        passes = [model_pass for model_passes in audit_passes(plan) for model_pass in model_passes]
        n_maps = [(p.clips if kept < 0 else min(kept, p.clips)) * p.explains for p in passes]
        sizes["tables"] = sum(p.clips * p.cost.clip_bytes + p.shards * p.cost.shard_bytes for p in passes)
        sizes["maps"] = sum(n * p.cost.maps_bytes for n, p in zip(n_maps, passes, strict=True))
    if isinstance(plan.of, AuditRun) and plan.of.report.sound == "events":
        sizes["sounds"] = sounds_bytes(math.ceil(plan.alarm_rate * plan.clips.test), plan.features)
    return sizes
