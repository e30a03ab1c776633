"""The way from a template and its values to a page; all pages share `page.html.j2` and the macros of `parts.html.j2`.

Autoescape is on, and only our own SVG is marked as safe: names, reasons and YAML come from files and are text. Should
one get through all the same, the page's policy keeps a browser from running or fetching anything.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

import jinja2
import pandas as pd

from faithad.report import findings, maps, style

MAX_LEDGER_ROWS = 50


def fill(template: str, values: dict[str, Any]) -> str:
    """The page that a template of this package gives with these values."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, lstrip_blocks=True, loader=jinja2.FunctionLoader(_source)
    )
    environment.filters |= {
        "number": findings.number,
        "interval": findings.interval,
        "count": findings.count,
        "seconds": findings.seconds,
    }
    always = {"colors": style.COLORS, "gradients": {kind: maps.css_gradient(kind) for kind in maps.COLOR_MAPS}}
    titles = {"method": lambda name: style.method(name).title, "model": lambda name: style.model(name).title}
    return environment.get_template(template).render(always | {"titles": titles} | values)


def _source(template: str) -> str:
    return resources.files("faithad.report").joinpath(template).read_text(encoding="utf-8")


def ledger_values(ledger: pd.DataFrame) -> dict[str, Any]:
    """Counts by status, and the first rows of what did not go through: failures before skips."""
    bad = ledger[ledger["status"] != "done"].copy()
    bad["rank"] = bad["status"].map({"failed": 0}).fillna(1)
    bad = bad.sort_values(["rank", "recording", "onset_s"], kind="stable").drop(columns="rank")
    return {
        "counts": findings.ledger_counts(ledger),
        "rows": findings.records(bad.head(MAX_LEDGER_ROWS)),
        "more": max(0, len(bad) - MAX_LEDGER_ROWS),
    }
