"""Bands and their edges, against torchaudio's filters and against the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torchaudio.functional
from hypothesis import given, settings
from hypothesis import strategies as st

from faithad.evaluation.mel_bands import carrying_bands, mel_band_edges_hz

repeatable = settings(max_examples=50, deadline=None, derandomize=True)


@pytest.mark.parametrize(("n_mels", "rate_hz"), [(80, 20_000), (128, 16_000), (40, 44_100), (16, 22_051)])
def test_edges_are_those_of_the_filters_that_the_features_use(n_mels: int, rate_hz: int) -> None:
    """A filter weighs just the frequencies between its edges."""
    n_freqs = 8_001
    filters = torchaudio.functional.melscale_fbanks(n_freqs, 0.0, float(rate_hz // 2), n_mels, rate_hz).numpy()
    frequencies = np.linspace(0, rate_hz // 2, n_freqs)
    low, high = mel_band_edges_hz(n_mels, rate_hz)
    assert low[0] == 0
    assert high[-1] == pytest.approx(rate_hz // 2)
    for band in range(n_mels):
        inside = (frequencies > low[band] + 0.01) & (frequencies < high[band] - 0.01)
        outside = (frequencies < low[band] - 0.01) | (frequencies > high[band] + 0.01)
        assert (filters[inside, band] > 0).all()
        assert not filters[outside, band].any()


@repeatable
@given(st.lists(st.integers(0, 6), min_size=1, max_size=12).filter(any), st.sampled_from([1e-30, 1.0, 1e30]))
def test_carrying_bands_from_the_definition(profile: list[int], unit: float) -> None:
    strongest = profile.index(max(profile))
    candidates = [
        (last - first, -sum(profile[first : last + 1]), first, last)
        for first in range(strongest + 1)
        for last in range(strongest, len(profile))
        if 2 * sum(profile[first : last + 1]) >= sum(profile)
    ]
    assert carrying_bands(np.array(profile) * unit) == min(candidates)[2:]


@pytest.mark.parametrize("profile", [[], [0.0, 0.0], [1.0, -1.0], [1.0, np.nan], [np.inf]])
def test_profiles_that_say_nothing_are_refused(profile: list[float]) -> None:
    with pytest.raises(ValueError, match="some value above 0"):
        carrying_bands(profile)
