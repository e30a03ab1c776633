"""How the report's figures look: a colour and marker per method, a line style and colour per model, and SVG out.

Figures are drawn in the colours of a light page. On the way out each colour becomes a CSS variable, so that the same
SVG follows the reader's light or dark page; the pairs are in `COLORS`. The method colours are those of Okabe and Ito
(2008), which colour-blind readers tell apart, a little darker on light paper and lighter on dark; markers tell the
methods apart without colour.
"""

from __future__ import annotations

import base64
import io
import re
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from faithad.attribution.methods import METHODS
from faithad.model.table import MODELS
from faithad.vocabulary import LEVEL

# name: (on a light page, on a dark page)
COLORS: dict[str, tuple[str, str]] = {
    "ink": ("#1d2126", "#e4e7ea"),
    "muted": ("#646c76", "#9aa3ad"),
    "grid": ("#e1e4e8", "#30363d"),
    "shade": ("#eef0f2", "#22272d"),
    "surface": ("#fefefe", "#15191d"),
    "event": ("#b3341a", "#ff8a65"),
    "vermilion": ("#d05a00", "#f07f3c"),
    "blue": ("#0a6fb0", "#4c9fe0"),
    "sky": ("#45a5da", "#86cdf5"),
    "green": ("#02946e", "#2fbd93"),
    "orange": ("#dd9500", "#f2b940"),
    "purple": ("#c26b9b", "#df9cc0"),
    "violet": ("#6a51a3", "#a594d6"),
}
INK, MUTED, GRID, SHADE, SURFACE, EVENT = (
    COLORS[name][0] for name in ("ink", "muted", "grid", "shade", "surface", "event")
)

RC: Any = {
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "text.color": INK,
    "text.parse_math": False,
    "lines.linewidth": 1.5,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
    "svg.hashsalt": "faithad",
    "image.composite_image": False,
}

# A chart with an axis of time and one of scores can be read from this height.
_LOWEST_IN = 1.7

_METADATA = ("Creator", "Date", "Format", "Type")


class MethodLook(NamedTuple):
    """How a method is drawn; `signed`: its map has cells below 0."""

    title: str
    color: str
    marker: str
    signed: bool


class Model(NamedTuple):
    """How a model is drawn; `filled`: whether its markers are filled."""

    title: str
    dashes: Any
    filled: bool
    color: str


# Looks are given by the position of a row in the table of methods or models; further rows begin again, with other
# markers or dashes.
_METHOD_COLORS = ("vermilion", "blue", "sky", "green", "orange", "purple", "violet", "ink")
_METHOD_MARKERS = "Xos^Dv<>*hpd8"
_MODEL_COLORS = ("ink", "ink", "orange", "sky", "green", "purple", "violet", "blue", "vermilion")
_MODEL_DASHES: tuple[Any, ...] = ((0, (4, 2)), "-", (0, (6, 1.5, 1, 1.5)), (0, (2, 1)), (0, (8, 1.5, 1, 1.5, 1, 1.5)))

EVERY_SECOND, RANDOM = "every second flagged", "random curve"
# The names of the lines that methods are compared with.
LINES = {
    "random": "random frames",
    "always": "every second",
    "level": "level",
    "level_change": "change of level",
    "outlier": "outliers",
    "frame_pca": "linear model",
    "oracle": "best possible",
}
CONTROL_DASHES: dict[str, Any] = {
    EVERY_SECOND: (0, (7, 3)),
    RANDOM: (0, (2, 2)),
    LINES["random"]: (0, (2, 2)),
    LINES["level"]: (0, (1, 1)),
    LINES["level_change"]: (0, (1, 3)),
    LINES["outlier"]: (0, (5, 1, 1, 1)),
    LINES["frame_pca"]: (0, (5, 1, 1, 1, 1, 1)),
    LINES["oracle"]: (0, (10, 2)),
}


def method(name: str) -> MethodLook:
    """A method that this installation does not have is drawn, too, in grey and under its own name."""
    if name not in METHODS:
        return MethodLook(name, MUTED, "P", signed=True)
    place, row = list(METHODS).index(name), METHODS[name]
    color = COLORS[_METHOD_COLORS[place % len(_METHOD_COLORS)]][0]
    return MethodLook(row.title, color, _METHOD_MARKERS[place % len(_METHOD_MARKERS)], row.signed)


def model(name: str) -> Model:
    """As `method`, for a model."""
    if name == LEVEL:
        return Model("Level, no model", (0, (1, 1)), filled=False, color=MUTED)
    if name not in MODELS:
        return Model(name, (0, (1, 1.5)), filled=True, color=MUTED)
    place = list(MODELS).index(name)
    color = COLORS[_MODEL_COLORS[place % len(_MODEL_COLORS)]][0]
    return Model(MODELS[name].title, _MODEL_DASHES[place % len(_MODEL_DASHES)], filled=place % 2 == 1, color=color)


