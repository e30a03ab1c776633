"""The search over mask ratio, patch size and further settings: the paper's Table 2 as one command, with uncertainty.

    index → features → trials → summary/search.parquet, best.yaml, best/, best_ensemble/, search.html

A trial is the training of one cell (a mask ratio, a patch size, and what `search.space` adds) with one seed. The
objectives `proxy_auc` and `validation_loss` never see a test label: trials score the test clips without labels, and the
AUC of the table is computed from those scores afterwards. `test_auc`, the paper's choice, sees them, and is marked
so.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any, NamedTuple

import pyarrow as pa

from faithad import parquet, schemas, storage
from faithad.config.study import Study
from faithad.errors import StudyError
from faithad.evaluation.detection import auc, pauc
from faithad.model.checkpoint import FILE_NAME
from faithad.pipelines.cluster.session import ray_is_ours, ray_session
from faithad.pipelines.features import compute_features, fit_normalization
from faithad.pipelines.index import require_study_visible
from faithad.pipelines.search.clips import clips_stage, compute_test_clips, labelled_clips
from faithad.pipelines.search.members import keep_ensemble
from faithad.pipelines.search.plan import (
    KEPT_CELLS,
    MODEL,
    MODES,
    Cell,
    Trial,
    all_trials,
    check_search,
    is_present,
    largest_study,
    scores_to_compare,
    trial_location,
    trial_study,
    tried_values,
    with_score,
)
from faithad.pipelines.search.records import Record, is_over, note_epochs, present_records, read_records
from faithad.pipelines.search.scores import choose_score, is_left_from_before, read_scores, scores_stage
from faithad.pipelines.search.task import SearchTask
from faithad.pipelines.search.tuning import find_trial_places, run_trials
from faithad.pipelines.search.verdict import write_verdict
from faithad.pipelines.study import STAGES, open_study
from faithad.pipelines.tracked import require_trackers, track_search
from faithad.pipelines.training.clips import share_clips
from faithad.pipelines.training.disk import require_disk, weights_bytes
from faithad.pipelines.training.more_epochs import EPOCHS, epochs_before, why_it_ends
from faithad.pipelines.training.run import require_initial_weights, train_stage
from faithad.progress import console
from faithad.report.search_page import on_members, render_search_report
from faithad.runs import layout
from faithad.runs.fingerprints import table_digest
from faithad.runs.lock import alone_in, require_still_alone
from faithad.runs.stages import ResumableStage, flatten
from faithad.scoring.choices import PAPER, Score
from faithad.vocabulary import count, listed

# Settings that say where trials run, not what they compute.
_SPREAD = {"cpus_per_trial", "gpus_per_trial", "trials_at_once"}
# Settings that say which trials there are. They do not change what a trial of the same name computes.
_WHICH = ("search.mask_ratios", "search.patches", "search.space.", "search.algorithm", "search.trials", "seeds")
_SHOWN_CELLS = 10
# Tables of what follows from the trials.
_CONCLUSIONS = ("search_comparison", "search_scores", "search_members")
# What a trained model's folder holds; the file that makes it a model is copied last.
_MODEL_FILES = (layout.STUDY, layout.EPOCHS, layout.VALIDATION_SCORES, layout.PIECE_SCORES, FILE_NAME)


class RankedCell(NamedTuple):
    """A cell, and the objective's mean over its seeds. `std` is None for one seed."""

    cell: Cell
    mean: float
    std: float | None
    n_seeds: int

    def __str__(self) -> str:
        spread = "" if self.std is None else f" ± {self.std:.4f}"
        return f"{self.cell}: {self.mean:.4f}{spread} over {count(self.n_seeds, 'seed')}"


