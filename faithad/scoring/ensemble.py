"""Several detectors that err differently, as one: their scores, standardised and added.

Members that cost much need not score every clip. With `Rescoring` the linear members score all clips. The other members
score only the clips whose sum of linear scores exceeds a threshold that a set share of normal clips exceeds; no other
clip can alarm. This concerns whole clips: short ones have thresholds of their own, and all members always score them.

The promised rate of false alarms holds as it does without rescoring, although all members score few normal clips. Let t
be the k-th smallest of the n normal clips' first scores c, and let a clip with c <= t have the final score -inf. If a
further normal clip is above t, then t is also the k-th smallest of all n + 1, so that their final scores treat all n +
1 alike: the further one is as likely to have any of their ranks, and exceeds the r-th smallest with a probability of (n
+ 1 - r) / (n + 1), where r >= k + 1 leaves ties out of it. If it is not above t, it does not alarm.

Shape letters: M members, N normal clips, B clips.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from faithad.errors import ConfigError, StudyError
from faithad.model.table import MODELS
from faithad.scoring.score import Detector


@dataclass(frozen=True)
class Rescoring:
    """Which clips all members score.

    Attributes:
        share: of whole normal clips that all members score.
        members: that score these clips only.
        threshold: a whole clip is scored by all members if the sum of the other members' scores is above it.
        lowest: the lowest score of a normal clip that all members scored. A clip that not all members scored has a
            score of at most that, lower by as much as its sum lies below the threshold.
    """

    share: float
    members: tuple[str, ...]
    threshold: float
    lowest: float


@dataclass(frozen=True)
class Ensemble:
    """Detectors with the mean and the deviation of their scores of normal clips. `fit_ensemble` makes it.

    Attributes:
        members: by name.
        means: (M,) float64.
        deviations: (M,) float64.
        rescoring: None where all members score every clip.
    """

    members: dict[str, Detector]
    means: Tensor
    deviations: Tensor
    rescoring: Rescoring | None = None

    def standardised(
        self,
        x: Tensor,
        clip_ids: Sequence[str],
        n_frames: Sequence[int] | None = None,
        offsets: Tensor | None = None,
    ) -> Tensor:
        """The scores of clips by all members, minus their mean and divided by their deviation: (B, F, T) to (M, B)
        float64.

        Arguments as for `Detector.calibrated`.
        """
        scores = [member.calibrated(x, clip_ids, n_frames, offsets) for member in self.members.values()]
        return self.standardise(torch.stack(scores))

    def standardise(self, scores: Tensor) -> Tensor:
        """The same for scores (M, B) that are known."""
        return (scores - self.means[:, None]) / self.deviations[:, None]

    @property
    def rescoring_members(self) -> list[int]:
        """The numbers of the members that score some clips only."""
        names = () if self.rescoring is None else self.rescoring.members
        return [number for number, name in enumerate(self.members) if name in names]

    def rescored(self, standardised: Tensor, is_short: Tensor) -> Tensor:
        """Which clips all members score, (B,) bool.

        Args:
            standardised: (M, B), of which the scores of members that score every clip are needed.
            is_short: (B,) bool.
        """
        if self.rescoring is None:
            return torch.ones_like(is_short)
        return is_short | (self._first(standardised) > self.rescoring.threshold)

    def add_up(self, standardised: Tensor, rescored: Tensor) -> tuple[Tensor, Tensor]:
        """As the function `add_up`, for clips (B,) that all members scored, or only those that score every clip."""
        total, raised_by = add_up(standardised)
        if self.rescoring is None:
            return total, raised_by
        below = self._first(standardised) - self.rescoring.threshold
        first = standardised.clone()
        first[self.rescoring_members] = -math.inf
        return (
            torch.where(rescored, total, self.rescoring.lowest + below),
            torch.where(rescored, raised_by, first.argmax(dim=0)),
        )

    def _first(self, standardised: Tensor) -> Tensor:
        """The sum of the scores of the members that score every clip, (B,)."""
        later = self.rescoring_members
        return standardised[[number for number in range(len(standardised)) if number not in later]].sum(dim=0)


def fit_ensemble(members: dict[str, Detector], normal_scores: Tensor) -> Ensemble:
    """Fit the means and deviations to the members' scores of normal clips, (M, N), to which the threshold is fitted.

    Raises:
        ConfigError: there is no member, or not one row of scores for each.
    """
    if not members or len(members) != len(normal_scores):
        raise ConfigError(f"An ensemble of {len(members)} members needs as many rows of scores: {len(normal_scores)}.")
    return Ensemble(members, *means_and_deviations(normal_scores))


def means_and_deviations(normal_scores: Tensor) -> tuple[Tensor, Tensor]:
    """By which the members' scores are standardised, (M,) each, from those of normal clips (M, N)."""
    deviations = normal_scores.std(dim=1, correction=0)
    # A member whose scores are all alike says nothing, and must not be divided by 0.
    return normal_scores.mean(dim=1), deviations.where(deviations > 0, 1.0)


def with_rescoring(ensemble: Ensemble, standardised: Tensor, is_short: Tensor, share: float) -> Ensemble:
    """The ensemble whose members that are not linear score only a share of the whole clips.

    Args:
        ensemble: fitted to N normal clips.
        standardised: their scores by all members, (M, N).
        is_short: which of them are short, (N,) bool.
        share: of whole normal clips that all members score.

    Raises:
        ConfigError: all members are linear, or none is.
        StudyError: the whole normal clips are too few for one of them to be scored by all members.
    """
    later = tuple(name for name in ensemble.members if not MODELS[name].linear)
    if len(later) in (0, len(ensemble.members)):
        raise ConfigError(
            f"rescore_share is {share:g}, and the members are {', '.join(ensemble.members)}: it needs a linear model, "
            "which scores all clips, and a network, which scores some. Leave it out, or set it to 1."
        )
    rescoring = Rescoring(share, later, threshold=0.0, lowest=0.0)
    whole = replace(ensemble, rescoring=rescoring)._first(standardised)[~is_short].sort().values
    # Rounded, because 0.95 * 20 = 19.000000000000004 would cost a whole rank.
    rank = math.ceil(round((len(whole) + 1) * (1.0 - share), 9))
    if rank >= len(whole):
        raise StudyError(
            f"rescore_share is {share:g}, and of {len(whole)} whole normal clips that leaves none: give more normal "
            "clips, or raise it."
        )
    ensemble = replace(ensemble, rescoring=replace(rescoring, threshold=float(whole[rank - 1])))
    assert ensemble.rescoring is not None
    of_rescored = standardised.sum(dim=0)[ensemble.rescored(standardised, is_short)]
    return replace(ensemble, rescoring=replace(ensemble.rescoring, lowest=float(of_rescored.min())))


def add_up(standardised: Tensor) -> tuple[Tensor, Tensor]:
    """The score of the ensemble (B,), and the number of the member that raised it most (B,), from (M, B)."""
    return standardised.sum(dim=0), standardised.argmax(dim=0)
