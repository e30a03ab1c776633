"""Several detectors that err differently, as one: their scores, standardised and added.

Shape letters: M members, N normal clips, B clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from faithad.errors import ConfigError
from faithad.scoring.score import Detector


@dataclass(frozen=True)
class Ensemble:
    """Detectors with the mean and the deviation of their scores of normal clips. `fit_ensemble` makes it.

    Attributes:
        members: by name.
        means: (M,) float64.
        deviations: (M,) float64.
    """

    members: dict[str, Detector]
    means: Tensor
    deviations: Tensor

    def standardised(self, x: Tensor, clip_ids: Sequence[str], n_frames: Sequence[int] | None = None) -> Tensor:
        """The members' scores of clips, less their mean and by their deviation: (B, F, T) to (M, B) float64.

        Arguments as for `Detector.raw`.
        """
        scores = [member.calibrated(x, clip_ids, n_frames) for member in self.members.values()]
        return self.standardise(torch.stack(scores))

    def standardise(self, scores: Tensor) -> Tensor:
        """The same for scores (M, B) that are known."""
        return (scores - self.means[:, None]) / self.deviations[:, None]


def fit_ensemble(members: dict[str, Detector], normal_scores: Tensor) -> Ensemble:
    """Fit the means and deviations to the members' scores of normal clips, (M, N), of which the threshold is fitted.

    Raises:
        ConfigError: there is no member, or not one row of scores for each.
    """
    if not members or len(members) != len(normal_scores):
        raise ConfigError(f"An ensemble of {len(members)} members needs as many rows of scores: {len(normal_scores)}.")
    deviations = normal_scores.std(dim=1, correction=0)
    # A member whose scores are all alike says nothing, and must not be divided by 0.
    return Ensemble(members, normal_scores.mean(dim=1), deviations.where(deviations > 0, 1.0))


def add_up(standardised: Tensor) -> tuple[Tensor, Tensor]:
    """The score of the ensemble (B,), and the number of the member that raised it most (B,), from (M, B)."""
    return standardised.sum(dim=0), standardised.argmax(dim=0)