def search_study(study: Study, *, redo: bool = False) -> str:
    """Run the search from where the last run left off, with all that it needs first.

    Returns:
        The last line for the user: the best cell, and where the table and the best study are.

    Raises:
        ConfigError: some cells, or the settings of the search, are impossible; all are listed before anything starts.
        StudyError: no trial could be finished, the objective needs labels that are not there, or the cluster can never
            hold one trial.
    """
    check_search(study)
    require_trackers(study)
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
    failures: list[Record] = []
    if not trials.is_done():
        with ray_session():
            places = find_trial_places(study)  # refuses an impossible request before any work is done
            require_study_visible(study)
            weights = [weights_bytes(largest_study(study), MODEL)] * (
                len(all_trials(study)) - len(present_records(study))
            )
            require_disk(study.root, weights, at_once=places.at_once, keeps_states=study.train.ends_anywhere)
            require_initial_weights(study, [MODEL])
            compute_features(study, manifest, stages.features, redo=redo)
            compute_test_clips(study, labelled, clips, redo=redo)
            note_epochs(study, trials)
            if trials.begin(redo=redo):
                _say_who_goes_on(study)
            for folder in (layout.BEST_MODEL, layout.BEST_ENSEMBLE):
                storage.delete(storage.join(study.root, folder))
            normalization = fit_normalization(study)
            search = SearchTask(
                study=study,
                normalization=normalization,
                clips=share_clips(study, normalization),
                is_tested=bool(labels),
                labels=labels if study.search.objective == "test_auc" else None,
                places=find_trial_places(study),
                ray_is_ours=ray_is_ours(),
            )
            failures = run_trials(search)
        if not failures:
            trials.finish()
    records = present_records(study)
    every = [record for record in read_records(study.root) if record in records or not is_present(study, record.trial)]
    ranked = ranked_cells(study, records)
    require_still_alone()
    _write_table(study, [*every, *failures], labels)
    if not ranked:
        for stale in (layout.BEST, *map(layout.summary, _CONCLUSIONS)):
            storage.delete(storage.join(study.root, stale))
        reasons = [f"{record.trial.title}: {record.reason}" for record in [*records, *failures]]
        raise StudyError(
            f"No trial of the search has a value. Table: {storage.join(study.root, layout.summary('search'))}  "
            f"Report: {render_search_report(study.root)}\n"
            f"Reasons: {listed(reasons, most=5, separator='; ')}"
        )
    best = _best_trial(study, records, ranked[0].cell)
    score = _keep_best(study, manifest, stages.features, trials, best)
    ensembles = keep_ensemble(study, manifest, stages.features, trials, best)
    _keep_models(study, every, ranked)
    _write_best(study, ranked[0], score)
    write_verdict(study, records, labelled, ranked[0].cell)
    for place, cell in enumerate(ranked[:_SHOWN_CELLS] if len(ranked) > 1 else (), start=1):
        console.print(f"search: {place}. {cell}")
    if n_others := len(every) - len(records):
        console.print(f"search: the table also has {count(n_others, 'trial')} of earlier settings (present: false)")
    line = _closing_line(study, records, failures, ranked[0])
    if ensembles:
        console.print(f"search: {on_members(ensembles)}")
        line += f"  Best ensemble: {storage.join(study.root, layout.BEST_ENSEMBLE)}"
    line += f"  Report: {render_search_report(study.root)}"
    track_search(study, [*records, *failures])
    return line


def ranked_cells(study: Study, records: Sequence[Record]) -> list[RankedCell]:
    """All cells by the mean of the objective over their seeds, the best first; equal ones by ratio and patch.

    A trial that was stopped counts with the value that it had. Cells of which every trial was stopped, or of which a
    seed is missing, come after all others; those without a value are left out.
    """
    values: dict[Cell, list[float]] = {}
    all_stopped: dict[Cell, bool] = {}
    for record in records:
        if record.value is not None:
            cell = record.trial.cell
            values.setdefault(cell, []).append(record.value)
            all_stopped[cell] = all_stopped.get(cell, True) and record.status == "stopped"
    sign = 1.0 if MODES[study.search.objective] == "min" else -1.0

    def rank(cell: Cell) -> tuple[bool, bool, float, Cell]:
        return len(values[cell]) < len(study.seeds), all_stopped[cell], sign * statistics.fmean(values[cell]), cell

    return [
        RankedCell(
            cell,
            mean=statistics.fmean(values[cell]),
            std=statistics.stdev(values[cell]) if len(values[cell]) > 1 else None,
            n_seeds=len(values[cell]),
        )
        for cell in sorted(values, key=rank)
    ]


