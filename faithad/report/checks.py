"""What a study's page shows of its deep clips: cost, other replacements, mel bands, and the sanity of methods."""

from __future__ import annotations

from functools import partial
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from faithad.report import style
from faithad.report.drawing import Drawing
from faithad.report.study_tables import StudyTables
from faithad.report.words import number, records
from faithad.vocabulary import listed

_REPLACEMENTS = {"training_mean": "training mean", "inpainting": "the MAE's prediction"}


def checks_section(study: StudyTables) -> dict[str, Any] | None:
    """What the section shows; None where no clip was checked."""
    cost = cost_drawing(study)
    tables = {
        "replacements": _replacements(study.replacements),
        "bands": _in_order(study.bands[study.bands["scope"] == "all"]),
        "sanity": _sanity(study.sanity),
        "cost": cost and cost.svg(),
        "sentences": replacement_sentences(study),
    }
    counts = [frame["n_clips"].max() for frame in (study.replacements, study.bands, study.sanity) if len(frame)]
    return tables | {"n_clips": int(max(counts))} if counts else None


def cost_rows(study: StudyTables) -> list[dict[str, Any]]:
    """Seconds and normalised faithfulness of each model and method that has both, the mean over all percentiles."""
    means = study.normalized[study.normalized["scope"] == _scope(study.normalized)]
    means = means.groupby(["model", "method"])["mean"].mean().rename("faithfulness").reset_index()
    seconds = study.sanity[study.sanity["check"] == "seconds"][["model", "method", "mean"]]
    return _in_order(means.merge(seconds.rename(columns={"mean": "seconds"}), on=["model", "method"]))


def cost_drawing(study: StudyTables) -> Drawing | None:
    """The drawing of the costs; None where no method has both a cost and a value."""
    rows = cost_rows(study)
    label = "Seconds a clip and normalised faithfulness of each model and method"
    return Drawing("cost", label, partial(cost_figure, rows)) if rows else None


@mpl.rc_context(style.RC)
def cost_figure(rows: list[dict[str, Any]], column_in: float | None = None) -> Figure:
    """Normalised faithfulness against seconds a clip: a marker for each method, hollow or filled by model."""
    figure, axes = style.new_axes(5.6, 4.2, column_in)
    for row in rows:
        look, line = style.method(row["method"]), style.model(row["model"])
        axes.plot(row["seconds"], row["faithfulness"], color=look.color, marker=look.marker, linestyle="none",
                  markerfacecolor=look.color if line.filled else style.SURFACE,
                  label=f"{line.title} {look.title}")  # fmt: skip
    axes.axhline(0, color=style.MUTED, linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="seconds a clip, for the map alone", ylabel="normalised faithfulness")
    return figure


def replacement_sentences(study: StudyTables) -> list[str]:
    """For each model and other replacement: whether it orders the methods as the model's own reconstruction does."""
    sentences = []
    for row in records(study.replacements.drop_duplicates(["model", "replacement"])):
        name, title = row["replacement"], style.model(row["model"]).title
        if name in _REPLACEMENTS and row["rank_agreement"] is not None:
            sentences.append(
                f"{title}: replaced by the {_REPLACEMENTS[name].removeprefix('the ')}, the methods are ordered as by "
                f"the own reconstruction with Kendall's tau {number(row['rank_agreement'], 2)} (1: the same order)."
            )
    return [*sentences, *turned(study.comparison)]


def turned(comparison: pd.DataFrame) -> list[str]:
    """Where the sign of the MAE's difference from the AE turns with the replacement: no conclusion holds there."""
    rows = comparison[(comparison["question"] == "masked_training") & (comparison["metric"] == "faithfulness")]
    rows = rows[rows["percentile"].isna() & (rows["mode"] == "frame") & (rows["scope"] == _scope(rows))]
    signs = rows.assign(sign=rows["estimate"] > 0).groupby("method")["sign"].nunique()
    methods = [style.method(name).title for name in style.in_method_order(signs.index[signs > 1])]
    if not methods:
        return []
    return [f"Whether the MAE is more faithful than the AE turns with the replacement for {listed(methods)}."]


def _scope(rows: pd.DataFrame) -> str:
    return "annotated" if (rows["scope"] == "annotated").any() else "all"


def _replacements(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """One row per model and method: its means by replacement, and its areas."""
    rows = []
    for (model, method), group in frame.groupby(["model", "method"]):
        cells = {
            row["replacement"] if row["metric"] == "faithfulness" else row["metric"]: row for row in records(group)
        }
        rows.append({"model": model, "method": method, "cells": cells})
    return _in_order(pd.DataFrame(rows, columns=["model", "method", "cells"]))


def _sanity(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """One row per model and method; of the randomisation, that of all layers."""
    shown = frame[(frame["check"] != "randomisation") | (frame["at"] == 100)]
    rows = [
        {"model": model, "method": method, "cells": {row["check"]: row for row in records(group)}}
        for (model, method), group in shown.groupby(["model", "method"])
    ]
    return _in_order(pd.DataFrame(rows, columns=["model", "method", "cells"]))


def _in_order(frame: pd.DataFrame) -> list[dict[str, Any]]:
    models, methods = style.in_model_order(frame["model"]), style.in_method_order(frame["method"])
    return sorted(records(frame), key=lambda row: (models.index(row["model"]), methods.index(row["method"])))
