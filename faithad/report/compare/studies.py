"""Two studies side by side: their numbers, and the test clips that both have.

Shape letters: S seeds, N clips, M methods.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from faithad import schemas
from faithad.evaluation.arrays import Reals
from faithad.evaluation.clip_values import Cube, EvaluatedClips, mean_over_percentiles, read_cube, read_test_clips
from faithad.evaluation.decisions import compare, placements
from faithad.evaluation.estimates import known_mean
from faithad.report import findings, style
from faithad.report.compare.runs import Row
from faithad.report.findings import detection_rows
from faithad.report.study_tables import StudyTables
from faithad.runs import layout
from faithad.runs.tables import read_manifest, read_whole, run_folders
from faithad.vocabulary import CORRECTED, ERROR_POOLINGS, PAPER

# By metric, mode, model and method: (S, N).
Values = dict[tuple[str, str | None, str, str], Reals]


class ComparedStudy(NamedTuple):
    """A study under the name that the comparison gives it."""

    name: str
    root: str
    study: StudyTables

    @property
    def protocol(self) -> str:
        """The protocol of the figures that are compared."""
        return CORRECTED if self.study.setting("protocol") == CORRECTED else PAPER


def numbers(run: ComparedStudy) -> Iterator[Row]:
    """Rows of schemas.COMPARED_NUMBERS: detection of each model, and the best of its methods."""
    for row in detection_rows(run.study):
        for metric in ("auc", "pauc", "caught_5", "caught", "false_alarms"):
            if row.get(metric):
                title = {"auc": "AUC", "pauc": "pAUC", "caught_5": "caught at 5 % false alarms"}.get(metric)
                title = title or {"caught": "caught by the alarm", "false_alarms": "false alarms of the alarm"}[metric]
                yield _number(run, f"{style.model(row['model']).title}, {row['pooling']}: {title}", row[metric])
    for title, curves in (
        ("F-score", findings.overall(run.study.f_score)),
        ("faithfulness, frames", findings.in_scope(run.study.faithfulness, "frame")),
    ):
        for row in findings.best(curves, ["model", "method"]):
            of = f"{style.model(row['model']).title} {style.method(row['method']).title}"
            yield _number(run, f"{of}: best {title}", row)


def _number(run: ComparedStudy, name: str, row: Row) -> Row:
    return {"run": run.name, "name": name, "value": row["mean"], "ci_low": row["ci_low"], "ci_high": row["ci_high"]}


def paired_clips(run: ComparedStudy, reference: ComparedStudy) -> Iterator[Row]:
    """Rows of schemas.COMPARED_CLIPS, on the test clips that both have with the same label and intervals.

    AUC, F-score and faithfulness as means over all percentiles, by the rule of `evaluation.decisions`; F-score and
    faithfulness only where both studies judge maps by one protocol.
    """
    shared = _shared_clips(run, reference)
    if not shared.num_rows:
        return
    clips = read_test_clips(shared)
    run_values, reference_values = (
        {**_placements(one, clips), **_judged(one, reference, clips)} for one in (run, reference)
    )
    if run.protocol != reference.protocol:
        run_values = {key: values for key, values in run_values.items() if key[0] == "auc"}
    shared_keys = sorted(run_values.keys() & reference_values.keys(), key=str)
    for metric, mode, model in dict.fromkeys(key[:3] for key in shared_keys):
        keys = [key for key in shared_keys if key[:3] == (metric, mode, model)]
        a, b = (np.stack([values[key] for key in keys], axis=2) for values in (run_values, reference_values))
        differences = known_mean(a, axis=0) - known_mean(b, axis=0)
        if not np.isfinite(differences).any():
            continue
        seeds_a, seeds_b = (known_mean(np.where(np.isfinite(differences), values, np.nan), axis=1) for values in (a, b))
        have_seeds = len(a) == len(b) and bool(np.isfinite(seeds_a).all() and np.isfinite(seeds_b).all())
        answers = compare(differences, clips.recording, (seeds_a, seeds_b) if have_seeds else None)
        for (*_, method), answer in zip(keys, answers, strict=True):
            names = {"metric": metric, "mode": mode, "model": model, "method": method}
            yield {"run": run.name, "reference": reference.name, **names, **asdict(answer)}


def _shared_clips(run: ComparedStudy, reference: ComparedStudy) -> pa.Table:
    """The rows of the run's manifest whose test clips the reference has, too, with the same truth."""
    run_clips, reference_clips = (read_manifest(one.root) for one in (run, reference))
    truth = ["clip_id", "split", "label", "intervals"]
    known = {row["clip_id"]: row for row in reference_clips.select(truth).to_pylist()}
    same = [known.get(row["clip_id"]) == row and row["split"] == "test" for row in run_clips.select(truth).to_pylist()]
    return run_clips.filter(pa.array(same, pa.bool_()))


