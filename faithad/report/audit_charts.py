"""The charts of an audit: scores along the wall clock, their distribution, and one event's explanation.

An audit has tens of thousands of clips and a page has a thousand columns of pixels, so what lies in one column is drawn
as its lowest, middle and highest value: the picture is that of all points, its size that of the page.

Shape letters: F mel bands, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from faithad.report.maps import ClipScale
from faithad.report.style import COLORS, EVENT, INK, MUTED, RC, SHADE, SURFACE, new_axes
from faithad.report.timeline import clock, session_axes, sessions

PIXEL_COLUMNS = 1_000
# Below so many clips each is a dot.
FEW = 1_500
_NAMED_EVENTS = 5
_NOT_HEARD = COLORS["orange"][0]


@dataclass(frozen=True)
class TimeLine:
    """Where things lie on the axis of time, in hours.

    Attributes:
        midnight: what the hours count from; None: there is no wall clock for all clips, and the hours are those of the
            recordings one after another.
        clips: (N,) of the scored clips.
        score: (N,) their scores, in the same order.
        events: (E,) of each event's strongest clip.
        event_scores: (E,).
        ranked: numbers of the events, strongest first.
        unheard: onset and offset of each stretch that was not audited, (U, 2).
    """

    midnight: pd.Timestamp | None
    clips: np.ndarray
    score: np.ndarray
    events: np.ndarray
    event_scores: np.ndarray
    ranked: list[int]
    unheard: np.ndarray


@mpl.rc_context(RC)
def score_figure(line: TimeLine, threshold: float | None) -> Figure:
    """Scores along the time, the threshold, each event as a triangle, what was not heard as a strip below.

    The strongest events carry their numbers, counted from 1 in the order of `line.events`.
    """
    order = np.argsort(line.clips, kind="stable")
    x, score = line.clips[order], line.score[order]
    stretches = sessions(x) if line.midnight is not None else [(float(x[0]), float(x[-1]))]
    figure, panels = session_axes(stretches)
    whole = sum(last - first for first, last in stretches) or 1.0
    for axes, (first, last) in zip(panels, stretches, strict=True):
        here = (x >= first) & (x <= last)
        columns = max(1, round(PIXEL_COLUMNS * (last - first) / whole))
        _draw_scores(axes, x[here], score[here], columns)
        _draw_events(axes, line, first, last, columns)
        _draw_unheard(axes, line.unheard, columns)
        if threshold is not None:
            axes.axhline(threshold, color=INK, linewidth=0.9, linestyle=(0, (5, 3)), label="threshold")
        if line.midnight is not None:
            clock(axes, first, last, line.midnight)
        else:
            axes.set_xlabel("hours of sound, one recording after the other")
    panels[0].set_ylabel("anomaly score")
    highest = max(float(score.max()), threshold or -np.inf)
    if score.min() > 0 and highest / float(np.median(score)) > 8:
        panels[0].set_yscale("log")
        panels[0].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panels[0].yaxis.set_minor_formatter(lambda value, _: "")
    return figure


def _draw_scores(axes: Axes, x: np.ndarray, score: np.ndarray, columns: int) -> None:
    if len(x) <= FEW:
        axes.plot(x, score, linestyle="none", marker="o", color=MUTED, markersize=2.6, markeredgewidth=0, alpha=0.6,
                  label="clips")  # fmt: skip
        return
    at, low, middle, high = by_column(x, score, columns)
    for part in _unbroken(at, (x[-1] - x[0]) / columns):
        axes.fill_between(at[part], low[part], high[part], color=MUTED, alpha=0.35, linewidth=0.5, label="clips")
        axes.plot(at[part], middle[part], color=MUTED, linewidth=0.8, label="middle")


def by_column(x: np.ndarray, values: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Centre of each column of pixels that holds a value, and the lowest, the middle and the highest one in it.

    Args:
        x: (N,), at least one.
        values: (N,).
        columns: into how many equal parts x is cut.
    """
    width = (x.max() - x.min()) / columns or 1.0
    column = np.minimum(((x - x.min()) / width).astype(int), columns - 1)
    grouped = pd.Series(values).groupby(column).agg(["min", "median", "max"])
    at = x.min() + (grouped.index.to_numpy() + 0.5) * width
    return at, grouped["min"].to_numpy(), grouped["median"].to_numpy(), grouped["max"].to_numpy()


def _unbroken(at: np.ndarray, step: float) -> list[slice]:
    """Runs of columns without a hole: nothing is drawn where nothing was recorded."""
    cuts = [0, *(index + 1 for index, (left, right) in enumerate(pairwise(at)) if right - left > 1.5 * step), len(at)]
    return [slice(first, last) for first, last in pairwise(cuts)]


def _draw_events(axes: Axes, line: TimeLine, first: float, last: float, columns: int) -> None:
    """A triangle for the strongest event of each column of pixels."""
    here = np.flatnonzero((line.events >= first) & (line.events <= last))
    if not len(here):
        return
    width = (last - first) / columns or 1.0
    column = ((line.events[here] - first) / width).astype(int)
    strongest = here[np.lexsort((-line.event_scores[here], column))]
    kept = strongest[np.unique(np.sort(column), return_index=True)[1]]
    axes.plot(line.events[kept], line.event_scores[kept], linestyle="none", marker="^", color=EVENT, markersize=4.5,
              markeredgecolor=SURFACE, markeredgewidth=0.4, label="events")  # fmt: skip
    for number in line.ranked[:_NAMED_EVENTS]:
        if first <= line.events[number] <= last:
            axes.annotate(f"{number + 1}", (line.events[number], line.event_scores[number]), (0, 4),
                          textcoords="offset points", ha="center", color=EVENT, fontsize=8)  # fmt: skip


