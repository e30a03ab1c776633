"""Recording names as file names, and back; and which recording a name means.

A recording's name is data: it may contain quotes, tabs, line breaks, `..` and whatever else a file system refuses. Such
characters are written as %XX, so that no file is written outside its folder and the name can be read back.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable
from pathlib import PurePosixPath

from faithad import storage
from faithad.clips.channels import split_name

# File systems refuse or reinterpret these; a leading dot would hide the file or lead out of the folder.
_UNSAFE = re.compile(r'[%\x00-\x1f\x7f<>:"\\|?*]|\A\.|[. ]\Z')
_ESCAPE = re.compile(r"%([0-9A-F]{2})")
_EMPTY = "%"  # escaping gives this for no other name
# File systems allow 255 bytes, but `storage` writes a file under a longer name first.
_LONGEST_NAME_BYTES = 220
_LONGEST_SUFFIX_BYTES = 40
_MARK_LENGTH = 9
_NOT_PLAIN = re.compile(r"[^\w.-]+")


def file_name(recording: str, suffix: str) -> str:
    """A relative path for a file about a recording; `recording_name` is the inverse.

    A name that is too long for file systems is cut and gets a hash, by which `look_up` finds the recording.
    """
    *folders, name = [_escaped(part) for part in recording.split("/")]
    room = _LONGEST_NAME_BYTES - len(suffix.encode())
    return "/".join([*(_fitted(folder, _LONGEST_NAME_BYTES) for folder in folders), _fitted(name, room) + suffix])


def recording_name(path: str) -> str:
    """The recording of a path from `file_name` without its suffix; other paths are returned unchanged."""
    parts = path.split("/")
    names = ["" if part == _EMPTY else unescape_controls(part) for part in parts]
    return "/".join(name if _escaped(name) == part else part for name, part in zip(names, parts, strict=True))


def look_up(paths: Iterable[str]) -> Callable[[str], list[str]]:
    """A function that finds recordings by the name that a table or a label file gives them.

    A name means the recordings with this file name or, if there are none, with this file name without its suffix (label
    files often have such names) or, if there are none, with a name that `file_name` cut to this one. If these are
    several, the folders before the name decide, as far as they are given. Letters may be composed (é) or decomposed (e
    and an accent, as macOS writes names). Of a recording that is audited channel by channel, the file's name means all
    channels (see `channels.split_name`).

    Args:
        paths: stable names of all recordings.

    Returns:
        A function from a name to the sorted paths that it may mean: none, one, or several.
    """
    channels: dict[str, list[str]] = {}
    for path in sorted(set(paths)):
        channels.setdefault(split_name(path)[0], []).append(path)
    find_file = _look_up_files(channels)

    def find(name: str) -> list[str]:
        file, channel = split_name(name)
        files = find_file(file) if channel is None else find_file(file) or find_file(name)
        return [path for file in files for path in channels[file] if channel in (None, split_name(path)[1])]

    return find


def _look_up_files(paths: Collection[str]) -> Callable[[str], list[str]]:
    known = set(paths)
    by_name: dict[str, list[str]] = {}
    by_stem: dict[str, list[str]] = {}
    by_mark: dict[str, list[str]] = {}
    for path in sorted(known):
        name = storage.name_of(path)
        by_name.setdefault(_composed(name), []).append(path)
        by_stem.setdefault(_composed(PurePosixPath(name).stem), []).append(path)
        if len(_escaped(name).encode()) > _LONGEST_NAME_BYTES - _LONGEST_SUFFIX_BYTES:
            by_mark.setdefault(_mark(_escaped(name)), []).append(path)

    def find(name: str) -> list[str]:
        if name in known:
            return [name]
        name = _composed(name)
        bare = storage.name_of(name)
        spellings = {path: _composed(path) for path in by_name.get(bare, ())}
        spellings = spellings or {
            path: _composed(str(PurePosixPath(path).with_suffix(""))) for path in by_stem.get(bare, ())
        }
        spellings = spellings or {
            path: f"{_composed(posixpath.dirname(recording_name(file_name(path, ''))))}/{bare}"
            for path in by_mark.get(bare[-_MARK_LENGTH:], ())
        }
        agreeing = [
            path
            for path, spelling in spellings.items()
            if f"/{spelling}".endswith(f"/{name}") or f"/{name}".endswith(f"/{spelling}")
        ]
        return agreeing if len(agreeing) == 1 else list(spellings)

    return find


def plain_name(name: str, *, longest: int = 80) -> str:
    """A file name of letters, digits, dots, dashes and underscores only; it cannot be read back."""
    return _NOT_PLAIN.sub("_", name).strip("._")[:longest] or "recording"


def escape_controls(text: str) -> str:
    """The text with %XX for control characters and percent signs, for a cell of a table."""
    return re.sub(r"[%\x00-\x1f\x7f]", _escape, text)


def unescape_controls(text: str) -> str:
    """The text before `escape_controls`."""
    return _ESCAPE.sub(lambda code: chr(int(code[1], 16)), text)


def _escaped(part: str) -> str:
    return _UNSAFE.sub(_escape, part) or _EMPTY


def _escape(character: re.Match[str]) -> str:
    return f"%{ord(character[0]):02X}"


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _mark(name: str) -> str:
    """What is put behind a name that is cut."""
    return f"~{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _fitted(name: str, room: int) -> str:
    content = name.encode()
    if len(content) <= room:
        return name
    mark = _mark(name)
    return content[: room - len(mark)].decode(errors="ignore") + mark
