"""Which FORMAT the tables below a root have (see `schemas.FORMAT`), so that nobody reads tables that he misunderstands.

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
        StudyError: a newer faithad wrote them.
    """
    format, version = _read(root)
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
        content = {"format": schemas.FORMAT, "faithad": faithad.__version__}
        storage.write_text(location, json.dumps(content))


def _read(root: str) -> tuple[int, str]:
    """The FORMAT of a root and the version of faithad that wrote it there."""
    location = storage.join(root, layout.FORMAT)
    try:
        text = storage.read_text(location)
    except FileNotFoundError:
        return _FIRST, "0.1.0"
    try:
        content = json.loads(text)
        return int(content["format"]), str(content["faithad"])
    except (ValueError, TypeError, KeyError) as error:
        raise StudyError(
            f"{location} does not say which FORMAT the tables beside it have: it holds {text[:100]!r}. "
            "Restore the file; a faithad that writes there puts it."
        ) from error
