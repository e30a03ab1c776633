"""A search as pictures: the heat maps of a grid beside the published one, or a scatter where ratios are continuous."""

from __future__ import annotations

import math
from itertools import cycle
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from faithad.report import findings, published, style
from faithad.report.search_tables import Search, cells, went_back

Row = dict[str, Any]

# Shades of a heat map, in percent: the weakest is told from the page, and text stays readable on the strongest, on a
# light and on a dark page.
_WEAKEST, _STRONGEST = 8, 60
# A colour and marker per patch, in rising order; more patches than these begin again.
_PATCH_LOOKS = [
    (style.COLORS[name][0], marker)
    for name, marker in (
        ("blue", "o"),
        ("vermilion", "s"),
        ("green", "^"),
        ("purple", "D"),
        ("orange", "v"),
        ("ink", "X"),
    )
]


def heat_maps(search: Search, title: str) -> list[Row]:
    """The objective, the test AUC where it is another one, and Table 2 of the paper; AUCs share their colours."""
    maps = [_heat_map(search, "value", f"{title}, this search")]
    if search.objective != "test_auc" and search.trials["auc"].notna().any():
        maps.append(_heat_map(search, "auc", "test AUC, this search (not used for the choice)"))
    maps.append(_published_map())
    areas = [one for one in maps if one["is_test_auc"]]
    for alike in ([one for one in maps if not one["is_test_auc"]], areas):
        values = [
            cell["mean"] for one in alike for row in one["rows"] for cell in row["cells"] if cell["mean"] is not None
        ]
        for one in alike:
            for cell in (cell for row in one["rows"] for cell in row["cells"]):
                cell["shade"] = _shade(cell["mean"], values, lower_is_better=one["lower_is_better"])
    return maps


def _shade(value: float | None, values: list[float], *, lower_is_better: bool) -> int:
    if value is None:
        return 0
    low, high = min(values), max(values)
    place = (value - low) / (high - low) if high > low else 0.5
    return round(_WEAKEST + (_STRONGEST - _WEAKEST) * (1 - place if lower_is_better else place))


def _heat_map(search: Search, column: str, title: str) -> Row:
    found = cells(search.trials, column)
    rows = {(cell[0], cell[1]): row for cell, row in zip(found.index, findings.records(found), strict=True)}
    ratios, patches = (sorted(set(search.trials[key])) for key in ("mask_ratio", "patch"))
    return {
        "title": title,
        "is_test_auc": column == "auc" or search.objective == "test_auc",
        "lower_is_better": column == "value" and search.objective == "validation_loss",
        "patches": [f"patch {patch}" for patch in patches],
        "rows": [
            {
                "ratio": f"{ratio * 100:g} %",
                "cells": [_heat_cell(rows.get((ratio, patch)), search.chosen == (ratio, patch)) for patch in patches],
            }
            for ratio in ratios
        ],
        "published": False,
    }


def _heat_cell(row: Row | None, chosen: bool) -> Row:
    if row is None:
        return {"mean": None, "std": None, "count": 0, "marks": [], "chosen": False}
    marks = [f"{row[status]} {status}" for status in ("stopped", "failed", "diverged") if row[status]]
    return {"mean": row["mean"], "std": row["std"], "count": row["count"], "marks": marks, "chosen": chosen}


def _published_map() -> Row:
    ratios = sorted({ratio for ratio, _ in published.SEARCH})
    columns = (published.SMALL_PATCH, published.LARGER_PATCH)
    return {
        "title": "published test AUC (Table 2 of the paper)",
        "is_test_auc": True,
        "lower_is_better": False,
        "patches": [f"patch {published.SMALL_PATCH}", published.LARGER_PATCH],
        "rows": [
            {
                "ratio": f"{ratio * 100:g} %",
                "cells": [
                    {"mean": published.SEARCH[ratio, patch], "std": None, "count": 1, "marks": [], "chosen": False}
                    for patch in columns
                ],
            }
            for ratio in ratios
        ],
        "published": True,
    }


def scatter(search: Search, title: str) -> Row:
    panels = [{"title": f"{title} of each trial", "svg": _scatter_svg(search, "value", title)}]
    if search.objective != "test_auc" and search.trials["auc"].notna().any():
        panels.append(
            {
                "title": "test AUC of each trial (not used for the choice)",
                "svg": _scatter_svg(search, "auc", "test AUC"),
            }
        )
    looks = zip(sorted(set(search.trials["patch"])), cycle(_PATCH_LOOKS), strict=False)
    legend = [
        (
            f"patch {patch}",
            style.to_svg(style.swatch(color, marker=marker, dashes=""), name=f"patch-{patch}", label=f"patch {patch}"),
        )
        for patch, (color, marker) in looks
    ]
    return {"panels": panels, "legend": [legend]}


def _scatter_svg(search: Search, column: str, label: str) -> Markup:
    figure = scatter_figure(search, column, label)
    return style.to_svg(figure, name=f"search-{column}", label=f"{label} over mask ratio, by patch")


@mpl.rc_context(style.RC)
def scatter_figure(search: Search, column: str, label: str) -> Figure:
    """Value over mask ratio, a colour and marker per patch; stopped trials hollow, those that diverged crossed, failed
    ones as ticks at the bottom, the chosen one ringed.
    """
    figure, axes = style.new_axes(5.6, 3.4)
    for patch, (color, marker) in zip(sorted(set(search.trials["patch"])), cycle(_PATCH_LOOKS), strict=False):
        rows = search.trials[search.trials["patch"] == patch]
        for status, face in (("done", color), ("stopped", style.SURFACE)):
            some = rows[(rows["status"] == status) & rows[column].notna()]
            axes.plot(some["mask_ratio"], some[column], linestyle="none", marker=marker, color=color, markersize=5,
                      markerfacecolor=face, label=f"patch {patch}, {status}")  # fmt: skip
        failed = rows[rows["status"] == "failed"]
        axes.plot(failed["mask_ratio"], [0.02] * len(failed), linestyle="none", marker="|", color=color, markersize=8,
                  transform=axes.get_xaxis_transform(), label=f"patch {patch}, failed")  # fmt: skip
    crossed = search.trials[went_back(search.trials)]
    if len(crossed):
        axes.plot(crossed["mask_ratio"], crossed[column], linestyle="none", marker="x", markersize=8,
                  color=style.INK, label="diverged")  # fmt: skip
    if search.chosen is not None:
        best = cells(search.trials, column)["mean"].get(search.chosen, math.nan)
        axes.plot([search.chosen[0]], [best], linestyle="none", marker="o", markersize=11, color=style.INK,
                  markerfacecolor="none", label="chosen")  # fmt: skip
    axes.set(xlabel="mask ratio", ylabel=label)
    return figure
