"""How many samples a FLAC file really holds: its last frame holds their number, whatever its header announces.

A decoder stops at the announced number, or looks for samples that are not there. The end of the file is read, and, to
see whether the numbers rise all the way as they must, a few places between. Reference: RFC 9639 (FLAC), sections 8.2
(streaminfo) and 9.1 (frame header).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from faithad.clips.corrections import Correction

# Bits per sample that the decoder takes.
DECODED_BITS = (8, 16, 24)

_TAIL_BYTES = 1 << 16
_PARTS = 8
_SMALL_BYTES = 1 << 18
_SCAN_BYTES = 1 << 20
# A stream's start: its mark, then the header of the first block, which is STREAMINFO (34 bytes).
_STARTS = (b"fLaC\0\0\0\x22", b"fLaC\x80\0\0\x22")
_STREAMINFO_BYTES = 34
# The smallest frame holds a block of equal samples: header, one sample, checksums.
_LEAST_FRAME_BYTES = 10
_LONGEST_FRAME_HEADER_BYTES = 16


@dataclass(frozen=True)
class Stream:
    """What the header of a FLAC file says.

    Attributes:
        start: position of its mark `fLaC`.
        frames_start: where the first frame begins.
        largest_block: samples in a frame, at the most.
        n_samples: announced for each channel; 0 if the header does not say.
    """

    start: int
    frames_start: int
    largest_block: int
    rate_hz: int
    channels: int
    bits: int
    n_samples: int

    @property
    def length_at(self) -> int:
        """Position of the number of samples: the lower 36 bits of five bytes."""
        return self.start + 8 + 13

    @property
    def uncompressed_bytes(self) -> int:
        """The most bytes of a frame: its samples as they are, a bit more for the difference of channels, its header."""
        return self.largest_block * self.channels * (self.bits + 1) // 8 + 64


@dataclass(frozen=True)
class _Frame:
    """A frame's place in the bytes where it was found, and its first sample and number of samples."""

    place: int
    first: int
    n_samples: int

    @property
    def end(self) -> int:
        return self.first + self.n_samples


def flac_start(file: BinaryIO) -> int | None:
    """Position of `fLaC`, before which there may be an ID3 tag. None for other files."""
    start = _read(file, 0, 10)
    place = 0
    if start[:3] == b"ID3" and len(start) == 10:
        place = 10 + (start[6] << 21 | start[7] << 14 | start[8] << 7 | start[9])
    return place if _read(file, place, 4) == b"fLaC" else None


def read_stream(file: BinaryIO) -> Stream | None:
    """The header of a FLAC file; None if it is damaged or cut off."""
    start = flac_start(file)
    if start is None or _read(file, start, 8) not in _STARTS:
        return None
    info = _read(file, start + 8, _STREAMINFO_BYTES)
    if len(info) < _STREAMINFO_BYTES:
        return None
    place, is_last = start + 4, False
    while not is_last:
        head = _read(file, place, 4)
        if len(head) < 4:
            return None
        is_last = head[0] >= 128
        place += 4 + int.from_bytes(head[1:], "big")
    fields = int.from_bytes(info[10:18], "big")
    return Stream(
        start=start,
        frames_start=place,
        largest_block=int.from_bytes(info[2:4], "big"),
        rate_hz=fields >> 44,
        channels=(fields >> 41 & 7) + 1,
        bits=(fields >> 36 & 31) + 1,
        n_samples=fields & (1 << 36) - 1,
    )


