"""How far a clip is from the training: medians over the mel bands, against a slow re-implementation."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import torch
from torch import Tensor

from faithad.errors import CheckpointError
from faithad.model.checkpoint import load_model, save_model
from faithad.model.training_sound import (
    MOST_CLIPS,
    TrainingSound,
    first_normals,
    mean_spectra,
    mean_spectrum,
    most_normals,
)
from faithad.settings import FeatureSettings
from tests.model.test_checkpoint import trained

F = 15  # odd: the median is one of the values


def spectra(n: int, seed: int = 0, n_mels: int = F) -> Tensor:
    return torch.randn(n, n_mels, generator=torch.Generator().manual_seed(seed)) * 4 - 50


def test_the_difference_is_that_from_the_nearest_clip() -> None:
    known, clip = spectra(7), spectra(1, seed=1)[0]
    apart = [[float(a - b) for a, b in zip(clip, spectrum, strict=True)] for spectrum in known]
    nearest = min(apart, key=lambda row: statistics.median(map(abs, row)))
    difference = TrainingSound(known, 1.0).difference(clip)
    assert difference.spectrum_db == pytest.approx(statistics.median(map(abs, nearest)))
    assert difference.level_db == pytest.approx(statistics.median(nearest))


@pytest.mark.parametrize("gain_db", [-12.0, 12.0])
def test_a_gain_counts_whole_and_a_change_of_less_than_half_the_bands_does_not(gain_db: float) -> None:
    known = spectra(1)
    sound = TrainingSound(known, 1.0)
    assert sound.difference(known[0] + gain_db) == pytest.approx((12.0, gain_db), abs=1e-4)
    fault = known[0].clone()
    fault[: F // 2] += 40.0
    assert sound.difference(fault) == (0.0, 0.0)


def test_twice_what_nineteen_in_twenty_validation_clips_differ_is_allowed_and_a_decibel_at_least() -> None:
    known, validation = spectra(7), spectra(21, seed=2)
    validation[20] = -100.0  # one clip is silent
    sound = TrainingSound(known, 0.0)
    differences = sorted(sound.difference(spectrum).spectrum_db for spectrum in validation)
    assert differences[20] > 3 * differences[19]
    assert TrainingSound.fit(known, validation).limit_db == pytest.approx(2 * differences[19])
    assert TrainingSound.fit(known, known).limit_db == 1.0


def test_spectra_are_means_over_time_in_decibels_of_the_first_clips() -> None:
    batches = [torch.full((200, 3, 5), float(number)) for number in range(4)]
    for scale, unit in (("db", 1.0), ("log10", 10.0)):
        features = FeatureSettings(scale=scale, n_mels=3)  # type: ignore[arg-type]
        means = mean_spectra(batches, features)
        assert means.shape == (MOST_CLIPS, 3)
        assert means[:, 0].tolist() == [unit * (number // 200) for number in range(MOST_CLIPS)]
        assert torch.equal(mean_spectrum(batches[2], features), torch.full((200, 3), 2 * unit))


def test_it_is_stored_with_the_model(tmp_path: Path) -> None:
    sound = TrainingSound(spectra(5, n_mels=16), 2.3)
    save_model(trained(sound=sound), str(tmp_path))
    loaded = load_model(str(tmp_path)).sound
    assert loaded is not None
    assert torch.equal(loaded.spectra, sound.spectra)
    assert loaded.limit_db == 2.3
    save_model(trained(), str(tmp_path))
    assert load_model(str(tmp_path)).sound is None


@pytest.mark.parametrize("shape", [(5, 17), (0, 16), (MOST_CLIPS + 1, 16), (16,)])
def test_spectra_of_another_shape_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    save_model(trained(sound=TrainingSound(torch.zeros(shape), 1.0)), str(tmp_path))
    with pytest.raises(CheckpointError, match=r"sound\.spectra is .* instead of \(clips, 16\)"):
        load_model(str(tmp_path))


def test_the_first_clips_are_kept_and_16_mib_at_most() -> None:
    batches = [torch.full((10, 3, 5), float(number)) for number in range(4)]
    kept = first_normals(batches)
    assert kept.shape == (16, 3, 5)
    assert kept[:, 0, 0].tolist() == 10 * [0.0] + 6 * [1.0]
    assert len(first_normals(batches[:1])) == 10
    assert [most_normals(*shape) for shape in ((80, 401), (128, 10_000), (512, 30_000))] == [16, 3, 1]


@pytest.mark.parametrize("shape", [(3, 16, 39), (0, 16, 40), (17, 16, 40), (16, 40)])
def test_normals_of_another_shape_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    save_model(trained(normals=torch.zeros(shape)), str(tmp_path))
    with pytest.raises(CheckpointError, match=r"normals\.clips is .* instead of \(1 to 16, 16, 40\)"):
        load_model(str(tmp_path))
