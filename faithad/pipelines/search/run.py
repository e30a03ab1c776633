"""The search over mask ratio and patch size: the paper's Table 2 as one command, with uncertainty.

    index → features → trials → summary/search.parquet, best.yaml, search.html

A trial is the training of one cell (a mask ratio with a patch size) with one seed. The objectives `proxy_auc` and
`validation_loss` never see a test label: trials score the test clips without any, and the AUC of the table is taken
from those scores afterwards. `test_auc` is the paper's choice, which does see them, and is marked so.
"""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from faithad import schemas, storage
from faithad.config.study import Study
from faithad.errors import StudyError
from faithad.evaluation.detection import auc, pauc
from faithad.pipelines.cluster.session import ray_session
from faithad.pipelines.features import compute_features, fit_normalization
from faithad.pipelines.index import digest, require_study_visible
from faithad.pipelines.search.clips import clips_stage, compute_test_clips, labelled_clips
from faithad.pipelines.search.judge import scores_location
from faithad.pipelines.search.plan import (
    MODEL,
    MODES,
    Record,
    Trial,
    begun_trials,
    cell_study,
    check_search,
    read_record,
)
from faithad.pipelines.search.tuning import find_trial_places, run_trials
from faithad.pipelines.study import STAGES, open_study
from faithad.pipelines.training.clips import share_clips
from faithad.pipelines.training.run import train_stage
from faithad.progress import console
from faithad.report.search_page import render_search_report
from faithad.runs import layout
from faithad.runs.lock import alone_in
from faithad.runs.stages import Stage, flatten

# Settings that say where trials run, not what they compute.
_SPREAD = {"cpus_per_trial", "gpus_per_trial", "trials_at_once"}


class Cell(NamedTuple):
    """One mask ratio with one patch size, and the objective's mean over its seeds. `std` is None for one seed."""

    mask_ratio: float
    patch: int
    mean: float
    std: float | None
    n_seeds: int


def search_study(study: Study, *, redo: bool = False) -> str:
    """Run the search from where the last run left off, with all that it needs first.

    Returns:
        The last line for the user: the best cell, and where the table and the best study are.

    Raises:
        ConfigError: some cells, or the settings of the search, are impossible; all are told before anything starts.
        StudyError: no trial could be finished, the objective needs labels that are not there, or the cluster can never
            hold one trial.
    """
    check_search(study)
    with alone_in(study.root):
        return _search(study, redo=redo)


def _search(study: Study, *, redo: bool) -> str:
    STAGES["index"](study, redo=redo)
    stages, manifest = open_study(study)
    labelled = labelled_clips(manifest)
    labels = dict(zip(labelled["clip_id"].to_pylist(), labelled["label"].to_pylist(), strict=True))
    if study.search.objective == "test_auc":
        _check_labels(labels)
        console.print(
            "search: objective test_auc chooses by the labels of the test clips, as the paper did; the test AUC of "
            "the chosen cell is no estimate of what it will be on other recordings."
        )
    clips = clips_stage(study, labelled)
    trials = _trials_stage(study, stages.features, clips, labels)
    failed: dict[Trial, str] = {}
    if not trials.is_done():
        with ray_session():
            find_trial_places(study)  # a request that can never be met is refused before any work is done
            require_study_visible(study)
            compute_features(study, manifest, stages.features, redo=redo)
            compute_test_clips(study, labelled, clips, redo=redo)
            trials.begin(redo=redo)
            failed = run_trials(study, _arguments(study, labels))
        if not failed:
            trials.finish()
    records = _records(study)
    _check_values(records, failed)
    best = best_cell(study, records)
    _write_tables(study, records, failed, labels, best)
    return f"{_closing_line(study, records, failed, best)}  Report: {render_search_report(study.root)}"


def best_cell(study: Study, records: Sequence[Record]) -> Cell:
    """The cell with the best mean of the objective over its seeds; of equal ones that with the smaller ratio and patch.

    A trial that was given up counts with the value that it had. A cell of which every trial was given up, or of which
    a seed is missing, is chosen only where there is no other. At least one trial must have come to a value.
    """
    by_cell: dict[tuple[float, int], list[Record]] = {}
    for record in records:
        if record.value is not None:
            by_cell.setdefault((record.mask_ratio, record.patch), []).append(record)
    sign = 1.0 if MODES[study.search.objective] == "min" else -1.0

    def rank(cell: tuple[float, int]) -> tuple[bool, bool, float, tuple[float, int]]:
        found = by_cell[cell]
        lacking = len(found) < len(study.seeds)
        given_up = all(record.status == "stopped" for record in found)
        return lacking, given_up, sign * statistics.fmean(_values(found)), cell

    chosen = min(by_cell, key=rank)
    values = _values(by_cell[chosen])
    std = statistics.stdev(values) if len(values) > 1 else None
    return Cell(*chosen, mean=statistics.fmean(values), std=std, n_seeds=len(values))


def _trials_stage(study: Study, features: Stage, clips: Stage, labels: Mapping[str, int]) -> Stage:
    """The mark of all trials together. What each training depends on is told by the mark of such a training."""
    training = train_stage(study, MODEL, study.seeds[0], features).settings
    settings = {key: value for key, value in training.items() if key not in ("train.mask_ratio", "train.patch", "seed")}
    settings |= flatten("search", study.search.model_dump(mode="json", exclude=_SPREAD))
    settings |= {"seeds": list(study.seeds), "test clips": clips.fingerprint}
    if study.search.objective == "test_auc":
        settings["test labels"] = digest(pa.table({"clip_id": list(labels), "label": list(labels.values())}))
    outputs = (layout.TRIALS, layout.summary("search"), layout.BEST, layout.SEARCH_REPORT)
    return Stage(study.root, "search", settings, outputs, result=layout.TRIALS)