def correct_flac(file: BinaryIO, size: int, stream: Stream, *, until: float | None) -> Correction | str:
    """How a FLAC file must be read, or why it cannot be.

    Args:
        file: the whole file.
        size: in bytes.
        stream: its header.
        until: sample up to which the file is going to be read: only the header is looked at if it announces that many.
            None: the file is examined as a whole.
    """
    if until is not None and until < stream.n_samples + 1:
        return Correction()
    headers = _header_reader(file, stream)
    n_present = _last_sample(file, size, stream, headers)
    is_right = n_present == stream.n_samples
    if until is None and _begins_again(file, size, stream, headers, is_right=is_right):
        return (
            "holds two or more FLAC files, one behind the other, whose samples have the same numbers. "
            "Use the single files instead, or split this one where the bytes 'fLaC' are."
        )
    if n_present is None or is_right or (n_present == 0 and stream.n_samples == 0):
        return Correction()
    if n_present == 0:
        return "is truncated: not one of its frames is whole. Copy the file again."
    length = (_read(file, stream.length_at, 1)[0] >> 4 << 36 | n_present).to_bytes(5, "big")
    patches, present_s = {stream.length_at: length}, n_present / stream.rate_hz
    if stream.n_samples == 0:
        remark = (
            f"does not say how long it is (written into a pipe): it was read to its last whole frame, {present_s:g} s."
        )
        return Correction(patches, remark=remark)
    announced_s = stream.n_samples / stream.rate_hz
    if n_present > stream.n_samples:
        remark = f"goes on after the {announced_s:g} s that its header announces: all {present_s:g} s were read."
        return Correction(patches, remark=remark)
    if stream.n_samples > size // _LEAST_FRAME_BYTES * stream.largest_block:
        unheard = (
            f"has a damaged header: it announces {stream.n_samples} samples, more than a FLAC file of {size} bytes can "
            f"hold. Its sound was read to the last whole frame, {present_s:g} s."
        )
        return Correction(patches, unheard=unheard)
    unheard = (
        f"is truncated, or its header is wrong: {announced_s:g} s of sound are announced, {present_s:g} s are there. "
        "Copy the file again; if it stays so, the recorder is at fault."
    )
    return Correction(patches, unheard=unheard, unheard_s=announced_s - present_s)


def _last_sample(file: BinaryIO, size: int, stream: Stream, headers: Callable[[bytes], Iterator[_Frame]]) -> int | None:
    """How many samples there are up to the end of the last whole frame; None if the end of the file has no frames."""
    start = max(stream.frames_start, size - max(_TAIL_BYTES, 3 * stream.uncompressed_bytes))
    tail = _read_only(file, start, size - start)
    if tail[-128:-125] == b"TAG":  # ID3v1
        tail = tail[:-128]
    frames = list(headers(tail))
    # What looks like a header within a frame does not continue the frame before.
    true = [b for a, b in itertools.pairwise(frames) if a.end == b.first] or frames[:1]
    if not true:
        return None
    last = true[-1]
    if last.end == stream.n_samples or _crc_16(tail[last.place :]) == 0:
        return last.end
    return last.first


def _begins_again(
    file: BinaryIO, size: int, stream: Stream, headers: Callable[[bytes], Iterator[_Frame]], *, is_right: bool
) -> bool:
    """Whether another FLAC file follows within this one.

    The numbers of frames fall where it begins. If the last frame is the one that the header announces, a second file
    can only be as long as the first: then the numbers fall between two of a few places, which lie the closer to each
    other the nearer to an end they are, for one of the two may need far fewer bytes. Else the whole file is searched.
    """
    first = stream.frames_start
    if not is_right or size - first <= _SMALL_BYTES:
        return _holds_start(file, first, size)
    ends = ((first, min(size, first + _TAIL_BYTES)), (max(first, size - _TAIL_BYTES), size))
    if any(_holds_start(file, *span) for span in ends):
        return True
    # A frame that is not compressed at all is no longer; those of a second file may be longer than the first one's.
    reach = stream.uncompressed_bytes + _LONGEST_FRAME_HEADER_BYTES
    before = 0
    for place in _places_between(first, size):
        frame = next(headers(_read_only(file, place, reach)), None)
        if frame is None or frame.first < before:
            return _holds_start(file, first, size)
        before = frame.first
    return False


