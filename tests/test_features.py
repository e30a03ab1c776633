"""Features against the definition, term by term, in NumPy and float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from faithad.errors import ConfigError, RecordingError, StudyError
from faithad.features import Normalization, fill_up, log_mel, recording_spectrum
from faithad.pipelines.shards.log_mels import read_log_mel
from faithad.settings import FeatureSettings

PLANER = FeatureSettings()
DCASE = FeatureSettings(sample_rate_hz=16_000, n_fft=1_024, hop_samples=512, n_mels=128, scale="log10")


def tones_in_noise(n_clips: int, n_samples: int, *, sample_rate_hz: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    t = np.arange(n_samples) / sample_rate_hz
    frequencies = random.uniform(60, sample_rate_hz / 2.2, size=(n_clips, 3, 1))
    tones = np.sin(2 * np.pi * frequencies * t).sum(axis=1)
    return (0.1 * tones + 0.02 * random.standard_normal((n_clips, n_samples))).astype(np.float32)


def log_mel_by_definition(waveform: np.ndarray, settings: FeatureSettings) -> np.ndarray:
    """One waveform (samples,) to (F, T): each frame's spectrum as a sum of exponentials, each band as a triangle."""
    n, hop = settings.n_fft, settings.hop_samples
    padded = np.pad(waveform.astype(np.float64), n // 2, mode="reflect")
    n_frames = 1 + len(waveform) // hop
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)
    frames = np.stack([padded[i * hop : i * hop + n] * hann for i in range(n_frames)], axis=1)
    bins = np.arange(n // 2 + 1)
    power = np.abs(np.exp(-2j * np.pi * np.outer(bins, np.arange(n)) / n) @ frames) ** 2

    def mel(hz: float) -> float:
        return 2595 * np.log10(1 + hz / 700)

    edges_hz = 700 * (10 ** (np.linspace(0, mel(settings.sample_rate_hz / 2), settings.n_mels + 2) / 2595) - 1)
    bins_hz = bins * settings.sample_rate_hz / n
    bands = np.empty((settings.n_mels, n_frames))
    for band in range(settings.n_mels):
        left, centre, right = edges_hz[band : band + 3]
        rising, falling = (bins_hz - left) / (centre - left), (right - bins_hz) / (right - centre)
        bands[band] = np.clip(np.minimum(rising, falling), 0, None) @ power
    return np.log10(bands + 1e-10) * (10 if settings.scale == "db" else 1)


@pytest.mark.parametrize("settings", [PLANER, DCASE], ids=["planer", "dcase"])
def test_log_mel_is_the_definition(settings: FeatureSettings) -> None:
    waveform = tones_in_noise(1, settings.sample_rate_hz // 2, sample_rate_hz=settings.sample_rate_hz)
    found = log_mel(torch.from_numpy(waveform), settings)[0].numpy()
    expected = log_mel_by_definition(waveform[0], settings)
    # float32 against float64; the quietest cells lie 60 dB below the loudest of their frame
    np.testing.assert_allclose(found, expected, atol=2e-3 if settings.scale == "db" else 2e-4, rtol=0)


def test_a_clip_of_10_s_has_401_frames_of_25_ms() -> None:
    assert (PLANER.n_frames, PLANER.frames_per_s, PLANER.clip_samples) == (401, 40.0, 200_000)
    assert log_mel(torch.zeros(1, PLANER.clip_samples), PLANER).shape == (1, 80, 401)


def test_a_dcase_clip_has_313_frames() -> None:
    assert (DCASE.n_frames, DCASE.frames_per_s) == (313, 31.25)
    assert log_mel(torch.zeros(1, DCASE.clip_samples), DCASE).shape == (1, 128, 313)


@pytest.mark.parametrize(("settings", "level"), [(PLANER, -100.0), (DCASE, -10.0)])
def test_silence_is_the_floor_exactly(settings: FeatureSettings, level: float) -> None:
    assert (log_mel(torch.zeros(2, settings.clip_samples), settings) == level).all()


def test_a_clip_is_the_same_alone_and_in_a_batch() -> None:
    waveforms = torch.from_numpy(tones_in_noise(5, PLANER.clip_samples, sample_rate_hz=20_000, seed=1))
    batch = log_mel(waveforms, PLANER)
    for i, waveform in enumerate(waveforms):
        # Decibels: the last digit of a power in float32 is 5e-7 of them, and sums are of another order on more threads.
        torch.testing.assert_close(log_mel(waveform[None], PLANER)[0], batch[i], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("n_threads", [2, 3])
def test_a_clip_is_the_same_with_any_number_of_threads(n_threads: int) -> None:
    clips = torch.from_numpy(tones_in_noise(3, 200_000, sample_rate_hz=20_000))
    before, expected = torch.get_num_threads(), []
    try:
        torch.set_num_threads(1)
        expected = [log_mel(clip[None], PLANER) for clip in clips]
        torch.set_num_threads(n_threads)
        assert torch.equal(log_mel(clips, PLANER), torch.cat(expected))
        assert all(torch.equal(log_mel(clip[None], PLANER), one) for clip, one in zip(clips, expected, strict=True))
        assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(before)


def test_samples_in_double_precision_give_float32_features() -> None:
    assert log_mel(torch.zeros(1, 4_000, dtype=torch.float64), PLANER).dtype == torch.float32


def test_an_event_stands_in_its_own_frames() -> None:
    waveform = torch.zeros(1, PLANER.clip_samples)
    waveform[0, 60_000:80_000] = torch.from_numpy(tones_in_noise(1, 20_000, sample_rate_hz=20_000)[0])
    loud = log_mel(waveform, PLANER)[0].mean(dim=0) > -100
    # seconds 3 to 4 are frames 120 to 160; a window reaches half of itself, one hop, further
    assert loud[120:161].all()
    assert not loud[:119].any()
    assert not loud[162:].any()


@pytest.mark.parametrize("shape", [(20_000,), (1, 1, 20_000), (1, 500), (1, 0)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(RecordingError, match="needed is"):
        log_mel(torch.zeros(shape), PLANER)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("hop_samples", 0), ("n_mels", -1), ("sample_rate_hz", 0), ("clip_s", float("nan")), ("clip_s", 0.02)],
)
def test_impossible_settings_are_refused(setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=setting):
        FeatureSettings(**{setting: value})


def test_an_unknown_scale_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'ln'.*'db', 'log10'"):
        FeatureSettings(scale="ln")  # type: ignore[arg-type]


def test_normalization_is_that_of_all_frames_of_each_band() -> None:
    spectrograms = np.random.default_rng(0).normal(-60, 12, size=(7, 4, 30)).astype(np.float32)
    fitted = Normalization.fit(spectrograms)
    np.testing.assert_allclose(fitted.mean, spectrograms.astype(np.float64).mean(axis=(0, 2)), rtol=1e-6)
    np.testing.assert_allclose(fitted.std, spectrograms.astype(np.float64).std(axis=(0, 2)), rtol=1e-6)
    normalised = fitted.apply(torch.from_numpy(spectrograms))
    np.testing.assert_allclose(normalised.mean(dim=(0, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(normalised.std(dim=(0, 2), correction=0), 1, atol=1e-5)
    torch.testing.assert_close(fitted.invert(normalised), torch.from_numpy(spectrograms), rtol=1e-6, atol=1e-5)


def test_normalization_does_not_depend_on_how_the_clips_come() -> None:
    spectrograms = torch.randn(9, 3, 20, generator=torch.Generator().manual_seed(0)) * 5 - 40
    whole = Normalization.fit(spectrograms)
    read_only = spectrograms.numpy().copy()
    read_only.flags.writeable = False
    for ways in (spectrograms.split(4), list(read_only), iter([spectrograms])):
        other = Normalization.fit(ways)
        torch.testing.assert_close(other.mean, whole.mean, rtol=1e-7, atol=0)
        torch.testing.assert_close(other.std, whole.std, rtol=1e-6, atol=0)


def test_a_band_without_variation_is_not_blown_up() -> None:
    fitted = Normalization.fit(np.full((2, 3, 10), -100.0))
    np.testing.assert_allclose(fitted.std, 1e-3)
    assert (fitted.apply(torch.full((3, 10), -100.0)) == 0).all()


def test_the_identity_changes_nothing() -> None:
    x = torch.randn(2, 5, 8)
    assert torch.equal(Normalization.identity(5).apply(x), x)


@pytest.mark.parametrize("nothing", [[], np.empty((0, 80, 401))])
def test_normalization_of_nothing_is_refused(nothing: object) -> None:
    with pytest.raises(StudyError, match="no spectrograms"):
        Normalization.fit(nothing)  # type: ignore[arg-type]


# --- short clips ------------------------------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True)
@given(n=st.integers(1, 60), more=st.integers(0, 200))
def test_a_short_clip_is_filled_with_its_own_frames_there_and_back(n: int, more: int) -> None:
    piece = torch.randn(3, n, generator=torch.Generator().manual_seed(n))
    filled = fill_up(piece, n + more)
    place, step, expected = 0, 1, []
    for _ in range(n + more):
        expected.append(place)
        if not 0 <= place + step < n:
            step = -step
        place = min(max(place + step, 0), n - 1)
    assert torch.equal(filled, piece[:, expected])
    assert (filled is piece) == (more == 0)


@pytest.mark.parametrize("length_s", [1.0, 2.345, 9.9])
def test_the_frames_of_a_short_clip_are_those_of_its_sound_alone(tmp_path: Path, length_s: float) -> None:
    features = FeatureSettings()
    sound = np.random.default_rng(0).normal(0, 0.1, round(length_s * 20_000)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", sound, 20_000, subtype="FLOAT")
    clip = {"uri": str(tmp_path / "a.wav"), "onset_s": 0.0, "duration_s": length_s, "channel": None}
    found, own = read_log_mel(clip, features), log_mel(torch.from_numpy(sound)[None], features)[0].numpy()
    n = 1 + len(sound) // 500
    assert features.frames_in(length_s) == n == own.shape[1]
    assert found.shape == (80, 401)
    np.testing.assert_array_equal(found[:, :n], own)
    np.testing.assert_array_equal(found[:, n : 2 * n - 1], own[:, -2::-1][:, : 401 - n])


def test_frames_that_hold_sound_are_counted_without_rounding() -> None:
    features = FeatureSettings()
    assert [features.frames_in(length_s) for length_s in (1.0, 5.0, 9.974, 9.975, 10.0, 12.0)] == [
        41, 201, 399, 400, 401, 401,
    ]  # fmt: skip
    for k in range(1, 400):
        assert features.frames_in(sum([0.025] * k)) == features.frames_in(k / 40) == k + 1
    assert FeatureSettings(clip_s=3.33).frames_in(3.33) == FeatureSettings(clip_s=3.33).n_frames


# --- spectra of recordings --------------------------------------------------------------------------------------------

COARSE = FeatureSettings(sample_rate_hz=1_000, n_fft=100, hop_samples=50, n_mels=16)


@pytest.mark.parametrize(
    ("length_s", "onsets_s"),
    [
        (23.5, [0, 10, 13.5]),  # the last clip ends with the recording
        (120.0, range(0, 120, 10)),
        (301.0, [0, 20, 50, 80, 100, 130, 160, 190, 210, 240, 270, 291]),  # 12 of 31 clips: k x 30 / 11, rounded down
        (4.0, None),  # as a model takes it in: there and back
    ],
)
def test_the_spectrum_of_a_recording_is_the_median_over_its_clips(
    tmp_path: Path, length_s: float, onsets_s: list[float] | None
) -> None:
    generator = np.random.default_rng(0)
    sound = generator.normal(0, 0.1, round(length_s * 1_000)) * np.linspace(0.1, 1, round(length_s * 1_000))
    soundfile.write(tmp_path / "a.wav", np.stack([sound, 0 * sound], axis=1), 1_000, subtype="FLOAT")
    if onsets_s is None:
        frames = log_mel_by_definition(sound, COARSE)
        frames = np.concatenate([frames, frames[:, -2::-1], frames[:, 1:41]], axis=1)
    else:
        starts = [round(onset_s * 1_000) for onset_s in onsets_s]
        frames = np.hstack([log_mel_by_definition(sound[start : start + 10_000], COARSE) for start in starts])
    found = recording_spectrum(str(tmp_path / "a.wav"), channel=1, settings=COARSE).numpy()
    assert found.shape == (16,)
    np.testing.assert_allclose(found, np.median(frames, axis=1), atol=2e-3)
    if length_s <= 10:
        clip = read_log_mel({"uri": str(tmp_path / "a.wav"), "onset_s": 0, "duration_s": 4.0, "channel": 1}, COARSE)
        np.testing.assert_array_equal(found, np.median(clip, axis=1))


def test_what_is_no_sound_does_not_count_for_the_spectrum_of_a_recording(tmp_path: Path) -> None:
    sound = np.random.default_rng(0).normal(0, 0.1, 30_000).astype(np.float32)
    whole, damaged = (str(tmp_path / name) for name in ("whole.wav", "damaged.wav"))
    soundfile.write(whole, np.concatenate([sound[:10_000], sound[20_000:]]), 1_000, subtype="FLOAT")
    sound[15_000] = np.nan
    soundfile.write(damaged, sound, 1_000, subtype="FLOAT")
    expected = recording_spectrum(whole, channel=None, settings=COARSE)
    assert torch.equal(recording_spectrum(damaged, channel=None, settings=COARSE), expected)
    soundfile.write(damaged, np.full(30_000, np.nan), 1_000, subtype="FLOAT")
    with pytest.raises(RecordingError, match=r"damaged\.wav holds NaN"):
        recording_spectrum(damaged, channel=None, settings=COARSE)
    with pytest.raises(RecordingError, match="does not exist"):
        recording_spectrum(str(tmp_path / "gone.wav"), channel=None, settings=COARSE)


def test_the_gain_of_a_recording_vanishes_and_comes_back() -> None:
    normalization = Normalization(mean=torch.full((16,), -50.0), std=torch.full((16,), 7.0))
    log_mels, spectrum = torch.randn(3, 16, 41) * 5 - 60, torch.randn(3, 16) - 60
    x = normalization.apply(log_mels, spectrum)
    torch.testing.assert_close(normalization.apply(log_mels + 12, spectrum + 12), x, rtol=0, atol=1e-5)
    torch.testing.assert_close(normalization.invert(x, spectrum), log_mels)
    offsets = normalization.offsets(spectrum)
    assert offsets is not None
    torch.testing.assert_close(x + offsets[..., None], normalization.apply(log_mels))
