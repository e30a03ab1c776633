"""Line charts of a study: pandas frames in, matplotlib figures out. Charts over time are in `timeline`.

This module reads no files, and draws no text that comes from files.
"""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from sklearn.metrics import roc_curve

from faithad.report.style import (
    COLORS,
    CONTROL_DASHES,
    MUTED,
    RC,
    SHADE,
    SURFACE,
    in_method_order,
    method,
    model,
    new_axes,
    series_id,
)

PARTIAL_FPR = 0.1
# With more models than this, the lines of all seeds would hide each other.
FEW_MODELS = 2


@mpl.rc_context(RC)
def roc_figure(scores: pd.DataFrame, *, column: str, column_in: float | None = None) -> Figure:
    """ROC of each model: its mean over the seeds at each false-positive rate. For up to two models also each seed's.

    Args:
        scores: one row per labelled test clip, model and seed.
        column: the score that ranks the clips. Models whose scores are null are left out.
        column_in: see `style.size`.
    """
    figure, axes = new_axes(5.2, 4.0, column_in)
    axes.axvspan(0, PARTIAL_FPR, color=SHADE, linewidth=0)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)), label="chance")
    grid = np.linspace(0, 1, 501)
    n_models = scores["model"].nunique()
    for name, of_model in scores[scores[column].notna()].groupby("model"):
        look = model(str(name))
        rates = []
        for _, run in of_model.groupby("seed"):
            if run["label"].nunique() == 2:
                fpr, tpr, _ = roc_curve(run["label"], run[column])
                rates.append((fpr, tpr))
        if not rates:
            continue
        if len(rates) == 1:
            axes.plot(*rates[0], color=look.color, linestyle=look.dashes, label=look.title)
            continue
        for fpr, tpr in rates if n_models <= FEW_MODELS else ():
            axes.plot(fpr, tpr, color=MUTED, linewidth=0.6, linestyle=look.dashes, alpha=0.6)
        mean = np.mean([np.interp(grid, fpr, tpr) for fpr, tpr in rates], axis=0)
        axes.plot(np.r_[0, grid], np.r_[0, mean], color=look.color, linestyle=look.dashes, label=look.title)
    axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="false-positive rate", ylabel="true-positive rate")
    return figure


@mpl.rc_context(RC)
def percentile_figure(
    curves: pd.DataFrame,
    *,
    y_label: str,
    controls: dict[str, pd.Series] | None = None,
    published: pd.DataFrame | None = None,
    column_in: float | None = None,
) -> Figure:
    """One line for each model and method over the percentiles. Colour and marker show the method, dashes the model.

    On a page, without `column_in`, there are also the 95 % intervals as bands, and what was published as thin lines:
    the page shows and hides them by the classes `band` and `published`, and each line by those of its method and model.

    Args:
        curves: columns model, method, percentile, mean.
        y_label: label of the axis of `mean`.
        controls: values of each control by its name, with the percentiles as index; drawn as dashed grey lines.
        published: columns model, method, percentile, value.
        column_in: see `style.size`.
    """
    figure, axes = new_axes(5.6, 4.2, column_in)
    for name, values in (controls or {}).items():
        axes.plot(
            values.index, values, color=MUTED, linewidth=1.2, linestyle=CONTROL_DASHES.get(name, "--"), label=name
        )
    for model_name in sorted(set(curves["model"])):
        for method_name in in_method_order(set(curves["method"])):
            rows = curves[(curves["model"] == model_name) & (curves["method"] == method_name)].sort_values("percentile")
            if rows.empty:
                continue
            look, line, names = method(method_name), model(model_name), (method_name, model_name)
            if column_in is None and {"ci_low", "ci_high"} <= set(rows):
                axes.fill_between(rows["percentile"], rows["ci_low"].astype(float), rows["ci_high"].astype(float),
                                  color=look.color, alpha=0.13, linewidth=0, gid=series_id("band", *names))  # fmt: skip
            if column_in is None and published is not None:
                published_curve = published[(published["model"] == model_name) & (published["method"] == method_name)]
                axes.plot(published_curve["percentile"], published_curve["value"], color=look.color,
                          linestyle=line.dashes, linewidth=0.7, gid=series_id("published", *names))  # fmt: skip
            axes.plot(rows["percentile"], rows["mean"], color=look.color, linestyle=line.dashes, marker=look.marker,
                      markersize=4.2, markerfacecolor=look.color if line.filled else SURFACE, markeredgewidth=0.9,
                      linewidth=1.3, label=f"{line.title} {look.title}", gid=series_id("line", *names))  # fmt: skip
    axes.set_xlabel("percentile of the curve from which a frame is a peak")
    axes.set_ylabel(y_label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))
    lowest = min([curves["mean"].min(), *(values.min() for values in (controls or {}).values())])
    axes.set_ylim(bottom=min(0.0, float(lowest) * 1.05))
    return figure


