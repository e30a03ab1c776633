"""The mark of a demo mill: `mill.json`, the first file in its folder.

The content of a folder without a mark may be somebody's data, so nothing is written there.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from faithad import listing, storage
from faithad.errors import StudyError
from faithad.vocabulary import AUDIO_SUFFIXES, count, listed

MARK = "mill.json"
_MADE_BY = "faithad synth"


def write_mark(root: str, **settings: float | str) -> None:
    """Mark a folder or URI as a mill with these settings; without any, as a mill that is being made."""
    storage.write_text(storage.join(root, MARK), json.dumps({"made_by": _MADE_BY, **settings}, indent=1) + "\n")


def read_mark(root: str) -> dict[str, Any] | None:
    """The mark at a folder or URI; None if there is none.

    Raises:
        StudyError: its `mill.json` is somebody else's.
    """
    location = storage.join(root, MARK)
    if not storage.exists(location):
        return None
    with contextlib.suppress(ValueError):
        mark = json.loads(storage.read_text(location))
        if isinstance(mark, dict) and mark.get("made_by") == _MADE_BY:
            return mark
    raise StudyError(
        f"{location} is not the mark of a demo mill: what lies beside it may be somebody's data. Choose an empty or a "
        "new folder."
    )


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


def refuse_strangers(root: str, names: Collection[str]) -> None:
    """Refuse recordings in `train/` and `test/` of a folder or URI that would be mistaken for those of its mill.

    Raises:
        StudyError: there are recordings whose path below the root is not among the names.
    """
    paths = [
        f"{folder}/{path}"
        for folder in ("train", "test")
        for path, _ in listing.list_files(storage.join(root, folder), suffixes=AUDIO_SUFFIXES)
    ]
    if strangers := [path for path in paths if path not in names]:
        raise StudyError(
            f"{root} holds {count(len(strangers), 'recording')} of other settings or another source, such as "
            f"{strangers[0]}. Choose another folder, or move them away."
        )


def refuse_foreign_files(root: str, files: Mapping[str, str]) -> None:
    """Refuse a URI without a mark that holds anything but a part of this mill, as a killed copy leaves it.

    Args:
        root: where the mill is copied to.
        files: of the mill, by their paths below the root; values are their local copies.

    Raises:
        StudyError: there are other files, or another annotation table.
    """
    foreign = [
        name
        for name, location in listing.list_files(root, suffixes=[""])
        if name not in files
        or (not name.endswith(AUDIO_SUFFIXES) and storage.read_bytes(location) != storage.read_bytes(files[name]))
    ]
    if foreign:
        raise StudyError(
            f"{root} holds {listed(foreign, most=3)} and no {MARK} of a demo mill: its content may be somebody's data. "
            "Choose an empty or a new folder."
        )


def _is_marked(out: Path) -> bool:
    try:
        return read_mark(str(out)) is not None
    except (OSError, StudyError):
        return False
