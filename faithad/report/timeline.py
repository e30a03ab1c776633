"""Scores along the wall clock, on axes that leave out long pauses of the recording.

An audit has tens of thousands of clips and a page has a thousand columns of pixels, so the clips that share a column
are drawn as their lowest, middle and highest score. No text that comes from files is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from faithad.report.style import COLORS, EVENT, INK, MUTED, RC, SURFACE, size
from faithad.report.words import offset_words

PIXEL_COLUMNS = 1_000
# Up to this many clips, each is a dot.
FEW = 1_500
_FEW_LABELLED = 3_000  # more labelled clips than these are dots, too, but in pixels
_NAMED_EVENTS = 5
_WIDTH_IN = 11.6  # on a page
_NOT_HEARD, _LASTS = COLORS["orange"][0], COLORS["violet"][0]
_STRIP = 0.03  # height of a strip
_TICK_STEPS_H = (1 / 60, 1 / 12, 1 / 4, 1 / 2, 1, 2, 3, 6, 12, 24, 48, 168, 730, 2_190, 8_766)
THRESHOLD: dict[str, Any] = {"color": INK, "linewidth": 0.9, "linestyle": (0, (5, 3)), "label": "threshold"}
_DOTS: dict[str, Any] = {"linestyle": "none", "marker": "o", "color": MUTED, "alpha": 0.6}
_DOTS |= {"markersize": 2.6, "markeredgewidth": 0}
_TRIANGLES: dict[str, Any] = {"linestyle": "none", "marker": "^", "color": EVENT}
_TRIANGLES |= {"markeredgecolor": SURFACE, "markeredgewidth": 0.5}


class TimeLine(NamedTuple):
    """Scores and events on the axis of time, in hours.

    Attributes:
        midnight: where the hours count from; None: not every clip has a wall clock, and the hours are those of the
            recordings one after another.
        clips: (N,) of the scored clips.
        score: (N,) their scores, in the same order.
        events: (E,) of each event's strongest clip.
        event_scores: (E,).
        ranked: positions of the events, strongest first.
        unheard: onset and offset of each stretch that was not audited, (U, 2).
        states: the same of each change that lasts, (S, 2).
        anomalous: (N,) which clips are labelled anomalous; None: all are drawn alike.
        offset_s: what the axis is ahead of UTC, where the recorders' own clocks have several offsets from UTC.
    """

    midnight: pd.Timestamp | None
    clips: np.ndarray
    score: np.ndarray
    events: np.ndarray = np.empty(0)
    event_scores: np.ndarray = np.empty(0)
    ranked: Sequence[int] = ()
    unheard: np.ndarray = np.empty((0, 2))
    states: np.ndarray = np.empty((0, 2))
    anomalous: np.ndarray | None = None
    offset_s: float | None = None


def time_line(scores: pd.DataFrame, column: str, *, strongest: Sequence[str] = (), **others: Any) -> TimeLine:
    """The clips that have a score on the axis of time.

    Args:
        scores: one row per clip: clip_id, recording, onset_s, duration_s, recorded_at, utc_offset_s, on_one_clock (see
            `reading.with_one_clock`), the score; label if known.
        column: the score.
        strongest: each event's strongest clip.
        others: attributes of the result that this table does not hold.
    """
    clips = scores[scores[column].notna()].sort_values(["recording", "onset_s"], kind="stable")
    clock = clips["on_one_clock"]
    midnight = clock.min().normalize() if clock.notna().all() else None
    if midnight is None:
        hours = (clips["duration_s"].cumsum() - clips["duration_s"]) / 3_600
    else:
        hours = (clock - midnight) / pd.Timedelta(hours=1)
    x, score = hours.to_numpy(), clips[column].to_numpy()
    order = np.argsort(x, kind="stable")
    place = pd.Series(range(len(clips)), index=clips["clip_id"])[list(strongest)].to_numpy(dtype=int)
    return TimeLine(
        midnight=midnight,
        clips=x[order],
        score=score[order],
        offset_s=_offset_s(clips) if midnight is not None else None,
        anomalous=clips["label"].eq(1).to_numpy()[order] if "label" in clips else None,
        events=x[place],
        event_scores=score[place],
        **others,
    )


def _offset_s(clips: pd.DataFrame) -> float | None:
    """What `on_one_clock` is ahead of UTC, if the recorders' own clocks have several offsets."""
    if clips["utc_offset_s"].nunique() < 2:
        return None
    moved_s = (clips["on_one_clock"] - clips["recorded_at"]).dt.total_seconds() + clips["utc_offset_s"]
    return float(moved_s.dropna().iloc[0])


