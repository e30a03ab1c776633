"""The way from a template and its values to a page; all pages share `page.html.j2` and the macros of `parts.html.j2`.

Autoescape is on, and only our own SVG is marked as safe: names, reasons and YAML come from files and are text. Should
one get through all the same, the page's policy keeps a browser from running or fetching anything.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

import jinja2

from faithad import storage
from faithad.report import maps, style, words
from faithad.runs.lock import require_still_alone
from faithad.vocabulary import count


def write(location: str, template: str, values: dict[str, Any]) -> str:
    """Write the page that a template of this package gives with these values, and return its location.

    Raises:
        StudyError: another driver has taken over the folder meanwhile.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, lstrip_blocks=True, loader=jinja2.FunctionLoader(_source)
    )
    environment.filters |= {
        "number": words.number,
        "interval": words.interval,
        "count": count,
        "seconds": words.seconds,
        "method": lambda name: style.method(name).title,
        "model": lambda name: style.model(name).title,
    }
    always = {"colors": style.COLORS, "gradients": {kind: maps.css_gradient(kind) for kind in maps.COLOR_MAPS}}
    content = environment.get_template(template).render(always | values)
    require_still_alone()
    storage.write_text(location, content)
    return location


def _source(template: str) -> str:
    return resources.files("faithad.report").joinpath(template).read_text(encoding="utf-8")
