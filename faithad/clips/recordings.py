"""Open and decode recordings, local or remote, one window at a time.

A recording is one audio file of any sample rate, channel count and length; a clip is one window of it. A recording is
never read as a whole: `probe_recording` reads the header, `examine_recording` some windows as well, `cut_windows` plans
the clips, `read_clip` reads one of them.
The published planer data are spectrograms instead: see `spectrograms`.

Conventions
    Times are seconds from the start of the recording. A waveform is mono float32, (samples,), full scale ±1.

Whatever makes a file unusable becomes a `RecordingError`, whose text goes into a ledger unchanged and is written for
the person who looks after the recorder. Digital silence is a valid sound.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from fractions import Fraction
from typing import Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import soundfile

from faithad.clips.corrections import Correction
from faithad.clips.health import Health, measure
from faithad.clips.sound_files import DamagedRecordingError, lower_24_bits, open_sound, refusal
from faithad.errors import RecordingError, shown

Remainder = Literal["drop", "pad", "overlap"]

# A score is a mean over frames: that of less sound says little.
SHORTEST_CLIP_S = 1.0

# Clip ids resolve onsets to a millisecond, so the end of a recording after its last full clip must be longer than that
# to count as a remainder.
_SHORTEST_REMAINDER_S = 0.002

# A resampling filter has one phase per unit of the reduced ratio's numerator. Odd rates (17067 Hz) hardly reduce and
# would need gigabytes. The nearest ratio with terms up to this limit is off by less than 1e-6, less than the clock of a
# recorder.
_LARGEST_RATIO_TERM = 2000

# No encoding has such samples at full scale, even if its integers were read as fractions; the power fits a float32.
_LARGEST_SAMPLE = 2.0**32

_UNKNOWN_N_SAMPLES = 1 << 62

# How much of a recording is looked at to judge its health. A window is one request to an object store.
_N_WINDOWS, _WINDOW_S = 5, 0.5
_MOST_VALUES = 1 << 22


@dataclass(frozen=True)
class AudioHeader:
    """The header of a recording, where it is wrong as its sound is.

    Attributes:
        n_samples: of each channel.
        remark: what the ledger says of a header that is wrong although all sound is heard; None if it is right.
        unheard: why sound that is announced, or that follows, is not heard; None if all is heard.
        unheard_s: length of that sound, which begins at `duration_s`; None if it is unknown.
        recorded_at: by the recorder's own clock, as a WAV file says it in a chunk of its own; None if it does not.
        utc_offset_s: what this clock is ahead of UTC; None if it is not known.
        health: of some windows; None if none was looked at, or none could be decoded.
    """

    duration_s: float
    sample_rate_hz: int
    channels: int
    n_samples: int
    remark: str | None = None
    unheard: str | None = None
    unheard_s: float | None = None
    recorded_at: datetime | None = None
    utc_offset_s: int | None = None
    health: Health | None = None


class Window(NamedTuple):
    """A clip's interval in its recording. The last one may be shorter than a clip."""

    onset_s: float
    duration_s: float


def probe_recording(uri: str) -> AudioHeader:
    """Read the header of a recording.

    Raises:
        RecordingError: the file is missing, empty, no audio or without samples, or its header contradicts itself.
    """
    with open_sound(uri) as (sound, correction):
        return _header(uri, sound, correction)


def examine_recording(uri: str) -> AudioHeader:
    """Read the header of a recording, and some windows spread over it for its `health`.

    A window that cannot be decoded or is no sound is left out: `read_clip` says why.

    Raises:
        RecordingError: as `probe_recording`.
    """
    with open_sound(uri) as (sound, correction):
        header = _header(uri, sound, correction)
        windows = list(_sampled_windows(uri, sound, correction))
        health = measure(windows, sample_rate_hz=header.sample_rate_hz) if windows else None
        return replace(header, health=health)


