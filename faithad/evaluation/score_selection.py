"""Which score of a model to take, without a test label: how well each tells disturbed normal clips from others.

The disturbances are synthetic (`disturbances`), put into normal clips that the model has not learned from. A score is
judged by its AUC on them, and by the share of the disturbed clips above the threshold that a rule fits to the
undisturbed ones, as the alarm will be.

Shape letters: N normal clips, F mel bands, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from faithad.errors import StudyError
from faithad.evaluation.arrays import Reals
from faithad.evaluation.disturbances import proxy_auc
from faithad.scoring.calibration import CALIBRATIONS
from faithad.scoring.choices import Score
from faithad.scoring.pooling import POOLINGS, WEIGHTINGS, frame_errors, weighted
from faithad.scoring.residuals import RESIDUALS
from faithad.scoring.score import ClipBatch, places_of


@dataclass(frozen=True)
class RatedScore:
    """A score, its AUC on disturbed against undisturbed clips, and the share of the disturbed ones that it caught."""

    score: Score
    proxy_auc: float
    caught: float


def rate_scores(
    network: nn.Module,
    scores: Sequence[Score],
    *,
    normals: ClipBatch,
    held_back: ClipBatch,
    disturbed: ClipBatch,
    frames_per_s: float,
    fit_threshold: Callable[[Reals], float],
) -> list[RatedScore]:
    """Rate scores of a model, the best first.

    They are ordered by the share that they caught, then by the AUC, then as they were given. Over all scores of the
    linear models the share agrees more with labelled sounds than the AUC does (tests/benchmarks/score_selection.py).

    Args:
        network: a trained or fitted model.
        scores: to rate.
        normals: clips that weights and calibration are fitted to.
        held_back: normal clips that the model has not learned from.
        disturbed: copies of these with disturbances in them; `recordings` are those of the clips they are made of.
        frames_per_s: of the features.
        fit_threshold: from the scores of `held_back` to the threshold of the alarm.

    Raises:
        StudyError: scores are not finite, or cannot be fitted to these clips.
    """
    rated = []
    for residual in dict.fromkeys(score.residual for score in scores):
        sets = (normals, held_back, disturbed)
        errors = [list(_errors(network, residual, clips)) for clips in sets]
        places = [places_of(clips.x, clips.n_frames, clips.offsets) for clips in sets]
        for score in (score for score in scores if score.residual == residual):
            fit = WEIGHTINGS[score.weighting].fit
            weights = None if fit is None else fit(errors[0])
            pool = POOLINGS[score.pooling].compute
            of_normals, *raw = (
                torch.stack([pool(frame_errors(weighted(error, weights)), frames_per_s) for error in of_set])
                for of_set in errors
            )
            if (calibrate := CALIBRATIONS[score.calibration].fit) is not None:
                held = calibrate(of_normals, places[0], normals.recordings)
                codes = {name: code for code, name in enumerate(sorted(set(normals.recordings)))}
                raw = [
                    held.calibrated(of_set, place, torch.tensor([codes.get(name, -1) for name in clips.recordings]))
                    for of_set, place, clips in zip(raw, places[1:], sets[1:], strict=True)
                ]
            usual, unusual = (of_set.double().numpy() for of_set in raw)
            caught = float((unusual > fit_threshold(usual)).mean())
            rated.append(RatedScore(score, proxy_auc(usual, unusual), caught))
    if not rated:
        raise StudyError("There is no score to rate.")
    return sorted(rated, key=lambda each: (-each.caught, -each.proxy_auc, scores.index(each.score)))


def _errors(network: nn.Module, residual: str, clips: ClipBatch) -> Iterator[Tensor]:
    """The error of each cell of each clip over the frames that hold sound, (F, n) each."""
    lengths = [clips.x.shape[-1]] * len(clips.x) if clips.n_frames is None else clips.n_frames
    with torch.no_grad():
        for k, (clip_id, n) in enumerate(zip(clips.clip_ids, lengths, strict=True)):
            yield RESIDUALS[residual].compute(network, clips.x[k : k + 1], [clip_id])[0, :, :n]
