"""Pictures of one clip: its spectrogram, its reconstruction and its maps, each over the curve that it sums to.

Shape letters: F mel bands, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import MaxNLocator

from faithad.evaluation.mel_bands import mel
from faithad.report import style
from faithad.report.reading import Example
from faithad.report.style import EVENT, INK, MUTED, RC

Kind = Literal["level", "sequential", "diverging"]

# 64 steps are more than a reader tells apart, and their PNG is half as large as that of 256.
_COLOR_STEPS = 64
COLOR_MAPS: dict[Kind, str] = {"level": "viridis", "sequential": "magma", "diverging": "RdBu_r"}


@dataclass(frozen=True)
class ClipScale:
    """Where frames and mel bands lie in seconds and hertz.

    Attributes:
        frames_per_s: frame rate.
        sample_rate_hz: half of it is the upper end of the mel scale; None: bands are shown by number.
    """

    frames_per_s: float
    sample_rate_hz: float | None

    def frequency_ticks(self, n_mels: int) -> tuple[list[float], list[str]] | None:
        """Places (in mel bands) and names of whole kilohertz."""
        if self.sample_rate_hz is None:
            return None
        top_hz = self.sample_rate_hz / 2
        step = (n_mels + 1) / mel(top_hz)
        kilohertz = [khz for khz in (0.5, 1, 2, 4, 8, 16) if khz * 1_000 < top_hz]
        return [mel(khz * 1_000) * step - 1 for khz in kilohertz], [f"{khz:g}" for khz in kilohertz]


def clip_scale(setting: Callable[[str], Any], n_frames: int, duration_s: float) -> ClipScale:
    """The axes of a clip of T frames as its features are configured; `setting` looks up a key of the configuration."""
    rate, hop = setting("features.sample_rate_hz"), setting("features.hop_samples")
    if isinstance(rate, int | float) and isinstance(hop, int | float):
        return ClipScale(rate / hop, float(rate))
    return ClipScale(n_frames / duration_s, None)


def color_limits(grid: np.ndarray, kind: Kind) -> tuple[float, float]:
    """Lower and upper end of the colours: the 99.5th percentile keeps a few extreme cells from hiding the rest.

    A diverging scale is symmetric, so that 0 has the middle colour.
    """
    if kind == "diverging":
        bound = float(np.percentile(np.abs(grid), 99.5)) or 1.0
        return -bound, bound
    low = 0.0 if kind == "sequential" else float(np.percentile(grid, 0.5))
    high = float(np.percentile(grid, 99.5))
    return low, high if high > low else low + 1.0


# Of a clip's panel.
_PANEL_RC = RC | {"font.size": 7.5, "xtick.labelsize": 7.5, "ytick.labelsize": 7.5, "axes.grid": False}


def clip_figure(grid: np.ndarray | None, curve: np.ndarray, **look: Any) -> Figure:
    """One panel as a figure of its own; the arguments are those of `draw_clip`."""
    figure = Figure(figsize=(3.05, 2.12))
    draw_clip(figure, grid, curve, **look)
    return figure


@mpl.rc_context(_PANEL_RC)
def draw_clip(
    figure: FigureBase,
    grid: np.ndarray | None,
    curve: np.ndarray,
    *,
    scale: ClipScale,
    kind: Kind,
    limits: tuple[float, float] | None = None,
    intervals: Sequence[tuple[float, float]] = (),
    peaks: np.ndarray | None = None,
    color: str = INK,
    corner: tuple[float, float] = (0.1, 0.94),
) -> None:
    """One panel: the picture above, its curve below, annotated intervals as brackets above and bands behind.

    Args:
        figure: the panel is drawn into it.
        grid: (F, T), or None where no map was kept.
        curve: (T,).
        scale: the clip's axes.
        kind: the colours: `level` for spectrograms, `sequential` for unsigned and `diverging` for signed maps.
        limits: ends of the colours; by default `color_limits`.
        intervals: annotated (onset, offset) in seconds of the clip.
        peaks: (T,) bool, frames to mark.
        color: of the curve.
        corner: upper left one of the picture, in shares of the figure's width and height.
    """
    left, top = corner
    picture = figure.add_axes((left, 0.4, 0.98 - left, top - 0.4))
    below = figure.add_axes((left, 0.13, 0.98 - left, 0.24), sharex=picture)
    end = len(curve) / scale.frames_per_s
    if grid is not None:
        low, high = limits or color_limits(grid, kind)
        colors = mpl.colormaps[COLOR_MAPS[kind]].resampled(_COLOR_STEPS)
        picture.imshow(grid, origin="lower", aspect="auto", interpolation="none", cmap=colors, vmin=low, vmax=high,
                       extent=(0, end, -0.5, grid.shape[0] - 0.5))  # fmt: skip
        _label_bands(picture, scale, grid.shape[0])
    else:
        picture.text(0.5, 0.5, "map not kept", transform=picture.transAxes, ha="center", color=MUTED)
        picture.set_yticks([])
    picture.tick_params(labelbottom=False, length=0)
    picture.spines[:].set_visible(False)
    _draw_curve(below, (np.arange(len(curve)) + 0.5) / scale.frames_per_s, curve, peaks, color, kind == "diverging")
    for onset, offset in intervals:
        _mark(picture, below, onset, offset)
    below.set_xlim(0, end)


def _label_bands(picture: Axes, scale: ClipScale, n_mels: int) -> None:
    ticks = scale.frequency_ticks(n_mels)
    if ticks is None:
        picture.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    else:
        picture.set_yticks(*ticks)


def _draw_curve(
    axes: Axes, at: np.ndarray, curve: np.ndarray, peaks: np.ndarray | None, color: str, signed: bool
) -> None:
    low, high = float(curve.min()), float(curve.max())
    room = (high - low) or 1.0
    axes.plot(at, curve, color=color, linewidth=0.8)
    if signed and low < 0 < high:
        axes.axhline(0, color=MUTED, linewidth=0.4)
    if peaks is not None and peaks.any():
        axes.vlines(at[peaks], high + 0.12 * room, high + 0.3 * room, color=INK, linewidth=0.7)
    axes.set_ylim(low - 0.08 * room, high + 0.35 * room)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=2, pad=1.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _mark(picture: Axes, below: Axes, onset: float, offset: float) -> None:
    """An annotated interval: a bracket over the picture, its edges through the picture, a band behind the curve."""
    across = picture.get_xaxis_transform()
    picture.plot([onset, onset, offset, offset], [1.0, 1.06, 1.06, 1.0], transform=across, color=EVENT, linewidth=1.4,
                 clip_on=False, solid_capstyle="butt")  # fmt: skip
    for edge in (onset, offset):
        picture.plot([edge, edge], [0, 1], transform=across, color="white", linewidth=1.3)
        picture.plot([edge, edge], [0, 1], transform=across, color="black", linewidth=0.6, linestyle=(0, (3, 2)))
    below.axvspan(onset, offset, color=EVENT, alpha=0.14, linewidth=0, zorder=0)
    below.plot([onset, offset], [0, 0], transform=below.get_xaxis_transform(), color=EVENT, linewidth=2)


def css_gradient(kind: Kind) -> str:
    """The colours of a kind from low to high, as CSS, for the legend."""
    colors = mpl.colormaps[COLOR_MAPS[kind]]
    return f"linear-gradient(to right, {', '.join(to_hex(colors(step)) for step in np.linspace(0, 1, 9))})"


class Panel(NamedTuple):
    """One panel of a clip: the arguments of `draw_clip`, with a title and a note."""

    title: str
    note: str
    grid: np.ndarray | None
    curve: np.ndarray
    look: dict[str, Any]


def clip_panels(
    example: Example,
    scale: ClipScale,
    *,
    methods: Sequence[str],
    intervals: Sequence[tuple[float, float]],
    percentiles: Mapping[str, float],
    words: tuple[str, str],
) -> list[Panel]:
    """What the model heard of one clip, what it made of it, and the maps.

    Args:
        example: the clip as one model sees it.
        scale: the clip's axes.
        methods: whose maps are shown.
        intervals: annotated (onset, offset) in seconds of the clip.
        percentiles: of the peaks to mark, by method.
        words: titles of input and reconstruction.
    """
    of_all = {"scale": scale, "intervals": intervals}
    look: dict[str, Any] = of_all | {"kind": "level", "limits": color_limits(example.log_mel, "level")}
    panels = [
        Panel(title, "mean level below", grid, grid.mean(axis=0), look)
        for title, grid in zip(words, (example.log_mel, example.reconstruction), strict=True)
    ]
    for method in methods:
        drawn, curve, percentile = style.method(method), example.curves[method], percentiles.get(method)
        is_flat = method in example.degenerate
        peaks = None if is_flat or percentile is None else curve >= np.percentile(curve, percentile)
        note = "flat curve" if is_flat else "" if percentile is None else f"top {100 - percentile:g} %"
        look = of_all | {"kind": "diverging" if drawn.signed else "sequential", "peaks": peaks, "color": drawn.color}
        panels.append(Panel(drawn.title, note, example.maps.get(method), curve, look))
    return panels


def panel_views(panels: Sequence[Panel], *, name: str, subject: str) -> list[dict[str, Any]]:
    """The panels as a page shows them: title, note and SVG of each.

    Args:
        panels: of one clip.
        name: unique on the page.
        subject: what the pictures are of, for a screen reader.
    """
    return [
        {
            "title": panel.title,
            "note": panel.note,
            "svg": style.to_svg(
                clip_figure(panel.grid, panel.curve, **panel.look),
                name=f"{name}-{index}",
                label=f"{panel.title}, {subject}",
            ),
        }
        for index, panel in enumerate(panels)
    ]


@mpl.rc_context(_PANEL_RC)
def panel_sheet(panels: Sequence[Panel], column_in: float) -> Figure:
    """All panels of a clip in one figure, for a paper: two of them side by side in a column, four in both."""
    n_columns = max(2, round(column_in / 1.75))
    n_rows = -(-len(panels) // n_columns)
    figure = Figure(figsize=(column_in, n_rows * 0.85 * column_in / n_columns))
    cells = figure.subfigures(n_rows, n_columns, squeeze=False).flat
    for panel, cell in zip(panels, cells, strict=False):
        cell.text(0.15, 0.98, panel.title, va="top", fontsize=6.8)
        if panel.look["kind"] != "level":
            cell.text(0.98, 0.98, panel.note, va="top", ha="right", fontsize=6, color=MUTED)
        draw_clip(cell, panel.grid, panel.curve, **panel.look, corner=(0.15, 0.85))
        for axes in cell.axes:
            axes.tick_params(labelsize=6.5)
    return figure
