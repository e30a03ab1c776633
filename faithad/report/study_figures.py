"""The figures of a study, for its page and for papers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import pandas as pd

from faithad.report import charts, findings, maps, published, style, timeline
from faithad.report.checks import cost_drawing
from faithad.report.drawing import Drawing
from faithad.report.reading import Example
from faithad.report.study_tables import StudyTables
from faithad.report.style import LegendEntry
from faithad.report.verdicts import Verdict, verdicts, verdicts_against_chance, worth_rows
from faithad.report.words import records
from faithad.vocabulary import ERROR_POOLINGS, FITTED


class Titled(NamedTuple):
    """A drawing under a title of its own.

    Attributes:
        title: above it on the page.
        drawing: the figure.
        has_threshold: whether an alarm threshold is drawn.
    """

    title: str
    drawing: Drawing
    has_threshold: bool = False


def study_drawings(study: StudyTables) -> list[Drawing]:
    """Every figure of the page but those of the search, in its order; the panels of a clip are one figure."""
    normalized, cost = normalized_drawing(study), cost_drawing(study)
    return [
        *(titled.drawing for titled in worth_drawings(study)),
        *(drawing for _, drawing in verdict_drawings(study)),
        *(titled.drawing for titled in (*roc_drawings(study), *time_drawings(study))),
        *([] if findings.missing_truth(study).f_score else [f_score_drawing(study)]),
        *faithfulness_drawings(study).values(),
        *([normalized] if normalized else []),
        *([cost] if cost else []),
        *(_clip_drawing(study, example, number) for number, example in enumerate(study.examples)),
        *(drawing for _, *drawings in training_drawings(study) for drawing in drawings if drawing),
    ]


def verdict_drawings(study: StudyTables) -> list[tuple[Verdict, Drawing]]:
    """Each verdict with its figure."""
    return [
        (
            verdict,
            Drawing(
                f"verdict-{number}",
                f"{verdict.title} Difference and 95 % interval of each method",
                partial(charts.verdict_figure, verdict.rows, x_label=verdict.x_label, marks=verdict.marks),
                legend=(),
            ),
        )
        for number, verdict in enumerate([*verdicts(study), *verdicts_against_chance(study)])
    ]


def worth_drawings(study: StudyTables) -> list[Titled]:
    """One drawing for each network and linear model."""
    pairs: dict[str, list[dict[str, Any]]] = {}
    for row in worth_rows(study):
        title = f"{style.model(row['model_a']).title} against {style.model(row['model_b']).title}"
        pairs.setdefault(title, []).append(row)
    x_label = "AUC or F-score, minus that of the linear model"
    return [
        Titled(
            title,
            Drawing(
                f"worth-{number}",
                f"{title}: difference and 95 % interval of each score and method",
                partial(charts.verdict_figure, rows, x_label=x_label, marks={}),
                legend=(),
            ),
        )
        for number, (title, rows) in enumerate(pairs.items())
    ]


def roc_drawings(study: StudyTables) -> list[Titled]:
    if findings.missing_truth(study).detection:
        return []
    labelled = study.scores[study.scores["label"].notna()]
    poolings = [(name, column, f"over the {title}") for name, (column, title, *_) in ERROR_POOLINGS.items()]
    if (study.detection["pooling"] == FITTED).any():
        poolings = [(FITTED, "score", "as the study says"), ("mean", "paper_score", "over the whole clip")]
    return [
        Titled(
            f"Scored {title}",
            Drawing(
                f"roc-{pooling}",
                f"ROC curves of all models, scored {title}",
                partial(charts.roc_figure, labelled, column=column),
            ),
        )
        for pooling, column, title in poolings
        if labelled[column].notna().any()
    ]


def time_drawings(study: StudyTables) -> list[Titled]:
    """One per model, of its first seed and of the score that alarms: a threshold belongs to one trained model."""
    lines = []
    pooling = ERROR_POOLINGS.get(str(study.setting("alarm.pooling")), ERROR_POOLINGS["mean"])
    for index, name in enumerate(style.in_model_order(study.scores["model"])):
        of_model = study.scores[study.scores["model"] == name]
        run = of_model[of_model["seed"] == of_model["seed"].min()]
        # A model that scores whole clips alarms by these scores, whatever the study says.
        used = pooling if run[pooling.column].notna().all() else ERROR_POOLINGS["mean"]
        # That of whole clips comes last: short ones may have thresholds of their own.
        threshold = next(iter(run.sort_values("duration_s", ascending=False)["threshold"].dropna()), None)
        title = style.model(name).title
        draw = partial(timeline.score_figure, timeline.time_line(run, used.column), threshold)
        pooled = "" if used is ERROR_POOLINGS["mean"] else f", score of the {used.title}"
        lines.append(
            Titled(
                f"{title}, seed {run['seed'].iloc[0]}{pooled}",
                Drawing(f"score-{index}", f"Anomaly score of each test clip, {title}", draw),
                threshold is not None,
            )
        )
    return lines


def f_score_drawing(study: StudyTables) -> Drawing:
    curves = findings.overall(study.f_score)
    controls = findings.controls(study.f_score, study.figure_controls)
    draw = partial(
        charts.percentile_figure,
        curves,
        y_label="F-score",
        controls=controls,
        published=published.curves("f_score", "frame"),
    )
    legend = [entry for line in f_score_legend(study) for entry in line]
    return Drawing("f-score", "F-score against percentile for each model and method", draw, legend)


def faithfulness_drawings(study: StudyTables) -> dict[str, Drawing]:
    """The drawings by mode, where there is a value."""
    return {
        mode: _percentile_drawing(
            study,
            curves,
            f"faithfulness-{mode}",
            f"Faithfulness against percentile for each model and method, {mode} mode",
            y_label="share of the score taken away",
            published=published.curves("faithfulness", mode),
            controls=_frame_lines(study, curves) if mode == "frame" else {},
        )
        for mode in ("frame", "segment")
        if len(curves := findings.in_scope(study.faithfulness, mode))
    }


def normalized_drawing(study: StudyTables) -> Drawing | None:
    curves = findings.in_scope(study.normalized, "frame")
    if curves.empty:
        return None
    label = "Normalised faithfulness against percentile for each model and method"
    lines = findings.faithfulness_lines(curves, study.controls, "normalized_faithfulness")
    y_label = "from random frames (0) to the best (1)"
    return _percentile_drawing(study, curves, "normalized", label, y_label=y_label, controls=lines)


def _frame_lines(study: StudyTables, curves: pd.DataFrame) -> dict[str, pd.Series]:
    return findings.faithfulness_lines(curves, study.figure_controls, "faithfulness")


def _percentile_drawing(study: StudyTables, curves: pd.DataFrame, name: str, label: str, **look: Any) -> Drawing:
    legend = [*(entry for line in method_legend(study) for entry in line), *_line_entries(look.get("controls", {}))]
    return Drawing(name, label, partial(charts.percentile_figure, curves, **look), legend)


def training_drawings(study: StudyTables) -> list[tuple[str, Drawing, Drawing | None]]:
    """For each model that was trained here: its name, its losses, and its steps where these are known."""
    drawings = []
    for index, name in enumerate(style.in_model_order(study.epochs["model"])):
        epochs, title = study.epochs[study.epochs["model"] == name], style.model(name).title
        losses = partial(charts.training_figure, epochs)
        steps = Drawing(
            f"steps-{index}",
            f"Learning rate and norm of the gradient over epochs, {title}",
            partial(charts.steps_figure, epochs),
        )
        has_steps = (epochs[["learning_rate", "gradient_norm"]].astype(float) > 0).any(axis=None)
        drawing = Drawing(f"training-{index}", f"Losses over epochs, {title}", losses)
        drawings.append((name, drawing, steps if has_steps else None))
    return drawings


def clip_panels(study: StudyTables, example: Example) -> list[maps.Panel]:
    clip = clip_of(study, example)
    return maps.clip_panels(
        example,
        maps.clip_scale(study.setting, example.log_mel.shape[1], float(clip["duration_s"])),
        methods=style.in_method_order(example.curves),
        intervals=intervals_of(clip),
        percentiles=_peak_percentiles(study, example.model),
        words=("Input", "Reconstruction"),
    )


def clip_of(study: StudyTables, example: Example) -> dict[str, Any]:
    """The manifest's row of an example."""
    return records(study.manifest[study.manifest["clip_id"] == example.clip_id])[0]


