"""Whether a folder holds the results of an audit that has ended, for commands that only read them."""

from __future__ import annotations

from typing import Any

from faithad import storage
from faithad.errors import DamagedError, StudyError
from faithad.runs import layout
from faithad.runs.formats import require_readable
from faithad.runs.marks import read_mark


def is_audit(folder: str) -> bool:
    """Whether a folder holds the results of an audit of recordings, finished or not."""
    return storage.exists(storage.join(folder, layout.AUDIT))


def read_card(audit: str) -> dict[str, Any]:
    """The model's card as an audit of recordings wrote it down, `model.json`; empty where an early audit has none.

    Raises:
        DamagedError: it is no JSON object.
    """
    location = storage.join(audit, layout.MODEL)
    if not storage.exists(location):
        return {}
    card = read_mark(location)
    if card is None:
        raise DamagedError(location, "it is no JSON object")
    return card


def require_finished(audit: str) -> None:
    """Raise where a folder holds no finished audit.

    Args:
        audit: folder or URI that `faithad audit --out` is said to have written to.

    Raises:
        StudyError: there is no such folder, it is a study's root or anything else, the audit has not ended, or a newer
            faithad made it.
    """

    def has(*names: str) -> bool:
        return any(storage.exists(storage.join(audit, name)) for name in names)

    require_readable(audit)
    begun = [f"stages/{name}.begun.json" for name in ("score", "explain", "events")]
    if has(layout.EVENTS) and not has(*begun):
        return
    give = "Give the folder that `faithad audit --out` wrote to."
    if not storage.exists(audit):
        raise StudyError(f"There is no folder {audit}. {give}")
    if has("stages/index.json", "stages/index.begun.json"):
        raise StudyError(f"{audit} is the root of a study, and not one audit of recordings. {give}")
    if has(layout.AUDIT, *begun):
        raise StudyError(
            f"The audit in {audit} is not finished. Wait for its end where it runs, or run the same `faithad audit` "
            "again: it goes on where it was."
        )
    raise StudyError(f"There is no audit in {audit}. {give}")
