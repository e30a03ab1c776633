"""How many labels are found, and how often a detection is wrong, over all thresholds: `summary/psds`.

The polyphonic sound detection score of one class (Bilen et al. 2020, arXiv 1910.08440): the share of labels that are
found, as the mean over rates of false detections from 0 to 100 an hour. Detections are made as the events of an audit
are: windows of 0.25 s whose error is above a threshold, those up to 1 s apart as one. The intersection criteria decide
which detections are true and which labels are found, see `intersection`. The error is that of the score itself, the
curve of `error_map`, of annotated and of normal clips, and is not calibrated.

Shape letters: G recordings, K thresholds, R resamples, T frames, W windows, J rates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from faithad.evaluation.arrays import Integers, Reals, list_arrays
from faithad.evaluation.estimates import SummaryRow, estimate
from faithad.evaluation.intersection import Span, match, merge_spans
from faithad.evaluation.seconds import ERROR
from faithad.evaluation.statistics import percentile_interval, resample_counts
from faithad.evaluation.temporal import Intervals

if TYPE_CHECKING:
    from faithad.evaluation.summary import Experiment

WINDOW_S, MERGE_GAP_S = 0.25, 1.0
# Rates of false detections an hour that the score is a mean over.
RATES = np.linspace(0.0, 100.0, 101)
_N_THRESHOLDS = 100


class Heard(NamedTuple):
    """One clip: `windows` are the means of its error in windows of 0.25 s (W,), `recording` counts from 0."""

    windows: Reals
    duration_s: float
    intervals: Intervals
    recording: int


class DetectionCounts(NamedTuple):
    """Counts by recording and threshold: false detections (G, K), found labels (G, K); by recording: all labels (G,),
    hours of sound (G,).
    """

    false: Reals
    found: Reals
    labels: Reals
    hours: Reals


def spans_above(windows: Reals, threshold: float, duration_s: float) -> list[Span]:
    """Where windows are above a threshold, in seconds from the clip's onset; those up to `MERGE_GAP_S` apart as one."""
    above = np.flatnonzero(windows > threshold)
    if not len(above):
        return []
    parts = np.split(above, np.flatnonzero(np.diff(above) - 1 > MERGE_GAP_S / WINDOW_S) + 1)
    # The last window runs to the end of the clip.
    ends = [duration_s if part[-1] == len(windows) - 1 else (part[-1] + 1) * WINDOW_S for part in parts]
    return [(float(part[0] * WINDOW_S), float(end)) for part, end in zip(parts, ends, strict=True)]


def count_detections(clips: Sequence[Heard], thresholds: Sequence[float] | Reals) -> DetectionCounts:
    """What detections at each threshold find, and how many of them are false."""
    n_recordings = max(clip.recording for clip in clips) + 1
    hours, of_recordings = np.zeros(n_recordings), np.zeros(n_recordings)
    for clip in clips:
        hours[clip.recording] += clip.duration_s / 3_600
    labels = [(str(k), span) for k, clip in enumerate(clips) for span in merge_spans(clip.intervals)]
    of_label = np.array([clips[int(k)].recording for k, _ in labels], dtype=np.int64)
    np.add.at(of_recordings, of_label, 1.0)
    false, found = np.zeros((2, n_recordings, len(thresholds)))
    for column, threshold in enumerate(thresholds):
        detections = [
            [(str(k), span)]
            for k, clip in enumerate(clips)
            for span in spans_above(clip.windows, float(threshold), clip.duration_s)
        ]
        matches = match(detections, labels)
        of_detection = np.array([clips[int(k)].recording for ((k, _),) in detections], dtype=np.int64)
        np.add.at(false[:, column], of_detection[~np.array(matches.true, dtype=np.bool_)], 1.0)
        np.add.at(found[:, column], of_label[np.array(matches.found, dtype=np.bool_)], 1.0)
    return DetectionCounts(false, found, of_recordings, hours)