def _places_between(first: int, last: int) -> list[int]:
    span = last - first
    places = {first + span * number // _PARTS for number in range(1, _PARTS)}
    distance = _TAIL_BYTES
    while distance < span // _PARTS:
        places |= {first + distance, last - distance}
        distance *= 2
    return sorted(places)


def _holds_start(file: BinaryIO, start: int, stop: int) -> bool:
    kept = b""
    while start < stop:
        part = kept + _read_only(file, start, min(_SCAN_BYTES, stop - start))
        if any(mark in part for mark in _STARTS):
            return True
        start += _SCAN_BYTES
        kept = part[-len(_STARTS[0]) + 1 :]
    return False


def _header_reader(file: BinaryIO, stream: Stream) -> Callable[[bytes], Iterator[_Frame]]:
    """A function that returns the frames whose headers are in some bytes; all have some bits of the first in common."""
    pattern = _read(file, stream.frames_start, 4)
    block = _frame_at(pattern + _read(file, stream.frames_start + 4, _LONGEST_FRAME_HEADER_BYTES), 0, 1)
    n_block = block.n_samples if block is not None else stream.largest_block

    def headers(content: bytes) -> Iterator[_Frame]:
        place = content.find(pattern[:2])
        while place >= 0:
            # The last four bits of the second byte are the rate, the bits after the channels the size of a sample.
            head = content[place : place + 4]
            if len(head) == 4 and (head[2] ^ pattern[2]) & 15 == 0 and (head[3] ^ pattern[3]) & 15 == 0:
                frame = _frame_at(content, place, n_block)
                if frame is not None:
                    yield frame
            place = content.find(pattern[:2], place + 1)

    return headers if pattern[:2] in (b"\xff\xf8", b"\xff\xf9") else lambda _: iter(())


def _frame_at(content: bytes, place: int, n_block: int) -> _Frame | None:
    """The frame whose header begins at a place, if its checksum is right.

    Args:
        content: some bytes of the file.
        place: of the header in them.
        n_block: samples in each frame but the last, by which frames are numbered where all have the same.
    """
    head = content[place : place + _LONGEST_FRAME_HEADER_BYTES]
    if len(head) < 6 or head[3] & 1:
        return None
    # The number is written as UTF-8 writes a letter: the ones in front say how many bytes there are.
    ones = 8 - (head[4] ^ 0xFF).bit_length()
    more = head[5 : 5 + max(0, ones - 1)]
    if ones in (1, 8) or any(byte >> 6 != 2 for byte in more):
        return None
    number = head[4] & (1 << 7 - ones) - 1
    for byte in more:
        number = number << 6 | byte & 0x3F
    after = 5 + len(more)
    code, rate_code = head[2] >> 4, head[2] & 15
    if code in (6, 7):
        width = code - 5
        n_samples = int.from_bytes(head[after : after + width], "big") + 1
        after += width
    elif code == 0:
        return None
    else:
        n_samples = 192 if code == 1 else 576 << code - 2 if code <= 5 else 256 << code - 8
    after += {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if len(head) <= after or _crc_8(head[:after]) != head[after]:
        return None
    is_variable = head[1] & 1
    return _Frame(place, number if is_variable else number * n_block, n_samples)


def _table(polynomial: int, bits: int) -> list[int]:
    entries = []
    for byte in range(256):
        value = byte << bits - 8
        for _ in range(8):
            value = value << 1 ^ (polynomial if value >> bits - 1 else 0)
            value &= (1 << bits) - 1
        entries.append(value)
    return entries


_CRC_8, _CRC_16 = _table(0x07, 8), _table(0x8005, 16)


def _crc_8(content: bytes) -> int:
    value = 0
    for byte in content:
        value = _CRC_8[value ^ byte]
    return value


def _crc_16(content: bytes) -> int:
    """The checksum of some bytes: 0 for a whole frame, which ends with its own checksum."""
    value = 0
    for byte in content:
        value = (value << 8 & 0xFFFF) ^ _CRC_16[value >> 8 ^ byte]
    return value


def _read_only(file: BinaryIO, position: int, n: int) -> bytes:
    """As `_read`, but without what a buffer would read ahead: a store would have to send that, too."""
    raw = getattr(file, "raw", None)
    if raw is None:
        return _read(file, position, n)
    before = raw.tell()
    raw.seek(position)
    content: bytes = raw.read(n)
    raw.seek(before)
    return content


def _read(file: BinaryIO, position: int, n: int) -> bytes:
    file.seek(position)
    return file.read(n)
