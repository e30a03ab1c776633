"""What the training clips of a model sounded like, to recognise a recording of another microphone, gain or channel; and
some of these clips, where the paths of the path methods may begin.

A clip is described by its mean spectrum: the mean level of each mel band over its frames, in decibels. Its difference
from a training clip is the median over the bands of the differences in level, so a sound that changes less than half of
the bands (a tone, a squeak, most faults) does not count, but another gain or another microphone does. Its difference
from the training is that from the nearest training clip.

Shape letters: N training clips, M validation clips, F mel bands, T frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from faithad.settings import FeatureSettings

# Spectra that are kept with a model: 80 kB of 80 bands, and half a millisecond for each clip that is scored.
MOST_CLIPS = 256
# Whole clips that are kept with a model, of 128 kB each where they have 80 bands and 400 frames. They take 16 MiB at
# most, or one clip does.
_MOST_NORMALS, _MOST_NORMAL_CELLS = 16, 1 << 22
# Validation clips are normal. What differs twice as much as nineteen in twenty of them is outside: a single odd clip
# among them, such as one of silence, must not let everything fit.
_SHARE_OF_VALIDATION, _TIMES_VALIDATION = 0.95, 2.0
# Recordings of one even machine differ by less, so that any change of the weather would be outside.
_LEAST_LIMIT_DB = 1.0


class Difference(NamedTuple):
    """The difference of a clip from the nearest training clip, in decibels: medians over the mel bands.

    `spectrum_db` is that of the absolute differences, `level_db` that of the differences: above 0 where it is louder.
    """

    spectrum_db: float
    level_db: float


@dataclass(frozen=True, eq=False)
class TrainingSound:
    """The mean spectra of some training clips.

    Attributes:
        spectra: (N, F) float32, in decibels; N is at most `MOST_CLIPS`.
        limit_db: a clip whose spectrum differs by more than this sounds like no training clip.
    """

    spectra: Tensor
    limit_db: float

    @classmethod
    def fit(cls, train: Tensor, validation: Tensor) -> TrainingSound:
        """From the mean spectra of training clips (N, F) and of validation clips (M, F)."""
        sound = cls(train, 0.0)
        differences = torch.tensor([sound.difference(spectrum).spectrum_db for spectrum in validation])
        usual_db = float(differences.quantile(_SHARE_OF_VALIDATION))
        return cls(train, max(_LEAST_LIMIT_DB, _TIMES_VALIDATION * usual_db))

    def difference(self, spectrum: Tensor) -> Difference:
        """The difference of a clip's mean spectrum (F,) from the nearest one of the training."""
        differences = spectrum - self.spectra
        distances = differences.abs().median(dim=1).values
        nearest = int(distances.argmin())
        return Difference(float(distances[nearest]), float(differences[nearest].median()))


def mean_spectrum(log_mel: Tensor, features: FeatureSettings) -> Tensor:
    """The mean level of each band over the frames, in decibels: features (..., F, T) in their own unit to (..., F)."""
    mean = log_mel.mean(dim=-1)
    return mean if features.scale == "db" else 10.0 * mean


def median_spectrum(log_mel: Tensor, features: FeatureSettings) -> Tensor:
    """The median level of each band over the frames, in decibels: (F, T) to (F,)."""
    median = log_mel.median(dim=-1).values
    return median if features.scale == "db" else 10.0 * median


def mean_spectra(clips: Iterable[Tensor], features: FeatureSettings) -> Tensor:
    """The mean spectra (n, F) of the first `MOST_CLIPS` of some clips, which come in batches (b, F, T)."""
    spectra: list[Tensor] = []
    for batch in clips:
        spectra += mean_spectrum(batch, features)
        if len(spectra) >= MOST_CLIPS:
            break
    return torch.stack(spectra[:MOST_CLIPS])


def most_normals(n_mels: int, n_frames: int) -> int:
    """How many training clips (F, T) a model keeps."""
    return max(1, min(_MOST_NORMALS, _MOST_NORMAL_CELLS // (n_mels * n_frames)))


def first_normals(clips: Iterable[Tensor]) -> Tensor:
    """The clips (N, F, T) that a model keeps: the first ones of all, which come in batches (b, F, T)."""
    kept: list[Tensor] = []
    for batch in clips:
        kept += batch
        if len(kept) >= most_normals(*batch.shape[1:]):
            return torch.stack(kept[: most_normals(*batch.shape[1:])])
    return torch.stack(kept)
