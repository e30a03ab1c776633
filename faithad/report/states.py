"""Changes that last, as the page describes them: which bands changed by how many dB, since when and until when."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from faithad.report.words import hertz, offset_words, seconds
from faithad.vocabulary import duration, listed

StateRow = dict[str, Any]  # of schemas.STATES

_OUTCOMES = {
    "over": "went back",
    "lasting": "lasts to the end of the recordings",
    "usual": "lasts, and counts as usual by now",
}
_REFERENCES = {"past": "the recorder's past", "normals": "the normal recordings"}


def strongest_states(states: list[StateRow]) -> list[StateRow]:
    """The changes, those furthest above their thresholds first."""
    return sorted(states, key=lambda state: (-state["strength"], state["state_id"]))


def state_words(state: StateRow) -> str:
    """`4.0 to 5.0 kHz was 6.0 dB louder from 2026-05-05 14:46 to 14:53`."""
    is_over = state["outcome"] == "over"
    verb = "was" if is_over else "is"
    what = listed(
        [
            f"{hertz(bands['low_hz'], bands['high_hz'])} {verb} {_decibels(bands['change_db'])}"
            for bands in state["changes"]
        ],
        separator=", ",
    )
    if not is_over:
        return f"{what} since {_since(state)}"
    start, end = state["started_at"], state["ended_at"]
    if end is None:
        return f"{what} from {_since(state)} on, for {duration(state['duration_s'])}"
    until = f"{end:%H:%M}" if end.date() == start.date() else f"{end:%Y-%m-%d %H:%M}"
    return f"{what} from {_since(state)} to {until}"


def state_view(state: StateRow) -> dict[str, Any]:
    """A row of the page's table."""
    return {
        "since": _since(state),
        "lasts": f"{duration(state['duration_s'])}, {_OUTCOMES[state['outcome']]}",
        "recording": state["recording"],
        "changes": [
            f"{hertz(bands['low_hz'], bands['high_hz'])}: {_decibels(bands['change_db'])}" for bands in state["changes"]
        ],
        "strength": f"{state['strength']:.2f} \N{MULTIPLICATION SIGN}",
        "reference": _REFERENCES[state["reference"]],
    }


def _decibels(change_db: float) -> str:
    return f"{abs(change_db):.1f} dB {'louder' if change_db > 0 else 'quieter'}"


def _since(state: StateRow) -> str:
    start: datetime | None = state["started_at"]
    if start is None:
        return f"{seconds(state['onset_s'])} of {state['recording']}"
    offset = "" if state["utc_offset_s"] is None else f" {offset_words(state['utc_offset_s'])}"
    return f"{start:%Y-%m-%d %H:%M}{offset}"
