"""Which FORMAT the tables below a root have (see `schemas.FORMAT`), so that nobody misreads them.

`format.json` holds the highest FORMAT of any table below the root, and the version of faithad that wrote it. A root
without it was made by release 0.1.0. Results of an older FORMAT may lie beside newer ones: a stage that is done is not
run again because of a new FORMAT.
"""

from __future__ import annotations

import json

import faithad
from faithad import schemas, storage
from faithad.errors import StudyError
from faithad.runs import layout

_FIRST = 1


def require_readable(root: str) -> int:
    """The FORMAT of the tables below a root.

    Raises:
        StudyError: a newer faithad wrote them, or `format.json` is damaged.
    """
    location = storage.join(root, layout.FORMAT)
    content = _read(location)
    if content is None:
        raise StudyError(
            f"{location} is damaged: it does not say which FORMAT its folder's tables have. Delete {location}, and "
            "run the same command again."
        )
    format, version = content
    if format > schemas.FORMAT:
        raise StudyError(
            f"The results in {root} were made by a newer faithad, {version}: their tables have FORMAT {format}, and "
            f"this version, {faithad.__version__}, reads up to FORMAT {schemas.FORMAT}. Install faithad {version} or "
            "newer."
        )
    return format


def mark_format(root: str) -> None:
    """Note that tables of today's FORMAT are about to be written below a root.

    Raises:
        StudyError: a newer faithad wrote there, or nothing can be written there.
    """
    location = storage.join(root, layout.FORMAT)
    if require_readable(root) < schemas.FORMAT or not storage.exists(location):
        _write(location)


def replace_damaged(root: str) -> None:
    """Write `format.json` anew where a power cut has left half of it, for a driver that is about to write there."""
    if is_damaged(root):
        _write(storage.join(root, layout.FORMAT))


def is_damaged(root: str) -> bool:
    """Whether `format.json` cannot be understood."""
    return _read(storage.join(root, layout.FORMAT)) is None


def _write(location: str) -> None:
    storage.write_text(location, json.dumps({"format": schemas.FORMAT, "faithad": faithad.__version__}))


def _read(location: str) -> tuple[int, str] | None:
    """The FORMAT and the version of faithad that `format.json` holds. None: it is damaged, as by a power cut."""
    try:
        content = json.loads(storage.read_text(location))
        return int(content["format"]), str(content["faithad"])
    except (FileNotFoundError, NotADirectoryError):  # NotADirectoryError: the root is a file
        return _FIRST, "0.1.0"
    except (ValueError, TypeError, KeyError):
        return None
