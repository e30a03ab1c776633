"""What a score is compared with: rows of `CALIBRATIONS`.

    none    nothing: the score as it is.
    local   the scores of the normal clips that sound most alike. So a clip is judged as normal clips of its machine,
            state or microphone are, where one model serves several. Source: local-density score normalisation,
            Wilkinghoff et al. 2025, arXiv 2509.10951.

Shape letters: N normal clips, B clips, F mel bands, K = 15 neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from faithad.errors import StudyError
from faithad.model.fitted_score import MOST_NORMALS

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

NEIGHBOURS = 15
# Digital silence may have a score of 0, which has no logarithm.
_SMALLEST = 1e-30


@dataclass(frozen=True)
class NormalScores:
    """The scores of normal clips, and what they sound like.

    Attributes:
        scores: logarithms, (N,) float64.
        places: of each clip its mean spectrum, (N, F) float32; see `mean_spectrum`.
        recordings: a number for the recording of each clip, (N,) int64.
    """

    scores: Tensor
    places: Tensor
    recordings: Tensor

    def __post_init__(self) -> None:
        if not len(self.scores):
            raise StudyError("There are no normal clips to compare scores with.")

    def calibrated(self, scores: Tensor, places: Tensor, recordings: Tensor | None = None) -> Tensor:
        """The logarithm of s minus the mean one of the K nearest normal clips, in the shape of the scores, float64.

        Args:
            scores: s, (B,), or (W, B) of the windows of the clips, at least 0.
            places: mean spectra (B, F).
            recordings: the number of each clip's recording, whose normal clips are left out; None leaves none out.
        """
        own = [None] * len(places) if recordings is None else recordings
        nearest = [self._nearest(*pair) for pair in zip(places, own, strict=True)]
        return self._less_neighbours(_logarithms(scores), nearest)

    def of_themselves(self) -> Tensor:
        """The calibrated scores of the normal clips, (N,) float64, each without the clips of its own recording.

        Raises:
            StudyError: all clips come from one recording.
        """
        if len(self.recordings.unique()) < 2:
            raise StudyError(
                f"The {len(self.scores)} normal clips come from one recording, so that none can be compared with "
                "those of another. Give more recordings, or use the calibration 'none'."
            )
        pairs = zip(self.places, self.recordings, strict=True)
        return self._less_neighbours(self.scores, [self._nearest(*pair) for pair in pairs])

    def _nearest(self, place: Tensor, recording: Tensor | None) -> Tensor:
        """The numbers of the K normal clips nearest to a place (F,), fewer where there are fewer."""
        # One clip at a time: no sum depends on how many others there are.
        distances = (self.places.double() - place.double()).square().sum(dim=1)
        order = distances.argsort(stable=True)
        if recording is not None:
            order = order[self.recordings[order] != recording]
        return order[:NEIGHBOURS]

    def _less_neighbours(self, logarithms: Tensor, nearest: Sequence[Tensor]) -> Tensor:
        import torch

        return logarithms - torch.stack([self.scores[numbers].mean() for numbers in nearest])


def gather_normals(scores: Tensor, places: Tensor, recordings: Sequence[str], *, seed: int = 0) -> NormalScores:
    """The normal clips that scores are compared with: all, or a random sample of `MOST_NORMALS`.

    Args:
        scores: (N,), at least 0.
        places: mean spectra (N, F).
        recordings: the name of each clip's recording, N of them.
        seed: of the sample.

    Raises:
        StudyError: there are no clips.
    """
    import numpy as np
    import torch

    numbers = torch.from_numpy(choose_normals(len(scores), seed=seed))
    _, codes = np.unique(np.asarray(recordings, dtype=str), return_inverse=True)
    return NormalScores(_logarithms(scores)[numbers], places[numbers].float(), torch.from_numpy(codes).long()[numbers])


def choose_normals(n: int, *, seed: int = 0) -> np.ndarray:
    """The numbers of the normal clips that scores are compared with: all n, or `MOST_NORMALS` at random, in order."""
    import numpy as np

    if n <= MOST_NORMALS:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, MOST_NORMALS, replace=False, shuffle=False))


class Calibration(NamedTuple):
    """What a score is compared with. A new calibration is a row of `CALIBRATIONS`.

    Attributes:
        title: in reports.
        fit: (scores (N,), mean spectra (N, F), recordings) of normal clips to what calibrates scores; None if it fits
            nothing and leaves scores as they are.
    """

    title: str
    fit: Callable[[Tensor, Tensor, Sequence[str]], NormalScores] | None


CALIBRATIONS = {
    "none": Calibration("as they are", None),
    "local": Calibration("against normal clips that sound alike", gather_normals),
}


def mean_spectrum(x: Tensor) -> Tensor:
    """What a clip sounds like: the mean over time of the model's input, (B, F, T) to (B, F)."""
    # With its level. By shape alone, less the mean over bands, as many normal field recordings alarm at gains of -12 to
    # +12 dB, but the area at no gain falls from 0.88 to 0.83.
    return x.mean(dim=-1)


def _logarithms(scores: Tensor) -> Tensor:
    return scores.double().clamp(min=_SMALLEST).log()
