"""The report may not import the methods' table, since it needs neither torch nor Ray: both must say the same."""

from __future__ import annotations

from faithad.attribution.methods import METHODS
from faithad.report import style


def test_the_report_knows_each_method_as_the_engine_does() -> None:
    ours = {name: (method.title, method.signed) for name, method in METHODS.items()}
    assert {name: (method.title, method.signed) for name, method in style.METHODS.items()} == ours
    colors = [method.color for method in style.METHODS.values()]
    assert len(set(colors)) == len(colors)
