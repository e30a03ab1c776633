"""Which mel bands carry an explanation, and where they lie in Hz.

Shape letter: F mel bands, counted from 0, low to high.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from faithad.evaluation.arrays import Reals

# HTK's mel scale, which the features use: mel = 2595 log10(1 + f / 700).
_MEL_FACTOR, _MEL_CORNER_HZ = 2595.0, 700.0


def mel(hz: float) -> float:
    """A frequency on the mel scale."""
    return float(_MEL_FACTOR * np.log10(1.0 + hz / _MEL_CORNER_HZ))


def mel_band_edges_hz(n_mels: int, sample_rate_hz: int) -> tuple[Reals, Reals]:
    """Lower and upper edge of every mel filter, (F,) each, in Hz.

    Filters are triangles over F + 2 points that are equally far apart on HTK's mel scale from 0 to half the sample rate
    (torchaudio's `melscale_fbanks` by default): filter b rises from point b and falls to point b + 2, so neighbours
    overlap by half.
    """
    points_mel = np.linspace(0.0, mel(sample_rate_hz // 2), n_mels + 2)
    points = _MEL_CORNER_HZ * (10.0 ** (points_mel / _MEL_FACTOR) - 1.0)
    return points[:-2], points[2:]


def carrying_bands(profile: npt.ArrayLike) -> tuple[int, int]:
    """The smallest range of neighbouring bands around the strongest one that holds at least half of a profile's mass.

    Of equally small ranges the one with the most mass is taken, then the lowest; of equally strong bands the lowest.

    Args:
        profile: what each band contributes, none negative, some above 0, (F,).

    Returns:
        (first, last) band, both included.

    Raises:
        ValueError: a profile that is not finite, has a negative value, or holds nothing.
    """
    mass = np.asarray(profile, dtype=np.float64)
    if not (np.isfinite(mass).all() and mass.min(initial=0.0) >= 0 and mass.max(initial=0.0) > 0):
        raise ValueError("a profile must be finite and not negative, with some value above 0")
    mass = mass / mass.max()  # sums of very small or very large values would lose or exceed the range of floats
    strongest = int(mass.argmax())
    upto = np.concatenate([[0.0], np.cumsum(mass)])
    # Guarded against rounding: the sum of exactly half the bands must count as half.
    half = upto[-1] / 2 * (1.0 - 1e-12)
    first = np.arange(strongest + 1)
    last = np.maximum(np.searchsorted(upto, upto[first] + half) - 1, strongest)
    possible = last < len(mass)  # from a low enough start the sum reaches half in any case
    first, last = first[possible], last[possible]
    best = np.lexsort((first, -(upto[last + 1] - upto[first]), last - first))[0]
    return int(first[best]), int(last[best])
