"""The proxy task: what disturbances do to a spectrogram, and what the task says of good and bad detectors."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from faithad.clips.recordings import read_clip
from faithad.demo.mill import synthesize
from faithad.errors import StudyError
from faithad.evaluation.disturbances import KINDS, PROXY_KINDS, disturb, disturbed_clips, proxy_auc
from faithad.features import log_mel
from faithad.settings import FeatureSettings

FEATURES = FeatureSettings(n_fft=2000, hop_samples=1000, n_mels=32)

repeatable = settings(max_examples=25, deadline=None, derandomize=True)
any_kind = pytest.mark.parametrize("kind", KINDS)


def noise(seed: int, n_clips: int = 1, spread_db: float = 3.0) -> np.ndarray:
    """Log-mels of noise that gets weaker with the frequency, (n, F, T)."""
    shape = (n_clips, FEATURES.n_mels, FEATURES.n_frames)
    slope = np.linspace(10, -20, FEATURES.n_mels)[:, None]
    levels = slope + np.random.default_rng(seed).normal(0, spread_db, shape)
    return levels.astype(np.float32)


def one(
    log_mel: np.ndarray, kind: str, *, features: FeatureSettings = FEATURES, seed: int = 0, clip_id: str = "a"
) -> np.ndarray:
    return disturb(log_mel, kind, settings=features, seed=seed, clip_id=clip_id)


@any_kind
@repeatable
@given(clip=st.integers(0, 2**31), seed=st.integers(0, 2**31))
def test_power_is_added_and_never_taken_but_by_drops(kind: str, clip: int, seed: int) -> None:
    before = noise(clip)[0]
    after = one(before, kind, seed=seed)
    assert after.shape == before.shape
    assert after.dtype == np.float32
    assert np.isfinite(after).all()
    change = after - before
    sign = -1 if kind in ("level_drop", "drop_out") else 1
    assert (sign * change > -1e-4).all()
    assert (sign * change).max() > 0.1


@any_kind
@repeatable
@given(clip=st.integers(0, 2**31), gain_db=st.floats(-60, 60))
def test_a_recording_level_makes_the_task_neither_easier_nor_harder(kind: str, clip: int, gain_db: float) -> None:
    before = noise(clip)[0].astype(np.float64)
    louder = one(before + gain_db, kind) - gain_db
    np.testing.assert_allclose(louder, one(before, kind), atol=2e-4)


@any_kind
def test_both_scales_of_features_hear_the_same_disturbance(kind: str) -> None:
    before = noise(1)[0]
    in_log10 = one(before / 10, kind, features=replace(FEATURES, scale="log10"))
    np.testing.assert_allclose(in_log10 * 10, one(before, kind), atol=1e-4)


def test_a_tone_is_a_line_and_adds_as_power() -> None:
    """Loud or quiet, 10^(x/10) of each of its frames grows by as much."""
    alternating = np.tile(np.where(np.arange(FEATURES.n_frames) % 2, -96.0, -104.0), (FEATURES.n_mels, 1))
    after = one(alternating, "tone")
    added = 10 ** (after / 10.0) - 10 ** (alternating / 10.0)
    bands, frames = np.nonzero(added > 1e-3 * added.max())
    assert len(set(bands)) <= 3
    assert len(frames) == len(set(bands)) * len(set(frames))
    lasts_s = len(set(frames)) / FEATURES.frames_per_s
    assert 0.9 <= lasts_s <= 4.1
    for band in set(bands):
        power = added[band, sorted(set(frames))]
        np.testing.assert_allclose(power, power.mean(), rtol=1e-2)


def test_kinds_differ_in_where_they_are() -> None:
    changed = {kind: np.abs(one(noise(5)[0], kind) - noise(5)[0]) > 0.5 for kind in KINDS}
    assert all(cells.any() for cells in changed.values())
    bands, frames = ({kind: cells.any(axis=axis) for kind, cells in changed.items()} for axis in (1, 0))
    assert bands["impact"].mean() > 0.9
    assert bands["level_drop"].all()
    assert frames["level_drop"].sum() <= 2.1 * FEATURES.frames_per_s
    assert bands["band_noise"].mean() < 0.3
    assert not bands["rattle"][: FEATURES.n_mels // 4].any()
    # Blows with pauses between them.
    runs = np.flatnonzero(np.diff(frames["rattle"].astype(int)) == 1)
    assert len(runs) >= 3
    # A step lasts to the end, a gap is short, and rubbing swells again and again.
    onset = int(np.flatnonzero(frames["level_step"])[0])
    assert frames["level_step"][onset:].all()
    assert FEATURES.n_frames // 4 <= onset <= 3 * FEATURES.n_frames // 4
    assert 1 <= frames["drop_out"].sum() <= 0.5 * FEATURES.frames_per_s + 1
    assert frames["rubbing"].sum() > FEATURES.frames_per_s


@repeatable
@given(seed=st.integers(0, 2**31))
def test_what_is_drawn_depends_on_seed_clip_and_kind_alone(seed: int) -> None:
    clips = noise(seed, 4)
    ids = ["a", "b", "c", "d"]
    made = disturbed_clips(clips, ids, settings=FEATURES, seed=seed)
    again = disturbed_clips(clips[::-1], ids[::-1], settings=FEATURES, seed=seed)

    def by_clip(
        found: np.ndarray, sources: np.ndarray, kinds: list[str], names: list[str]
    ) -> dict[tuple[str, str], bytes]:
        return {(names[s], kind): x.tobytes() for x, s, kind in zip(found, sources, kinds, strict=True)}

    assert by_clip(*made, ids) == by_clip(*again, ids[::-1])
    assert len({x.tobytes() for x in made.log_mels}) == 20
    # The same clip under another name, or for another seed, is disturbed otherwise.
    assert not np.array_equal(one(clips[0], "tone", clip_id="a"), one(clips[0], "tone", clip_id="b"))
    assert not np.array_equal(one(clips[0], "tone", seed=0), one(clips[0], "tone", seed=1))


def test_many_clips_get_one_kind_each_and_few_get_all() -> None:
    few = disturbed_clips(noise(0, 3), list("abc"), settings=FEATURES, seed=0)
    assert Counter(few.kinds) == dict.fromkeys(PROXY_KINDS, 3)
    assert Counter(few.sources.tolist()) == dict.fromkeys(range(3), 5)
    short = FeatureSettings(clip_s=1.0, n_fft=2000, hop_samples=1000, n_mels=16)
    clips = np.zeros((250, 16, short.n_frames), dtype=np.float32)
    many = disturbed_clips(clips, [f"{n}" for n in range(250)], settings=short, seed=0)
    assert len(many.log_mels) == 250
    assert Counter(many.kinds) == dict.fromkeys(PROXY_KINDS, 50)
    every = disturbed_clips(noise(0, 3), list("abc"), settings=FEATURES, seed=0, kinds=KINDS)
    assert Counter(every.kinds) == dict.fromkeys(KINDS, 3)
    # The clips of the kinds that both tasks have are the same.
    of_few = {few.log_mels[k].tobytes() for k in range(15)}
    assert of_few < {clip.tobytes() for clip in every.log_mels}


def test_silence_and_single_frames_are_disturbed_as_well() -> None:
    for kind in KINDS:
        silence = np.full((16, 21), -100.0)
        after = disturb(silence, kind, settings=FEATURES, seed=0, clip_id="a")
        assert np.isfinite(after).all()
        assert not np.array_equal(after, silence)


def test_no_clips_and_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(StudyError, match="no validation clips"):
        disturbed_clips(np.zeros((0, 16, 20)), [], settings=FEATURES, seed=0)
    with pytest.raises(StudyError, match="1 of 3 anomaly scores of the proxy task"):
        proxy_auc([0.0], [1.0, float("nan")])


def test_a_detector_that_knows_the_machine_beats_one_that_does_not(tmp_path: Path) -> None:
    """On sounds of the demo mill, with a linear autoencoder: the task is neither lost nor won from the start."""
    mill = synthesize(
        tmp_path, train_recordings=4, test_recordings=2, seed=1, start=datetime(2019, 12, 4, 8, 48), recording_s=60.0
    )
    files = sorted((tmp_path / "train").glob("*.wav"))
    assert mill.n_events
    clips = np.concatenate([clips_of(file) for file in files])
    train, validation = clips[:18], clips[18:]
    mean, std = train.mean(axis=(0, 2)), train.std(axis=(0, 2))

    def normalised(x: np.ndarray) -> np.ndarray:
        """Frames as rows: (n T, F)."""
        return ((x - mean[:, None]) / std[:, None]).transpose(0, 2, 1).reshape(-1, x.shape[1])

    _, _, axes = np.linalg.svd(normalised(train), full_matrices=False)
    made = disturbed_clips(validation, [f"{n}" for n in range(len(validation))], settings=FEATURES, seed=0)

    def area(rank: int) -> float:
        kept = axes[:rank].T @ axes[:rank]

        def scores(x: np.ndarray) -> np.ndarray:
            frames = normalised(x)
            return ((frames - frames @ kept) ** 2).mean(axis=1).reshape(len(x), -1).mean(axis=1)

        return proxy_auc(scores(validation), scores(made.log_mels))

    assert 0.55 < area(8) < 0.98
    # One that copies its input sees nothing; rounding aside, all of its scores are zero.
    everything = np.zeros(len(validation)), np.zeros(len(made.log_mels))
    assert proxy_auc(*everything) == 0.5


def clips_of(file: Path) -> np.ndarray:
    """The clips of a recording of one minute, (6, F, T)."""
    sounds = [
        read_clip(str(file), onset_s=10.0 * n, duration_s=10.0, clip_s=10.0, sample_rate_hz=FEATURES.sample_rate_hz)
        for n in range(6)
    ]
    found: np.ndarray = log_mel(torch.from_numpy(np.stack(sounds)), FEATURES).numpy()
    return found
