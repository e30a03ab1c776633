"""The study's questions and their answers: one sentence, one figure and one table for each."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any, NamedTuple

import pandas as pd

from faithad.report import style
from faithad.report.study_tables import StudyTables
from faithad.report.words import number, records
from faithad.vocabulary import POOLINGS, count, listed

# Below this number of seeds, a verdict is about the networks that were trained, not about how they were trained.
_SEEDS_NEEDED = 3
NORMALIZED = "normalized_faithfulness"
# A value below this looks like 0 in a figure.
_SEEN = 0.001


class Verdict(NamedTuple):
    """The answer to one question.

    Attributes:
        sentence: the answer, with what it rests on.
        title: of the figure.
        x_label: what the figure's axis shows.
        rows: of `summary/comparison`, one per method, in the order of the methods.
        marks: differences of the lines that methods are compared with, by their titles.
    """

    sentence: str
    title: str
    x_label: str
    rows: list[dict[str, Any]]
    marks: dict[str, float]


def verdicts(study: StudyTables) -> list[Verdict]:
    """Masked training first; then each model against the curves without a model."""
    phrase = "the {} of the clip, which needs no model"
    return verdicts_of_training(study) + _against_lines(study, "against_no_model", phrase)


def verdicts_of_training(study: StudyTables) -> list[Verdict]:
    """The MAE against the AE, faithfulness before the F-score."""
    answers = []
    scale = ", from random frames (0) to the best ones (1)"
    for metric, mode, claim, x_label in (
        ("faithfulness", "frame", "more faithful than the AE's", "faithfulness of the MAE minus that of the AE"),
        (
            NORMALIZED,
            "frame",
            f"more faithful than the AE's{scale}",
            "normalised faithfulness of the MAE minus the AE's",
        ),
        ("f_score", None, "better at locating anomalies than the AE's", "F-score of the MAE minus that of the AE"),
    ):
        rows = _primary(study.comparison, "masked_training", metric, mode)
        if rows:
            claim = f"MAE explanations are {claim}"
            marks = _moved(study.controls, metric, rows[0])
            answers.append(Verdict(_sentence(claim, rows, about_training=True), claim + "?", x_label, rows, marks))
    return answers


def verdicts_against_chance(study: StudyTables) -> list[Verdict]:
    """Each model against random frames; `telling` says in words what comes of it."""
    return _against_lines(study, "against_chance", "{}")


def _against_lines(study: StudyTables, question: str, phrase: str) -> list[Verdict]:
    """Each model against a line, whose title the phrase holds."""
    answers = []
    for model in style.in_model_order(study.comparison["model_a"]):
        of_model = study.comparison[study.comparison["model_a"] == model]
        for metric, mode, better, value in (
            ("f_score", None, "better at locating anomalies than", "F-score"),
            ("faithfulness", "frame", "more faithful than", "faithfulness"),
        ):
            rows = _primary(of_model, question, metric, mode)
            if rows:
                line = style.LINES[rows[0]["model_b"]]
                claim = f"{style.model(model).title} explanations are {better} {phrase.format(line)}"
                sentence = _sentence(claim, rows, about_training=False)
                marks = _marks(study.controls, model, metric, rows[0])
                answers.append(Verdict(sentence, claim + "?", f"{value} minus that of {line}", rows, marks))
    return answers


def telling(study: StudyTables) -> list[str]:
    """Which methods of which models tell something: the rule says yes against chance and against the curve without a
    model. One sentence for each measure.
    """
    sentences = []
    for metric, mode, what in (
        ("f_score", None, "where an anomaly is"),
        ("faithfulness", "frame", "what the score comes from"),
    ):
        lines, some, none = set(), [], []
        for model in style.in_model_order(study.comparison["model_a"]):
            of_model = study.comparison[study.comparison["model_a"] == model]
            chance, curve = (
                _primary(of_model, question, metric, mode) for question in ("against_chance", "against_no_model")
            )
            if chance and curve:
                yes = [{row["method"] for row in rows if row["verdict"] == "yes"} for rows in (chance, curve)]
                lines.add(style.LINES[curve[0]["model_b"]])
                title = f"the {style.model(model).title}"
                if methods_that_tell := yes[0] & yes[1]:
                    some.append(f"{_named(methods_that_tell, [row['method'] for row in curve])} of {title}")
                else:
                    none.append(title)
        if lines:
            answers = [*some, *([f"none of {_joined(none)}"] if none else [])]
            beaten = f"better than random frames and than the {' or the '.join(sorted(lines))} of the clip"
            sentences.append(f"Explanations that tell {what}, {beaten}, which needs no model: {'; '.join(answers)}.")
    return sentences


def _named(chosen: set[str], methods: list[str]) -> str:
    """Some of the methods: `Saliency and Grad-CAM`, or `all but Grad-CAM`."""
    others = [style.method(name).title for name in methods if name not in chosen]
    if len(methods) > 2 and len(others) <= 1:
        return f"all but {others[0]}" if others else "all"
    return _joined([style.method(name).title for name in methods if name in chosen])


def worth_rows(study: StudyTables) -> list[dict[str, Any]]:
    """Each network against each linear model: its score, then its explanations; rows of `summary/comparison`."""
    rows = []
    linear = study.comparison[study.comparison["question"] == "against_linear"]
    for model, other in itertools.product(
        style.in_model_order(linear["model_a"]), style.in_model_order(linear["model_b"])
    ):
        of_pair = linear[(linear["model_a"] == model) & (linear["model_b"] == other)]
        for metric, what in (("auc", "AUC"), ("f_score", "F-score")):
            for row in _primary(of_pair, "against_linear", metric, None):
                pooling = POOLINGS.get(row["method"])
                name = style.method(row["method"]).title if pooling is None else pooling.title
                rows.append(row | {"by": f"{what}, {name}"})
    return rows


def worth(study: StudyTables) -> list[str]:
    """Is the network worth it? One text for each network."""
    by_pair: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in worth_rows(study):
        by_pair.setdefault((row["model_a"], row["model_b"]), []).append(row)
    of_networks: dict[str, list[str]] = {}
    for (model, other), rows in by_pair.items():
        parts = []
        for metric, claim, singular in (
            ("auc", "detects anomalies better", "way of pooling"),
            ("f_score", "locates them better", "method"),
        ):
            of_metric = [row for row in rows if row["metric"] == metric]
            verdicts_of = Counter(row["verdict"].partition(":")[0] for row in of_metric)
            plural = "ways of pooling" if metric == "auc" else None
            answers = [f"{verdict} for {count(n, singular, plural)}" for verdict, n in sorted(verdicts_of.items())]
            if answers:
                parts.append(f"{claim}: {', '.join(answers)}")
        against = f"Compared with the {style.model(other).title}, it {'; it '.join(parts)}."
        of_networks.setdefault(model, []).append(against)
    return [f"Is the {style.model(model).title} worth it? {' '.join(texts)}" for model, texts in of_networks.items()]


def disagreement(study: StudyTables) -> str | None:
    """Where the two protocols give different verdicts; None where only one ran."""
    keys = ["question", "metric", "mode", "replacement", "scope", "model_a", "linear", "method"]
    parts = []
    for rows in (study.paper_comparison, study.comparison):
        # The score, hence its AUC, is the same under both.
        rows = rows[rows["percentile"].isna() & (rows["metric"] != "auc")]
        linear = rows["model_b"].where(rows["question"] == "against_linear", "")
        filled = {name: rows[name].fillna("") for name in ("mode", "replacement")}
        parts.append(rows.assign(linear=linear, **filled)[[*keys, "verdict", "estimate"]])
    both = parts[0].merge(parts[1], on=keys, suffixes=("_paper", "_corrected"))
    if both.empty:
        return None
    for name in ("verdict_paper", "verdict_corrected"):
        both[name] = both[name].str.partition(":")[0]
    turned = both[both["estimate_paper"] * both["estimate_corrected"] < 0]
    differ = [
        f"{row['question'].replace('_', ' ')}, {' '.join([row['metric'].replace('_', '-'), row['mode']]).strip()}, "
        f"{row['scope']} clips, {style.model(row['model_a']).title} {style.method(row['method']).title}: "
        f"{row['verdict_paper']} under paper, {row['verdict_corrected']} under corrected"
        for row in records(both[both["verdict_paper"] != both["verdict_corrected"]])
    ]
    text = f"The protocols disagree in {len(differ)} of {count(len(both), 'verdict')}" if differ else ""
    text = text or f"The protocols paper and corrected agree in all of {count(len(both), 'verdict')}"
    text += f", and {len(turned)} of the differences have the other sign" if len(turned) else ""
    return f"{text}{': ' if differ else ''}{listed(differ, most=5, separator='; ')}."


def _primary(comparison: pd.DataFrame, question: str, metric: str, mode: str | None) -> list[dict[str, Any]]:
    """The means over all percentiles, over the annotated clips where there are any, as in the paper."""
    rows = comparison[(comparison["question"] == question) & (comparison["metric"] == metric)]
    rows = rows[rows["percentile"].isna() & (rows["mode"].isna() if mode is None else rows["mode"] == mode)]
    rows = rows[rows["replacement"].isna() | (rows["replacement"] == "reconstruction")]
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
    # Too few recordings could have found nothing.
    effects = [row["smallest_effect"] for row in rows if row["smallest_effect"] and ":" not in row["verdict"]]
    scope = "annotated clips" if rows[0]["scope"] == "annotated" else "all test clips"
    n_recordings = max(row["n_recordings"] for row in rows)
    text = f"{claim}: {', '.join(parts)}; {count(n_recordings, 'recording')} with {scope}"
    if effects:
        least, most = number(min(effects), 2), number(max(effects), 2)
        text += f", the study could have found a difference of {most if least == most else f'{least} to {most}'}"
    n_left_out = max(row["n_left_out"] for row in rows)
    text += f", {count(n_left_out, 'clip')} left out" if n_left_out else ""
    n_seeds = min(row["n_seeds"] for row in rows)
    if about_training and n_seeds < _SEEDS_NEEDED:
        text += (
            f". With {count(n_seeds, 'seed')} this is about these networks, not about the two ways of training, which "
            f"needs {_SEEDS_NEEDED}"
        )
    return text + "."


def _joined(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _marks(controls: pd.DataFrame, model: str, metric: str, row: dict[str, Any]) -> dict[str, float]:
    """How far the other lines are from the one in a row of `summary/comparison`, as means over all percentiles."""
    line, means = row["model_b"], line_means(controls, model, metric, row["scope"])
    others = {name: mean for name, mean in means.items() if name != line}
    return {style.LINES[name]: mean - means[line] for name, mean in others.items()} if line in means else {}


def _moved(controls: pd.DataFrame, metric: str, row: dict[str, Any]) -> dict[str, float]:
    """How far each line moves from model B of a row of `summary/comparison` to model A, where it does."""
    a, b = (line_means(controls, row[model], metric, row["scope"]) for model in ("model_a", "model_b"))
    moved = {style.LINES[name]: a[name] - b[name] for name in a if name in b}
    return {title: difference for title, difference in moved.items() if abs(difference) >= _SEEN}


def line_means(controls: pd.DataFrame, model: str, metric: str, scope: str) -> dict[str, float]:
    """The means of a model's lines over all percentiles."""
    rows = controls[(controls["model"] == model) & controls["percentile"].isna()]
    rows = rows[(rows["metric"] == metric) & (rows["scope"] == scope)]
    means = {str(row["line"]): float(row["mean"]) for row in records(rows)}
    return {name: mean for name, mean in means.items() if math.isfinite(mean)}
