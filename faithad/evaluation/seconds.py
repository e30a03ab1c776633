"""Do curves rank the annotated seconds of clips above the others? Localisation without a threshold: `summary/seconds`.

The value of a second is the highest of its frames. Area under the ROC curve and average precision of the seconds of the
annotated clips, ranked in two ways:

    pooled      the seconds of all clips in one order, each curve less its clip's mean and by its deviation
    per_clip    the seconds of each clip; the mean over the clips that have seconds of both kinds

The error itself (`error_map`) also ranks the seconds of annotated and of normal clips together, as it is: it is the
only curve whose values can be compared from clip to clip. The curves of `controls` are ranked as well. A flat
curve points nowhere and is left out.

Shape letters: N seconds, G recordings, R resamples, S seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from faithad.evaluation import detection
from faithad.evaluation.arrays import Bools, Integers, Reals, list_arrays
from faithad.evaluation.clip_values import Cube
from faithad.evaluation.estimates import SummaryRow, estimate, estimates
from faithad.evaluation.peaks import Floats, is_flat
from faithad.evaluation.statistics import percentile_interval, resample_counts
from faithad.evaluation.temporal import segment_starts, segment_truth

if TYPE_CHECKING:
    from faithad.evaluation.summary import Experiment

AUROC, AVERAGE_PRECISION = "auroc", "average_precision"
POOLED, PER_CLIP = "pooled", "per_clip"
# The method whose curve is the error itself.
ERROR = "error_map"


class Seconds(NamedTuple):
    """The seconds of one clip's curve.

    Attributes:
        clip: its place among the clips of the experiment.
        values: the highest value of each second, (N,).
        scaled: the same, of the curve minus its mean and divided by its deviation.
        truth: whether each second is annotated, (N,).
    """

    clip: int
    values: Reals
    scaled: Reals
    truth: Bools


def highest_per_second(curve: Floats, frames_per_s: float) -> Reals:
    """The highest value of a curve (T,) in each second, (N,)."""
    highest: Reals = np.maximum.reduceat(curve, segment_starts(len(curve), frames_per_s)).astype(np.float64)
    return highest


def average_precision(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """The mean, over the positives, of the share of positives among all that rank as high or higher.

    Args:
        scores: (N,).
        labels: 0 or 1, (N,), at least one of which is 1.
    """
    once = np.ones((1, 1), dtype=np.int64)
    return float(resampled_precision(scores, labels, np.zeros(np.shape(scores), dtype=np.int64), once)[0])


def resampled_precision(scores: npt.ArrayLike, labels: npt.ArrayLike, groups: npt.ArrayLike, drawn: Integers) -> Reals:
    """`average_precision` of resampled recordings.

    Args:
        scores: (N,).
        labels: 0 or 1, (N,).
        groups: recording of each, integers from 0 to G - 1, (N,).
        drawn: how often each resample holds each recording, (R, G).

    Returns:
        (R,), NaN for a resample without positives.
    """
    values, truth, group = np.asarray(scores, np.float64), np.asarray(labels) == 1, np.asarray(groups)
    # Only how many rank above each positive matters: one step of the order for each distinct value of a positive.
    steps = np.unique(-values[truth])
    place = np.searchsorted(steps, -values)
    counts = []
    for chosen in (truth, ~truth):
        members = np.zeros((drawn.shape[1], len(steps) + 1))
        np.add.at(members, (group[chosen], place[chosen]), 1.0)
        counts.append((drawn @ members)[:, : len(steps)])
    positive = counts[0]
    above = np.cumsum(positive, axis=1)
    all_above = above + np.cumsum(counts[1], axis=1)
    precision = np.divide(above, all_above, out=np.zeros_like(above), where=all_above > 0)
    total = positive.sum(axis=1)
    means: Reals = np.divide(
        (positive * precision).sum(axis=1), total, out=np.full(len(drawn), np.nan), where=total > 0
    )
    return means


def second_rows(attributions: pa.Table, lines: pa.Table, experiment: Experiment) -> Iterator[SummaryRow]:
    """The rows of `summary/seconds`.

    Args:
        attributions: `clip_id`, `model`, `seed`, `method` and `curve`: those of annotated clips, and of all clips those
            of the error map; others are left out.
        lines: schemas.LINES.
        experiment: of the clips.
    """
    clips = experiment.clips
    by_curve = _read(attributions, "method", experiment) | _read(lines, "line", experiment)
    for (model, name), of_seeds in sorted(by_curve.items()):
        keys = {"model": model, "method": name}
        annotated = [[part for part in of_seed if clips.annotated[part.clip]] for of_seed in of_seeds]
        if not any(annotated):
            continue
        for row in _pooled(annotated, [[part.scaled for part in of_seed] for of_seed in annotated], experiment):
            yield keys | {"ranked": POOLED, "scope": "annotated"} | row
        for row in _per_clip(annotated, experiment):
            yield keys | {"ranked": PER_CLIP, "scope": "annotated"} | row
        normal = clips.label == 0
        if name == ERROR and any(normal[part.clip] for of_seed in of_seeds for part in of_seed):
            known = [
                [part for part in of_seed if clips.annotated[part.clip] or normal[part.clip]] for of_seed in of_seeds
            ]
            for row in _pooled(known, [[part.values for part in of_seed] for of_seed in known], experiment):
                yield keys | {"ranked": POOLED, "scope": "all"} | row


def _read(table: pa.Table, name: str, experiment: Experiment) -> dict[tuple[str, str], list[list[Seconds]]]:
    """The seconds of each clip, for each model, method or line, and seed."""
    place = {clip_id: number for number, clip_id in enumerate(experiment.clips.ids)}
    by_curve: dict[tuple[str, str], dict[int, list[Seconds]]] = {}
    columns = (table[key].to_pylist() for key in ("clip_id", "model", name, "seed"))
    for clip_id, model, of, seed, curve in zip(*columns, list_arrays(table["curve"]), strict=True):
        judged = curve[: experiment.n_frames.get(model, len(curve))]
        if clip_id not in place or is_flat(judged):
            continue
        values = judged.astype(np.float64)
        highest = highest_per_second(values, experiment.frames_per_s)
        clip = place[clip_id]
        truth = segment_truth(experiment.clips.intervals[clip], len(values), experiment.frames_per_s)
        seconds = Seconds(clip, highest, (highest - values.mean()) / values.std(), truth)
        by_curve.setdefault((model, of), {}).setdefault(seed, []).append(seconds)
    return {key: [of_seeds[seed] for seed in sorted(of_seeds)] for key, of_seeds in by_curve.items()}


def _pooled(
    of_seeds: Sequence[Sequence[Seconds]], values: Sequence[Sequence[Reals]], experiment: Experiment
) -> Iterator[SummaryRow]:
    """Both metrics of all seconds in one order; nothing where all of them are of one kind."""
    recording = experiment.clips.recording
    names = np.unique([recording[part.clip] for of_seed in of_seeds for part in of_seed])
    drawn = resample_counts(len(names), seed=experiment.seed)
    points, resampled, shares = [], [], []
    for of_seed, of_curves in zip(of_seeds, values, strict=True):
        truth = np.concatenate([part.truth for part in of_seed]) if of_seed else np.zeros(0, dtype=np.bool_)
        if truth.all() or not truth.any():
            continue
        labels, ranked = truth.astype(np.int64), np.concatenate(of_curves)
        groups = np.repeat(
            np.searchsorted(names, [recording[part.clip] for part in of_seed]), [len(part.truth) for part in of_seed]
        )
        points.append([detection.auc(ranked, labels), average_precision(ranked, labels)])
        areas = detection.bootstrap_areas(ranked, labels, groups, drawn, max_fprs=[1.0])
        precision = resampled_precision(ranked, labels, groups, drawn)
        if len(names) < 2:  # one recording says nothing about how recordings differ
            precision[:] = np.nan
        resampled.append(np.concatenate([areas, precision[:, None]], axis=1))
        shares.append(truth.mean())
    if points:
        n_clips = len({part.clip for of_seed in of_seeds for part in of_seed})
        low, high = percentile_interval(np.mean(resampled, axis=0))
        for column, (metric, chance) in enumerate(((AUROC, 0.5), (AVERAGE_PRECISION, float(np.mean(shares))))):
            estimated = estimate(np.array(points)[:, column], low[column], high[column])
            yield {"metric": metric, **estimated, "chance": chance, "n_clips": n_clips}


def _per_clip(of_seeds: Sequence[Sequence[Seconds]], experiment: Experiment) -> Iterator[SummaryRow]:
    """Both metrics of the seconds of each clip; nothing where no clip has seconds of both kinds."""
    clips = experiment.clips
    values = np.full((len(of_seeds), len(clips.ids), 2), np.nan)
    shares = {}
    for seed, of_seed in enumerate(of_seeds):
        for part in of_seed:
            if part.truth.any() and not part.truth.all():
                labels = part.truth.astype(np.int64)
                above = part.values[part.truth][:, None] - part.values[~part.truth]
                metrics = ((above > 0) + 0.5 * (above == 0)).mean(), average_precision(part.values, labels)
                values[seed, part.clip], shares[part.clip] = metrics, part.truth.mean()
    for column, row in estimates(Cube(values, [(AUROC,), (AVERAGE_PRECISION,)]), clips.recording, seed=experiment.seed):
        metric, chance = ((AUROC, 0.5), (AVERAGE_PRECISION, float(np.mean(list(shares.values())))))[column]
        yield {"metric": metric, **row, "chance": chance}
