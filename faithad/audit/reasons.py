"""Which explanations of an audit can be trusted: are they more faithful than random frames, by the rule of decisions?

The question is asked of every method, over all clips of the audit that were explained, at the percentile of its events:
`reasons.parquet`, in the columns of `summary/comparison`. The recording is the unit of chance, and 20 of them are
needed. The answer is about the method in this audit, not about one event; how far the reason of one event goes from
random frames (0) to the best ones (1) is its `normalized` faithfulness.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from faithad import schemas
from faithad.config.base import TRUSTED
from faithad.config.sections import Events
from faithad.evaluation.comparison import reason_rows
from faithad.evaluation.controls import RANDOM
from faithad.evaluation.seconds import ERROR
from faithad.runs.tables import read_manifest, read_whole
from faithad.vocabulary import PAPER


def reasons_table(out: str, percentile: float) -> pa.Table:
    """schemas.COMPARISON of a finished audit's methods; no row where random frames were not measured at the percentile.

    Args:
        out: the audit's folder.
        percentile: of the peaks.
    """
    at = (pc.field("percentile") == percentile) & (pc.field("protocol") == PAPER)
    judged = read_whole(out, "faithfulness", schemas.FAITHFULNESS, condition=at & (pc.field("mode") == "frame"))
    lines = read_whole(out, "controls", schemas.CONTROLS, condition=at & (pc.field("line") == RANDOM))
    rows = reason_rows(judged, lines, read_manifest(out), percentile)
    return pa.Table.from_pylist([row | {"protocol": PAPER} for row in rows], schema=schemas.COMPARISON)


def with_method(events: Events, reasons: pa.Table, methods: Sequence[str]) -> Events:
    """The settings of events with the name of a method: the most faithful one that can be trusted, where that is asked
    for. The error map is not one of them: it is the score itself, laid out over time.
    """
    if events.method != TRUSTED:
        return events
    trusted = [row for row in reasons.to_pylist() if row["verdict"] == "yes" and row["method"] != ERROR]
    best = max(trusted, key=lambda row: float(row["estimate"]), default={"method": methods[0]})
    return events.model_copy(update={"method": best["method"]})


def verdict_of(reasons: pa.Table, method: str) -> str | None:
    """Whether a method is more faithful than random frames; None where that was not asked."""
    return next((row["verdict"] for row in reasons.to_pylist() if row["method"] == method), None)