def _draw_unheard(axes: Axes, unheard: np.ndarray, columns: int) -> None:
    """At least one column wide each, neighbours as one: thousands of failed clips are still a few bars."""
    left, right = axes.get_xlim()
    width = (right - left) / columns
    bars: list[tuple[float, float]] = []
    for onset, offset in unheard[np.argsort(unheard[:, 0], kind="stable")] if len(unheard) else ():
        onset, offset = max(onset, left), min(max(offset, onset + width), right)
        if offset <= onset:
            continue
        if bars and onset <= bars[-1][1] + width:
            bars[-1] = (bars[-1][0], max(bars[-1][1], offset))
        else:
            bars.append((onset, offset))
    spans = [(onset, offset - onset) for onset, offset in bars]
    if spans:
        axes.broken_barh(spans, (0, 0.03), transform=axes.get_xaxis_transform(), color=_NOT_HEARD, linewidth=0,
                         label="not heard")  # fmt: skip


@mpl.rc_context(RC)
def distribution_figure(score: np.ndarray, threshold: float | None) -> Figure:
    """How many clips have which score, on a logarithmic scale; those above the threshold in red."""
    figure, axes = new_axes(5.6, 2.4)
    low, high = float(score.min()), max(float(score.max()), threshold if threshold is not None else -np.inf)
    high = high if high > low else low + 1.0
    wide = low > 0 and high / float(np.median(score)) > 8
    edges = np.geomspace(low, high, 61) if wide else np.linspace(low, high, 61)
    counts = np.histogram(score, edges)[0]
    above = np.histogram(score[score > threshold], edges)[0] if threshold is not None else np.zeros(60, int)
    axes.stairs(counts, edges, fill=True, color=MUTED, alpha=0.5, label="clips")
    axes.stairs(above, edges, fill=True, color=EVENT, label="alarmed clips")
    if threshold is not None:
        axes.axvline(threshold, color=INK, linewidth=0.9, linestyle=(0, (5, 3)), label="threshold")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(0, counts.max() * 1.5)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    if wide:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.set(xlabel="anomaly score", ylabel="clips")
    return figure


@dataclass(frozen=True)
class EventPicture:
    """What is drawn of one event, times in seconds.

    Attributes:
        clips: onset of each explained clip, and its curve (T,).
        axis: what the times count from.
        clip_s: length of a clip.
        seconds: (onset, offset) of what the explanation points at.
        profile: (F,) how much each mel band carries.
        bands: first and last of the bands that carry the event.
        color: of the curve.
        signed: whether the curve may be negative.
    """

    clips: Sequence[tuple[float, np.ndarray]]
    axis: str
    clip_s: float
    seconds: Sequence[tuple[float, float]]
    profile: np.ndarray
    bands: tuple[int, int]
    color: str
    signed: bool


@mpl.rc_context(RC | {"axes.grid": False})
def event_figure(event: EventPicture, scale: ClipScale) -> Figure:
    """The explanation over time, with the seconds it points at, and on the right over the mel bands."""
    figure = Figure(figsize=(11.6, 1.6))
    curve = figure.add_axes((0.012, 0.3, 0.81, 0.66))
    bands = figure.add_axes((0.868, 0.3, 0.127, 0.66))
    onsets = [onset for onset, _ in event.clips]
    for onset, offset in event.seconds:
        curve.axvspan(onset, offset, color=EVENT, alpha=0.14, linewidth=0)
        curve.plot([onset, offset], [0, 0], transform=curve.get_xaxis_transform(), color=EVENT, linewidth=2.5,
                   solid_capstyle="butt", clip_on=False, label="points at")  # fmt: skip
    columns = max(1, PIXEL_COLUMNS // len(event.clips))
    for onset, values in event.clips:
        at = onset + (np.arange(len(values)) + 0.5) * event.clip_s / len(values)
        if len(values) > 2 * columns:
            at, low, _, high = by_column(at, values, columns)
            curve.fill_between(at, low, high, color=event.color, linewidth=0.5, label="explanation")
        else:
            curve.plot(at, values, color=event.color, linewidth=0.8, label="explanation")
        curve.axvline(onset, color=SHADE, linewidth=1, zorder=0)
    if event.signed:
        curve.axhline(0, color=MUTED, linewidth=0.4)
    curve.set_xlim(min(onsets), max(onsets) + event.clip_s)
    curve.set_yticks([])
    curve.spines["left"].set_visible(False)
    curve.set_xlabel(event.axis)
    curve.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
    curve.xaxis.set_major_formatter("{x:,.0f}")
    _draw_bands(bands, event, scale)
    return figure


def _draw_bands(axes: Axes, event: EventPicture, scale: ClipScale) -> None:
    n_mels = len(event.profile)
    low, high = event.bands
    axes.axhspan(low - 0.5, high + 0.5, color=EVENT, alpha=0.14, linewidth=0)
    axes.stairs(event.profile, np.arange(n_mels + 1) - 0.5, orientation="horizontal", fill=True, color=event.color,
                label="bands")  # fmt: skip
    ticks = scale.frequency_ticks(n_mels)
    if ticks is not None:
        axes.set_yticks(*ticks)
    axes.set_ylim(-0.5, n_mels - 0.5)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_xlabel("how much, by kHz" if ticks is not None else "how much, by mel band", labelpad=9)
