"""The report's line charts: pandas frames in, matplotlib figures out.

No file is read here, and no text that comes from files is drawn.
"""

from __future__ import annotations

from itertools import pairwise
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
    EVENT,
    INK,
    MUTED,
    RC,
    SHADE,
    SURFACE,
    in_method_order,
    method,
    model,
    new_axes,
)

PARTIAL_FPR = 0.1


@mpl.rc_context(RC)
def roc_figure(scores: pd.DataFrame, *, column: str) -> Figure:
    """ROC of each model: thin lines per seed, the mean over seeds (at equal false-positive rate) on top.

    Args:
        scores: one row per labelled test clip, model and seed.
        column: which score ranks the clips.
    """
    figure, axes = new_axes(5.2, 4.0)
    axes.axvspan(0, PARTIAL_FPR, color=SHADE, linewidth=0)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)), label="chance")
    grid = np.linspace(0, 1, 501)
    for name, of_model in scores.groupby("model"):
        look = model(str(name))
        rates = []
        for _, run in of_model.groupby("seed"):
            if run["label"].nunique() == 2:
                fpr, tpr, _ = roc_curve(run["label"], run[column])
                rates.append((fpr, tpr))
        if not rates:
            continue
        if len(rates) == 1:
            axes.plot(*rates[0], color=INK, linestyle=look.dashes, label=look.title)
            continue
        for fpr, tpr in rates:
            axes.plot(fpr, tpr, color=MUTED, linewidth=0.6, linestyle=look.dashes, alpha=0.6)
        mean = np.mean([np.interp(grid, fpr, tpr) for fpr, tpr in rates], axis=0)
        axes.plot(np.r_[0, grid], np.r_[0, mean], color=INK, linestyle=look.dashes, label=look.title)
    axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="false-positive rate", ylabel="true-positive rate")
    return figure


@mpl.rc_context(RC)
def score_figure(scores: pd.DataFrame) -> Figure:
    """Score of each test clip of one run along the wall clock, cut where nothing was recorded for long.

    Without a wall clock for every clip, the clips stand in the order of their recordings.

    Args:
        scores: one row per clip with score, threshold (may be null), label, recorded_at, recording, onset_s.
    """
    timed = bool(scores["recorded_at"].notna().all())
    ordered = scores.sort_values(["recorded_at"] if timed else ["recording", "onset_s"], kind="stable")
    if timed:
        midnight = ordered["recorded_at"].iloc[0].normalize()
        x = ((ordered["recorded_at"] - midnight) / pd.Timedelta(hours=1)).to_numpy()
        sessions = _sessions(x)
    else:
        x = np.arange(1.0, len(ordered) + 1)
        sessions = [(x[0], x[-1])]
    figure, panels = _session_axes(sessions)
    anomalous = (ordered["label"] == 1).to_numpy()
    value, threshold = ordered["score"].to_numpy(), ordered["threshold"].dropna()
    for axes, (first, last) in zip(panels, sessions, strict=True):
        for chosen, look in ((~anomalous, _NORMAL), (anomalous, _ANOMALOUS)):
            here = chosen & (x >= first) & (x <= last)
            axes.plot(x[here], value[here], linestyle="none", rasterized=int(here.sum()) > 3_000, **look)
        if len(threshold):
            axes.axhline(threshold.iloc[0], color=INK, linewidth=0.9, linestyle=(0, (5, 3)), label="threshold")
        if timed:
            _clock(axes, first, last, midnight)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_xlabel("test clip, in the order of the recordings")
    panels[0].set_ylabel("anomaly score")
    return figure


_NORMAL: dict[str, Any] = {
    "marker": "o",
    "color": MUTED,
    "markersize": 2.6,
    "markeredgewidth": 0,
    "alpha": 0.6,
    "label": "normal",
}
_ANOMALOUS: dict[str, Any] = {
    "marker": "^",
    "color": EVENT,
    "markersize": 5.5,
    "markeredgecolor": SURFACE,
    "markeredgewidth": 0.5,
}
_ANOMALOUS |= {"label": "anomalous"}


def _sessions(x: np.ndarray) -> list[tuple[float, float]]:
    """First and last hour of each stretch of recording; a pause over an hour and a sixth of the whole parts two."""
    longest_pause = max(1.0, (x[-1] - x[0]) / 6)
    cuts = [index for index, (left, right) in enumerate(pairwise(x)) if right - left > longest_pause]
    firsts = [0, *(index + 1 for index in cuts)]
    return [(float(x[first]), float(x[last])) for first, last in zip(firsts, [*cuts, len(x) - 1], strict=True)]


