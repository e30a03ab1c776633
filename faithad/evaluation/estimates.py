"""From one value per seed and clip to an estimate: mean, spread over seeds, interval over recordings.

Shape letters: S seeds, N clips, C columns (one curve point each: model, method, percentile …).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from faithad.evaluation.arrays import Integers, Reals
from faithad.evaluation.clip_values import Cube
from faithad.evaluation.statistics import bootstrap_intervals, std_over_seeds

SummaryRow = dict[str, Any]


def estimates(cube: Cube, recordings: Integers, *, seed: int) -> Iterator[tuple[int, SummaryRow]]:
    """Position and estimate of every column in which some clip was measured."""
    per_seed = known_mean(cube.values, axis=1)
    per_clip = known_mean(cube.values, axis=0)
    low, high = bootstrap_intervals(per_clip, recordings, seed=seed)
    n_clips = np.isfinite(per_clip).sum(axis=0)
    for column in np.flatnonzero(n_clips).tolist():
        row = estimate(per_seed[:, column], low[column], high[column])
        yield column, {**row, "n_clips": int(n_clips[column])}


def estimate(per_seed: Reals, low: float, high: float) -> SummaryRow:
    """The columns of an estimate in a summary: of the values of each seed (S,), with its interval."""
    known = per_seed[np.isfinite(per_seed)]
    return {
        "mean": float(known.mean()),
        "std": std_over_seeds(known),
        "ci_low": None if math.isnan(low) else float(low),
        "ci_high": None if math.isnan(high) else float(high),
        "n_seeds": len(known),
    }


def known_mean(values: Reals, *, axis: int) -> Reals:
    """Mean of the known values, NaN where there is none."""
    known = np.isfinite(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    mean: Reals = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean
