"""What is wrong with the sound of a recording, measured on a few short windows of it.

A fault that lasts (a dead or inverted channel, a gain that is too high, DC) shows in any window. One that lasts for
seconds of an hour may be missed: windows are samples.

Contents
    measure(windows, ...)     levels, DC, clipping, zeros of each channel; correlation and lag between channels
    problems(health)          what is wrong with one recording, in words
    level_jumps(...)          recordings that are much louder or quieter than others of their recorder
    in_words(problems)        what is wrong with all recordings, in one sentence

Shape letters: n samples, C channels. A waveform is float32 (n, C), full scale ±1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from faithad.vocabulary import count, listed

Floats = npt.NDArray[np.floating]

# The largest sample of 16 bits is 0.99997.
_FULL_SCALE = 0.9999
# A single sample at full scale is the loudest of a recording that was normalised to it.
CLIPPED_SHARE = 1e-4
_DC_SHARE = 0.02
# A channel that is 40 dB below another one in every window holds noise or crosstalk.
_DEAD_RATIO = 0.01
_INVERTED_CORRELATION = -0.9
# Channels whose difference from their mean has less than a hundredth of its power: correlations above 0.98, levels
# within 2 dB. Their mean is within 1 dB of each.
_ALIKE_POWER = 0.01
# Sound goes 7 m in this time.
_LONGEST_LAG_S = 0.02
_JUMP_DB = 12.0
_FEWEST_OF_RECORDER = 3


@dataclass(frozen=True)
class Health:
    """What the windows of one recording hold. Tuples have one value for each channel.

    Attributes:
        sampled_s: length of all windows together.
        n_windows: how many they are.
        n_silent: windows in which no channel changes.
        level_dbfs: median over the windows of the RMS without DC, in dB of full scale; None where it is 0. A sine of
            full scale has -3 dB.
        dc: mean sample.
        clipped: share of samples at full scale.
        zeros: share of samples that are 0.
        n_still: windows in which this channel does not change, while another one does.
        is_dead: whether the channel has no sound while another one has.
        correlation: with the channel `reference`, at lag 0; None of a channel without sound.
        lag_ms: by how much it is later than `reference`: where the magnitude of their correlation is largest, within
            20 ms; None of a channel without sound.
        reference: the channel that is heard where one is chosen, from 0: the first that has no fault and is within 6 dB
            of the loudest such.
        is_alike: whether all channels hold the same sound at the same level, also at high frequencies.
    """

    sampled_s: float
    n_windows: int
    n_silent: int
    level_dbfs: tuple[float | None, ...]
    dc: tuple[float, ...]
    clipped: tuple[float, ...]
    zeros: tuple[float, ...]
    n_still: tuple[int, ...]
    is_dead: tuple[bool, ...]
    correlation: tuple[float | None, ...]
    lag_ms: tuple[float | None, ...]
    reference: int
    is_alike: bool


def measure(windows: Sequence[Floats], *, sample_rate_hz: int) -> Health:
    """Measure a recording on some windows of it.

    Args:
        windows: (n, C) each, with one C, at least one; finite.
        sample_rate_hz: of the recording.
    """
    n_samples = sum(map(len, windows))
    lengths = np.array([len(window) for window in windows])[:, None]
    sounds = [np.ascontiguousarray(window.T, dtype=np.float64) for window in windows]
    means = np.stack([sound.mean(axis=1) for sound in sounds])  # (windows, C)
    peaks = np.stack([np.abs(sound).max(axis=1) for sound in sounds])
    changes = np.stack([np.ptp(sound, axis=1) > 0 for sound in sounds])
    zeros = np.stack([(sound == 0).sum(axis=1) for sound in sounds])
    full = np.stack(
        [(np.abs(sound) >= _FULL_SCALE).sum(axis=1) if peak.max() >= _FULL_SCALE else np.zeros(len(sound))
         for sound, peak in zip(sounds, peaks, strict=True)]
    )  # fmt: skip
    for sound, mean in zip(sounds, means, strict=True):
        sound -= mean[:, None]
    products = [sound @ sound.T for sound in sounds]
    rms = np.where(changes, np.sqrt(np.stack([product.diagonal() for product in products]) / lengths), 0.0)
    is_heard = np.asarray(changes.any(axis=1))
    is_faint = (rms < _DEAD_RATIO * rms.max(axis=1, keepdims=True)) | ~changes
    is_dead = is_faint[is_heard].all(axis=0) if is_heard.any() else np.zeros(len(rms[0]), dtype=np.bool_)
    n_still = (~changes & is_heard[:, None]).sum(axis=0)
    levels = tuple(_decibels(float(level)) for level in np.median(rms, axis=0))
    dc, clipped = (means * lengths).sum(axis=0) / n_samples, full.sum(axis=0) / n_samples
    reference = _reference(levels, is_dead, n_still, clipped, dc)
    steps = [np.diff(sound, axis=1) for sound in sounds]
    is_alike = _are_alike(np.sum(products, axis=0)) and _are_alike(np.sum([step @ step.T for step in steps], axis=0))
    pairs: list[tuple[float | None, float | None]] = [(1.0, 0.0)] * len(dc)
    if not is_alike:
        pairs = [correlate(sounds, reference, channel, sample_rate_hz=sample_rate_hz) for channel in range(len(dc))]
    return Health(
        sampled_s=n_samples / sample_rate_hz,
        n_windows=len(windows),
        n_silent=int((~is_heard).sum()),
        level_dbfs=levels,
        dc=tuple(dc.tolist()),
        clipped=tuple(clipped.tolist()),
        zeros=tuple((zeros.sum(axis=0) / n_samples).tolist()),
        n_still=tuple(n_still.tolist()),
        is_dead=tuple(is_dead.tolist()),
        correlation=tuple(correlation for correlation, _ in pairs),
        lag_ms=tuple(lag_ms for _, lag_ms in pairs),
        reference=reference,
        is_alike=is_alike,
    )


def correlate(
    windows: Sequence[Floats], reference: int, channel: int, *, sample_rate_hz: int
) -> tuple[float | None, float | None]:
    """How alike two channels of some windows (C, n) without DC are.

    Returns:
        The correlation at lag 0, and the lag in ms at which its magnitude is largest, within 20 ms: positive where
        `channel` is later. None, None if one of them is silent.
    """
    power = np.zeros(2)
    at_0 = 0.0
    for window in windows:
        a, b = window[reference], window[channel]
        power += a @ a, b @ b
        at_0 += float(a @ b)
    if not power.all():
        return None, None
    if channel == reference:
        return 1.0, 0.0
    longest = round(_LONGEST_LAG_S * sample_rate_hz)
    lags = np.zeros(2 * longest + 1)
    for window in windows:
        size = 1 << (window.shape[1] + longest).bit_length()
        a, b = (np.fft.rfft(window[place].astype(np.float32), size) for place in (reference, channel))
        products = np.fft.irfft(a.conj() * b, size)
        lags += np.concatenate([products[size - longest :], products[: longest + 1]])
    lag = int(np.argmax(np.abs(lags))) - longest
    return float(np.clip(at_0 / math.sqrt(power[0] * power[1]), -1, 1)), 1000 * lag / sample_rate_hz


def problems(health: Health) -> list[str]:
    """What is wrong with a recording: words, and details in brackets behind them."""
    of_windows = f"of {count(health.n_windows, 'window')}"
    texts = []
    if health.n_silent == health.n_windows:
        texts.append("digital silence")
    elif health.n_silent:
        texts.append(f"digital silence (in {health.n_silent} {of_windows})")
    several = len(health.dc) > 1
    for channel, dc in enumerate(health.dc):
        name = f"channel {channel + 1} " if several else ""
        if health.is_dead[channel]:
            texts.append(f"{name}is dead")
            continue
        if health.n_still[channel]:
            texts.append(f"{name}drops out (in {health.n_still[channel]} {of_windows})")
        if (health.correlation[channel] or 0.0) <= _INVERTED_CORRELATION:
            texts.append(f"{name}is inverted (against channel {health.reference + 1})")
        if health.clipped[channel] >= CLIPPED_SHARE:
            texts.append(f"{name}{'is ' if several else ''}clipped ({health.clipped[channel]:.2%} of its samples)")
        if abs(dc) >= _DC_SHARE:
            texts.append(f"{name}{'has ' if several else ''}DC ({dc:+.1%} of full scale)")
    return texts


def level_jumps(levels_dbfs: Mapping[str, float], recorders: Mapping[str, str]) -> dict[str, str]:
    """The recordings whose level is 12 dB or more from the median of their recorder's, and the words for each.

    Args:
        levels_dbfs: of what is heard of each recording.
        recorders: of each recording. A recorder with fewer than three recordings has no jumps.
    """
    groups: dict[str, list[str]] = {}
    for recording in levels_dbfs:
        groups.setdefault(recorders[recording], []).append(recording)
    texts = {}
    for recordings in groups.values():
        usual = float(np.median([levels_dbfs[recording] for recording in recordings]))
        for recording in recordings if len(recordings) >= _FEWEST_OF_RECORDER else ():
            difference = levels_dbfs[recording] - usual
            if abs(difference) >= _JUMP_DB:
                than = "louder" if difference > 0 else "quieter"
                texts[recording] = f"{than} than usual (by {abs(difference):.0f} dB against the recorder's median)"
    return texts


def low_rate(sample_rate_hz: int, model_rate_hz: int) -> str | None:
    """The words for a recording whose sample rate leaves bands of the model empty."""
    if sample_rate_hz >= model_rate_hz:
        return None
    return (
        f"sample rate too low (nothing above {sample_rate_hz / 2:,.0f} Hz, where the model hears up to "
        f"{model_rate_hz / 2:,.0f} Hz)"
    )


def in_words(recordings: Iterable[tuple[str, Sequence[str]]]) -> str:
    """What is wrong with some recordings, each kind with the first names: `channel 2 is dead (a.wav and 3 more)`.

    Args:
        recordings: the name of each, and its problems as `problems` words them.
    """
    kinds: dict[str, list[str]] = {}
    for name, texts in recordings:
        for text in texts:
            kinds.setdefault(text.partition(" (")[0], []).append(name)
    return "; ".join(f"{kind} ({listed(names, most=2)})" for kind, names in kinds.items())


def _decibels(rms: float) -> float | None:
    return 20 * math.log10(rms) if rms > 0 else None


def _reference(
    levels_dbfs: Sequence[float | None],
    is_dead: npt.NDArray[np.bool_],
    n_still: npt.NDArray[np.integer],
    clipped: Floats,
    dc: Floats,
) -> int:
    """The channel to hear alone, from 0. Each fault leaves channels out, as long as others remain."""
    channels = list(range(len(levels_dbfs)))
    for is_faulty in (is_dead, n_still > 0, clipped >= CLIPPED_SHARE, np.abs(dc) >= _DC_SHARE):
        channels = [channel for channel in channels if not is_faulty[channel]] or channels
    levels = [-math.inf if (level := levels_dbfs[channel]) is None else level for channel in channels]
    # The first of those within 6 dB, so that recordings of one recorder do not change between alike channels.
    return next(channel for channel, level in zip(channels, levels, strict=True) if level >= max(levels) - 6)


def _are_alike(products: Floats) -> bool:
    """Whether every channel differs from the mean of all by little power.

    Asked of the sound and of its first difference, which lifts the high frequencies: a delay shows there first.

    Args:
        products: (C, C), the sums over time of the products of two channels each.
    """
    of_mean = float(products.mean())
    of_differences = products.diagonal() - 2 * products.mean(axis=1) + of_mean
    return bool(np.all(of_differences <= _ALIKE_POWER * of_mean))
