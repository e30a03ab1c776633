"""One figure of a report, for its page and for a paper: in a page's width as SVG, in a column's width with a legend."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from faithad.report.style import RC, LegendEntry, to_svg

# Widths of a column and of both, in inches: 86 and 178 mm, as the template of ICASSP has them.
COLUMNS_IN = {"single": 3.39, "double": 7.01}
FORMATS = ("pdf", "svg", "png")
_DPI = 600
# In a legend: height of a line, width of the sample and its gaps, mean width of a letter.
_LINE_IN, _SAMPLE_IN, _LETTER_IN, _LEGEND_PT = 0.147, 0.42, 0.055, 7.5


class Drawing(NamedTuple):
    """A figure that is not drawn yet.

    Attributes:
        name: unique in a report; also of its files.
        label: what it shows.
        draw: makes it, as wide as a column (inches), or, without one, as wide as on the page.
        legend: its legend in a paper, below it; None: made of the names of its lines. A page has legends of its own.
    """

    name: str
    label: str
    draw: Callable[..., Figure]
    legend: Sequence[LegendEntry] | None = None

    def svg(self) -> Markup:
        """The figure for a page."""
        return to_svg(self.draw(), name=self.name, label=self.label)

    def files(self, formats: Sequence[str], width_in: float) -> list[bytes]:
        """The figure for a paper in each format, with all that its text needs: a PDF embeds its fonts, an SVG has their
        outlines.
        """
        with mpl.rc_context(RC | {"pdf.fonttype": 42, "svg.fonttype": "path"}):
            figure = self.draw(column_in=width_in)
            _keep_labels_inside(figure)
            _add_legend(figure, self.legend)
            return [self._saved(figure, format) for format in formats]

    def _saved(self, figure: Figure, format: str) -> bytes:
        out = io.BytesIO()
        dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
        figure.savefig(out, format=format, dpi=_DPI, metadata={"Title": self.label, **dates[format]})
        return out.getvalue()


def _keep_labels_inside(figure: Figure) -> None:
    """Move the texts below narrow axes, and make them smaller, until none is cut off."""
    room = figure.bbox.padded(-3)
    for axes in figure.axes:
        label = axes.xaxis.label
        if not label.get_text():
            continue
        axes.xaxis.get_tightbbox()  # places the label; a draw of the whole figure would take longer than its files
        size_pt = float(label.get_fontsize())
        label.set_fontsize(size_pt * min(1.0, room.width / max(label.get_window_extent().width, 1)))
        extent = label.get_window_extent()
        by = max(0.0, room.x0 - extent.x0) - max(0.0, extent.x1 - room.x1)
        label.set_x(0.5 + by / axes.bbox.width)


def _add_legend(figure: Figure, entries: Sequence[LegendEntry] | None) -> None:
    """A strip below the figure, which grows by it."""
    handles = _named(figure) if entries is None else {entry.title: _sample(entry) for entry in entries}
    if not handles:
        return
    width_in, height_in = figure.get_size_inches()
    n_columns = max(1, min(len(handles), int(width_in / (_SAMPLE_IN + _LETTER_IN * max(map(len, handles))))))
    strip_in = _LINE_IN * (math.ceil(len(handles) / n_columns) + 0.5)
    boxes = [axes.get_position().bounds for axes in figure.axes]
    figure.set_size_inches(width_in, height_in + strip_in)
    share = height_in / (height_in + strip_in)
    for axes, (left, bottom, width, height) in zip(figure.axes, boxes, strict=True):
        axes.set_position((left, 1 - share * (1 - bottom), width, share * height))
    figure.legend(list(handles.values()), list(handles), loc="lower center", ncols=n_columns, frameon=False,
                  fontsize=_LEGEND_PT, handlelength=2.2, handletextpad=0.5, columnspacing=1, labelspacing=0.35,
                  borderpad=0.2, borderaxespad=0)  # fmt: skip


def _sample(entry: LegendEntry) -> Line2D:
    return Line2D([], [], color=entry.color, linestyle=entry.dashes, marker=entry.marker or None, markersize=4.2,
                  markerfacecolor=entry.face, linewidth=1.3)  # fmt: skip


def _named(figure: Figure) -> dict[str, Any]:
    """Each name that lines of the figure have, with the first of its lines."""
    named: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            if not isinstance(handle, Line2D) or np.size(handle.get_xdata()):
                named.setdefault(name, handle)
    return named