def in_model_order(names: Iterable[str]) -> list[str]:
    """Models in the order of their table, then those that this installation does not have."""
    return _in_order(names, list(MODELS))


def in_method_order(names: Iterable[str]) -> list[str]:
    """As `in_model_order`, for methods."""
    return _in_order(names, list(METHODS))


def _in_order(names: Iterable[str], known: list[str]) -> list[str]:
    return sorted(set(names), key=lambda name: (known.index(name) if name in known else len(known), name))


def series_id(*names: str) -> str:
    """The id (`Artist.set_gid`) of what a page can hide: `to_svg` makes classes of these names, in plain letters."""
    return "class:" + " ".join(class_name(name) for name in names)


def class_name(name: str) -> str:
    """A name as a class of CSS, with a hash where letters were lost."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower())
    return plain if plain.replace("-", "_") == name else f"{plain}-{zlib.crc32(name.encode()):08x}"


def to_svg(figure: Figure, *, name: str, label: str) -> Markup:
    """The figure as one `<svg>` element that scales with the page.

    Args:
        figure: what to draw.
        name: unique on the page; every id inside the element starts with it.
        label: what a screen reader says.
    """
    out = io.StringIO()
    with mpl.rc_context(RC):
        figure.savefig(out, format="svg", dpi=200, transparent=True, metadata=dict.fromkeys(_METADATA))
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    head, _, body = svg.partition(">")
    view_box = re.search(r'viewBox="[^"]+"', head)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', body))
    body = re.sub(r' id="class:([^"]+)"', r' class="\1"', body)
    body = re.sub(r' id="([^"]+)"', lambda match: match.group() if match[1] in used else "", body)
    body = re.sub(r'(?<= d=")[^"]+', lambda match: _FINE_DIGITS.sub(r"\1", match.group()), body)
    body = re.sub(r"(?<=data:image/png;base64,)[^\"]+", lambda match: _small_png(match.group()), body)
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body)
    for variable, (light, _) in COLORS.items():
        body = body.replace(f": {light}", f": var(--{variable})")
    title = f"<title>{escape(label)}</title>"
    view = view_box.group() if view_box else ""
    return Markup(f'<svg {view} xmlns:xlink="http://www.w3.org/1999/xlink" role="img">{title}{body.strip()}')


# A hundredth of a point is less than a screen or a printer shows; the digits after it are half of the file.
_FINE_DIGITS = re.compile(r"(\.\d\d)\d+")


def _small_png(encoded: str) -> str:
    """The same picture with a palette: maps have few colours, and their PNG becomes a quarter as large."""
    content = base64.b64decode(encoded)
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))
    codes, places = np.unique(pixels.view("<u4"), return_inverse=True)
    colors = codes.view(np.uint8).reshape(-1, 4)
    if len(codes) > 256 or (colors[:, 3] < 255).any():
        return encoded
    small = Image.fromarray(places.reshape(pixels.shape[:2]).astype(np.uint8), mode="P")
    small.putpalette(colors[:, :3].tobytes())
    out = io.BytesIO()
    small.save(out, format="png", optimize=True)
    return base64.b64encode(out.getvalue()).decode("ascii")


def size(width_in: float, height_in: float, column_in: float | None) -> tuple[float, float]:
    """Width and height in inches of a figure that has these on a page and goes into a paper's column.

    Text keeps its size, so a narrow figure is flatter, but not flatter than its labels need. None: as on the page.
    """
    if column_in is None:
        return width_in, height_in
    return column_in, min(height_in, max(_LOWEST_IN, height_in * column_in / width_in))


def new_axes(
    width_in: float,
    height_in: float,
    column_in: float | None,
    *,
    left: float = 0.52,
    bottom: float = 0.42,
) -> tuple[Figure, Axes]:
    """A figure with one set of axes whose left and bottom margins are in inches, alike in all charts; see `size`."""
    width_in, height_in = size(width_in, height_in, column_in)
    figure = Figure(figsize=(width_in, height_in))
    box = (left / width_in, bottom / height_in, 1 - (left + 0.1) / width_in, 1 - (bottom + 0.12) / height_in)
    return figure, figure.add_axes(box)


class LegendEntry(NamedTuple):
    """A line of a legend; `shows`: the name (see `series_id`) of what the reader can hide by it."""

    title: str
    color: str
    marker: str = ""
    dashes: Any = "-"
    filled: bool = True
    shows: str = ""

    @property
    def face(self) -> str:
        return self.color if self.filled else SURFACE


@mpl.rc_context(RC)
def swatch(entry: LegendEntry) -> Figure:
    """A short piece of a line, for legends in the page's text."""
    figure = Figure(figsize=(0.46, 0.17))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.plot([0.04, 0.96], [0.5, 0.5], color=entry.color, linestyle=entry.dashes)
    axes.plot([0.5], [0.5], marker=entry.marker or None, color=entry.color, markersize=5, markerfacecolor=entry.face)
    return figure
