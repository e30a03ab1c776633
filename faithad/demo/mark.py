"""The mark of a demo mill: `mill.json`, written into its folder before anything else.

Whatever lies in a folder without it may be somebody's data, and is never written over.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from faithad import storage
from faithad.errors import StudyError

MARK = "mill.json"
_MADE_BY = "faithad synth"


def write_mark(out: Path, **settings: float | str) -> None:
    """Mark a folder as a mill of these settings."""
    storage.write_text(str(out / MARK), json.dumps({"made_by": _MADE_BY, **settings}, indent=1) + "\n")


def refuse_foreign_folder(out: Path) -> None:
    """Let only an absent or empty folder pass, or one with our mark.

    Raises:
        StudyError: it is another folder, or none at all.
    """
    try:
        # What a killed process left of the mark itself does not count.
        held = sorted(name for name in os.listdir(out) if not name.startswith(f".{MARK}."))
    except FileNotFoundError:
        return
    except OSError as error:
        raise StudyError(f"{out} is no folder that a mill can be written to: {error}. Choose another one.") from error
    if held and not _is_marked(out):
        raise StudyError(
            f"{out} is not empty (it holds {', '.join(held[:3])}{', ...' if len(held) > 3 else ''}) and has no {MARK} "
            "of a demo mill: what lies there may be somebody's data. Choose an empty or a new folder."
        )


def _is_marked(out: Path) -> bool:
    try:
        mark = json.loads((out / MARK).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(mark, dict) and mark.get("made_by") == _MADE_BY