def _read(run: ComparedStudy, table: str, schema: pa.Schema, clips: EvaluatedClips) -> pa.Table:
    """The rows of these clips, of all models and seeds."""
    folders = run_folders(run.root, layout.AUDITS).values()
    condition = pc.field("clip_id").isin(clips.ids)
    parts = [read_whole(folder, table, schema, condition=condition) for folder in folders]
    return pa.concat_tables([schema.empty_table(), *parts])


def _placements(run: ComparedStudy, clips: EvaluatedClips) -> Values:
    """Values (S, N) whose mean over clips is the AUC, by (`auc`, None, model, pooling)."""
    values: Values = {}
    scores = _read(run, layout.SCORES, schemas.SCORES, clips)
    for pooling, (column, *_) in ERROR_POOLINGS.items():
        cube = read_cube(scores.filter(pc.is_valid(scores[column])), column, ["model"], clips)
        for position, (model,) in enumerate(cube.columns):
            of_seeds = [placements(of_seed, clips.label) for of_seed in cube.values[:, :, position]]
            values["auc", None, model, pooling] = np.stack(of_seeds)
    return values


def _judged(run: ComparedStudy, reference: ComparedStudy, clips: EvaluatedClips) -> Values:
    """F-score and faithfulness (S, N) by (metric, mode, model, method), means over the percentiles of both studies."""
    values: Values = {}
    percentiles = _percentiles(run) & _percentiles(reference)
    for metric, table, schema, mode in (
        ("f_score", "localization", schemas.LOCALIZATION, None),
        ("faithfulness", "faithfulness", schemas.FAITHFULNESS, "frame"),
        ("faithfulness", "faithfulness", schemas.FAITHFULNESS, "segment"),
    ):
        rows = _read(run, table, schema, clips)
        condition = pc.equal(rows["protocol"], run.protocol)
        condition = pc.and_(condition, pc.is_in(rows["percentile"], value_set=pa.array(percentiles, pa.float64())))
        if mode is not None:
            condition = pc.and_(condition, pc.equal(rows["mode"], mode))
        cube: Cube = read_cube(rows.filter(condition), metric, ["model", "method", "percentile"], clips)
        means = mean_over_percentiles(cube)
        for column, (model, method, _) in enumerate(means.columns):
            values[metric, mode, model, method] = means.values[:, :, column]
    return values


def _percentiles(run: ComparedStudy) -> set[float]:
    return set(run.study.faithfulness["percentile"]) | set(run.study.f_score["percentile"])


def sentences(run: ComparedStudy, reference: ComparedStudy, rows: list[Row]) -> list[str]:
    """What the rows of `paired_clips` decide."""
    if not rows:
        return [f"{run.name} and {reference.name} have no test clip in common: nothing can be compared clip by clip."]
    names = {"auc": "AUC", "f_score": "F-score", "faithfulness": "faithfulness"}
    decided = [row for row in rows if row["verdict"] in ("yes", "no")]
    words = [
        f"{style.model(row['model']).title}"
        + ("" if row["metric"] == "auc" else f" {style.method(row['method']).title}")
        + f", {names[row['metric']]}{' in segments' if row['mode'] == 'segment' else ''}: "
        + f"{'higher' if row['verdict'] == 'yes' else 'lower'} by {abs(row['estimate']):.3f}"
        for row in decided
    ]
    n_clips = max(row["n_clips"] for row in rows)
    if not words:
        return [
            f"On the {n_clips:,} test clips that both have, no difference between {run.name} and {reference.name} is "
            "decided; the table says how large one would have been found."
        ]
    return [f"{run.name} against {reference.name}, on the same test clips: {'; '.join(words)}."]
