"""A plan as text: for those who pay for the machines and for those who wait for the result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from faithad.config.sections import Train
from faithad.config.study import Study
from faithad.model.table import MODELS
from faithad.pipelines.plan.changes import changes, with_workers
from faithad.pipelines.plan.estimate import Case, Stage, audit_stage, estimate, total_s, written
from faithad.pipelines.search.plan import MODEL, grid_trials

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
# What helps less than that is not worth doing.
_WORTH = 0.05


def plan_text(case: Case, *, source: str) -> str:
    """The whole plan; `source` says where the rates come from."""
    stages = estimate(case)
    parts = [
        [f"{_title(case)} on {case.machines}", f"Rates: {source}.", *_not_planned(case)],
        list(_clips(case)),
        list(_times(stages)),
        list(_bytes(case)),
        [*_dollars(case, stages), *_memory(case)],
        list(_workers(case)),
        list(_advice(case, stages)),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _title(case: Case) -> str:
    return f"Study {case.of.name!r}" if isinstance(case.of, Study) else f"Audit of {', '.join(case.of.recordings)}"


def _not_planned(case: Case) -> Iterator[str]:
    """Of a file that is for `faithad search` as well, or for it alone."""
    if isinstance(case.of, Study) and "search" in case.of.model_fields_set:
        search, n = case.of.search, len(grid_trials(case.of))
        if search.algorithm == "optuna":
            n = search.trials * len(case.of.seeds)
        yield (
            "This is the plan of `faithad study` on the file. Its section `search` is not planned: `faithad search` "
            f"has {n:,} trainings of {MODEL}, and no audit."
        )


def _clips(case: Case) -> Iterator[str]:
    clips, audit = case.clips, case.of.audit
    if isinstance(case.of, Study):
        yield (
            f"Clips: {clips.total:,} from {clips.recordings:,} recordings, by {clips.source}: {clips.train:,} train, "
            f"{clips.validation:,} validation, {clips.test:,} test ({clips.annotated:,} with reference intervals)."
        )
        yield (
            f"Trainings: {len(case.runs)}, up to {case.places.at_once} at a time, each of {case.of.train.epochs:,} "
            "epochs at the most; early stopping may end one sooner."
        )
        yield from _unmeasured(case, case.of)
    else:
        yield f"Clips: {clips.test:,} from {clips.recordings:,} recordings, by {clips.source}."
    if case.explained_runs:
        why = f"audit.explain: {audit.explain}"
        if audit.explain == "alarms":
            why += f", {case.alarm_rate:.1%} of all (the alarm's false_alarm_rate); what is abnormal comes on top"
        n = len(case.explained_runs)
        models = "one trained model" if n == 1 else f"each of {n} trained models"
        yield f"Explained: {case.n_explained:,} clips by {models} ({why})."
    detectors = sorted({model for model, _ in case.runs if MODELS[model].classical})
    if detectors:
        yield f"Not in this plan: the fitting of {', '.join(detectors)}, which does not grow in step with the clips."


def _unmeasured(case: Case, study: Study) -> Iterator[str]:
    """Where the rates of trainings say less than the plan asks for."""
    threads, measured = case.places.threads, sorted({n for rates in case.rates.cpu.train.values() for n in rates})
    if not study.train.gpus_per_worker and measured and threads not in measured:
        gain = (
            "more are reckoned to gain nothing"
            if threads > measured[0]
            else "fewer are reckoned to be slower by as much"
        )
        yield f"A training has {threads} threads there; measured were {', '.join(map(str, measured))}, and {gain}."
    if study.train.workers > 1:
        yield f"What the {study.train.workers} workers of a training take to exchange gradients is not reckoned with."


def _times(stages: Sequence[Stage]) -> Iterator[str]:
    yield f"{'stage':20s}{'time':>12s}{'CPU hours':>12s}{'GPU hours':>12s}   limited by"
    for stage in stages:
        known = stage.wall_s is not None
        numbers = f"{_hours(stage.cpu_s):>12s}{_hours(stage.gpu_s):>12s}" if known else f"{'?':>12s}{'?':>12s}"
        yield f"{stage.name:20s}{duration(stage.wall_s):>12s}{numbers}   {stage.limit}"
    least = "" if all(stage.wall_s is not None for stage in stages) else "at least "
    cpu_s, gpu_s = sum(stage.cpu_s for stage in stages), sum(stage.gpu_s for stage in stages)
    yield f"{'total':20s}{least + duration(total_s(stages)):>12s}{_hours(cpu_s):>12s}{_hours(gpu_s):>12s}"


def _bytes(case: Case) -> Iterator[str]:
    tables = written(case)
    yield f"{'written':20s}{'size':>12s}"
    for name, n_bytes in tables.items():
        yield f"{name:20s}{size(n_bytes):>12s}"
    yield f"{'total':20s}{size(sum(tables.values())):>12s}"


def _dollars(case: Case, stages: Sequence[Stage]) -> Iterator[str]:
    per_hour, per_gb = case.machines.dollars_per_hour, case.machines.storage.dollars_per_gb_month
    if per_hour is not None:
        least = "" if all(stage.wall_s is not None for stage in stages) else "at least "
        yield f"Machines: {least}${per_hour * total_s(stages) / 3600:,.2f} (all of them, for the whole time)."
    if per_gb is not None:
        yield f"Storage: ${per_gb * sum(written(case).values()) / 1e9:,.2f} a month."
    if per_hour is None or per_gb is None:
        missing = [] if per_hour is not None else ["dollars_per_hour of each group"]
        missing += [] if per_gb is not None else ["storage.dollars_per_gb_month"]
        yield f"Not reckoned in dollars: give {' and '.join(missing)} in the file of --machines."


def _memory(case: Case) -> Iterator[str]:
    """A process for each core, and the clips that trainings share, must fit into every machine."""
    each_gib, of, shared_gib = case.rates.memory_gib, case.of, 0.0
    if isinstance(of, Study):
        cells = of.features.n_mels * of.feature_settings.n_frames
        shared_gib = 4 * cells * (case.clips.train + case.clips.validation) / 2**30
    for group in case.machines.groups:
        if each_gib is None or group.memory is None:
            continue
        needed_gib = max(1, int(group.cpus)) * each_gib + shared_gib
        little = "" if needed_gib <= group.memory else " TOO LITTLE: set audit.actors and train.trainings_at_once."
        each = "each " if group.count > 1 else ""
        yield f"Memory: up to {needed_gib:.1f} of the {group.memory:g} GiB of {each}{group.name}.{little}"


def _workers(case: Case) -> Iterator[str]:
    """The audit's passes alone: what is before and after them is the same with any number of workers."""
    alone = audit_stage(with_workers(case, 1))
    if alone.wall_s is None:
        return
    yield "The audit alone, from a cold start, by so many workers of one core (or its share of a GPU) each, simulated:"
    yield f"{'workers':>10s}{'time':>12s}{'efficiency':>12s}   limited by"
    for n in WORKERS:
        stage = audit_stage(with_workers(case, n))
        assert stage.wall_s is not None
        share = alone.wall_s / (n * stage.wall_s) if stage.wall_s else 1.0
        yield f"{n:>10,}{duration(stage.wall_s):>12s}{share:>12.0%}   {stage.limit}"


