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
from faithad.pipelines.search.plan import KEPT_CELLS, MODEL, all_trials, largest_study, trial_train
from faithad.pipelines.shards.stream import shard_size
from faithad.pipelines.training.disk import WEIGHTS_IN_STATE, weights_bytes
from faithad.pipelines.training.places import Places, divide
from faithad.settings import FeatureSettings

# Seconds of the driver on AMD EPYC cores (family 26): for a recording in the index, and for a clip of a model in the
# last tables.
INDEX_S, CONCLUDE_S = 0.002, 0.0005
# A network's forward pass alone, as a share of what it takes to learn from a clip.
FORWARD = 0.25
# What the checks of a deep clip, and for sanity, take beyond its explanation, in explanations: see docs/decisions.md.
DEEP, SANITY = 0.6, 8.5
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

    def checks(self, seed: int) -> float:
        """What the checks of a model with this seed take, in explanations of a clip."""
        if not isinstance(self.of, Study):
            return 0.0
        deep, sanity, _ = (min(self.n_explained, n) for n in self.of.checks(seed))
        return DEEP * deep + SANITY * sanity


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
        conclude_s = plan.clips.test * len(plan.runs) * CONCLUDE_S
        stages += [_audit(plan), Stage(LAST, conclude_s, "the driver")]
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
    clips, train, places, searches = plan.clips, plan.train, plan.places, plan.command == "search"
    # A search judges disturbed clips after each epoch, and the test clips in the end.
    validated = clips.validation + (n_disturbed(clips.validation) if searches else 0)
    learned = train.epochs * (clips.train + FORWARD * validated) + (FORWARD * clips.test if searches else 0)
    # Fewer threads than were measured are slower by as much; more gain little.
    slower = 1.0 if train.gpus_per_worker else max(1.0, plan.rates.threads / places.threads)
    networks = [model for model, _ in plan.runs if not MODELS[model].fitted]
    trainings_s = [learned * plan.rates.learn[model] * slower for model in networks] or [0.0]
    rounds = math.ceil(len(trainings_s) / places.at_once)
    read_s = plan.n_features * plan.rates.read / max(1.0, plan.machines.total("CPU"))
    limit = "one training" if rounds == 1 else "the GPUs" if train.gpus_per_worker else "the cores"
    return Stage("search" if searches else "train", read_s + max(rounds * fmean(trainings_s), *trainings_s), limit)


class ModelPass(NamedTuple):
    """A model's part of a pass over the clips. `checks`: see `Plan.checks`."""

    cost: Cost
    clips: int
    checks: float = 0.0


def audit_passes(plan: Plan) -> tuple[list[ModelPass], list[ModelPass]]:
    """All clips are scored, and some explained: a study that explains all does both at once, which saves little."""
    n, rates = plan.n_explained, plan.rates
    explaining = [(model, seed) for model, seed in plan.runs if n and MODELS[model].explained]
    scored = [ModelPass(rates.score[model], plan.clips.test) for model, _ in plan.runs]
    explained = [ModelPass(rates.explain[model], n, plan.checks(seed)) for model, seed in explaining]
    return scored, explained


def _audit(plan: Plan) -> Stage:
    """Both passes; what limits the longer one limits the stage."""
    passes = [_pass(plan, of_models) for of_models in audit_passes(plan) if of_models]
    return Stage("audit", sum(seconds for seconds, _ in passes), max(passes)[1])


def _pass(plan: Plan, of_models: list[ModelPass]) -> tuple[float, str]:
    """Seconds of a pass, and what limits it: cores read, and actors on cores or GPUs score and explain."""
    audit, gpus, cpus = plan.of.audit, plan.of.audit.gpus_per_actor, max(1.0, plan.machines.total("CPU"))
    n_shards = sum(math.ceil(p.clips / shard_size(p.clips, largest=audit.clips_per_shard)) for p in of_models)
    read_s = sum(p.clips for p in of_models) * plan.rates.read
    model_s = sum((p.clips + p.checks) * p.cost.seconds for p in of_models)
    crew = spread(audit, cpus=cpus, gpus=plan.machines.total("GPU"), n_shards=n_shards)
    # No shard is divided among actors.
    actor_s = math.ceil(n_shards / crew.actors) * model_s / n_shards / (1 if gpus else crew.threads)
    return max(
        ((read_s + (0.0 if gpus else model_s)) / cpus, "the cores"), (actor_s, "the GPUs" if gpus else "the actors")
    )


def written(plan: Plan) -> dict[str, float]:
    """Bytes of the features, the models with the states of their trainings, the audit's tables, the whole maps that are
    kept, its sounds, and the report. As many events are expected as alarms of normal sound.
    """
    of, cells = plan.of, plan.features.n_mels * plan.features.n_frames
    sizes: dict[str, float] = {"report": plan.rates.report_bytes}
    if isinstance(of, Study):
        sizes["features"] = plan.rates.feature_bytes * plan.n_features
        models = [weights_bytes(of, model) for model, _ in plan.runs]
        if plan.command == "search":  # the trials of the best cells keep theirs
            models = [weights_bytes(largest_study(of), MODEL)] * min(len(models), KEPT_CELLS * len(of.seeds))
        sizes["models"] = sum(models) * (1 + WEIGHTS_IN_STATE * of.train.ends_anywhere)
    if plan.command != "search":
        scored, explained = audit_passes(plan)
        n_kept = plan.n_explained if of.audit.maps < 0 else min(of.audit.maps, plan.n_explained)
        # Maps of 16 bits; input and reconstruction of 32.
        maps_bytes = cells * (2 * len(of.attribution.methods) + 2 * 4)
        sizes["tables"] = sum(p.clips * p.cost.bytes for p in (*scored, *explained))
        sizes["maps"] = n_kept * maps_bytes * len(explained)
    if isinstance(of, AuditRun) and of.report.sound == "events":
        sizes["sounds"] = sounds_bytes(math.ceil(plan.alarm_rate * plan.clips.test), plan.features)
    return sizes
