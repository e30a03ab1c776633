"""How far the explanation of an event can be trusted.

The test is frame-mode faithfulness: the moments that the explanation points at are replaced by what the model expects
there, and the share of the model's error that vanishes is measured. It is compared with two other shares. The lower one
is the replaced share of the time: about what any moments would take away if the error were even. The upper one is the
result of the same test for the error map, which is about the most that can be taken away, because the error map picks
the moments with the largest error, and the error is what is measured.
"""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from faithad.report.audit_tables import EventRow

# An explanation is good if it gets half way from any moments to the best ones, or, where the best are not known, if it
# takes away twice as much as any moments would.
_HALF_WAY, _TWICE = 0.5, 2.0
# Where the best moments hold less than this many times their share of the time, there is nothing to point at.
_STANDS_OUT = 1.5

GRADES = ("good", "partial", "poor", "spread", "untested", "none")


class Trust(NamedTuple):
    """The shares of the model's error that grade an explanation, or None where they were not measured.

    Attributes:
        grade: one of GRADES; `none`: there is no explanation.
        vanishes: the share that vanishes when the moments pointed at are replaced.
        replaced: the share of the time that was replaced.
        best: when as many moments are replaced, chosen by the error map.
    """

    grade: str
    vanishes: float | None
    replaced: float | None
    best: float | None


def trust_of(events: list[EventRow], judged: pd.DataFrame) -> list[Trust]:
    """The trust in each event's explanation.

    Args:
        events: rows of schemas.EVENTS.
        judged: one row per (clip_id, method): replaced_fraction, faithfulness.
    """
    by_method = {str(method): rows.set_index("clip_id") for method, rows in judged.groupby("method")}
    return [_trust(event, by_method) for event in events]


def _trust(event: EventRow, by_method: dict[str, pd.DataFrame]) -> Trust:
    if event["method"] is None:
        return Trust("none", None, None, None)
    own, control = (_of_clips(by_method.get(name), event["clip_ids"]) for name in (event["method"], "error_map"))
    vanishes = event["faithfulness"]
    replaced = None if own is None else float(own["replaced_fraction"].mean())
    best = None if control is None else float(control["faithfulness"].mean())
    return Trust(grade(vanishes, replaced, best), vanishes, replaced, best)


def _of_clips(rows: pd.DataFrame | None, clip_ids: list[str]) -> pd.DataFrame | None:
    known = None if rows is None else rows.reindex(clip_ids).dropna(subset=["faithfulness"])
    return None if known is None or known.empty else known


def grade(vanishes: float | None, replaced: float | None, best: float | None) -> str:
    """`poor`: no better than any moments. `spread`: better, but the error is so even that no moments stand out.
    `good`: at least half way from any moments to the best ones.
    """
    if vanishes is None or replaced is None:
        return "untested"
    if vanishes <= replaced:
        return "poor"
    if best is not None and max(best, vanishes) < _STANDS_OUT * replaced:
        return "spread"
    if best is None:
        return "good" if vanishes >= _TWICE * replaced else "partial"
    return "good" if vanishes - replaced >= _HALF_WAY * (best - replaced) else "partial"
