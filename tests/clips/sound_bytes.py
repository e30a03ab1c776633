"""Sound files byte by byte, right or wrong as the test wants them. A sound is in steps of 1/128, int64 (samples,)."""

from __future__ import annotations

import io
import struct

import numpy as np
import soundfile

RATE_HZ = 20_000


def sound(seconds: float) -> np.ndarray:
    """A hum with noise. Its values fit in 8 bits, so that every encoding without loss holds the very same samples."""
    n = round(seconds * RATE_HZ)
    hum = 40 * np.sin(2 * np.pi * 440 * np.arange(n) / RATE_HZ)
    return np.rint(hum + np.random.default_rng(0).normal(0, 8, n)).clip(-127, 127).astype(np.int64)


def pcm(steps: np.ndarray, bits: int = 16, order: str = "<") -> bytes:
    """The sound as integers of 8 (unsigned), 16, 24 or 32 bits, in full scale."""
    if bits == 8:
        return (steps + 128).astype("u1").tobytes()
    words = (steps << 24).astype(f"{order}i4")
    if bits == 32:
        return words.tobytes()
    raw = words.view("u1").reshape(-1, 4)
    keep = slice(4 - bits // 8, 4) if order == "<" else slice(0, bits // 8)
    return np.ascontiguousarray(raw[:, keep]).tobytes()


def fmt(
    *,
    tag: int = 1,
    channels: int = 1,
    rate_hz: int = RATE_HZ,
    bits: int = 16,
    frame_bytes: int | None = None,
    bytes_per_s: int | None = None,
    extra: bytes = b"",
    order: str = "<",
) -> bytes:
    """The content of a `fmt ` chunk; what is not given follows from the rest."""
    frame_bytes = channels * bits // 8 if frame_bytes is None else frame_bytes
    bytes_per_s = (rate_hz * frame_bytes) % 2**32 if bytes_per_s is None else bytes_per_s
    return struct.pack(f"{order}HHIIHH", tag, channels, rate_hz, bytes_per_s, frame_bytes, bits) + extra


def chunk(name: bytes, content: bytes, *, size: int | None = None, order: str = "<") -> bytes:
    return (
        name + struct.pack(f"{order}I", len(content) if size is None else size) + content + b"\0" * (len(content) % 2)
    )


def riff(*chunks: bytes, size: int | None = None, form: bytes = b"RIFF", order: str = "<") -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return form + struct.pack(f"{order}I", len(body) if size is None else size) + body


def wav(steps: np.ndarray, *, bits: int = 16, **header: int | bytes) -> bytes:
    """An ordinary file, but for what the header's arguments change."""
    return riff(chunk(b"fmt ", fmt(bits=bits, **header)), chunk(b"data", pcm(steps, bits)))  # type: ignore[arg-type]


def extensible(tag: int, valid_bits: int) -> bytes:
    """The 24 bytes that make a `fmt ` chunk a WAVE_FORMAT_EXTENSIBLE one."""
    guid = struct.pack("<H", tag) + bytes.fromhex("000000001000800000aa00389b71")
    return struct.pack("<HHI", 22, valid_bits, 4) + guid


def rf64(steps: np.ndarray, *, n_bytes: int | None = None) -> bytes:
    """A file of more than 4 GiB in form, if not in size (EBU Tech 3306); `n_bytes` of sound are announced."""
    data = pcm(steps)
    sizes = struct.pack("<QQQI", len(data) + 72, len(data) if n_bytes is None else n_bytes, len(steps), 0)
    chunks = chunk(b"ds64", sizes), chunk(b"fmt ", fmt()), chunk(b"data", data, size=0xFFFFFFFF)
    return riff(*chunks, form=b"RF64", size=0xFFFFFFFF)


def encoded(samples: np.ndarray, rate_hz: int = RATE_HZ, **options: str) -> bytes:
    """By libsndfile: another format or subtype."""
    out = io.BytesIO()
    soundfile.write(out, samples, rate_hz, **options)
    return out.getvalue()


def flac(steps: np.ndarray, subtype: str = "PCM_16") -> bytes:
    return encoded(steps / 128, format="FLAC", subtype=subtype)


def patched_flac(steps: np.ndarray, first: int, fields: bytes) -> bytes:
    """A FLAC file whose first block (STREAMINFO, from byte 8 on) is written over at some place."""
    content = bytearray(flac(steps))
    content[8 + first : 8 + first + len(fields)] = fields
    return bytes(content)


def verbatim_flac(samples: np.ndarray, *, bits: int = 16, block: int = 1000, n_announced: int | None = None) -> bytes:
    """FLAC without compression, after RFC 9639: one channel of `bits` a sample, blocks of any size."""
    n_announced = len(samples) if n_announced is None else n_announced
    info = block.to_bytes(2, "big") * 2 + bytes(6)
    info += (RATE_HZ << 44 | (bits - 1) << 36 | n_announced).to_bytes(8, "big") + bytes(16)
    frames = [
        _verbatim_frame(samples[start : start + block], start // block, bits) for start in range(0, len(samples), block)
    ]
    return b"fLaC\x80\0\0\x22" + info + b"".join(frames)


def _verbatim_frame(samples: np.ndarray, number: int, bits: int) -> bytes:
    # Size of the block in two bytes, rate and bits as in the file's header, one channel.
    head = b"\xff\xf8\x70\x00" + chr(number).encode() + (len(samples) - 1).to_bytes(2, "big")
    head += bytes([_remainder(head, 0x07, 8)])
    sound = "".join(f"{int(sample) & (1 << bits) - 1:0{bits}b}" for sample in samples)
    sound += "0" * (-len(sound) % 8)
    body = head + b"\x02" + int(sound, 2).to_bytes(len(sound) // 8, "big")
    return body + _remainder(body, 0x8005, 16).to_bytes(2, "big")


def _remainder(content: bytes, polynomial: int, bits: int) -> int:
    """The cyclic redundancy check, by long division."""
    value = 0
    for byte in content:
        value ^= byte << bits - 8
        for _ in range(8):
            value <<= 1
            if value >> bits:
                value ^= 1 << bits | polynomial
    return value


def s24_in_32(steps: np.ndarray, channels: int = 1) -> bytes:
    """What `arecord -f S24_LE` writes: 24 bits in the lower three of four bytes."""
    data = np.repeat(steps << 16, channels).astype("<i4").tobytes()
    return riff(chunk(b"fmt ", fmt(bits=24, frame_bytes=4 * channels, channels=channels)), chunk(b"data", data))


def flac_length(n_samples: int) -> bytes:
    """Bytes 13 to 17 of STREAMINFO: 16 bits a sample, and how many samples there are."""
    return (0xF << 36 | n_samples).to_bytes(5, "big")


def floats(samples: np.ndarray) -> bytes:
    data = samples.astype("<f4").tobytes()
    return riff(chunk(b"fmt ", fmt(tag=3, bits=32)), chunk(b"data", data))


def with_bad(steps: np.ndarray, bad: float) -> bytes:
    samples = steps / 128
    samples[len(samples) // 2] = bad
    return floats(samples)


def at_rate(steps: np.ndarray, rate_hz: int) -> bytes:
    """As long as the sound, a hum of the same pitch (or a lower one)."""
    n = len(steps) * rate_hz // RATE_HZ
    return encoded(0.4 * np.sin(2 * np.pi * min(440, rate_hz / 5) * np.arange(n) / rate_hz), rate_hz, format="WAV")


def in_channels(steps: np.ndarray, channels: int, format: str) -> bytes:
    return encoded(np.stack([steps / 128] * channels, axis=1), format=format)
