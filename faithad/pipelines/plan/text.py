"""A plan as text: for those who pay for the machines and for those who wait for the result."""

from __future__ import annotations

from collections.abc import Iterator

from faithad.config.study import Study
from faithad.model.table import MODELS
from faithad.pipelines.plan.estimate import Plan, estimate, total_s, written
from faithad.vocabulary import count, duration, size


def plan_text(plan: Plan) -> str:
    """The whole plan."""
    stages, sizes, total, of = estimate(plan), written(plan), total_s(plan), plan.of
    title = f"of {of.name!r}" if isinstance(of, Study) else f"of {', '.join(of.recordings)}"
    slowest = max(stages, key=lambda stage: stage.seconds)
    parts = [
        [f"{plan.command.capitalize()} {title} on {' and '.join(map(str, plan.machines.groups))}"],
        [f"Rates: {plan.rates.measured}.", *_work(plan)],
        ["", f"{'stage':20s}{'time':>12s}   limited by"],
        [f"{stage.name:20s}{duration(stage.seconds):>12s}   {stage.limit}" for stage in stages],
        [f"{'total':20s}{duration(total):>12s}"],
        ["", f"{'written':20s}{'size':>12s}"],
        [f"{name:20s}{size(n_bytes):>12s}" for name, n_bytes in [*sizes.items(), ("total", sum(sizes.values()))]],
        ["", *_dollars(plan, total, sum(sizes.values()))],
        [f"Bottleneck: {slowest.name}, {duration(slowest.seconds)} of {duration(total)}, limited by {slowest.limit}."],
    ]
    return "\n".join(line for part in parts for line in part)


def _work(plan: Plan) -> Iterator[str]:
    clips, audit = plan.clips, plan.of.audit
    splits = f"{clips.train:,} train, {clips.validation:,} validation, {clips.test:,} test"
    recordings = count(clips.recordings, "recording")
    yield f"Clips: {splits} ({clips.annotated:,} with reference intervals), from {recordings}."
    if plan.command != "audit":
        trainings = f"{count(len(plan.runs), 'training')}, up to {plan.places.at_once} at a time"
        yield f"{trainings}, each of {plan.train.epochs:,} epochs at the most; early stopping may end one sooner."
    if plan.command != "search":
        yield f"Explained: {plan.n_explained:,} clips by each explained model (audit.explain: {audit.explain})."
    if audit.explain == "alarms" and plan.command != "search":
        yield f"{plan.alarm_rate:.1%} of the clips are expected to alarm; abnormal clips come on top."
    if plan.command == "search" and isinstance(plan.of, Study) and (plan.of.search.scores or plan.of.search.members):
        yield "Not in this plan: search.scores and search.members, which are compared once, after the trials."
    if detectors := sorted({model for model, _ in plan.runs if MODELS[model].fitted}):
        yield f"Not in this plan: the fitting of {', '.join(detectors)}, which does not grow in step with the clips."


def _dollars(plan: Plan, seconds: float, n_bytes: float) -> Iterator[str]:
    per_hour, per_gb = plan.machines.dollars_per_hour, plan.machines.storage.dollars_per_gb_month
    if per_hour is not None:
        yield f"Machines: ${per_hour * seconds / 3600:,.2f} (all of them, for the whole time)."
    if per_gb is not None:
        yield f"Storage: ${per_gb * n_bytes / 1e9:,.2f} a month."
    missing = {"dollars_per_hour of each group": per_hour, "storage.dollars_per_gb_month": per_gb}
    if names := [name for name, price in missing.items() if price is None]:
        yield f"Prices are missing: give {' and '.join(names)} in the file of --machines."