def _keep_models(study: Study, records: Sequence[Record], ranked: Sequence[RankedCell]) -> None:
    """Remove the weights and states of all but the best cells. Trials of earlier settings keep theirs: the user may go
    back to these.
    """
    kept = [ranked_cell.cell for ranked_cell in ranked[:KEPT_CELLS]]
    for record in records:
        if is_present(study, record.trial) and record.trial.cell not in kept:
            for name in (FILE_NAME, layout.STATE):
                storage.delete(trial_location(study.root, record.trial, name))


def _best_trial(study: Study, records: Sequence[Record], cell: Cell) -> Trial:
    sign = 1.0 if MODES[study.search.objective] == "min" else -1.0
    of_cell = [record for record in records if is_present(study, record.trial) and record.trial.cell == cell]
    _, best = min((sign * record.value, record.trial) for record in of_cell if record.value is not None)
    return best


def _keep_best(
    study: Study, manifest: pa.Table, features: ResumableStage, trials: ResumableStage, best: Trial
) -> Score:
    """Copy the model of the best trial to `best/`, with the best of the scores to compare.

    Returns:
        Its score.
    """
    source, target = trial_location(study.root, best), storage.join(study.root, layout.BEST_MODEL)
    stage = scores_stage(study, best, trials)
    if is_left_from_before(study):
        stage.reset()
    compares = bool(study.search.scores) and storage.exists(storage.join(source, FILE_NAME))
    if compares and stage.is_done():
        return read_scores(study)[0]
    if compares:
        stage.begin(redo=True)
        storage.delete(target)
    # Searches of release 0.1.0 kept no weights.
    if storage.exists(storage.join(source, FILE_NAME)) and not storage.exists(storage.join(target, FILE_NAME)):
        for name in _MODEL_FILES:
            storage.write_bytes(storage.join(target, name), storage.read_bytes(storage.join(source, name)))
    if not compares:
        return PAPER
    with ray_session():
        compute_features(study, manifest, features, redo=False)
        score = choose_score(study, best)
    if score != PAPER:
        of_best = with_score(trial_study(study, best.cell), score)
        storage.write_text(storage.join(target, layout.STUDY), of_best.to_yaml())
    stage.finish()
    console.print(f"search: of {count(len(scores_to_compare(study)), 'score')}, best/ has {', '.join(astuple(score))}")
    return score


def _trials_stage(
    study: Study, features: ResumableStage, clips: ResumableStage, labels: Mapping[str, int]
) -> ResumableStage:
    """The mark of all trials together: it depends on all that one of their trainings depends on, but for the cell.

    Which trials there are may change: those that have a record are not run again.
    """
    training = train_stage(study, MODEL, study.seeds[0], features).settings
    settings = {key: value for key, value in training.items() if key not in ("train.mask_ratio", "train.patch", "seed")}
    settings |= flatten("search", study.search.model_dump(mode="json", exclude=_SPREAD | {"scores", "members"}))
    settings |= {"seeds": list(study.seeds), "test clips": clips.fingerprint}
    if study.search.objective == "test_auc":
        settings["test labels"] = table_digest(pa.table({"clip_id": list(labels), "label": list(labels.values())}))
    outputs = (layout.TRIALS, *map(layout.summary, ("search", *_CONCLUSIONS)), layout.BEST, layout.BEST_MODEL)
    outputs += (layout.BEST_ENSEMBLE, layout.SEARCH_REPORT)
    stage = ResumableStage(
        study.root, "search", settings, outputs, result=layout.TRIALS, may_differ=lambda key: key.startswith(_WHICH)
    )
    before = epochs_before(stage)
    if before is None:
        return stage
    if not study.train.ends_anywhere:
        return dataclasses.replace(stage, hint=why_it_ends(study, before))
    return dataclasses.replace(stage, may_differ=lambda key: key.startswith(_WHICH) or key == EPOCHS)