def intervals_of(clip: dict[str, Any]) -> list[tuple[float, float]]:
    intervals = () if clip["intervals"] is None else clip["intervals"]
    return [(float(part["onset_s"]), float(part["offset_s"])) for part in intervals]


def _clip_drawing(study: StudyTables, example: Example, number: int) -> Drawing:
    clip, panels = clip_of(study, example), clip_panels(study, example)
    place = f"{clip['recording']} at {clip['onset_s']:g} s, {style.model(example.model).title}, seed {example.seed}"
    return Drawing(f"clip-{number + 1}", place, partial(maps.panel_sheet, panels), legend=())


def _peak_percentiles(study: StudyTables, model: str) -> dict[str, float]:
    """The percentile at which each method's peaks are marked: its best F-score's, else its best faithfulness's."""
    curves = findings.overall(study.f_score)
    if curves.empty:
        curves = findings.in_scope(study.faithfulness, "frame")
    return {row["method"]: row["percentile"] for row in findings.best(curves[curves["model"] == model], ["method"])}


def roc_legend(study: StudyTables) -> list[list[LegendEntry]]:
    looks = map(style.model, style.in_model_order(study.scores["model"]))
    return [[LegendEntry(look.title, look.color, dashes=look.dashes) for look in looks]]


def method_legend(study: StudyTables) -> list[list[LegendEntry]]:
    """Colours and markers of the methods, and dashes of the models that are explained."""
    methods = style.in_method_order({*study.faithfulness["method"], *study.f_score["method"]})
    models = style.in_model_order({*study.faithfulness["model"], *study.f_score["model"]})
    return [
        [
            LegendEntry(look.title, look.color, marker=look.marker, shows=name)
            for name, look in zip(methods, map(style.method, methods), strict=True)
        ],
        [
            LegendEntry(look.title, style.INK, marker="o", dashes=look.dashes, filled=look.filled, shows=name)
            for name, look in zip(models, map(style.model, models), strict=True)
        ],
    ]


def f_score_legend(study: StudyTables) -> list[list[LegendEntry]]:
    """The same, with the lines that methods are compared with."""
    methods, models = method_legend(study)
    return [methods, models + _line_entries(findings.controls(study.f_score, study.figure_controls))]


def faithfulness_legend(study: StudyTables) -> list[list[LegendEntry]]:
    """The same for both kinds of faithfulness of frames."""
    methods, models = method_legend(study)
    normalized = findings.in_scope(study.normalized, "frame")
    drawn = {
        **_frame_lines(study, findings.in_scope(study.faithfulness, "frame")),
        **findings.faithfulness_lines(normalized, study.controls, "normalized_faithfulness"),
    }
    return [methods, models + _line_entries(drawn)]


def _line_entries(drawn: Mapping[str, Any]) -> list[LegendEntry]:
    return [
        LegendEntry(title, style.MUTED, dashes=dashes)
        for title, dashes in style.CONTROL_DASHES.items()
        if title in drawn
    ]
