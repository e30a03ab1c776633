"""Read the small JSON files by which runs tell each other where they are: marks of stages, of attempts, of drivers."""

from __future__ import annotations

import json
from typing import Any

from faithad import storage


def read_mark(location: str) -> dict[str, Any] | None:
    """What a mark says; None where there is no mark, or a damaged one, as a power cut may leave it."""
    if not storage.exists(location):
        return None
    try:
        mark = json.loads(storage.read_text(location))
    except (FileNotFoundError, ValueError):  # it may go while we look
        return None
    return mark if isinstance(mark, dict) else None
