"""A plan as text: for those who pay for the machines and for those who wait for the result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from faithad.config.study import Study
from faithad.model.table import MODELS
from faithad.pipelines.plan.estimate import Case, Stage, estimate, passes, total_s, written
from faithad.vocabulary import count


def plan_text(case: Case, *, source: str) -> str:
    """The whole plan; `source` says where the rates come from."""
    kind = "Search" if case.searches else "Study"
    title = f"{kind} {case.of.name!r}" if isinstance(case.of, Study) else f"Audit of {', '.join(case.of.recordings)}"
    stages, tables = estimate(case), written(case)
    parts = [
        [f"{title} on {case.machines}", f"Rates: {source}."],
        list(_clips(case)),
        list(_times(stages)),
        [f"{name:20s}{text:>12s}" for name, text in _sizes(tables)],
        list(_dollars(case, stages, sum(tables.values()))),
        list(_conclusions(case, stages)),
    ]
    return "\n\n".join("\n".join(part) for part in parts)


def _clips(case: Case) -> Iterator[str]:
    clips, n = case.clips, len(case.runs)
    if isinstance(case.of, Study):
        yield (
            f"Clips: {clips.train + clips.validation + clips.test:,} from {count(clips.recordings, 'recording')}, by "
            f"{clips.source}: {clips.train:,} train, {clips.validation:,} validation, {clips.test:,} test "
            f"({clips.annotated:,} with reference intervals)."
        )
        what, why = ("Trials", "early stopping or the scheduler") if case.searches else ("Trainings", "early stopping")
        yield (
            f"{what}: {n:,}, up to {case.places.at_once} at a time, each of {case.train.epochs:,} epochs at the most; "
            f"{why} may end one sooner."
        )
        if not case.searches and "search" in case.of.model_fields_set:
            yield "This is the plan of `faithad study`; with --search it is that of `faithad search`."
        if case.train.workers > 1:
            yield f"The exchange of gradients by the {case.train.workers} workers of a training is left out."
    else:
        yield f"Clips: {clips.test:,} from {count(clips.recordings, 'recording')}, by {clips.source}."
    if any(p.explains for part in passes(case) for p in part) and not case.searches:
        why = f"audit.explain: {case.of.audit.explain}"
        if case.of.audit.explain == "alarms":
            why += f", {case.alarm_rate:.1%} of all (the alarm's false_alarm_rate); what is abnormal comes on top"
        yield f"Explained: {case.n_explained:,} clips by each explained model ({why})."
    if detectors := sorted({model for model, _ in case.runs if MODELS[model].fitted}):
        yield f"Not in this plan: the fitting of {', '.join(detectors)}, which does not grow in step with the clips."


def _times(stages: list[Stage]) -> Iterator[str]:
    yield f"{'stage':20s}{'time':>12s}   limited by"
    for stage in stages:
        yield f"{stage.name:20s}{duration(stage.seconds):>12s}   {stage.limit}"
    yield f"{'total':20s}{_least(stages) + duration(total_s(stages)):>12s}"


def _sizes(tables: dict[str, float]) -> Iterator[tuple[str, str]]:
    yield "written", "size"
    yield from ((name, size(n_bytes)) for name, n_bytes in tables.items())
    yield "total", size(sum(tables.values()))


def _dollars(case: Case, stages: list[Stage], n_bytes: float) -> Iterator[str]:
    per_hour, per_gb = case.machines.dollars_per_hour, case.machines.storage.dollars_per_gb_month
    missing = []
    if per_hour is None:
        missing.append("dollars_per_hour of each group")
    else:
        dollars = f"{_least(stages)}${per_hour * total_s(stages) / 3600:,.2f}"
        yield f"Machines: {dollars} (all of them, for the whole time)."
    if per_gb is None:
        missing.append("storage.dollars_per_gb_month")
    else:
        yield f"Storage: ${per_gb * n_bytes / 1e9:,.2f} a month."
    if missing:
        yield f"Prices are missing: give {' and '.join(missing)} in the file of --machines."


def _conclusions(case: Case, stages: list[Stage]) -> Iterator[str]:
    if unknown := [stage.name for stage in stages if stage.seconds is None]:
        yield (
            f"The rates lack figures for {' and '.join(unknown)} on the CPUs or GPUs that the configuration asks for. "
            "Run `faithad plan --save-rates rates.yaml` with this configuration on a machine that has them and give "
            "that file as --rates, or write figures that somebody measured into a file of rates."
        )
    elif case.machines.gpus and not _uses_gpus(case):
        yield (
            "These machines have GPUs that the configuration does not use: set train.gpus_per_worker and "
            "audit.gpus_per_actor, or search.gpus_per_trial."
        )
    slowest = max(stages, key=lambda stage: stage.seconds or 0.0)
    twice = replace(case, machines=case.machines.twice())
    yield (
        f"Bottleneck: {slowest.name}, {duration(slowest.seconds)} of {duration(total_s(stages))}, limited by "
        f"{slowest.limit}. With twice the machines: {_least(stages)}{duration(total_s(estimate(twice)))}."
    )


def _uses_gpus(case: Case) -> bool:
    trains = case.train.gpus_per_worker if isinstance(case.of, Study) else 0.0
    return trains > 0 or (case.of.audit.gpus_per_actor > 0 and not case.searches)


def _least(stages: list[Stage]) -> str:
    return "at least " if any(stage.seconds is None for stage in stages) else ""


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
