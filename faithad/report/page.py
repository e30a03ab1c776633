"""The way from a template and its values to a page; all pages share `page.html.j2` and the macros of `parts.html.j2`.

Autoescape is on, and only our own SVG and scripts are marked as safe: names, reasons and YAML come from files and are
text. If one gets through all the same, the page's policy keeps a browser from running or fetching anything.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from faithad import storage
from faithad.report import maps, style, words
from faithad.runs.lock import require_still_alone
from faithad.vocabulary import count, rounded


def write(location: str, template: str, values: dict[str, Any], *, scripts: Sequence[str] = ()) -> str:
    """Write the page that a template of this package gives with these values, and return its location.

    Args:
        location: of the page.
        template: its file in this package.
        values: of the template's names.
        scripts: files of this package that the page runs, in this order. The page allows no other, by their hashes.

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
        "rounded": rounded,
        "seconds": words.seconds,
        "method": lambda name: style.method(name).title,
        "model": lambda name: style.model(name).title,
    }
    texts = [_source(script) for script in scripts]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    always: dict[str, Any] = {"scripts": [Markup(text) for text in texts], "allowed": allowed}
    always |= {"colors": style.COLORS, "gradients": {kind: maps.css_gradient(kind) for kind in maps.COLOR_MAPS}}
    content = environment.get_template(template).render(always | values)
    require_still_alone()
    storage.write_text(location, content)
    return location


def _source(template: str) -> str:
    return resources.files("faithad.report").joinpath(template).read_text(encoding="utf-8")
