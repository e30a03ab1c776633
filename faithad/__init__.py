"""Acoustic anomaly detection on Ray, with explanations whose faithfulness is measured.

The data's way: recordings → clips → features → model → attribution → evaluation → Parquet → report.

From a notebook, `import faithad` gives the functions of `faithad.library` and `faithad.results`. They are loaded when
they are first used, so the import itself is quick, and reading tables loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

__all__ = [
    "attribute",
    "events",
    "faithfulness",
    "load_model",
    "localization",
    "log_mel",
    "open_study",
    "peaks",
    "read_table",
    "recording_spectrum",
    "score",
]

if TYPE_CHECKING:
    from faithad.library import (
        attribute,
        faithfulness,
        load_model,
        localization,
        log_mel,
        peaks,
        recording_spectrum,
        score,
    )
    from faithad.results import events, open_study, read_table

_OF_RESULTS = ("events", "open_study", "read_table")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "faithad.results" if name in _OF_RESULTS else "faithad.library"
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
