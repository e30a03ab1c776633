"""Scores along the wall clock: axes that are cut where nothing was recorded for long, and a study's test clips on them.

Pandas frames in, matplotlib figures out; no text that comes from files is drawn.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from faithad.report.style import EVENT, INK, MUTED, RC, SURFACE


@mpl.rc_context(RC)
def score_figure(scores: pd.DataFrame, *, column: str = "score") -> Figure:
    """Score of each test clip of one run along the wall clock, cut where nothing was recorded for long.

    Without a wall clock for every clip, the clips stand in the order of their recordings.

    Args:
        scores: one row per clip with score, threshold (may be null), label, recorded_at, recording, onset_s.
        column: which score is drawn: the one that the threshold speaks of.
    """
    timed = bool(scores["recorded_at"].notna().all())
    ordered = scores.sort_values(["recorded_at"] if timed else ["recording", "onset_s"], kind="stable")
    if timed:
        midnight = ordered["recorded_at"].iloc[0].normalize()
        x = ((ordered["recorded_at"] - midnight) / pd.Timedelta(hours=1)).to_numpy()
        stretches = sessions(x)
    else:
        x = np.arange(1.0, len(ordered) + 1)
        stretches = [(x[0], x[-1])]
    figure, panels = session_axes(stretches)
    anomalous = (ordered["label"] == 1).to_numpy()
    value, threshold = ordered[column].to_numpy(), ordered["threshold"].dropna()
    for axes, (first, last) in zip(panels, stretches, strict=True):
        for chosen, look in ((~anomalous, _NORMAL), (anomalous, _ANOMALOUS)):
            here = chosen & (x >= first) & (x <= last)
            axes.plot(x[here], value[here], linestyle="none", rasterized=int(here.sum()) > 3_000, **look)
        if len(threshold):
            axes.axhline(threshold.iloc[0], color=INK, linewidth=0.9, linestyle=(0, (5, 3)), label="threshold")
        if timed:
            clock(axes, first, last, midnight)
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


def sessions(x: np.ndarray) -> list[tuple[float, float]]:
    """First and last hour of each stretch of recording; a pause over an hour and a sixth of the whole parts two."""
    longest_pause = max(1.0, (x[-1] - x[0]) / 6)
    cuts = [index for index, (left, right) in enumerate(pairwise(x)) if right - left > longest_pause]
    firsts = [0, *(index + 1 for index in cuts)]
    return [(float(x[first]), float(x[last])) for first, last in zip(firsts, [*cuts, len(x) - 1], strict=True)]


def session_axes(stretches: list[tuple[float, float]]) -> tuple[Figure, list[Axes]]:
    """One set of axes per session on a shared scale, as wide as the session is long."""
    figure = Figure(figsize=(11.6, 2.7))
    spans = np.array([last - first for first, last in stretches])
    whole = spans.sum() or 1.0
    widths = np.maximum(spans, whole * 0.08)
    grid = figure.add_gridspec(1, len(stretches), left=0.05, right=0.995, bottom=0.2, top=0.96, wspace=0.03,
                               width_ratios=list(widths))  # fmt: skip
    panels: list[Axes] = []
    for index, (first, last) in enumerate(stretches):
        axes = figure.add_subplot(grid[index], sharey=panels[0] if panels else None)
        margin = max(0.012 * whole, (whole * 0.08 - (last - first)) / 2)
        axes.set_xlim(first - margin, last + margin)
        if panels:
            axes.spines["left"].set(linestyle=(0, (1, 2)))
            axes.tick_params(labelleft=False)
        panels.append(axes)
    return figure, panels


_TICK_STEPS_H = (1 / 60, 1 / 12, 1 / 4, 1 / 2, 1, 2, 3, 6, 12, 24, 48, 168, 730, 2_190, 8_766)


def clock(axes: Axes, first: float, last: float, midnight: pd.Timestamp) -> None:
    """Ticks at round hours or days; the axis counts in hours from a midnight."""
    room = max(2.0, axes.get_window_extent().width / axes.figure.dpi / 0.75)
    step = next((step for step in _TICK_STEPS_H if (last - first) / step <= room), _TICK_STEPS_H[-1])
    ticks = np.arange(np.ceil(first / step), np.floor(last / step) + 1) * step
    ticks = ticks if len(ticks) else np.array([first])
    times = [midnight + pd.Timedelta(minutes=round(float(tick) * 60)) for tick in ticks]
    axes.set_xticks(ticks, [f"{time:%d %b}" if _names_a_day(time, step) else f"{time:%H:%M}" for time in times])
    start, end = (f"{midnight + pd.Timedelta(hours=hours):%Y-%m-%d}" for hours in (first, last))
    axes.set_xlabel(start if start == end else f"{start} to {end}")


def _names_a_day(time: pd.Timestamp, step_h: float) -> bool:
    return step_h >= 24 or time == time.normalize()