@mpl.rc_context(RC)
def score_figure(
    line: TimeLine, threshold: float | None, *, has_ratio: bool = True, column_in: float | None = None
) -> Figure:
    """Scores along the time, the threshold, each event as a triangle, what lasts as a strip above, what was not heard
    as one below.

    The strongest events carry their numbers, counted from 1 in the order of `line.events`. `has_ratio`: see
    `spans_decades`; `column_in`: see `style.size`.
    """
    x = line.clips
    stretches = sessions(x) if line.midnight is not None else [(float(x[0]), float(x[-1]))]
    figure, panels = session_axes(stretches, column_in)
    whole = sum(last - first for first, last in stretches) or 1.0
    for axes, (first, last) in zip(panels, stretches, strict=True):
        in_session = (x >= first) & (x <= last)
        columns = max(1, round(PIXEL_COLUMNS * (last - first) / whole))
        _draw_scores(axes, line, in_session, columns)
        _draw_events(axes, line, first, last)
        _draw_strip(axes, line.unheard, columns, at=0.0, color=_NOT_HEARD, label="not heard")
        _draw_strip(axes, line.states, columns, at=1.0 - _STRIP, color=_LASTS, label="lasts")
        if threshold is not None:
            axes.axhline(threshold, **THRESHOLD)
        if line.midnight is not None:
            clock(axes, first, last, line.midnight, line.offset_s)
        else:
            axes.set_xlabel("hours of sound, one recording after the other")
    panels[0].set_ylabel("anomaly score")
    if has_ratio and spans_decades(line.score, threshold):
        panels[0].set_yscale("log")
        panels[0].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panels[0].yaxis.set_minor_formatter(lambda value, _: "")
    return figure


def spans_decades(score: np.ndarray, threshold: float | None) -> bool:
    """Whether scores that have a ratio are drawn on a logarithmic axis. Sums of logarithms never are: they are that."""
    highest = max(float(score.max()), -np.inf if threshold is None else threshold)
    return bool(score.min() > 0 and highest / float(np.median(score)) > 8)


def _draw_scores(axes: Axes, line: TimeLine, in_session: np.ndarray, columns: int) -> None:
    x, score = line.clips[in_session], line.score[in_session]
    if line.anomalous is not None:
        anomalous, pixels = line.anomalous[in_session], len(x) > _FEW_LABELLED
        axes.plot(x[~anomalous], score[~anomalous], **_DOTS, rasterized=pixels, label="normal")
        axes.plot(x[anomalous], score[anomalous], **_TRIANGLES, rasterized=pixels, markersize=5.5, label="anomalous")
    elif len(x) <= FEW:
        axes.plot(x, score, **_DOTS, label="clips")
    else:
        at, low, middle, high = by_column(x, score, columns)
        for part in _unbroken(at, (x[-1] - x[0]) / columns):
            axes.fill_between(at[part], low[part], high[part], color=MUTED, alpha=0.35, linewidth=0.5, label="clips")
            axes.plot(at[part], middle[part], color=MUTED, linewidth=0.8, label="middle")


