"""The mark of a demo mill: `mill.json`, the first file in its folder.

The content of a folder without a mark may be somebody's data, so nothing is written there.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from faithad import storage
from faithad.errors import StudyError
from faithad.vocabulary import listed

MARK = "mill.json"
_MADE_BY = "faithad synth"


def write_mark(out: Path, **settings: float | str) -> None:
    """Mark a folder as a mill with these settings."""
    storage.write_text(str(out / MARK), json.dumps({"made_by": _MADE_BY, **settings}, indent=1) + "\n")


def refuse_foreign_folder(out: Path) -> None:
    """Accept a folder that does not exist, is empty or has our mark.

    Raises:
        StudyError: it is another folder, or a file.
    """
    try:
        # A process that was killed while it wrote the mark leaves such a file.
        names = sorted(name for name in os.listdir(out) if not name.startswith(f".{MARK}."))
    except FileNotFoundError:
        return
    except OSError as error:
        raise StudyError(f"{out} is no folder that a mill can be written to: {error}. Choose another one.") from error
    if names and not _is_marked(out):
        raise StudyError(
            f"{out} is not empty (it holds {listed(names, most=3)}) and has no {MARK} of a demo mill: its content may "
            "be somebody's data. Choose an empty or a new folder."
        )


def _is_marked(out: Path) -> bool:
    try:
        mark = json.loads((out / MARK).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(mark, dict) and mark.get("made_by") == _MADE_BY