def _header(uri: str, sound: soundfile.SoundFile, correction: Correction) -> AudioHeader:
    if sound.frames == 0:
        raise refusal(uri, "holds no samples: its header announces a length of zero. Remove or replace it.")
    if sound.frames >= _UNKNOWN_N_SAMPLES:
        wrong = "does not say how long it is (FLAC written into a pipe). Encode it again from file to file."
        raise refusal(uri, wrong)
    rate_hz = int(sound.samplerate)
    return AudioHeader(
        sound.frames / rate_hz,
        rate_hz,
        sound.channels,
        sound.frames,
        remark=None if correction.remark is None else f"{shown(uri)} {correction.remark}",
        unheard=None if correction.unheard is None else f"{shown(uri)} {correction.unheard}",
        unheard_s=correction.unheard_s,
        recorded_at=correction.recorded_at,
        utc_offset_s=correction.utc_offset_s,
    )


def _sampled_windows(uri: str, sound: soundfile.SoundFile, correction: Correction) -> Iterator[npt.NDArray[np.float32]]:
    """Windows (n, channels) in the middle of equal parts of a recording; all of it, where it is short."""
    n = max(1, min(round(_WINDOW_S * sound.samplerate), _MOST_VALUES // sound.channels))
    starts = [round((part + 0.5) / _N_WINDOWS * sound.frames - n / 2) for part in range(_N_WINDOWS)]
    if sound.frames <= _N_WINDOWS * n:
        starts, n = [0], sound.frames
    for start in starts:
        try:
            samples = _decode(uri, sound, correction, start, n)
        except (soundfile.LibsndfileError, RecordingError):
            continue
        if len(samples) and np.isfinite(samples).all():
            yield samples


def cut_windows(duration_s: float, *, clip_s: float, remainder: Remainder) -> tuple[list[Window], float]:
    """Lay clips of `clip_s` seconds side by side over a recording, from its start.

    `remainder` says what happens to an end that is shorter than a clip. `drop` leaves it out. `pad` makes it a shorter
    window. `overlap` adds a last clip that ends with the recording and overlaps the clip before it. A recording that is
    shorter than one clip is dropped by `drop`, and is one shorter window with the other two. No window is shorter than
    `SHORTEST_CLIP_S`, unless that is a whole clip: an end of less is left out.

    Returns:
        The windows in order of their onsets, and the seconds at the end that no window covers. An end of less than 2 ms
        after a full clip is ignored.
    """
    n_full = math.floor(duration_s / clip_s + 1e-9)
    windows = [Window(k * clip_s, clip_s) for k in range(n_full)]
    rest_s = duration_s - n_full * clip_s
    if duration_s <= 0 or (n_full and rest_s < _SHORTEST_REMAINDER_S):
        return windows, 0.0
    if remainder == "drop":
        return windows, rest_s
    if remainder == "overlap" and n_full:
        return [*windows, Window(duration_s - clip_s, clip_s)], 0.0
    if rest_s < SHORTEST_CLIP_S:
        return windows, rest_s
    return [*windows, Window(n_full * clip_s, rest_s)], 0.0


def read_clip(
    uri: str,
    *,
    onset_s: float,
    duration_s: float,
    clip_s: float,
    sample_rate_hz: int,
    channel: int | None = None,
) -> npt.NDArray[np.float32]:
    """Decode the window of a recording that starts at `onset_s` and lasts `duration_s`, at most `clip_s`.

    `channel` is the one that is heard, from 1; None for the mean of all.

    Returns:
        (round(duration_s * sample_rate_hz),) float32, resampled to `sample_rate_hz`.

    Raises:
        RecordingError: the window cannot be read, is not whole, or holds samples that are no sound: NaN, infinite.
    """
    try:
        samples, wanted, rate = _read_window(uri, onset_s, duration_s, until_s=onset_s + duration_s)
    except DamagedRecordingError:
        # The decoder looks for the last samples of a FLAC file in vain where the header announces too many.
        samples, wanted, rate = _read_window(uri, onset_s, duration_s, until_s=math.inf)
    if len(samples) < wanted:
        raise refusal(
            uri,
            f"is truncated: of the clip at {onset_s:g} s only {len(samples) / rate:.3f} s of {duration_s:g} s are "
            "there. Copy the file again, or index the folder anew if the file has changed.",
        )
    # If any sample is NaN, so is the maximum: this needs no mask of all samples.
    loudest = float(max(samples.max(), -samples.min())) if samples.size else 0.0
    if not loudest <= _LARGEST_SAMPLE:
        wrong = (
            f"samples of up to {loudest:.0e} in the clip at {onset_s:g} s, where 1 is full scale"
            if math.isfinite(loudest)
            else f"NaN or infinite samples in the clip at {onset_s:g} s ({count_bad(samples)})"
        )
        raise refusal(uri, f"holds {wrong}. The program that wrote this file is at fault: export the recording again.")
    if channel is not None and channel > samples.shape[1]:
        raise refusal(uri, f"has no channel {channel} any more: the file has changed since it was indexed.")
    mono = samples[:, (channel or 1) - 1]
    if channel is None and samples.shape[1] > 1:
        mono = samples.mean(axis=1, dtype=np.float64).astype(np.float32)
    n_samples = round(min(duration_s, clip_s) * sample_rate_hz)
    resampled = _resample(mono, rate, sample_rate_hz)[:n_samples]
    if len(resampled) == n_samples:
        return resampled
    # Rates that are no multiples of each other may leave a sample too few.
    clip = np.zeros(n_samples, dtype=np.float32)
    clip[: len(resampled)] = resampled
    return clip


def _read_window(
    uri: str, onset_s: float, duration_s: float, *, until_s: float
) -> tuple[npt.NDArray[np.float32], int, int]:
    """What there is of a window: the samples (n, channels), how many were wanted, and their rate in Hz."""
    with open_sound(uri, until_s=until_s) as (sound, correction):
        rate = int(sound.samplerate)
        start = round(onset_s * rate)
        # The end is rounded, not the length: else a window that ends with its recording could want one sample more.
        wanted = round((onset_s + duration_s) * rate) - start
        if start >= sound.frames:
            return np.empty((0, 1), dtype=np.float32), wanted, rate
        return _decode(uri, sound, correction, start, wanted), wanted, rate


def _decode(
    uri: str, sound: soundfile.SoundFile, correction: Correction, start: int, n: int
) -> npt.NDArray[np.float32]:
    """At most n samples (n, channels) of an open file, from one on."""
    samples: npt.NDArray[np.float32]
    sound.seek(start)
    if correction.is_s24_in_32:
        words = sound.read(frames=n, dtype="int32", always_2d=True)
        samples = np.multiply(lower_24_bits(uri, words), np.float32(2**-31), dtype=np.float32)
    elif sound.subtype == "PCM_16":
        # libsndfile would convert 16-bit samples to the same floats, but in many small pieces.
        steps = sound.read(frames=n, dtype="int16", always_2d=True)
        samples = np.multiply(steps, np.float32(2**-15), dtype=np.float32)
    else:
        samples = sound.read(frames=n, dtype="float32", always_2d=True)
    return samples


def _resample(waveform: npt.NDArray[np.float32], rate_hz: int, new_rate_hz: int) -> npt.NDArray[np.float32]:
    if rate_hz == new_rate_hz or len(waveform) == 0:
        return waveform
    # They take seconds to import, and a process that reads headers does without.
    import torch
    from torchaudio.functional import resample

    ratio = Fraction(new_rate_hz, rate_hz).limit_denominator(_LARGEST_RATIO_TERM)
    resampled = resample(torch.from_numpy(waveform), ratio.denominator, ratio.numerator)
    return cast(npt.NDArray[np.float32], resampled.numpy())


def count_bad(values: npt.NDArray[np.float32]) -> str:
    """How many values of an array are NaN or infinite: `3 of 100`."""
    return f"{int((~np.isfinite(values)).sum())} of {values.size}"
