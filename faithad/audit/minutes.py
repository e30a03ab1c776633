"""From clips to the minutes of each recorder, whose spectra the alarm for what lasts compares (`scoring.state`).

A minute is 60 s of sound along a time axis (see `alarmed_clips`), counted from where the axis begins; longer clips are
minutes by themselves. A minute counts if the clips that were heard fill at least half of it.

Minutes of one recorder follow each other by the clock. A recording without a clock has only its own past.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from faithad.audit.alarmed_clips import time_axes
from faithad.evaluation.arrays import Integers, list_arrays
from faithad.scoring.state import Floats, centred
from faithad.settings import minute_s

_LEAST_SHARE = 0.5
_COLUMNS = ["clip_id", "recording", "onset_s", "duration_s", "recorded_at", "utc_offset_s", "recorder"]


@dataclass(frozen=True, eq=False)
class Minutes:
    """The n minutes of one recorder, in the order of time.

    Attributes:
        spectra: their spectra, (n, F), each less its mean.
        clips: rows of the manifest in the order of time, with `clock`, in UTC where the offset is known, the number of
            their time axis, `axis`, and where on it they begin, `at_s`.
        spans: the first row of each minute, and the one after its last, (n, 2).
    """

    spectra: Floats
    clips: pd.DataFrame
    spans: Integers

    @property
    def first_clips(self) -> list[str]:
        """The name of the first clip of each minute."""
        return [str(clip_id) for clip_id in self.clips["clip_id"].iloc[self.spans[:, 0]]]


def recorder_minutes(manifest: pa.Table, spectra: pa.Table, *, clip_s: float) -> list[Minutes]:
    """The minutes of each recorder.

    Args:
        manifest: schemas.MANIFEST with all clips: those without a spectrum, too, say which recordings continue others.
        spectra: schemas.MEDIAN_SPECTRA of the clips that count.
        clip_s: of a whole clip.
    """
    if not spectra.num_rows:
        return []
    clips = manifest.select(_COLUMNS).to_pandas()
    axes, shifts_s, names = time_axes(manifest, clip_s=clip_s)
    numbers = pd.Series(range(len(axes)), index=names.to_pylist()).loc[clips["recording"]].to_numpy()
    clips["axis"] = np.array(axes)[numbers]
    at_s = np.array(shifts_s)[numbers] + clips["onset_s"]
    at_s -= at_s.groupby(clips["axis"]).transform("min")
    # By the middle of a clip: a clock that is a little early moves no clip.
    clips["minute"] = np.floor((at_s + clips["duration_s"] / 2) / minute_s(clip_s)).astype(int)
    clips["at_s"] = at_s
    offset = pd.to_timedelta(clips["utc_offset_s"].fillna(0), unit="s")
    clips["clock"] = (clips["recorded_at"] - offset).where(clips["recorder"].notna())
    clips["axis_begins"] = clips.groupby("axis")["clock"].transform("min")
    of_recorder = clips["recorder"] + clips["utc_offset_s"].notna().map({True: " UTC", False: ""})
    clips["sequence"] = of_recorder.where(clips["clock"].notna(), clips["recording"])
    place = pc.index_in(manifest["clip_id"], value_set=spectra["clip_id"].combine_chunks()).to_pandas()
    clips["spectrum"] = place
    clips = clips[place.notna()].sort_values(["sequence", "axis_begins", "axis", "at_s", "clip_id"])
    values = np.stack(list(list_arrays(spectra["median_db"]))).astype(np.float64)
    recorders = []
    for _, own in clips.groupby("sequence", sort=True):
        keys = own[["axis", "minute"]].to_numpy()
        first = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]).any(axis=1)])
        heard_s = np.add.reduceat(own["duration_s"].to_numpy(), first)
        spans = np.stack([first, np.r_[first[1:], len(own)]], axis=1)[heard_s >= _LEAST_SHARE * minute_s(clip_s)]
        if len(spans):
            rows = own["spectrum"].to_numpy().astype(int)
            medians = np.stack([np.median(values[rows[start:end]], axis=0) for start, end in spans])
            recorders.append(Minutes(centred(medians), own, spans))
    return recorders
