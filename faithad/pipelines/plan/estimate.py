"""Counts x rates / machines: how long each stage takes, what limits it, and what it writes. Nothing is started."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple

from faithad.config.audit import AuditRun
from faithad.config.sections import Train
from faithad.config.study import Study
from faithad.evaluation.disturbances import n_disturbed
from faithad.model.table import MODELS
from faithad.pipelines.audit.passes import spread
from faithad.pipelines.features import CLIPS_PER_SHARD
from faithad.pipelines.plan.counts import Counts
from faithad.pipelines.plan.machines import Machines
from faithad.pipelines.plan.rates import Rates
from faithad.pipelines.search.plan import MODEL, all_trials, trial_train
from faithad.pipelines.shards.stream import shard_size
from faithad.pipelines.training.places import Places, divide
from faithad.runs import layout
from faithad.settings import FeatureSettings
from faithad.vocabulary import count

# Seconds on AMD EPYC cores (family 26): of a core for a minute of the demo mill; of the driver for a recording in the
# index, for a shard that it hands out (8 to 11 ms with 1 to 64 actors), and for a clip of a model in the last tables.
SYNTH_S, INDEX_S, HAND_OUT_S, CONCLUDE_S = 0.2, 0.002, 0.01, 0.0005
# A network's forward pass alone, as a share of what it takes to learn from a clip.
FORWARD = 0.25
LAST = "tables and report"


@dataclass(frozen=True)
class Subject:
    """What is planned: a study, its search in place of it, or an audit.

    `alarm_rate`: the share of clips that are expected to alarm. `audited`: name and seed of an audit's model.
    """

    of: Study | AuditRun
    alarm_rate: float
    features: FeatureSettings
    searches: bool = False
    audited: tuple[str, int] = ("", 0)

    @property
    def runs(self) -> list[tuple[str, int]]:
        """Model and seed of each training, or of the audit's model."""
        if not isinstance(self.of, Study):
            return [self.audited]
        return [(MODEL, trial.seed) for trial in all_trials(self.of)] if self.searches else self.of.runs

    @property
    def train(self) -> Train:
        """How trainings are spread: a search has its own settings for this."""
        assert isinstance(self.of, Study)
        return trial_train(self.of) if self.searches else self.of.train


@dataclass(frozen=True)
class Case(Subject):
    """What is planned, with how many clips, on which machines, at which rates."""

    clips: Counts = field(kw_only=True)
    machines: Machines = field(kw_only=True)
    rates: Rates = field(kw_only=True)

    @property
    def places(self) -> Places:
        return divide(self.machines.nodes, self.train, len(self.runs))

    @property
    def n_explained(self) -> int:
        """Clips that each explained model explains."""
        explain, n = self.of.audit.explain, self.clips.test
        if explain.startswith("top:"):
            return min(n, int(explain.removeprefix("top:")))
        return {"all": n, "none": 0, "alarms": math.ceil(self.alarm_rate * n)}[explain]


class Stage(NamedTuple):
    """`seconds` is None where a rate is not known; `limit` says what the stage waits for."""

    name: str
    seconds: float | None
    limit: str


class ModelPass(NamedTuple):
    """A model's part of a pass: it scores, or explains, so many clips in shards of `size` clips."""

    model: str
    explains: bool
    clips: int
    size: int

    @property
    def shards(self) -> int:
        return math.ceil(self.clips / self.size)


def estimate(case: Case) -> list[Stage]:
    """The stages in their order.

    Raises:
        StudyError: the machines can never hold what the configuration asks for.
    """
    stages = []
    for name, seconds, limit in work(case):
        fixed_s = case.rates.fixed.get(name, 0.0)
        if seconds is not None:
            limit = "the start of processes" if fixed_s >= seconds else limit
            seconds = max(0.0, seconds + fixed_s)
        stages.append(Stage(name, seconds, limit))
    return stages


def total_s(stages: list[Stage]) -> float:
    """Of all stages whose time is known."""
    return sum(stage.seconds or 0.0 for stage in stages)


def work(case: Case) -> Iterator[Stage]:
    """What each stage takes beside what is fixed."""
    clips = case.clips
    yield Stage("start", 0.0, "")
    synth_s = clips.to_make * SYNTH_S / max(1.0, case.machines.groups[0].cpus)
    yield Stage("index", synth_s + clips.recordings * INDEX_S, "one machine that does it all")
    if isinstance(case.of, Study):
        yield _train(case)
    if not case.searches:
        yield _audit(case)
        yield Stage(LAST, clips.test * len(case.runs) * CONCLUDE_S, "one process that does it all")