def by_column(x: np.ndarray, values: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Centre of each column of pixels that holds a value, and the lowest, the middle and the highest value in it.

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


def _draw_events(axes: Axes, line: TimeLine, first: float, last: float) -> None:
    in_session = (line.events >= first) & (line.events <= last)
    pixels = int(in_session.sum()) > FEW
    axes.plot(
        line.events[in_session],
        line.event_scores[in_session],
        **_TRIANGLES,
        rasterized=pixels,
        markersize=4.5,
        label="events",
    )
    for number in line.ranked[:_NAMED_EVENTS]:
        if in_session[number]:
            axes.annotate(f"{number + 1}", (line.events[number], line.event_scores[number]), (0, 4),
                          textcoords="offset points", ha="center", color=EVENT, fontsize=8)  # fmt: skip


def _draw_strip(axes: Axes, stretches: np.ndarray, columns: int, *, at: float, color: str, label: str) -> None:
    """A bar for each stretch (U, 2), at least one column of pixels wide, at a height from 0 to 1."""
    left, right = axes.get_xlim()
    lengths = np.maximum(stretches[:, 1] - stretches[:, 0], (right - left) / columns)
    inside = (stretches[:, 0] < right) & (stretches[:, 0] + lengths > left)
    spans = list(zip(stretches[inside, 0], lengths[inside], strict=True))
    if spans:
        axes.broken_barh(spans, (at, _STRIP), transform=axes.get_xaxis_transform(), color=color, linewidth=0,
                         rasterized=len(spans) > FEW, label=label)  # fmt: skip


def sessions(x: np.ndarray) -> list[tuple[float, float]]:
    """First and last hour of each stretch of recording. A pause over an hour and a sixth of the whole separates two."""
    longest_pause = max(1.0, (x[-1] - x[0]) / 6)
    cuts = [index for index, (left, right) in enumerate(pairwise(x)) if right - left > longest_pause]
    firsts = [0, *(index + 1 for index in cuts)]
    return [(float(x[first]), float(x[last])) for first, last in zip(firsts, [*cuts, len(x) - 1], strict=True)]


def session_axes(stretches: list[tuple[float, float]], column_in: float | None = None) -> tuple[Figure, list[Axes]]:
    """One set of axes per session on a shared scale, as wide as the session is long."""
    width_in, height_in = size(_WIDTH_IN, 2.7, column_in)
    figure = Figure(figsize=(width_in, height_in))
    spans = np.array([last - first for first, last in stretches])
    whole = spans.sum() or 1.0
    right_in = 0.058 if column_in is None else 0.2  # half a label of a tick
    least = min(0.08 * _WIDTH_IN / width_in, 1 / len(stretches))  # of the width: a date fits below it
    widths = np.maximum(spans, whole * least)
    grid = figure.add_gridspec(1, len(stretches), left=0.58 / width_in, right=1 - right_in / width_in,
                               bottom=0.54 / height_in, top=1 - 0.108 / height_in, wspace=0.03,
                               width_ratios=list(widths))  # fmt: skip
    panels: list[Axes] = []
    for index, (first, last) in enumerate(stretches):
        axes = figure.add_subplot(grid[index], sharey=panels[0] if panels else None)
        margin = max(0.012 * whole, (whole * least - (last - first)) / 2)
        axes.set_xlim(first - margin, last + margin)
        if panels:
            axes.spines["left"].set(linestyle=(0, (1, 2)))
            axes.tick_params(labelleft=False)
        panels.append(axes)
    return figure, panels


def clock(axes: Axes, first: float, last: float, midnight: pd.Timestamp, offset_s: float | None = None) -> None:
    """Ticks at round hours or days; the axis counts in hours from a midnight and names the offset from UTC if given."""
    room = max(2.0, axes.get_window_extent().width / axes.figure.dpi / 0.75)
    step = next((step for step in _TICK_STEPS_H if (last - first) / step <= room), _TICK_STEPS_H[-1])
    ticks = np.arange(np.ceil(first / step), np.floor(last / step) + 1) * step
    ticks = ticks if len(ticks) else np.array([first])
    times = [midnight + pd.Timedelta(minutes=round(float(tick) * 60)) for tick in ticks]
    axes.set_xticks(ticks, [f"{t:%d %b}" if step >= 24 or t == t.normalize() else f"{t:%H:%M}" for t in times])
    start, end = (f"{midnight + pd.Timedelta(hours=hours):%Y-%m-%d}" for hours in (first, last))
    zone = "" if offset_s is None else f" (UTC{offset_words(offset_s)})"
    axes.set_xlabel((start if start == end else f"{start} to {end}") + zone)
