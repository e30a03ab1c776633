"""The study's questions and their answers: one sentence, one figure and one table for each."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pandas as pd

from faithad.report import style
from faithad.report.study_tables import StudyTables
from faithad.report.words import number, records
from faithad.vocabulary import count

# Below this number of seeds, a verdict is about the networks that were trained, not about how they were trained.
_SEEDS_NEEDED = 3
_LINES = {
    "random": "random frames",
    "always": "every second",
    "level": "level",
    "level_change": "change of level",
    "outlier": "outliers",
}


class Verdict(NamedTuple):
    """What one question came to.

    Attributes:
        sentence: the answer, with what it stands on.
        title: of the figure.
        x_label: what the figure's axis shows.
        rows: of `summary/comparison`, one per method, in the order of the methods.
        marks: differences of lines that stand beside the methods, by their titles.
    """

    sentence: str
    title: str
    x_label: str
    rows: list[dict[str, Any]]
    marks: dict[str, float]


def verdicts(study: StudyTables) -> list[Verdict]:
    """Masked training first, faithfulness before the F-score; then each model against the curves without a model."""
    answers = []
    for metric, mode, claim, x_label in (
        ("faithfulness", "frame", "more faithful", "faithfulness of the MAE minus that of the AE"),
        ("f_score", None, "better at locating anomalies", "F-score of the MAE minus that of the AE"),
    ):
        rows = _primary(study.comparison, "masked_training", metric, mode)
        if rows:
            claim = f"MAE explanations are {claim} than the AE's"
            answers.append(Verdict(_sentence(claim, rows, about_training=True), claim + "?", x_label, rows, {}))
    for model in style.in_model_order(study.comparison["model_a"]):
        rows = _primary(study.comparison[study.comparison["model_a"] == model], "against_no_model", "f_score", None)
        if rows:
            line, title = rows[0]["model_b"], style.model(model).title
            better = f"better at locating anomalies than the {_LINES[line]} of the clip, which needs no model"
            claim = f"{title} explanations are {better}"
            x_label = f"F-score minus that of the {_LINES[line]}"
            sentence = _sentence(claim, rows, about_training=False)
            answers.append(Verdict(sentence, claim + "?", x_label, rows, _marks(study.controls, model, line)))
    return answers


def _primary(comparison: pd.DataFrame, question: str, metric: str, mode: str | None) -> list[dict[str, Any]]:
    """The means over all percentiles, over the annotated clips where there are any, as in the paper."""
    rows = comparison[(comparison["question"] == question) & (comparison["metric"] == metric)]
    rows = rows[rows["percentile"].isna() & (rows["mode"].isna() if mode is None else rows["mode"] == mode)]
    annotated = rows[rows["scope"] == "annotated"]
    rows = annotated if len(annotated) else rows
    order = style.in_method_order(rows["method"])
    return sorted(records(rows), key=lambda row: order.index(row["method"]))


def _sentence(claim: str, rows: list[dict[str, Any]], *, about_training: bool) -> str:
    parts = []
    for verdict in ("yes", "no", "no (equivalent)"):
        methods = [style.method(row["method"]).title for row in rows if row["verdict"] == verdict]
        if methods:
            parts.append(f"{verdict} for {_joined(methods)}")
    undecided = [row["verdict"] for row in rows if row["verdict"].startswith("undecided")]
    if undecided:
        reasons = {verdict.partition(": ")[2] for verdict in undecided} - {""}
        share = f" for {len(undecided)} of {count(len(rows), 'method')}" if parts else ""
        parts.append(f"undecided{share}{f' ({reasons.pop()})' if len(reasons) == 1 else ''}")
    effects = [row["smallest_effect"] for row in rows if row["smallest_effect"] is not None]
    scope = "annotated clips" if rows[0]["scope"] == "annotated" else "all test clips"
    n_recordings = max(row["n_recordings"] for row in rows)
    text = f"{claim}: {', '.join(parts)}; {count(n_recordings, 'recording')} with {scope}"
    if effects:
        text += f", the study could have found a difference of {number(max(effects), 2)}"
    n_seeds = min(row["n_seeds"] for row in rows)
    if about_training and n_seeds < _SEEDS_NEEDED:
        text += (
            f". With {count(n_seeds, 'seed')} this is about these networks, not about the two ways of training, which "
            f"needs {_SEEDS_NEEDED}"
        )
    return text + "."


def _joined(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _marks(controls: pd.DataFrame, model: str, line: str) -> dict[str, float]:
    """How far the other lines are from this one, as means over all percentiles."""
    rows = controls[(controls["model"] == model) & controls["percentile"].isna()]
    means = {str(row["line"]): float(row["mean"]) for row in records(rows)}
    others = {name: mean for name, mean in means.items() if name != line and math.isfinite(mean)}
    return {_LINES[name]: mean - means[line] for name, mean in others.items()} if line in means else {}