def _train(case: Case) -> Stage:
    """Features, then the trainings of a study or a search, as many side by side as there is room for."""
    name, clips, train, places = "search" if case.searches else "train", case.clips, case.train, case.places
    gpus, tested = train.gpus_per_worker, clips.test if case.searches else 0
    speed = case.rates.gpu if gpus else case.rates.cpu
    networks = [model for model, _ in case.runs if not MODELS[model].fitted]
    if speed is None or not set(networks) <= set(speed.learn):
        return Stage(name, None, "its rate is not known")
    validated = clips.validation + (n_disturbed(clips.validation) if case.searches else 0)
    clips_learned = train.epochs * (clips.train + FORWARD * validated) + FORWARD * tested
    # Fewer threads than were measured are slower by as much; more gain little.
    slower = 1.0 if gpus else max(1.0, speed.threads / places.threads)
    trainings_s = [
        clips_learned * speed.learn[model] * slower / train.workers / min(1.0, gpus or 1.0) for model in networks
    ]
    rounds = math.ceil(len(networks) / places.at_once)
    train_s = max([rounds * fmean(trainings_s), *trainings_s]) if networks else 0.0
    features_s = (clips.train + clips.validation + tested) * case.rates.read / max(1.0, case.machines.cpus)
    alone = f"one training on {'its GPU' if gpus else count(places.threads, 'thread')}"
    return Stage(name, features_s + train_s, alone if rounds <= 1 else "the GPUs" if gpus else "the cores")


def _audit(case: Case) -> Stage:
    """All passes: cores read, actors on cores or GPUs score and explain, and the driver hands out the shards."""
    audit, gpus, cpus = case.of.audit, case.of.audit.gpus_per_actor, max(1.0, case.machines.cpus)
    speed = case.rates.gpu if gpus else case.rates.cpu
    seconds: dict[str, float] = {}
    for part in passes(case):
        if speed is None or not all(p.model in (speed.explain if p.explains else speed.score) for p in part):
            return Stage("audit", None, "its rate is not known")
        n_shards, read_s = sum(p.shards for p in part), sum(p.clips for p in part) * case.rates.read
        model_s = sum(p.clips * (speed.explain if p.explains else speed.score)[p.model] for p in part)
        model_s += n_shards * speed.shard
        crew = spread(audit, cpus=case.machines.cpus, gpus=case.machines.gpus, n_shards=n_shards)
        rounds, actor = math.ceil(n_shards / crew.actors), min(1.0, gpus) if gpus else crew.threads
        took_s, limit = max(
            ((read_s + n_shards * HAND_OUT_S + (0.0 if gpus else model_s)) / cpus, "the cores"),
            (rounds * model_s / n_shards / actor, "the GPUs" if gpus else "the actors"),
            (read_s / (crew.readers or 1), "the readers"),
            (n_shards * HAND_OUT_S, "the driver, which hands out shards one by one"),
        )
        seconds[limit] = seconds.get(limit, 0.0) + took_s
    return Stage("audit", sum(seconds.values()), max(seconds, key=lambda limit: seconds[limit]))


def passes(case: Case) -> list[list[ModelPass]]:
    """One pass where a study explains all clips; else all clips are scored first, and the chosen ones explained."""

    def model_pass(model: str, explains: bool) -> ModelPass:
        n = case.n_explained if explains else case.clips.test
        return ModelPass(model, explains, n, shard_size(n, largest=case.of.audit.clips_per_shard))

    models = [model for model, _ in case.runs]
    explained = [model for model in models if MODELS[model].explained and case.n_explained]
    if isinstance(case.of, Study) and case.of.audit.explain == "all":
        return [[model_pass(model, model in explained) for model in models]]
    scoring, explaining = [model_pass(model, False) for model in models], [model_pass(m, True) for m in explained]
    return [scoring, explaining] if explaining else [scoring]


def written(case: Case) -> dict[str, float]:
    """Bytes of each table."""
    clips, maps, tables = case.clips, case.of.audit.maps, dict[str, float]()

    def add(table: str, n: int, files: int = 1, n_maps: int = 0) -> None:
        if table in case.rates.bytes:
            rate = case.rates.bytes[table]
            n_bytes = rate.file * files + rate.clip * n + rate.maps * n_maps
            tables[table] = tables.get(table, 0.0) + n_bytes

    add("manifest", clips.train + clips.validation + clips.test)
    add("report", 0)
    if isinstance(case.of, Study):
        for n in (clips.train, clips.validation, clips.test if case.searches else 0):
            add("features", n, math.ceil(n / shard_size(n, largest=CLIPS_PER_SHARD)))
        if not case.searches:
            add("models", 0, len(case.runs))
    for number, part in enumerate([] if case.searches else passes(case)):
        for p in part:
            for table in ("ledger",) if number else ("ledger", layout.SCORES):
                add(table, p.clips, p.shards)
            for table in layout.EXPLANATIONS if p.explains else ():
                # In these two, only clips with reference intervals, or with whole maps, have rows.
                rows = {"localization": round(p.clips * clips.annotated / clips.test), "spectrograms": 0}
                n = rows.get(table, p.clips)
                add(table, n, min(n, p.shards), p.clips if maps < 0 else min(maps, p.clips))
    return tables
