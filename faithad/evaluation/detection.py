"""How well the anomaly score tells anomalous clips from normal ones, and where in a clip the error is.

ROC AUC, and partial AUC up to a false-positive rate of 0.1, standardised so that chance is 0.5 (McClish 1989), as
DCASE and the paper (Deschênes et al. 2026, arXiv 2601.12660) report them. scikit-learn is the reference; the resampled
areas of the bootstrap are computed here, 2,000 at a time.

Shape letters: N clips, G recordings, R resamples, K stretches of the ROC curve, F mel bands, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from faithad.errors import StudyError
from faithad.evaluation.arrays import Integers, Reals
from faithad.evaluation.peaks import as_array
from faithad.evaluation.statistics import refuse_not_finite
from faithad.evaluation.temporal import segment_starts

# So that 20,000 clips take 50 MB.
_RESAMPLES_AT_ONCE = 200


class WorstSecond(NamedTuple):
    """The second of a clip with the largest mean error, and its onset in seconds from the clip's onset."""

    score: float
    onset_s: float


def auc(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Area under the ROC curve.

    Args:
        scores: anomaly scores, (N,).
        labels: 0 normal, 1 anomalous, (N,).

    Raises:
        StudyError: a score is not finite, a label is neither 0 nor 1, or there is only one class.
    """
    return pauc(scores, labels, max_fpr=1.0)


def pauc(scores: npt.ArrayLike, labels: npt.ArrayLike, max_fpr: float = 0.1) -> float:
    """Area under the ROC curve up to `max_fpr`, standardised to 0.5 for chance and 1 for a perfect detector.

    Raises:
        StudyError: as `auc`.
    """
    from sklearn import metrics  # takes a second to import, and most processes only score clips

    scores, labels = _checked(scores, labels)
    return float(metrics.roc_auc_score(labels, scores, max_fpr=max_fpr))


def caught(scores: npt.ArrayLike, labels: npt.ArrayLike, rate: float) -> float:
    """The share of the anomalous clips above the r-th smallest normal score, r = ceil((1 - rate) (n + 1)).

    A new normal clip, exchangeable with these n, exceeds that score with a probability of at most `rate`.

    Returns:
        NaN with fewer normal clips than `n_normal_needed`.

    Raises:
        StudyError: as `auc`.
    """
    scores, labels = _checked(scores, labels)
    normal, rank = np.sort(scores[labels == 0]), _rank((labels == 0).sum(), rate)
    return float((scores[labels == 1] > normal[rank - 1]).mean()) if rank <= len(normal) else math.nan


def _rank(n: Integers | int, rate: float) -> Integers:
    # Rounded, because 0.95 * 20 = 19.000000000000004 would cost a whole rank.
    ranks: Integers = np.ceil(np.round((np.asarray(n) + 1) * (1.0 - rate), 9)).astype(np.int64)
    return ranks


def worst_second(error: npt.ArrayLike | Tensor, frames_per_s: float, *, cut_off: bool = False) -> WorstSecond:
    """The largest mean of the error map (F, T) over all mel bands and the frames of one second.

    An event fills one second of ten, and the mean over the clip dilutes it. The first of equal seconds is taken.

    Args:
        error: (F, T).
        frames_per_s: frames in one second.
        cut_off: the clip was cut off anywhere, as the end of a recording is. The mean of a few frames would exceed that
            of a second by chance, so its last second is then the one that ends with the clip.
    """
    per_frame = as_array(error).mean(axis=0, dtype=np.float64)
    n_frames = len(per_frame)
    starts = segment_starts(n_frames, frames_per_s)
    means, onsets_s = np.add.reduceat(per_frame, starts) / np.diff(starts, append=n_frames), np.arange(len(starts))
    first = max(0, n_frames - math.ceil(frames_per_s))
    if cut_off and starts[-1] > first:
        means[-1], onsets_s = per_frame[first:].mean(), np.append(onsets_s[:-1], first / frames_per_s)
    worst = int(means.argmax())
    return WorstSecond(score=float(means[worst]), onset_s=float(onsets_s[worst]))


def worst_mel_band(error: npt.ArrayLike | Tensor) -> int:
    """The mel band, counted from 0, with the largest mean of the error map (F, T) over all frames."""
    return int(as_array(error).mean(axis=1, dtype=np.float64).argmax())


def bootstrap_areas(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    groups: npt.ArrayLike,
    drawn: Integers,
    *,
    max_fprs: Sequence[float],
) -> Reals:
    """AUC (max_fpr 1) and standardised partial AUCs of resampled recordings.

    Between two anomalous clips in the ranking the ROC curve is straight whatever the resample, so it is drawn by its K
    straight stretches, of which there are about two per anomalous clip, and not by its N clips.

    Args:
        scores: (N,).
        labels: 0 or 1, (N,).
        groups: recording of each clip, integers from 0 to G - 1, (N,).
        drawn: how often each resample holds each recording, (R, G), as `resample_counts` gives it.
        max_fprs: one column each.

    Returns:
        (R, len(max_fprs)), NaN for a resample that lacks a class, and throughout if there is but one recording.

    Raises:
        StudyError: as `auc`.
    """
    scores, labels = _checked(scores, labels)
    group = np.asarray(groups, dtype=np.int64)
    n_resamples, n_groups = drawn.shape
    if n_groups < 2:
        return np.full((n_resamples, len(max_fprs)), np.nan)
    stretch = _straight_stretches(scores, labels)
    rates = []
    for label in (0, 1):
        members = np.zeros((n_groups, int(stretch.max()) + 1))
        np.add.at(members, (group[labels == label], stretch[labels == label]), 1.0)
        cumulative = np.cumsum(drawn @ members, axis=1)
        total = cumulative[:, -1:]
        rates.append(np.divide(cumulative, total, out=np.full_like(cumulative, np.nan), where=total > 0))
    return np.stack([_area(rates[0], rates[1], max_fpr) for max_fpr in max_fprs], axis=1)


def bootstrap_caught(
    scores: npt.ArrayLike, labels: npt.ArrayLike, groups: npt.ArrayLike, drawn: Integers, *, rates: Sequence[float]
) -> Reals:
    """`caught` at several rates of resampled recordings, whose threshold is that of the resample.

    Arguments as for `bootstrap_areas`.

    Returns:
        (R, len(rates)), NaN for a resample without anomalous clips or with too few normal ones.
    """
    scores, labels = _checked(scores, labels)
    group = np.asarray(groups, dtype=np.int64)
    order = np.argsort(scores, kind="stable")
    normal, anomalous = (order[labels[order] == label] for label in (0, 1))
    shares = np.full((len(drawn), len(rates)), np.nan)
    if drawn.shape[1] < 2:
        return shares
    for start in range(0, len(drawn), _RESAMPLES_AT_ONCE):
        part = drawn[start : start + _RESAMPLES_AT_ONCE]
        # How many resampled clips have at most the score of each clip.
        n_normal, n_anomalous = (np.cumsum(part[:, group[numbers]], axis=1) for numbers in (normal, anomalous))
        for column, rate in enumerate(rates):
            ranks = _rank(n_normal[:, -1], rate)
            for row in np.flatnonzero((ranks <= n_normal[:, -1]) & (n_anomalous[:, -1] > 0)):
                threshold = scores[normal[np.searchsorted(n_normal[row], ranks[row])]]
                n_below = np.searchsorted(scores[anomalous], threshold, side="right")
                below = n_anomalous[row, n_below - 1] if n_below else 0
                shares[start + row, column] = 1.0 - below / n_anomalous[row, -1]
    return shares


def _straight_stretches(scores: Reals, labels: Integers) -> Integers:
    """The number of the ROC curve's stretch that each clip lies in, counted from the highest score, (N,)."""
    _, rank = np.unique(-scores, return_inverse=True)
    anomalous = np.bincount(rank, weights=labels)
    # Share of anomalous clips among those of equal score: 0 runs right, 1 runs up, all else is a slope of its own.
    share = anomalous / np.bincount(rank)
    begins = np.ones(len(share), dtype=np.int64)
    begins[1:] = (share[1:] != share[:-1]) | ((share[1:] > 0) & (share[1:] < 1))
    stretch: Integers = (np.cumsum(begins) - 1)[rank]
    return stretch


def _area(fpr: Reals, tpr: Reals, max_fpr: float) -> Reals:
    """Area under each row's ROC curve, (R, K) without its origin, up to `max_fpr`, standardised if that is below 1."""
    fpr, tpr = (np.pad(rate, ((0, 0), (1, 0))) for rate in (fpr, tpr))
    width, rise = np.diff(fpr, axis=1), np.diff(tpr, axis=1)
    kept = np.clip(max_fpr - fpr[:, :-1], 0.0, width)
    slope = np.divide(rise, width, out=np.zeros_like(rise), where=width > 0)
    area: Reals = (kept * (tpr[:, :-1] + 0.5 * slope * kept)).sum(axis=1)
    # A row that lacks a class is NaN in one rate only.
    area[np.isnan(fpr[:, -1]) | np.isnan(tpr[:, -1])] = np.nan
    if max_fpr >= 1.0:
        return area
    chance = 0.5 * max_fpr**2
    return 0.5 * (1.0 + (area - chance) / (max_fpr - chance))


def _checked(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Reals, Integers]:
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    refuse_not_finite(scores, "anomaly scores")
    n_normal, n_anomalous = int((labels == 0).sum()), int((labels == 1).sum())
    if n_normal + n_anomalous != len(labels) or len(labels) != len(scores):
        raise StudyError(
            f"Each of the {len(scores)} scores needs a label 0 (normal) or 1 (anomalous); "
            f"found {n_normal} and {n_anomalous} among {len(labels)} labels."
        )
    if not n_normal or not n_anomalous:
        raise StudyError(
            f"A ROC curve needs normal and anomalous clips, but there are {n_normal} normal and {n_anomalous} "
            "anomalous ones. Check the labels of the test split."
        )
    return scores, labels.astype(np.int64)
