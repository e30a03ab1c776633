"""Which models to add up, without a test label: how well each ensemble tells disturbed normal clips from others.

An ensemble is rated as a score is (`score_selection`): by the share of disturbed clips above the threshold that its sum
of standardised scores gives on the undisturbed ones, and by the AUC.

A network costs several times what linear models cost, and of several ensembles one is the best by chance alone. So the
network has to add something: an ensemble with it is chosen only if it catches more than the best one without, by more
than two standard errors, which is to say beyond the 95 % interval of the difference.

Shape letters: M members, N normal clips, D disturbed clips.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch

from faithad.evaluation.arrays import Reals
from faithad.evaluation.decisions import standard_error
from faithad.evaluation.disturbances import proxy_auc
from faithad.scoring.ensemble import means_and_deviations

_ERRORS_NEEDED = 2.0


@dataclass(frozen=True)
class RatedEnsemble:
    """An ensemble, and what it caught.

    Attributes:
        members: their names.
        caught: share of the disturbed clips above the threshold.
        proxy_auc: of disturbed against undisturbed clips.
        behind: how much less it caught than the ensemble that caught most.
        behind_se: the standard error of that over recordings; None where all clips come from one.
        chosen: whether it is the one to take.
    """

    members: tuple[str, ...]
    caught: float
    proxy_auc: float
    behind: float
    behind_se: float | None
    chosen: bool


def rate_ensembles(
    normal: Mapping[str, Reals],
    disturbed: Mapping[str, Reals],
    recordings: Sequence[str],
    *,
    network: str,
    fit_threshold: Callable[[Reals], float],
) -> list[RatedEnsemble]:
    """Rate every ensemble of some models, the best first; exactly one of them is chosen.

    They are ordered by the share that they caught, then by the AUC; of equal ones, that of fewer members comes first.

    Args:
        normal: each model's calibrated scores of normal clips, (N,), by name.
        disturbed: the same of disturbed clips, (D,).
        recordings: of the disturbed clips, D names.
        network: the model that has to add something to the others, which are linear.
        fit_threshold: from an ensemble's scores of the normal clips to the threshold of its alarm.

    Raises:
        StudyError: scores are not finite, or there are none.
    """
    rated, alarms = [], {}
    for members in (part for size in range(1, len(normal) + 1) for part in combinations(normal, size)):
        usual, unusual = (torch.from_numpy(np.stack([of[name] for name in members])) for of in (normal, disturbed))
        means, deviations = means_and_deviations(usual)
        usual_sum, unusual_sum = (
            ((scores - means[:, None]) / deviations[:, None]).sum(dim=0).numpy() for scores in (usual, unusual)
        )
        alarms[members] = (unusual_sum > fit_threshold(usual_sum)).astype(np.float64)
        rated.append((members, float(alarms[members].mean()), proxy_auc(usual_sum, unusual_sum)))
    rated.sort(key=lambda each: (-each[1], -each[2]))
    best, linear = rated[0][0], next(members for members, *_ in rated if network not in members)
    differences = {members: alarms[best] - of_members for members, of_members in alarms.items()}
    errors = {members: standard_error(values, recordings) for members, values in differences.items()}
    error = errors[linear]
    chosen = best if error is not None and differences[linear].mean() > _ERRORS_NEEDED * error else linear
    return [
        RatedEnsemble(members, caught, area, float(differences[members].mean()), errors[members], members == chosen)
        for members, caught, area in rated
    ]
