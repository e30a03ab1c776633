"""A search as pictures: the heat maps of a grid beside the published one, or a scatter where ratios are continuous."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from itertools import cycle
from typing import Any

import matplotlib as mpl
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from faithad.report import published, style
from faithad.report.drawing import Drawing
from faithad.report.search_tables import SearchTables, cells, further_settings, went_back
from faithad.report.words import records

HeatMap = dict[str, Any]

# Shades of a heat map, in percent: the weakest differs from the page, and text stays readable on the strongest, on a
# light and on a dark page.
_WEAKEST, _STRONGEST = 8, 60
# A colour and marker per patch, in rising order; more patches than these begin again.
_PATCH_COLORS, _PATCH_MARKERS = ("blue", "vermilion", "green", "purple", "orange", "ink"), "os^DvX"
# Of the largest value of a setting to its smallest: from here on its axis is logarithmic.
_LOG_FROM = 20
_NOT_USED = "(not used for the choice)"


def heat_maps(search: SearchTables, title: str) -> list[HeatMap]:
    """The objective, the test AUC where it is another one, and Table 2 of the paper; AUCs share their colours."""
    maps = []
    for column in search.columns:
        is_auc = column == "auc" or search.objective == "test_auc"
        lower_is_better = column == "value" and search.objective == "validation_loss"
        heading = f"{title}, this search" if column == "value" else f"test AUC, this search {_NOT_USED}"
        table = cells(search.trials, column)
        own = {
            place: _cell(row, search.chosen == place) for place, row in zip(table.index, records(table), strict=True)
        }
        patches = {patch: f"patch {patch}" for patch in sorted(set(search.trials["patch"]))}
        maps.append(_heat_map(heading, own, patches, is_test_auc=is_auc, lower_is_better=lower_is_better))
    quoted = {place: _NO_CELL | {"mean": area, "count": 1} for place, area in published.SEARCH.items()}
    titles = {published.SMALL_PATCH: f"patch {published.SMALL_PATCH}", published.LARGER_PATCH: published.LARGER_PATCH}
    maps.append(
        _heat_map("published test AUC (Table 2 of the paper)", quoted, titles, is_test_auc=True, published=True)
    )
    for is_auc in (True, False):
        _shade([heat_map for heat_map in maps if heat_map["is_test_auc"] == is_auc])
    return maps


def _heat_map(
    title: str,
    by_place: Mapping[tuple[Any, Any], dict[str, Any]],
    patches: Mapping[Any, str],
    *,
    is_test_auc: bool,
    lower_is_better: bool = False,
    published: bool = False,
) -> HeatMap:
    ratios = sorted({ratio for ratio, _ in by_place})
    return {
        "title": title,
        "is_test_auc": is_test_auc,
        "lower_is_better": lower_is_better,
        "patches": list(patches.values()),
        "rows": [
            {
                "ratio": f"{ratio * 100:g} %",
                "cells": [dict(by_place.get((ratio, patch), _NO_CELL)) for patch in patches],
            }
            for ratio in ratios
        ],
        "published": published,
    }


_NO_CELL: dict[str, Any] = {"mean": None, "std": None, "count": 0, "marks": [], "chosen": False}


def _cell(row: dict[str, Any], chosen: bool) -> dict[str, Any]:
    marks = [f"{row[status]} {status}" for status in ("stopped", "failed", "diverged") if row[status]]
    return {"mean": row["mean"], "std": row["std"], "count": row["count"], "marks": marks, "chosen": chosen}


def _shade(maps: list[HeatMap]) -> None:
    """Give each cell the shade of its value among those of all these maps."""
    shaded = [(cell, heat_map) for heat_map in maps for row in heat_map["rows"] for cell in row["cells"]]
    values = [cell["mean"] for cell, _ in shaded if cell["mean"] is not None]
    for cell, heat_map in shaded:
        cell["shade"] = 0
        if cell["mean"] is not None:
            low, high = min(values), max(values)
            place = (cell["mean"] - low) / (high - low) if high > low else 0.5
            place = 1 - place if heat_map["lower_is_better"] else place
            cell["shade"] = round(_WEAKEST + (_STRONGEST - _WEAKEST) * place)


def scatter(search: SearchTables, title: str) -> dict[str, Any]:
    """Scatters of the objective, and of the test AUC where it is another one, over each setting, and their legend."""
    headings = {"value": f"{title} of each trial", "auc": f"test AUC of each trial {_NOT_USED}"}
    panels = [{"title": headings[column], "svg": drawing.svg()} for column, drawing in scatter_drawings(search, title)]
    return {"panels": panels, "legend": [[_swatch(entry) for entry in _legend(search)]]}


def scatter_drawings(search: SearchTables, title: str) -> list[tuple[str, Drawing]]:
    """Each with the column that it shows, over each setting; none of a grid, whose values are heat maps."""
    if search.is_grid:
        return []
    titles = {"value": title, "auc": "test AUC"}
    settings = ["mask_ratio", *further_settings(search.trials)]
    if search.trials["mask_ratio"].nunique() == 1 and len(settings) > 1:
        settings = settings[1:]
    return [
        (
            column,
            Drawing(
                f"search-{column}-{setting.replace('.', '-')}",
                f"{titles[column]} over {'mask ratio' if setting == 'mask_ratio' else setting}, by patch",
                partial(scatter_figure, search, column, titles[column], setting),
                _legend(search),
            ),
        )
        for setting in settings
        for column in search.columns
    ]


def _legend(search: SearchTables) -> list[style.LegendEntry]:
    looks = _patch_looks(search).items()
    return [style.LegendEntry(f"patch {patch}", color, marker=marker, dashes="") for patch, (color, marker) in looks]


def _swatch(entry: style.LegendEntry) -> tuple[str, Markup]:
    name = entry.title.replace(" ", "-")
    return entry.title, style.to_svg(style.swatch(entry), name=name, label=entry.title)


def _patch_looks(search: SearchTables) -> dict[int, tuple[str, str]]:
    colors = (style.COLORS[name][0] for name in cycle(_PATCH_COLORS))
    return dict(zip(sorted(set(search.trials["patch"])), zip(colors, cycle(_PATCH_MARKERS)), strict=False))


@mpl.rc_context(style.RC)
def scatter_figure(
    search: SearchTables, column: str, label: str, setting: str = "mask_ratio", column_in: float | None = None
) -> Figure:
    """Value over a setting, a colour and marker per patch; stopped trials hollow, those that diverged crossed, failed
    ones as ticks at the bottom, the chosen one ringed.
    """
    figure, axes = style.new_axes(5.6, 3.4, column_in)
    trials = search.trials
    for patch, (color, marker) in _patch_looks(search).items():
        rows = trials[trials["patch"] == patch]
        for status, face in (("done", color), ("stopped", style.SURFACE)):
            some = rows[(rows["status"] == status) & rows[column].notna()]
            axes.plot(some[setting], some[column], linestyle="none", marker=marker, color=color, markersize=5,
                      markerfacecolor=face, label=f"patch {patch}, {status}")  # fmt: skip
        failed = rows[rows["status"] == "failed"]
        axes.plot(failed[setting], [0.02] * len(failed), linestyle="none", marker="|", color=color, markersize=8,
                  transform=axes.get_xaxis_transform(), label=f"patch {patch}, failed")  # fmt: skip
    crossed = trials[went_back(trials)]
    if len(crossed):
        axes.plot(crossed[setting], crossed[column], linestyle="none", marker="x", markersize=8,
                  color=style.INK, label="diverged")  # fmt: skip
    if search.chosen is not None:
        best = cells(trials, column)["mean"].get(search.chosen, math.nan)
        place = dict(zip(["mask_ratio", "patch", *further_settings(trials)], search.chosen, strict=True))[setting]
        axes.plot([place], [best], linestyle="none", marker="o", markersize=11, color=style.INK,
                  markerfacecolor="none", label="chosen")  # fmt: skip
    if setting != "mask_ratio" and _spans_orders(trials[setting]):
        axes.set_xscale("log")
    axes.set(xlabel="mask ratio" if setting == "mask_ratio" else setting, ylabel=label)
    return figure


def _spans_orders(values: pd.Series) -> bool:
    is_positive = pd.api.types.is_numeric_dtype(values) and values.min() > 0
    return bool(is_positive and values.max() >= _LOG_FROM * values.min())
