"""What is measured on windows of a recording, and which channel is heard: signals whose faults are known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faithad.clips import health
from faithad.clips.channels import channel_name, heard_channels, split_name
from faithad.clips.health import correlate, measure, problems
from faithad.vocabulary import ChannelChoice

RATE_HZ = 8_000
N = RATE_HZ // 2


def noise(*, seed: int = 0, level: float = 0.1, n: int = N) -> np.ndarray:
    sound = np.clip(np.random.default_rng(seed).normal(0, level, n), -0.9, 0.9)
    return (sound - sound.mean()).astype(np.float32)


def windows(*channels: np.ndarray, n_windows: int = 4) -> list[np.ndarray]:
    """One recording of these channels, cut into windows."""
    return np.array_split(np.stack(channels, axis=1), n_windows)


def delayed(sound: np.ndarray, samples: int) -> np.ndarray:
    return np.concatenate([np.zeros(samples, np.float32), sound[: len(sound) - samples]])


def of(*channels: np.ndarray) -> health.Health:
    return measure(windows(*channels), sample_rate_hz=RATE_HZ)


@settings(max_examples=30, deadline=None)
@given(
    n_channels=st.integers(1, 4),
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_each_number_is_that_of_its_definition(n_channels: int, lengths: list[int], seed: int) -> None:
    """Sample by sample, in Python."""
    draw = np.random.default_rng(seed)
    parts = [draw.choice([-1, -0.5, 0, 0.25, 1], (n, n_channels)).astype(np.float32) for n in lengths]
    measured = measure(parts, sample_rate_hz=100)
    total = sum(lengths)
    assert measured.sampled_s == pytest.approx(total / 100)
    for channel in range(n_channels):
        values = [float(x) for part in parts for x in part[:, channel]]
        assert measured.dc[channel] == pytest.approx(sum(values) / total, abs=1e-6)
        assert measured.zeros[channel] == pytest.approx(sum(x == 0 for x in values) / total)
        assert measured.clipped[channel] == pytest.approx(sum(abs(x) == 1 for x in values) / total)
        levels = []
        for part in parts:
            own = [float(x) for x in part[:, channel]]
            middle = sum(own) / len(own)
            levels.append(math.sqrt(sum((x - middle) ** 2 for x in own) / len(own)))
        expected = float(np.median(levels))
        level = measured.level_dbfs[channel]
        assert (
            expected == pytest.approx(0, abs=1e-6)
            if level is None
            else level == pytest.approx(20 * math.log10(expected), abs=1e-3)
        )


def slow_correlation(a: np.ndarray, b: np.ndarray, longest: int) -> tuple[float, int]:
    """Of two channels, lag by lag."""
    by_lag = {}
    for lag in range(-longest, longest + 1):
        pairs = [(a[k], b[k + lag]) for k in range(len(a)) if 0 <= k + lag < len(b)]
        by_lag[lag] = sum(float(x) * float(y) for x, y in pairs)
    norm = math.sqrt(float(a.astype(float) @ a) * float(b.astype(float) @ b))
    return by_lag[0] / norm, max(by_lag, key=lambda lag: abs(by_lag[lag]))


@pytest.mark.parametrize("lag", [-7, 0, 3, 16])
@pytest.mark.parametrize("sign", [1, -1])
def test_correlation_and_lag_are_those_of_a_sum_over_samples(lag: int, sign: int) -> None:
    rate_hz, sound = 1_000, noise(n=300)
    first, second = delayed(sound, max(0, -lag)), sign * delayed(sound, max(0, lag))
    both = np.stack([first, second])
    correlation, lag_ms = correlate([both], 0, 1, sample_rate_hz=rate_hz)
    expected, slow_lag = slow_correlation(first, second, 20)
    assert correlation == pytest.approx(expected, abs=1e-6)
    assert lag_ms == slow_lag == lag


def test_levels_are_decibels_of_full_scale_without_dc() -> None:
    sine = np.sin(2 * np.pi * 440 * np.arange(RATE_HZ) / RATE_HZ).astype(np.float32)
    assert of(0.5 * sine + 0.25).level_dbfs[0] == pytest.approx(20 * math.log10(0.5) - 3.01, abs=0.01)
    assert of(np.full(N, 0.3, np.float32)).level_dbfs == (None,)


SOUND, OTHER, SILENCE = noise(), noise(seed=1), np.zeros(N, np.float32)
HALF_SILENT = np.where(np.arange(N) < N // 2, SOUND, 0).astype(np.float32)
CLIPPED = np.clip(15 * SOUND, -1, 1)


@pytest.mark.parametrize(
    ("channels", "texts"),
    [
        ([SOUND], []),
        ([SOUND, SOUND], []),
        ([SOUND, OTHER], []),
        ([SOUND, 0.05 * SOUND], []),
        ([SOUND, SILENCE], ["channel 2 is dead"]),
        ([0.005 * OTHER, SOUND], ["channel 1 is dead"]),
        ([SOUND, SILENCE + 0.1], ["channel 2 is dead"]),
        ([SOUND, -SOUND], ["channel 2 is inverted (against channel 1)"]),
        ([SILENCE, -SOUND, SOUND], ["channel 1 is dead", "channel 3 is inverted (against channel 2)"]),
        ([SILENCE], ["digital silence"]),
        ([SILENCE, SILENCE], ["digital silence"]),
        ([HALF_SILENT], ["digital silence (in 2 of 4 windows)"]),
        ([HALF_SILENT, OTHER], ["channel 1 drops out (in 2 of 4 windows)"]),
        ([SOUND + 0.05], ["DC (+5.0% of full scale)"]),
        ([SOUND, OTHER - 0.05], ["channel 2 has DC (-5.0% of full scale)"]),
    ],
)
def test_faults_are_named(channels: list[np.ndarray], texts: list[str]) -> None:
    assert problems(of(*channels)) == texts


def test_clipping_is_named_with_its_share() -> None:
    share = float(np.mean(np.abs(CLIPPED) >= 0.9999))
    assert problems(of(CLIPPED)) == [f"clipped ({share:.2%} of its samples)"]
    assert problems(of(OTHER, CLIPPED)) == [f"channel 2 is clipped ({share:.2%} of its samples)"]
    one = SOUND.copy()
    one[100] = 1.0
    assert problems(measure(windows(np.tile(one, 6)), sample_rate_hz=RATE_HZ)) != [], "6 of 24,000"
    assert problems(measure(windows(np.concatenate([one, *[SOUND] * 5])), sample_rate_hz=RATE_HZ)) == [], "1 of 24,000"


AUTO = [
    ([SOUND], None),
    ([SOUND, SOUND], None),
    ([SOUND, SOUND + noise(seed=2, level=0.005)], None),
    ([SOUND, 0.97 * SOUND], None),
    ([SILENCE, SILENCE], None),
    ([SOUND, SILENCE], 1),
    ([SILENCE, SOUND], 2),
    ([SOUND, -SOUND], 1),
    ([SOUND, OTHER], 1),
    ([SOUND, delayed(SOUND, 1)], 1),
    ([SOUND, 0.7 * SOUND], 1),
    ([0.2 * SOUND, SOUND], 2),
    ([0.8 * SOUND, SOUND], 1),
    ([CLIPPED, 0.2 * SOUND], 2),
    ([HALF_SILENT, OTHER], 2),
    ([SOUND + 0.05, OTHER], 2),
    ([SILENCE, CLIPPED], 2),
    ([SILENCE, OTHER, -OTHER], 2),
]


@pytest.mark.parametrize(("channels", "heard"), AUTO)
def test_channels_are_averaged_only_where_they_are_alike(channels: list[np.ndarray], heard: int | None) -> None:
    assert heard_channels("auto", len(channels), of(*channels)) == [heard]


def test_a_delay_that_only_high_frequencies_show_is_seen() -> None:
    """Hum hides what a mean does to the sound above it: 0.1 ms take 4 kHz away where they are 0.05 of the power."""
    rate_hz, n = 40_000, 40_000
    hum = 0.3 * np.sin(2 * np.pi * 50 * np.arange(n) / rate_hz)
    hiss = noise(n=n, level=0.01)
    both = np.stack([hum + hiss, hum + delayed(hiss, 4)], axis=1).astype(np.float32)
    measured = measure([both], sample_rate_hz=rate_hz)
    assert measured.correlation[1] is not None
    assert measured.correlation[1] > 0.99
    assert heard_channels("auto", 2, measured) == [1]


@pytest.mark.parametrize(
    ("choice", "n_channels", "heard"),
    [
        ("first", 2, [1]),
        ("first", 1, [None]),
        ("mean", 3, [None]),
        ("each", 3, [1, 2, 3]),
        ("each", 1, [None]),
        ("loudest", 3, [2]),
        (3, 3, [3]),
        (1, 1, [1]),
        (3, 2, []),
    ],
)
def test_a_channel_that_is_asked_for_is_heard(choice: ChannelChoice, n_channels: int, heard: list[int | None]) -> None:
    channels = [0.1 * SOUND, OTHER, SILENCE][:n_channels]
    assert heard_channels(choice, n_channels, of(*channels)) == heard
    assert heard_channels("loudest", 3, None) == [1]
    assert heard_channels("auto", 3, None) == [None]


def test_the_mean_of_channels_that_are_alike_loses_little() -> None:
    """The bound of `auto`: whatever is averaged is within 1 dB of the louder channel."""
    for factor in np.linspace(0.5, 1, 51):
        channels = [SOUND, (factor * SOUND).astype(np.float32)]
        if heard_channels("auto", 2, of(*channels)) == [None]:
            own = max(np.sqrt(np.mean(np.square(channel))) for channel in channels)
            lost_db = 20 * math.log10(own / np.sqrt(np.mean(np.square(np.mean(channels, axis=0)))))
            assert lost_db < 1.0, factor


def test_the_name_of_a_channel_is_read_back() -> None:
    assert split_name(channel_name("week/20240506_070000.wav", 2)) == ("week/20240506_070000.wav", 2)
    assert split_name("week/a (channel 2).wav") == ("week/a (channel 2).wav", None)


def test_a_recording_that_is_far_from_the_level_of_its_recorder_is_named() -> None:
    levels = {f"{name}{k}": -30.0 + k for name in "ab" for k in range(4)} | {"a9": -10.0, "b9": -45.0}
    levels |= {"c0": -60.0, "c1": -10.0}
    recorders = {name: name[0] for name in levels}
    assert health.level_jumps(levels, recorders) == {
        "a9": "louder than usual (by 18 dB against the recorder's median)",
        "b9": "quieter than usual (by 16 dB against the recorder's median)",
    }


def test_bands_that_can_hold_no_energy_are_told() -> None:
    assert health.low_rate(20_000, 20_000) is None
    assert health.low_rate(16_000, 20_000) == (
        "sample rate too low (nothing above 8,000 Hz, where the model hears up to 10,000 Hz)"
    )


def test_faults_are_told_with_the_first_names() -> None:
    faults: Sequence[tuple[str, list[str]]] = [
        *((f"{k}.wav", ["channel 2 is dead"]) for k in range(5)),
        ("x.wav", ["channel 2 is dead", "clipped (1.00% of its samples)"]),
        ("y.wav", ["clipped (2.00% of its samples)"]),
    ]
    assert health.in_words(faults) == "channel 2 is dead (0.wav, 1.wav and 4 more); clipped (x.wav, y.wav)"
