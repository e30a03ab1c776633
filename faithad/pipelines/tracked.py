"""What a study and a search export to experiment trackers (`track`): a run for each training, and for each trial.

They belong to a run of the study, or of the search, which has the report. A study's linear models and classical
detectors have no epochs and are not exported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from faithad import parquet, storage
from faithad.config.study import Study
from faithad.pipelines.search.plan import MODEL, trial_study
from faithad.pipelines.search.records import Record
from faithad.pipelines.training.task import SPREAD
from faithad.runs import layout, tracking
from faithad.runs.stages import flatten, is_finished
from faithad.runs.trackers import TrackedRun

# Metrics of an epoch: columns of the table.
_METRICS = ("train_loss", "validation_loss", "learning_rate", "gradient_norm", "duration_s")


def require_trackers(study: Study) -> None:
    """Refuse what cannot be tracked, before anything starts.

    Raises:
        ConfigError: see `runs.tracking.require_trackers`.
    """
    tracking.require_trackers(study.track, study.root)


def track_study(study: Study) -> None:
    """Export the trainings that are done, and the report if there is one, as far as the trackers do not have them."""
    tracking.export(study.track, study.root, study.name, lambda: _study_runs(study))


def track_search(study: Study, records: Iterable[Record]) -> None:
    """Export the trials of a search that are over, and its report."""
    tracking.export(study.track, study.root, study.name, lambda: _search_runs(study, records))


def _study_runs(study: Study) -> list[TrackedRun]:
    is_over = is_finished(study.root, "report")
    runs = [
        TrackedRun(
            name="study",
            kind="study",
            title=study.name,
            settings={},
            points={},
            files=_present(study.root, (layout.STUDY, layout.REPORT)) if is_over else (),
            status="finished" if is_over else "running",
        )
    ]
    for model, seed in study.runs:
        location = storage.join(study.root, layout.epochs(model, seed))
        if is_finished(study.root, f"train-{model}-{seed}") and storage.exists(location):
            runs.append(
                TrackedRun(
                    name=f"training/{model}-{seed}",
                    kind="training",
                    title=f"{model}-{seed}",
                    settings=_settings(study, model, seed),
                    points=_points(parquet.read_table(location).to_pylist()),
                    parent="study",
                )
            )
    return runs


def _search_runs(study: Study, records: Iterable[Record]) -> list[TrackedRun]:
    files = _present(study.root, (layout.BEST, layout.SEARCH_REPORT))
    search = TrackedRun("search", "search", f"{study.name} search", settings={}, points={}, files=files)
    return [search, *(_trial_run(study, record) for record in records)]


def _trial_run(study: Study, record: Record) -> TrackedRun:
    location = storage.join(study.root, layout.trial(record.trial.name), layout.EPOCHS)
    # Searches of release 0.1.0 kept no curves.
    points = _points(parquet.read_table(location).to_pylist()) if storage.exists(location) else {}
    for epoch, value in enumerate(record.values, start=1):
        if value is not None:
            points.setdefault(epoch, {})["objective"] = value
    if points and record.proxy_auc is not None:
        points[max(points)]["proxy_auc"] = record.proxy_auc
    return TrackedRun(
        name=f"search/{record.trial.name}",
        kind="trial",
        title=record.trial.title,
        settings=_settings(trial_study(study, record.trial.cell), MODEL, record.seed),
        points=points,
        parent="search",
        status="failed" if record.status == "failed" else "finished",
    )


def _settings(study: Study, model: str, seed: int) -> dict[str, Any]:
    """All settings that a training depends on, and that stay when it gets more epochs."""
    values = study.model_dump(mode="json", include={"data": {"clip_s"}, "features": True, "model": True, "train": True})
    values["train"] = {key: value for key, value in values["train"].items() if key not in SPREAD and key != "epochs"}
    settings = {key: value for key, value in flatten("", values).items() if value is not None}
    return {"model": model, "seed": seed, **settings}


def _points(epochs: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """The metrics after each epoch, with those of the best one at the last."""
    points = {row["epoch"]: {name: row[name] for name in _METRICS if row.get(name) is not None} for row in epochs}
    if best := [row for row in epochs if row["best"]]:
        points[max(points)] |= {"best_epoch": best[-1]["epoch"], "best_validation_loss": best[-1]["validation_loss"]}
    return points


def _present(root: str, files: Sequence[str]) -> tuple[str, ...]:
    return tuple(file for file in files if storage.exists(storage.join(root, file)))