@mpl.rc_context(RC)
def verdict_figure(
    rows: list[dict[str, Any]], *, x_label: str, marks: dict[str, float], column_in: float | None = None
) -> Figure:
    """Differences of all methods, one below the other, with their intervals; an open end of an interval is not drawn.

    Args:
        rows: of `summary/comparison`; the value of `by` names a row in place of its method.
        x_label: what the difference is.
        marks: other differences by name, each a line across all methods.
        column_in: width of the figure; its height follows from the methods.
    """
    figure, axes = new_axes(column_in or 5.6, 0.9 + 0.3 * len(rows) + 0.16 * len(marks), None, left=1.5)
    axes.grid(axis="y", visible=False)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    for place, row in enumerate(rows):
        look = method(row["method"])
        ends = [row["estimate"] if row[end] is None else row[end] for end in ("ci_low", "ci_high")]
        axes.plot(ends, [place, place], color=look.color, linewidth=1.3)
        axes.plot(row["estimate"], place, color=look.color, marker=look.marker, markersize=5, linestyle="none")
    for name, value in marks.items():
        axes.axvline(value, color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)), label=name)
    for place, (name, value) in enumerate(marks.items()):
        below, is_left = (value, len(rows) - 0.4 + 0.55 * place), value < sum(axes.get_xlim()) / 2
        axes.annotate(name, below, (3 if is_left else -3, 0), textcoords="offset points", color=MUTED, fontsize=8,
                      ha="left" if is_left else "right", va="center",
                      bbox={"facecolor": SURFACE, "edgecolor": "none", "pad": 0.5})  # fmt: skip
    axes.set_yticks(range(len(rows)), [row.get("by") or method(row["method"]).title for row in rows])
    axes.set_ylim(len(rows) - 0.5 + 0.55 * len(marks), -0.5)
    axes.set_xlabel(x_label)
    return figure


@mpl.rc_context(RC)
def training_figure(epochs: pd.DataFrame, column_in: float | None = None) -> Figure:
    """Losses of one model over its epochs: two lines for each seed. A dot marks the epoch whose weights were kept."""
    figure, axes = new_axes(5.2, 3.2, column_in)
    for _, run in epochs.sort_values("epoch").groupby("seed"):
        axes.plot(run["epoch"], run["train_loss"], color=MUTED, linewidth=0.9, alpha=0.7, label="training")
        axes.plot(run["epoch"], run["validation_loss"], color=COLORS["blue"][0], linewidth=1.2, label="validation")
        best = run[run["best"]].tail(1)
        axes.plot(best["epoch"], best["validation_loss"], linestyle="none", marker="o", markersize=5,
                  color=COLORS["blue"][0], markeredgecolor=SURFACE, label="kept")  # fmt: skip
    losses = epochs[["train_loss", "validation_loss"]].to_numpy()
    if losses.min() > 0 and losses.max() / losses.min() > 8:
        axes.set_yscale("log", subs=[2, 5])
        axes.grid(which="minor", axis="y")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _count_epochs(axes, epochs)
    axes.set_ylabel("loss")
    return figure


@mpl.rc_context(RC)
def steps_figure(epochs: pd.DataFrame, column_in: float | None = None) -> Figure:
    """Learning rate and norm of the gradient of one model over its epochs."""
    figure, axes = new_axes(5.2, 2.2, column_in)
    for _, run in epochs.sort_values("epoch").groupby("seed"):
        axes.plot(run["epoch"], run["learning_rate"], color=MUTED, linewidth=0.9, alpha=0.7, label="learning rate")
        norms = run["gradient_norm"].astype(float)
        axes.plot(run["epoch"], norms, color=COLORS["blue"][0], linewidth=1.2, label="norm of the gradient")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    _count_epochs(axes, epochs)
    return figure


def _count_epochs(axes: Axes, epochs: pd.DataFrame) -> None:
    axes.set_xlim(epochs["epoch"].min() - 0.5, epochs["epoch"].max() + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
