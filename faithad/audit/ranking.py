"""Which of an audit's events come first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def strongest_first(events: Sequence[dict[str, Any]]) -> list[int]:
    """Positions of rows of schemas.EVENTS by strength; where scores have no ratio to their thresholds, by the
    difference from them.
    """
    above = [
        event["strength"] if math.isfinite(event["strength"]) else event["score"] - event["threshold"]
        for event in events
    ]
    return sorted(range(len(events)), key=lambda place: (-above[place], place))