def _advice(case: Case, stages: Sequence[Stage]) -> Iterator[str]:
    unknown = [stage.name for stage in stages if stage.wall_s is None]
    on_gpus = {"audit": case.of.audit.gpus_per_actor, "train": getattr(case.of, "train", Train()).gpus_per_worker}
    without_gpu = [name for name in unknown if on_gpus[name] and case.rates.gpu is None]
    if lacking := [name for name in unknown if name not in without_gpu]:
        yield (
            f"The rates lack figures for {' and '.join(lacking)} with the models "
            f"{', '.join(sorted({model for model, _ in case.runs}))}: measure this configuration with --save-rates."
        )
    if without_gpu:
        yield (
            f"The configuration asks for GPUs for {' and '.join(without_gpu)}, and the rates say nothing of one. "
            "Run `faithad plan --save-rates rates.yaml` with this configuration on a machine that has one, and give "
            "that file as --rates; or write figures that somebody measured under `gpu` in a file of rates."
        )
    elif not unknown and case.machines.gpus and not any(stage.gpu_s for stage in stages):
        known = case.rates.gpu is not None
        how = "" if known else " How fast a GPU is, these rates do not say: measure on a machine that has one."
        yield (
            "These machines have GPUs that the configuration does not use: set train.gpus_per_worker and "
            f"audit.gpus_per_actor.{how}"
        )
    known_stages = [stage for stage in stages if stage.wall_s is not None]
    slowest = max(known_stages, key=lambda stage: stage.wall_s or 0.0)
    whole_s = total_s(stages)
    yield (
        f"Bottleneck: {slowest.name}, {duration(slowest.wall_s)} of {duration(whole_s)}, limited by {slowest.limit}."
    )
    tried = {name: total_s(estimate(other)) for name, other in changes(case)}
    best = min(tried, key=lambda name: tried[name])
    if tried[best] < (1 - _WORTH) * whole_s:
        times = f"{duration(tried[best])} in place of {duration(whole_s)}"
        yield f"What would help most, and change no result: {best} ({times})."
    else:
        yield f"Neither {' nor '.join(tried)} would save as much as {_WORTH:.0%}."


def duration(seconds: float | None) -> str:
    """Such as `3 h 05 min`, `4 min 10 s`, `12 s`."""
    if seconds is None:
        return "not known"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def size(n_bytes: float) -> str:
    """Such as `1.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 999.5:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.1f} TB"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.3f}" if seconds < 36_000 else f"{seconds / 3600:,.0f}"
