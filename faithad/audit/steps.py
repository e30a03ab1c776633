"""The passes of an audit over its clips: what each does, and which tables it writes."""

from __future__ import annotations

from typing import NamedTuple

from faithad.runs import layout


class Step(NamedTuple):
    """What is done to the clips in one pass over them.

    Attributes:
        ledger: folder of the ledger that says which shards are done.
        tables: the tables that are written as well.
        explains: whether clips are explained.
        stage: what a ledger calls this step.
    """

    ledger: str
    tables: tuple[str, ...]
    explains: bool
    stage: str


SCORE = Step(layout.SCORED, (layout.SCORES, layout.MEDIAN_SPECTRA), False, "audit")
EXPLAIN = Step(layout.EXPLAINED, layout.EXPLANATIONS, True, "explain")
SCORE_AND_EXPLAIN = Step(layout.SCORED, (layout.SCORES, *layout.EXPLANATIONS), True, "audit")