def _say_who_goes_on(study: Study) -> None:
    """Tell what becomes of finished trials that are to have more epochs."""
    for record in read_records(study.root):
        if is_present(study, record.trial) and not is_over(study, record):
            n, has_state = len(record.values), storage.exists(trial_location(study.root, record.trial, layout.STATE))
            what = f"goes on from epoch {n}" if has_state else "begins again, because its last state was not kept"
            console.print(f"search: {record.trial.title} {what}")


def _check_labels(labels: Mapping[str, int]) -> None:
    n_normal, n_anomalous = (list(labels.values()).count(label) for label in (0, 1))
    if not n_normal or not n_anomalous:
        raise StudyError(
            f"search.objective is 'test_auc', but of the test clips {n_normal} are labelled normal and {n_anomalous} "
            "anomalous. Give data.annotations, or choose by 'proxy_auc', which needs no label."
        )


def _write_table(study: Study, records: Sequence[Record], labels: Mapping[str, int]) -> None:
    rows = [_summary_row(study, record, labels) for record in sorted(records, key=lambda record: record.trial)]
    table = pa.Table.from_pylist(rows, schema=schemas.SEARCH_SUMMARY)
    parquet.write_table(table, storage.join(study.root, layout.summary("search")), schema=schemas.SEARCH_SUMMARY)


def _write_best(study: Study, best: RankedCell, score: Score) -> None:
    of_best, location = trial_study(study, best.cell), storage.join(study.root, layout.BEST)
    if score != PAPER:
        of_best = with_score(of_best, score)
    storage.write_text(
        location,
        f"# The best cell of a search by {study.search.objective}: {best}.\n"
        f"#\n#   faithad train --config {shlex.quote(location)}\n\n"
        f"{of_best.to_yaml()}",
    )


def _summary_row(study: Study, record: Record, labels: Mapping[str, int]) -> dict[str, Any]:
    return {
        "trial": record.trial.name,
        "mask_ratio": record.mask_ratio,
        "patch": record.patch,
        "settings": json.dumps(tried_values(study, record.settings)),
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
        "present": is_present(study, record.trial),
    }


def _test_areas(study: Study, record: Record, labels: Mapping[str, int]) -> dict[str, float]:
    """AUC and pAUC of the labelled test clips, nothing if these lack a class or were not scored."""
    location = trial_location(study.root, record.trial, layout.TRIAL_SCORES)
    if len(set(labels.values())) < 2 or not storage.exists(location):
        return {}
    scores = {row["clip_id"]: row["score"] for row in parquet.read_table(location).to_pylist()}
    known = [clip_id for clip_id in labels if clip_id in scores]
    values, wanted = [scores[clip_id] for clip_id in known], [labels[clip_id] for clip_id in known]
    return {"auc": auc(values, wanted), "pauc": pauc(values, wanted)} if len(set(wanted)) == 2 else {}


def _closing_line(study: Study, records: Sequence[Record], failures: Sequence[Record], best: RankedCell) -> str:
    for record in failures:
        console.print(f"search: {record.trial.title} failed: {record.reason}")
    for record in records:
        if record.diverged_epochs:
            epochs = f"{record.diverged_epochs} of {len(record.values)} epochs"
            console.print(f"search: {record.trial.title} diverged, {epochs}")
    statuses = [record.status for record in [*records, *failures]]
    counts = [f"{statuses.count(status)} {status}" for status in ("done", "stopped", "failed") if status in statuses]
    folder = storage.join(study.root, layout.BEST_MODEL)
    is_there = storage.exists(storage.join(folder, FILE_NAME))
    best_model = f"  Best model: {folder if is_there else 'its weights were not kept, train the best study'}"
    again = " The same command tries those that failed again." if failures else ""
    return (
        f"Trials: {', '.join(counts)}.{again} Best by {study.search.objective}: {best}. "
        f"Table: {storage.join(study.root, layout.summary('search'))}  "
        f"Best study: {storage.join(study.root, layout.BEST)}{best_model}"
    )