def _arguments(study: Study, labels: Mapping[str, int]) -> dict[str, Any]:
    """What each trial is told; test labels only for the objective that is made of them."""
    normalization = fit_normalization(study)
    arguments: dict[str, Any] = {
        "study": study.to_yaml(),
        "mean": normalization.mean.tolist(),
        "std": normalization.std.tolist(),
        "clips": share_clips(study, normalization),
        "is_tested": bool(labels),
    }
    return arguments | ({"labels": dict(labels)} if study.search.objective == "test_auc" else {})


def _check_labels(labels: Mapping[str, int]) -> None:
    counts = [sum(label == wanted for label in labels.values()) for wanted in (0, 1)]
    if not all(counts):
        raise StudyError(
            f"search.objective is 'test_auc', but of the test clips {counts[0]} are labelled normal and {counts[1]} "
            "anomalous. Give data.annotations, or choose by 'proxy_auc', which needs no label."
        )


def _records(study: Study) -> list[Record]:
    found = [read_record(study.root, trial) for trial in begun_trials(study.root)]
    return [record for record in found if record is not None]


def _check_values(records: Sequence[Record], failed: Mapping[Trial, str]) -> None:
    if all(record.value is None for record in records):
        reasons = {record.trial: record.reason for record in records} | dict(failed)
        told = "\n".join(f"  {trial.name}: {reason}" for trial, reason in list(reasons.items())[:5])
        raise StudyError(f"No trial of the search has come to a value. The first reasons:\n{told}")


def _write_tables(
    study: Study, records: Sequence[Record], failed: Mapping[Trial, str], labels: Mapping[str, int], best: Cell
) -> None:
    rows = [_row(study, record, labels) for record in records]
    rows += [_failed_row(study, trial) for trial in failed]
    rows.sort(key=lambda row: (row["mask_ratio"], row["patch"], row["seed"]))
    table = pa.Table.from_pylist(rows, schema=schemas.SEARCH_SUMMARY)
    storage.write_table(table, storage.join(study.root, layout.summary("search")), schema=schemas.SEARCH_SUMMARY)
    text = cell_study(study, best.mask_ratio, best.patch).to_yaml()
    storage.write_text(
        _best_location(study),
        f"# The best cell of a search by {study.search.objective}: {_told(best)}.\n"
        f"#\n#   faithad train --config {shlex.quote(_best_location(study))}\n\n{text}",
    )


def _row(study: Study, record: Record, labels: Mapping[str, int]) -> dict[str, Any]:
    return {
        "trial": record.trial.name,
        "mask_ratio": record.mask_ratio,
        "patch": record.patch,
        "seed": record.seed,
        "status": record.status,
        "objective": study.search.objective,
        "value": record.value,
        "proxy_auc": record.proxy_auc,
        "validation_loss": record.validation_loss,
        **_test_areas(study, record, labels),
        "epochs": len(record.values),
        "best_epoch": record.best_epoch,
        "diverged_epochs": record.diverged_epochs,
        "duration_s": record.duration_s,
    }


def _failed_row(study: Study, trial: Trial) -> dict[str, Any]:
    empty = dict.fromkeys(schemas.SEARCH_SUMMARY.names)
    known = {"trial": trial.name, **trial._asdict(), "status": "failed", "objective": study.search.objective}
    return {**empty, **known, "epochs": 0, "diverged_epochs": 0, "duration_s": 0.0}


def _test_areas(study: Study, record: Record, labels: Mapping[str, int]) -> dict[str, float]:
    """AUC and pAUC of the labelled test clips, nothing where these lack a class."""
    location = scores_location(study.root, record.trial)
    if len(set(labels.values())) < 2 or not storage.exists(location):
        return {}
    scores = {row["clip_id"]: row["score"] for row in storage.read_table(location).to_pylist()}
    known = [clip_id for clip_id in labels if clip_id in scores]
    values, wanted = [scores[clip_id] for clip_id in known], [labels[clip_id] for clip_id in known]
    return {"auc": auc(values, wanted), "pauc": pauc(values, wanted)} if len(set(wanted)) == 2 else {}


def _closing_line(study: Study, records: Sequence[Record], failed: Mapping[Trial, str], best: Cell) -> str:
    for trial, reason in failed.items():
        console.print(f"search: {trial.name} failed: {reason}")
    for record in records:
        if record.diverged_epochs:
            console.print(
                f"search: {record.trial.name} diverged, {record.diverged_epochs} of {len(record.values)} epochs"
            )
    statuses = [record.status for record in records] + ["failed"] * len(failed)
    counts = [f"{statuses.count(status)} {status}" for status in ("done", "stopped", "failed") if status in statuses]
    again = " The same command tries those that failed again." if failed else ""
    return (
        f"Trials: {', '.join(counts)}.{again} Best by {study.search.objective}: {_told(best)}. "
        f"Table: {storage.join(study.root, layout.summary('search'))}  Best study: {_best_location(study)}"
    )


def _told(best: Cell) -> str:
    spread = "" if best.std is None else f" ± {best.std:.4f}"
    seeds = f"{best.n_seeds} seed" + ("s" if best.n_seeds > 1 else "")
    return f"mask_ratio {best.mask_ratio:g}, patch {best.patch}: {best.mean:.4f}{spread} over {seeds}"


def _best_location(study: Study) -> str:
    return storage.join(study.root, layout.BEST)


def _values(records: Sequence[Record]) -> list[float]:
    return [record.value for record in records if record.value is not None]
