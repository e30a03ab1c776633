"""Further charts of an audit: how the scores are distributed, and one event's explanation.

Shape letters: F mel bands, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from faithad.report.maps import ClipScale
from faithad.report.style import EVENT, MUTED, RC, SHADE, MethodLook, new_axes, size
from faithad.report.timeline import PIXEL_COLUMNS, THRESHOLD, by_column, spans_decades


@mpl.rc_context(RC)
def distribution_figure(
    score: np.ndarray, threshold: float | None, *, has_ratio: bool = True, column_in: float | None = None
) -> Figure:
    """How many clips have which score, on a logarithmic scale; those above the threshold in red.

    `has_ratio`: see `timeline.spans_decades`; `column_in`: see `style.size`.
    """
    figure, axes = new_axes(5.6, 2.4, column_in)
    low, high = float(score.min()), max(float(score.max()), threshold if threshold is not None else -np.inf)
    high = high if high > low else low + 1.0
    wide = has_ratio and spans_decades(score, threshold)
    edges = np.geomspace(low, high, 61) if wide else np.linspace(low, high, 61)
    counts = np.histogram(score, edges)[0]
    above = np.histogram(score[score > threshold], edges)[0] if threshold is not None else np.zeros(60, int)
    axes.stairs(counts, edges, fill=True, color=MUTED, alpha=0.5, label="clips")
    axes.stairs(above, edges, fill=True, color=EVENT, label="alarmed clips")
    if threshold is not None:
        axes.axvline(threshold, **THRESHOLD)
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(0, counts.max() * 1.5)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    if wide:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.set(xlabel="anomaly score", ylabel="clips")
    return figure


@mpl.rc_context(RC | {"axes.grid": False})
def event_figure(
    clips: Sequence[tuple[float, float, np.ndarray]],
    *,
    axis: str,
    seconds: Sequence[tuple[float, float]],
    profile: np.ndarray,
    bands: tuple[int, int],
    look: MethodLook,
    scale: ClipScale,
    column_in: float | None = None,
) -> Figure:
    """One event's explanation over time, with the seconds it points at, and on the right over the mel bands.

    Args:
        clips: onset and length of each explained clip in seconds, and its curve (T,).
        axis: what the times count from.
        seconds: (onset, offset) of what the explanation points at.
        profile: (F,) how much each mel band carries.
        bands: first and last of the bands that carry the event.
        look: of the method.
        scale: of the mel bands.
        column_in: see `style.size`.
    """
    width_in, height_in = size(11.6, 1.6, column_in)
    figure = Figure(figsize=(width_in, height_in))
    bottom, height = 0.48 / height_in, 1 - 0.544 / height_in
    left_in, bands_in = 0.14, min(1.47, width_in / 4)
    right_in = width_in - bands_in - 0.058
    curve = figure.add_axes((left_in / width_in, bottom, (right_in - 0.53 - left_in) / width_in, height))
    for onset, offset in seconds:
        curve.axvspan(onset, offset, color=EVENT, alpha=0.14, linewidth=0)
        curve.plot([onset, offset], [0, 0], transform=curve.get_xaxis_transform(), color=EVENT, linewidth=2.5,
                   solid_capstyle="butt", clip_on=False, label="points at")  # fmt: skip
    columns = max(1, PIXEL_COLUMNS // len(clips))
    for onset, length, values in clips:
        at = onset + (np.arange(len(values)) + 0.5) * length / len(values)
        if len(values) > 2 * columns:
            at, low, _, high = by_column(at, values, columns)
            curve.fill_between(at, low, high, color=look.color, linewidth=0.5, label="explanation")
        else:
            curve.plot(at, values, color=look.color, linewidth=0.8, label="explanation")
        curve.axvline(onset, color=SHADE, linewidth=1, zorder=0)
    if look.signed:
        curve.axhline(0, color=MUTED, linewidth=0.4)
    curve.set_xlim(min(onset for onset, _, _ in clips), max(onset + length for onset, length, _ in clips))
    curve.set_yticks([])
    curve.spines["left"].set_visible(False)
    curve.set_xlabel(axis)
    curve.xaxis.set_major_locator(MaxNLocator(nbins=12 if column_in is None else 6, integer=True))
    curve.xaxis.set_major_formatter("{x:,.0f}")
    _draw_bands(
        figure.add_axes((right_in / width_in, bottom, bands_in / width_in, height)), profile, bands, look.color, scale
    )
    return figure


def _draw_bands(axes: Axes, profile: np.ndarray, bands: tuple[int, int], color: str, scale: ClipScale) -> None:
    n_mels, (low, high) = len(profile), bands
    axes.axhspan(low - 0.5, high + 0.5, color=EVENT, alpha=0.14, linewidth=0)
    axes.stairs(profile, np.arange(n_mels + 1) - 0.5, orientation="horizontal", fill=True, color=color, label="bands")
    ticks = scale.frequency_ticks(n_mels)
    if ticks is not None:
        axes.set_yticks(*ticks)
    axes.set_ylim(-0.5, n_mels - 0.5)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_xlabel("how much, by kHz" if ticks is not None else "how much, by mel band", labelpad=9)
