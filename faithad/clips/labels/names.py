"""Recording names as file names, and back; and which recording somebody means.

A recording's name is data: it may hold quotes, tabs, line breaks, `..` or anything that some file system refuses. Such
characters are written as %XX, so that no name leaves the folder it is written to, and each comes back as it was.
"""

from __future__ import annotations

import hashlib
import re
import urllib.parse
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath

from faithad import storage

# What file systems refuse or take for something else; a leading dot would hide the file, or climb out of the folder.
_UNSAFE = re.compile(r'[%\x00-\x1f\x7f<>:"\\|?*]|\A\.|[. ]\Z')
_ESCAPE = re.compile(r"%([0-9A-F]{2})")
_EMPTY = "%"  # never the result of escaping anything else
# File systems take 255; a file is written aside under a longer name first.
_LONGEST_NAME_BYTES = 220
_NOT_PLAIN = re.compile(r"[^\w.-]+")


def file_name(recording: str, suffix: str) -> str:
    """A relative path for a file about a recording; `recording_name` gives the recording back.

    A name too long for file systems is cut and marked with a hash; it does not come back.
    """
    *folders, name = [_escaped(part) for part in recording.split("/")]
    room = _LONGEST_NAME_BYTES - len(suffix.encode())
    return "/".join([*(_fitted(folder, _LONGEST_NAME_BYTES) for folder in folders), _fitted(name, room) + suffix])


def recording_name(path: str) -> str:
    """The recording that a path from `file_name` (its suffix taken off) is about; other paths stay as they are."""
    parts = path.split("/")
    names = ["" if part == _EMPTY else _ESCAPE.sub(lambda found: chr(int(found[1], 16)), part) for part in parts]
    return "/".join(name if _escaped(name) == part else part for name, part in zip(names, parts, strict=True))


def look_up(paths: Iterable[str]) -> Callable[[str], list[str]]:
    """A function that finds recordings by what a table or a file of labels calls them.

    A name fits the recordings that have it as file name, or else as file name without its suffix (label files are often
    called so). Where that leaves several, folders before the name choose among them as far as they agree.

    Args:
        paths: stable names of all recordings.

    Returns:
        From a name to the paths that fit, sorted: none, one, or several that cannot be told apart.
    """
    whole = set(paths)
    by_name: dict[str, list[str]] = {}
    by_stem: dict[str, list[str]] = {}
    for path in sorted(whole):
        name = storage.name_of(path)
        by_name.setdefault(name, []).append(path)
        by_stem.setdefault(PurePosixPath(name).stem, []).append(path)

    def find(name: str) -> list[str]:
        if name in whole:
            return [name]
        bare = storage.name_of(name)
        ends = {path: path for path in by_name.get(bare, ())}
        ends = ends or {path: str(PurePosixPath(path).with_suffix("")) for path in by_stem.get(bare, ())}
        agreeing = [
            path for path, end in ends.items() if f"/{end}".endswith(f"/{name}") or f"/{name}".endswith(f"/{end}")
        ]
        return agreeing if len(agreeing) == 1 else list(ends)

    return find


def plain_name(name: str, *, longest: int = 80) -> str:
    """A name of letters, digits, dots, dashes and underscores alone, for files that nobody reads back."""
    return _NOT_PLAIN.sub("_", name).strip("._")[:longest] or "recording"


def escape_controls(text: str) -> str:
    """The text with control characters and percent signs as %XX, for a cell of a table."""
    return re.sub(r"[%\x00-\x1f\x7f]", _escape, text)


def unescape_controls(text: str) -> str:
    """What `escape_controls` was given."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)


def below(folder: str, path: str) -> str:
    """The location of a relative path below a folder, quoted where that is a URI."""
    parts = path.split("/")
    return storage.join(folder, *(urllib.parse.quote(part) if "://" in folder else part for part in parts))


def _escaped(part: str) -> str:
    return _UNSAFE.sub(_escape, part) or _EMPTY


def _escape(found: re.Match[str]) -> str:
    return f"%{ord(found[0]):02X}"


def _fitted(name: str, room: int) -> str:
    content = name.encode()
    if len(content) <= room:
        return name
    mark = f"~{hashlib.sha256(content).hexdigest()[:8]}"
    return content[: room - len(mark)].decode(errors="ignore") + mark
