"""What changed in the course of an audit, apart from anomalies: the recorder, and the level of recordings.

The model does not change: an audit has one.
"""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from faithad.clips.channels import split_name
from faithad.clips.health_table import heard_level
from faithad.report.timeline import TimeLine

# Smaller steps are not marked, nor those that are no larger than twice the usual distance from the median on either
# side.
_STEP_DB, _SPREADS = 6.0, 2.0
# Recordings on either side of a step: a few loud ones, which may hold an event, are no step.
_BESIDE, _FEWEST = 5, 3
_MOST = 20


class ChangeMark(NamedTuple):
    """A mark on the time line: where it is in hours of the axis, when that is, and what changed."""

    at_h: float
    when: str
    words: str


def changes(clips: pd.DataFrame, health: pa.Table, line: TimeLine) -> list[ChangeMark]:
    """New recorders and steps of the level, in the order of time; of each at most 20, the largest steps.

    Args:
        clips: the manifest, see `with_one_clock`.
        health: schemas.HEALTH.
        line: the axis of time. Without a clock it shows no changes.
    """
    midnight = line.midnight
    if midnight is None:
        return []
    levels = {row["recording"]: heard_level(row) for row in health.to_pylist()}
    first = clips.sort_values("onset_s").drop_duplicates("recording").sort_values("on_one_clock")
    first = first.assign(level=[levels.get(split_name(name)[0]) for name in first["recording"]])
    recorders = list(first.groupby("recorder", sort=False))
    marks = [(0.0, own["on_one_clock"].iloc[0], f"first recording of {name}") for name, own in recorders[1 : _MOST + 1]]
    steps = [
        (abs(step_db), at, f"{abs(step_db):.0f} dB {'louder' if step_db > 0 else 'quieter'} from here on: {name}")
        for name, own in recorders
        for at, step_db in _steps(own[own["level"].notna()])
    ]
    marks += sorted(steps, key=lambda step: -step[0])[:_MOST]
    return sorted(
        ChangeMark((at - midnight) / pd.Timedelta(hours=1), f"{at:%Y-%m-%d %H:%M}", words) for _, at, words in marks
    )


def _steps(recordings: pd.DataFrame) -> list[tuple[pd.Timestamp, float]]:
    times = recordings["on_one_clock"].tolist()
    return [(times[place], step_db) for place, step_db in level_steps(recordings["level"].to_numpy(dtype=float))]


def level_steps(levels_db: np.ndarray) -> list[tuple[int, float]]:
    """Where the level changes for good: the first recording after each step, and by how many dB.

    The medians of up to five recordings on either side are compared, of three at least.

    Args:
        levels_db: (N,) of recordings in the order of time.
    """
    steps: list[tuple[int, float]] = []
    for place in range(_FEWEST, len(levels_db) - _FEWEST + 1):
        sides = levels_db[max(0, place - _BESIDE) : place], levels_db[place : place + _BESIDE]
        before, after = (float(np.median(side)) for side in sides)
        spread = max(float(np.median(np.abs(side - np.median(side)))) for side in sides)
        if abs(after - before) >= max(_STEP_DB, _SPREADS * spread):
            steps.append((place, after - before))
    # The medians also differ next to a step. Of neighbouring places, the step is where the level jumps most.
    jumps = np.abs(np.diff(levels_db))
    neighbours = groupby(enumerate(steps), key=lambda numbered: (numbered[1][0] - numbered[0], numbered[1][1] > 0))
    return [max((step for _, step in group), key=lambda step: jumps[step[0] - 1]) for _, group in neighbours]
