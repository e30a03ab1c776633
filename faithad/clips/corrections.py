"""How a sound file with a wrong header is read, so that all of its sound is heard and nothing else."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, BinaryIO


@dataclass(frozen=True)
class Correction:
    """What has to be done about a file, and what the ledger says of it. Texts follow the file's name.

    Attributes:
        patches: bytes that the decoder sees in place of those of the file, by their position.
        end: the decoder sees only bytes before this position; None for all.
        n_samples: that the file holds for each channel, counted from its bytes; None if it is not counted.
        is_s24_in_32: each sample is a 32-bit integer whose lower three bytes hold the sound, as ALSA's S24_LE.
        remark: why the file was read in another way than its header says; None if it was not.
        unheard: why some of the sound that there is, or that is announced, is not heard; None if all is heard.
        unheard_s: length of that sound; None if it is unknown.
        recorded_at: when the recording began by the recorder's own clock, as the file says; None if it does not.
        utc_offset_s: what this clock is ahead of UTC; None if it is not known.
    """

    patches: Mapping[int, bytes] = field(default_factory=dict)
    end: int | None = None
    n_samples: int | None = None
    is_s24_in_32: bool = False
    remark: str | None = None
    unheard: str | None = None
    unheard_s: float | None = None
    recorded_at: datetime | None = None
    utc_offset_s: int | None = None


class CorrectedFile(io.RawIOBase):
    """A file as the decoder is to see it, see `Correction`.

    To seek the end costs nothing here, while it would empty the buffer of a file that reads ahead.
    """

    def __init__(self, file: BinaryIO, size: int, correction: Correction) -> None:
        self._file, self._patches = file, correction.patches
        self._end = size if correction.end is None else min(correction.end, size)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._end}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        start, view = self._position, memoryview(buffer).cast("B")
        self._file.seek(start)
        n: int = self._file.readinto(view[: max(0, self._end - start)])  # type: ignore[attr-defined]
        for place, patch in self._patches.items():
            first, last = max(place, start), min(place + len(patch), start + n)
            if first < last:
                view[first - start : last - start] = patch[first - place : last - place]
        self._position += n
        return n