def found_at(counts: DetectionCounts, drawn: Integers) -> Reals:
    """The share of labels found at each of `RATES`, of resampled recordings: (R, J), NaN without a label.

    At each rate, the best threshold with no more false detections counts; without any detection nothing is found.

    Args:
        counts: of G recordings.
        drawn: how often each resample holds each recording, (R, G).
    """
    labels = drawn @ counts.labels
    with np.errstate(divide="ignore", invalid="ignore"):
        rates, shares = (
            (drawn @ counts.false) / (drawn @ counts.hours)[:, None],
            (drawn @ counts.found) / labels[:, None],
        )
    best = np.zeros((len(drawn), len(RATES)))
    for row, (of_rate, share) in enumerate(zip(rates, shares, strict=True)):
        order = np.argsort(of_rate, kind="stable")
        reached = np.searchsorted(of_rate[order], RATES, side="right")
        best[row] = np.concatenate([[0.0], np.maximum.accumulate(share[order])])[reached]
    best[labels == 0] = np.nan
    return best


def psds_rows(attributions: pa.Table, experiment: Experiment) -> Iterator[SummaryRow]:
    """The rows of `summary/psds`: one for each model, where annotated clips have errors."""
    errors = attributions.filter(pc.equal(attributions["method"], ERROR))
    for model in sorted(pc.unique(errors["model"]).to_pylist()):
        of_model = errors.filter(pc.equal(errors["model"], model))
        points, resampled, curves, sizes = [], [], [], []
        for seed in sorted(pc.unique(of_model["seed"]).to_pylist()):
            clips = _heard(of_model.filter(pc.equal(of_model["seed"], seed)), model, experiment)
            if not any(len(clip.intervals) for clip in clips):
                continue
            values = np.concatenate([clip.windows for clip in clips])
            # Few windows are part of an event: thresholds lie closer the higher they are.
            thresholds = np.quantile(values, 1.0 - np.geomspace(1.0 / len(values), 0.5, _N_THRESHOLDS))
            counts = count_detections(clips, np.unique(thresholds))
            n_recordings = len(counts.labels)
            once = found_at(counts, np.ones((1, n_recordings), dtype=np.int64))[0]
            drawn = resample_counts(n_recordings, seed=experiment.seed)
            of_resamples = found_at(counts, drawn)[:, :-1].mean(axis=1)
            points.append(once[:-1].mean())  # each rate stands for those up to the next one
            resampled.append(of_resamples if n_recordings > 1 else np.full(len(drawn), np.nan))
            curves.append(once)
            sizes.append((int(counts.labels.sum()), len(clips)))
        if points:
            (low,), (high,) = percentile_interval(np.mean(resampled, axis=0)[:, None])
            n_labels, n_clips = np.max(sizes, axis=0).tolist()
            curve = {"false_per_hour": RATES.tolist(), "found": np.mean(curves, axis=0).tolist()}
            counted = {"n_reference": n_labels, "n_clips": n_clips}
            yield {"model": model, **estimate(np.array(points), low, high), **curve, **counted}


def _heard(errors: pa.Table, model: str, experiment: Experiment) -> list[Heard]:
    """The annotated and the normal clips of one model and seed; other clips have no known labels."""
    clips = experiment.clips
    place = {clip_id: number for number, clip_id in enumerate(clips.ids)}
    parts = []
    for clip_id, curve in zip(errors["clip_id"].to_pylist(), list_arrays(errors["curve"]), strict=True):
        number = place.get(clip_id)
        if number is not None and (clips.annotated[number] or clips.label[number] == 0) and np.isfinite(curve).all():
            judged = curve[: experiment.n_frames.get(model, len(curve))].astype(np.float64)
            parts.append((number, judged))
    _, recordings = np.unique([clips.recording[number] for number, _ in parts], return_inverse=True)
    return [
        Heard(window_means(curve, experiment.frames_per_s), clips.duration_s[number], clips.intervals[number], code)
        for (number, curve), code in zip(parts, recordings.tolist(), strict=True)
    ]


def window_means(curve: Reals, frames_per_s: float) -> Reals:
    """The mean of a curve (T,) in each window, (W,); the last one runs to the end, so that none is shorter."""
    width = max(1, round(WINDOW_S * frames_per_s))
    starts = np.array([0, *range(width, len(curve) - width + 1, width)])
    means: Reals = np.add.reduceat(curve, starts) / np.diff(starts, append=len(curve))
    return means
