"""Paired differences of two models that do not differ: what the decision rule's error rates are measured on."""

from __future__ import annotations

import numpy as np

from faithad.evaluation.arrays import Integers, Reals

SHAPES = ("gaussian", "lognormal")
# Three in four values of a normal distribution are smaller, and the standard deviation without them.
_ZERO_BELOW, _STD_OF_ZEROS = 1.1503, 0.8507


def null_differences(
    generator: np.random.Generator, n_recordings: int, shape: str, n_methods: int = 6
) -> tuple[Reals, Integers]:
    """Differences (N, M) with mean 0 and variance 1, and the recording of each clip (N,).

    Recordings have 1 to 4 clips. Of the variance, 0.4 lies between recordings; methods correlate by 0.6. `lognormal`
    has a long tail to the left; `zeros` is 0 in most clips, as differences of F-scores are.
    """
    recordings = np.repeat(np.arange(n_recordings), generator.integers(1, 5, n_recordings))
    of_recordings, of_clips = (_effects(generator, n, n_methods, shape) for n in (n_recordings, len(recordings)))
    values: Reals = np.sqrt(0.4) * of_recordings[recordings] + np.sqrt(0.6) * of_clips
    if shape == "zeros":
        values = np.where(np.abs(values) < _ZERO_BELOW, 0.0, values) / _STD_OF_ZEROS
    return values, recordings


def _effects(generator: np.random.Generator, n: int, n_methods: int, shape: str) -> Reals:
    shared, own = generator.standard_normal((n, 1)), generator.standard_normal((n, n_methods))
    normal: Reals = np.sqrt(0.6) * shared + np.sqrt(0.4) * own
    if shape != "lognormal":
        return normal
    variance = np.expm1(0.64) * np.exp(0.64)
    tailed: Reals = (np.exp(0.32) - np.exp(0.8 * normal)) / np.sqrt(variance)
    return tailed
