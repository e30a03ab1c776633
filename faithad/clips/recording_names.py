"""What the name of a recording says: when it began, by which offset from UTC, and which recorder made it.

A time stamp is a date with a year of four digits and a time with seconds: `20240506_070000` (AudioMoth, Song Meter),
`2024-05-06T07-00-00`, `2024-05-06_07.00.00`, `2024-05-06 at 7.00.00 PM`. Fractions of a second (`070000.250`) and the
offset from UTC (`Z`, `+0100`, `-0500`) may follow. The published names `MPD_YY-MM-DD_HHMM_NNNNN` have minutes. A piece
of a recording may have its place there at the end of its name (`_590.0s_600.0s`): it begins that much later.
"""

from __future__ import annotations

import contextlib
import functools
import posixpath
import re
from datetime import datetime, timedelta
from typing import NamedTuple

from faithad import storage
from faithad.clips.channels import channel_name, split_name
from faithad.vocabulary import AUDIO_SUFFIXES, SPECTROGRAM_SUFFIX

# `_k` ends the name of the k-th clip of a recording.
_PUBLISHED = re.compile(r"(MPD)_(\d\d)-(\d\d)-(\d\d)_(\d\d)(\d\d)_\d+(?:_\d+)?")
# A counter such as `-0012` is no offset: the minutes of offsets are 00, 30 or 45, and hours go from -12 to +14.
_STAMP = re.compile(
    r"""
    (?<!\d)(?P<year>(?:19|20)\d\d)(?P<dash>[-_.]?)(?P<month>\d\d)(?P=dash)(?P<day>\d\d)
    (?:[T_ -]|__|[_ ]at[_ ])?
    (?P<hour>\d\d|(?<=[T_ -])\d(?=[-_.:]))(?P<colon>[-_.:]?)(?P<minute>\d\d)(?P=colon)(?P<second>\d\d)(?!\d)
    (?:[.,](?P<fraction>\d{1,9})(?!\d))?
    (?:(?:[ \u00a0\u202f]?|(?<=[-_.:]\d\d)_)(?P<half>[AP])M(?![A-Z0-9]))?
    (?P<offset>Z(?![A-Z])|[ _]?\+(?:0\d|1[0-4])(?:[-:.]?(?:00|30|45))?(?!\d)|-(?:0[1-9]|1[0-2]):?(?:00|30|45)(?!\d))?
    """,
    re.IGNORECASE | re.VERBOSE,
)
_PIECE = re.compile(r"_(\d{1,9}(?:\.\d{1,9})?)s_(\d{1,9}(?:\.\d{1,9})?)s\Z")
_SUFFIX = re.compile("|".join(rf"{re.escape(suffix)}\Z" for suffix in (*AUDIO_SUFFIXES, SPECTROGRAM_SUFFIX)), re.I)
_DAY = re.compile(r"(?<!\d)(?:19|20)\d\d([-_./]?)(?:0\d|1[0-2])\1(?:[0-2]\d|3[01])(?!\d)")


class RecordingName(NamedTuple):
    """What a name says; None where that is not certain.

    Attributes:
        recorded_at: the recorder's own clock at the start of the recording, without a zone.
        utc_offset_s: what this clock is ahead of UTC.
        recorder: the folder without days, and the name with `*` for the time stamp. Recordings of one recorder are
            equal in it: an event may go on past midnight in the folder of the next day, but not at another microphone.
            Channels that are audited one by one are recorders of their own.
    """

    recorded_at: datetime | None = None
    utc_offset_s: int | None = None
    recorder: str | None = None


@functools.lru_cache(maxsize=4096)
def read_name(recording: str) -> RecordingName:
    """Read the name of a recording: its path with slashes, of which folders give no time.

    A name with two different times (from and to?) or with an impossible one (a 31st of February) says nothing.
    """
    recording, channel = split_name(recording)
    name = _SUFFIX.sub("", storage.name_of(recording))
    piece = _PIECE.search(name)
    starts_s = float(piece[1]) if piece is not None and float(piece[1]) < float(piece[2]) else 0.0
    name = name[: piece.start()] if piece is not None else name
    published = _PUBLISHED.fullmatch(name)
    with contextlib.suppress(ValueError):  # a time that does not exist, no time, or more than one
        if published is not None:
            year, month, day, hour, minute = map(int, published.groups()[1:])
            times: set[tuple[datetime, str | None]] = {(datetime(2000 + year, month, day, hour, minute), None)}
            around = f"{published[1]}_*"
        else:
            times = {(_clock(match), match["offset"]) for match in _STAMP.finditer(name)}
            around = _STAMP.sub("*", name)
        ((clock, offset),) = times
        recorder = posixpath.join(folder_of(recording), around)
        recorder = recorder if channel is None else channel_name(recorder, channel)
        return RecordingName(clock + timedelta(seconds=starts_s), _offset_s(offset), recorder)
    return RecordingName()


def folder_of(recording: str) -> str:
    """The folder of a recording without days: it counts as the recorder where file names do not say which one."""
    recording, channel = split_name(recording)
    folder = _DAY.sub("", posixpath.dirname(recording)).rstrip("/")
    return folder if channel is None else channel_name(folder, channel)


def _clock(stamp: re.Match[str]) -> datetime:
    """Raises ValueError if there is no such time."""
    hour = int(stamp["hour"])
    if stamp["half"] and 1 <= hour <= 12:  # other hours are of a clock of 24
        hour = hour % 12 + (12 if stamp["half"].upper() == "P" else 0)
    year, month, day, minute, second = (int(stamp[part]) for part in ("year", "month", "day", "minute", "second"))
    microsecond = int((stamp["fraction"] or "0").ljust(6, "0")[:6])
    return datetime(year, month, day, hour, minute, second, microsecond)


def _offset_s(text: str | None) -> int | None:
    if text is None:
        return None
    hours, minutes, *_ = (*re.findall(r"\d\d", text), "0", "0")
    return (3600 * int(hours) + 60 * int(minutes)) * (-1 if text.startswith("-") else 1)
