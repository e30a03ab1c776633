"""When a WAV file was recorded, by the chunks that recorders write in addition to the sound.

`bext` (EBU Tech 3285, Broadcast Wave Format) holds the date and the time at which the recording began, without a zone.
`guan` (GUANO 1.0, of bat recorders and AudioMoth's tools) holds lines `key: value`, with a `Timestamp` as in ISO 8601.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime

BEXT, GUANO = b"bext", b"guan"
# How much of such a chunk is read: the time of `bext` ends at 338.
LONGEST_BYTES = 1 << 16
_BEXT_TIME = slice(320, 338)
# Separators are hyphens, underscores, colons, spaces or stops.
_BEXT_STAMP = re.compile(rb"(\d{4})[-_: .](\d\d)[-_: .](\d\d)(\d\d)[-_: .](\d\d)[-_: .](\d\d)")
_GUANO_TIMESTAMP = re.compile(r"^Timestamp:[ \t]*(\S+(?: \d\S*)?)[ \t]*\r?$", re.MULTILINE)


def clock_of(chunks: Mapping[bytes, bytes]) -> tuple[datetime | None, int | None]:
    """When a recording began by the recorder's own clock, and what this is ahead of UTC in seconds; None: not known.

    GUANO goes first, since it may know the offset from UTC. A time that does not exist says nothing.

    Args:
        chunks: the contents of `bext` and `guan`, as far as the file has them.
    """
    stamp = _guano_stamp(chunks.get(GUANO, b"")) or _bext_stamp(chunks.get(BEXT, b""))
    if stamp is None:
        return None, None
    offset = stamp.utcoffset()
    return stamp.replace(tzinfo=None), None if offset is None else round(offset.total_seconds())


def _guano_stamp(content: bytes) -> datetime | None:
    match = _GUANO_TIMESTAMP.search(content.decode("utf-8", errors="replace"))
    if match is None:
        return None
    try:
        return datetime.fromisoformat(match[1])
    except ValueError:
        return None


def _bext_stamp(content: bytes) -> datetime | None:
    match = _BEXT_STAMP.fullmatch(content[_BEXT_TIME])
    if match is None:
        return None
    year, month, day, hour, minute, second = map(int, match.groups())
    try:
        return datetime(year, month, day, hour, minute, second)
    except ValueError:
        return None