def _session_axes(sessions: list[tuple[float, float]]) -> tuple[Figure, list[Axes]]:
    """One set of axes per session on a shared scale, as wide as the session is long."""
    figure = Figure(figsize=(11.6, 2.7))
    spans = np.array([last - first for first, last in sessions])
    whole = spans.sum() or 1.0
    widths = np.maximum(spans, whole * 0.08)
    grid = figure.add_gridspec(1, len(sessions), left=0.05, right=0.995, bottom=0.2, top=0.96, wspace=0.03,
                               width_ratios=list(widths))  # fmt: skip
    panels: list[Axes] = []
    for index, (first, last) in enumerate(sessions):
        axes = figure.add_subplot(grid[index], sharey=panels[0] if panels else None)
        margin = max(0.012 * whole, (whole * 0.08 - (last - first)) / 2)
        axes.set_xlim(first - margin, last + margin)
        if panels:
            axes.spines["left"].set(linestyle=(0, (1, 2)))
            axes.tick_params(labelleft=False)
        panels.append(axes)
    return figure, panels


_TICK_STEPS_H = (1 / 60, 1 / 12, 1 / 4, 1 / 2, 1, 2, 3, 6, 12, 24, 48, 168, 730, 2_190, 8_766)


def _clock(axes: Axes, first: float, last: float, midnight: pd.Timestamp) -> None:
    """Ticks at round hours or days; the axis counts in hours from a midnight."""
    room = max(2.0, axes.get_window_extent().width / axes.figure.dpi / 0.75)
    step = next((step for step in _TICK_STEPS_H if (last - first) / step <= room), _TICK_STEPS_H[-1])
    ticks = np.arange(np.ceil(first / step), np.floor(last / step) + 1) * step
    ticks = ticks if len(ticks) else np.array([first])
    times = [midnight + pd.Timedelta(minutes=round(float(tick) * 60)) for tick in ticks]
    axes.set_xticks(ticks, [f"{time:%d %b}" if step >= 24 else f"{time:%H:%M}" for time in times])
    start, end = (f"{midnight + pd.Timedelta(hours=hours):%Y-%m-%d}" for hours in (first, last))
    axes.set_xlabel(start if start == end else f"{start} to {end}")


@mpl.rc_context(RC)
def percentile_figure(curves: pd.DataFrame, *, y_label: str, controls: dict[str, pd.Series] | None = None) -> Figure:
    """One line per (model, method) over the percentiles: colour and marker say the method, the dash says the model.

    Args:
        curves: columns model, method, percentile, mean.
        y_label: what `mean` is.
        controls: name to values over percentiles (the index), drawn dashed in grey.
    """
    figure, axes = new_axes(5.6, 4.2)
    for name, values in (controls or {}).items():
        axes.plot(
            values.index, values, color=MUTED, linewidth=1.2, linestyle=CONTROL_DASHES.get(name, "--"), label=name
        )
    for model_name in sorted(set(curves["model"])):
        for method_name in in_method_order(set(curves["method"])):
            rows = curves[(curves["model"] == model_name) & (curves["method"] == method_name)].sort_values("percentile")
            if rows.empty:
                continue
            look, line = method(method_name), model(model_name)
            axes.plot(rows["percentile"], rows["mean"], color=look.color, linestyle=line.dashes, marker=look.marker,
                      markersize=4.2, markerfacecolor=look.color if line.filled else SURFACE, markeredgewidth=0.9,
                      linewidth=1.3, label=f"{line.title} {look.title}")  # fmt: skip
    axes.set_xlabel("percentile of the curve from which a frame is a peak")
    axes.set_ylabel(y_label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))
    axes.set_ylim(bottom=min(0.0, float(curves["mean"].min()) * 1.05))
    return figure


@mpl.rc_context(RC)
def training_figure(epochs: pd.DataFrame) -> Figure:
    """Losses of one model over epochs, a pair of lines per seed; a dot marks the epoch whose weights were kept."""
    figure, axes = new_axes(5.2, 3.2)
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
    first, last = epochs["epoch"].min(), epochs["epoch"].max()
    axes.set_xlim(first - 0.5, last + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axes.set(xlabel="epoch", ylabel="loss")
    return figure
