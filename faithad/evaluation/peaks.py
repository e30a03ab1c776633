"""From an attribution map to the frames that it points at.

A map (F, T) becomes a curve (T,) by summing its mel bands, sign kept. There are two protocols:

    paper       the peaks at percentile p are the frames whose curve reaches the clip's own p-th percentile, taken with
                linear interpolation (Deschênes et al. 2026, arXiv 2601.12660, temporal evaluation). The z-normalisation
                that the paper mentions moves no peak and is left out.
    corrected   the peaks at percentile p are the ceil((100 - p) T / 100) frames with the highest curve; of equal frames
                the earlier one.

Shape letters: F mel bands, T frames, P percentiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faithad.evaluation.arrays import Bools
from faithad.vocabulary import CORRECTED, PAPER

Floats = npt.NDArray[np.floating]


def as_array(values: npt.ArrayLike | Tensor) -> Floats:
    """The values as a float32 or float64 array in main memory; narrower floats and integers are widened."""
    if isinstance(values, Tensor):
        values = values.detach()
        if values.dtype not in (torch.float32, torch.float64):
            values = values.to(torch.float32)
        return values.cpu().numpy()
    array = np.asarray(values)
    if array.dtype in (np.float32, np.float64):
        return array
    return array.astype(np.float32 if array.dtype == np.float16 else np.float64)


def curve(attribution: npt.ArrayLike | Tensor) -> Floats:
    """Sum a map over its mel bands.

    The sum runs in float64 and is rounded once to the map's own precision, so that it does not depend on the device
    or on how many maps are summed together.

    Args:
        attribution: one or more maps, (..., F, T).

    Returns:
        (..., T), float32 for float32 maps, float64 for float64 maps.
    """
    maps = as_array(attribution)
    summed: Floats = maps.sum(axis=-2, dtype=np.float64).astype(maps.dtype)
    return summed


def is_flat(curve: npt.ArrayLike | Tensor) -> bool:
    """Whether a curve (T,) points nowhere (`degenerate` in the tables): constant, or not finite somewhere."""
    values = as_array(curve)
    return not bool(np.isfinite(values).all()) or bool(values.max() == values.min())


def peak_frames(curve: npt.ArrayLike | Tensor, percentiles: Sequence[float]) -> Bools:
    """The frames whose curve is at least the clip's own percentile, for all percentiles at once.

    The interpolated percentile lies above one sorted value and at most on the next, so a frame reaches it exactly
    when it reaches that next value: comparing with that value gives the same frames and spares the rounding of the
    interpolation, hence any rescaling that keeps the order of the frames keeps the peaks.

    A constant curve makes every frame a peak, as the definition has it; `is_flat` tells. A curve that is not finite
    has no peaks.

    Args:
        curve: (..., T).
        percentiles: P numbers from 0 to 100.

    Returns:
        bool (..., P, T). Masks are nested: a larger percentile keeps a subset.
    """
    values = as_array(curve)
    last = values.shape[-1] - 1
    rank = np.ceil(np.round(np.asarray(percentiles, dtype=np.float64) * last / 100, 9)).astype(np.int64)
    if rank.size and not (rank.min() >= 0 and rank.max() <= last):
        raise ValueError(f"percentiles must lie between 0 and 100, got {list(percentiles)}")
    threshold = np.sort(values, axis=-1)[..., rank]
    finite = np.asarray(np.isfinite(values).all(axis=-1, keepdims=True))
    peaks: Bools = (values[..., None, :] >= threshold[..., :, None]) & finite[..., None]
    return peaks


def highest_frames(curve: npt.ArrayLike | Tensor, percentiles: Sequence[float]) -> Bools:
    """The frames with the highest curve, exactly as many at each percentile whatever the curve.

    The number is computed with the percentile as it is written in decimal: in binary floating point 5 % of 400 frames
    would be 21. A flat curve has as many peaks as any other, its first frames; `is_flat` tells.

    Args:
        curve: (..., T), finite.
        percentiles: P numbers from 0 to 100.

    Returns:
        bool (..., P, T). Masks are nested: a larger percentile keeps a subset.
    """
    if not all(0 <= percentile <= 100 for percentile in percentiles):
        raise ValueError(f"percentiles must lie between 0 and 100, got {list(percentiles)}")
    values = as_array(curve)
    numbers = [math.ceil((100 - Fraction(str(percentile))) * values.shape[-1] / 100) for percentile in percentiles]
    rank = np.argsort(np.argsort(-values, axis=-1, kind="stable"), axis=-1)
    highest: Bools = rank[..., None, :] < np.array(numbers, dtype=np.int64)[:, None]
    return highest


PEAKS = {PAPER: peak_frames, CORRECTED: highest_frames}
