"""What lasts: minutes whose spectrum differs from the recorder's own past.

A score of clips is made for what is short, and is blind to a bearing that begins to whine: each of its clips sounds the
same. So this alarm looks at whole minutes. A minute is the median spectrum of its clips' median spectra, less its mean
over the mel bands: neither its gain nor a short sound counts. Its distance from other minutes is the mean of the RMS
differences from the two nearest ones.

1. A minute is compared with the past: the last `MOST_PAST` minutes of its recorder, 4 h of sound. Where there are fewer
   than `LEAST_PAST`, it is compared with the normal minutes of the training. It alarms above the threshold of that
   comparison.
2. Alarms with at most `MOST_QUIET` other minutes between two of them are one change.
3. The minutes of a change are no part of the past as long as it lasts: a whine of hours stays an alarm.
   Once it is over they are, so that a machine that goes back and forth between two states is reported once.
4. A change that has lasted for `MOST_PAST` minutes is the usual sound from then on: they are the past, and going back
   is a change, too.

The median of the past in place of its nearest minutes catches a tenth as many: a machine has several normal sounds.

Shape letters: n minutes of a recorder, N normal minutes, F mel bands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from faithad.model.state_alarm import MOST_MINUTES, StateAlarm, StateThreshold

MOST_PAST, LEAST_PAST = 240, 30
MOST_QUIET = 2
# Fewer say nothing of a rate.
FEWEST_MINUTES = 20
_NEAREST = 2
# Normal minutes that are all alike, as of digital silence, would let nothing else pass.
_LEAST_THRESHOLD_DB = 0.1
# Bands belong to a change from this share of its largest difference on.
_SHARE_OF_LARGEST = 0.5
_MOST_RANGES = 3

Floats = npt.NDArray[np.float64]
Outcome = Literal["over", "lasting", "usual"]


class Compared(NamedTuple):
    """A minute, compared with the past or the normal minutes.

    Attributes:
        distance_db: from the two nearest minutes.
        difference_db: of its spectrum from their mean, (F,).
        threshold: above which the distance alarms.
        with_past: whether it was compared with the past, and not with the normal minutes.
    """

    distance_db: float
    difference_db: Floats
    threshold: StateThreshold
    with_past: bool

    @property
    def alarms(self) -> bool:
        return self.distance_db > self.threshold.threshold_db

    @property
    def strength(self) -> float:
        return self.distance_db / self.threshold.threshold_db


class StateChange(NamedTuple):
    """Alarmed minutes of one recorder that lie close together.

    Attributes:
        alarmed: their numbers, in the order of time.
        outcome: `over` where it went back, `lasting` where the sound ends before, `usual` after `MOST_PAST` minutes.
    """

    alarmed: list[int]
    outcome: Outcome


class BandRange(NamedTuple):
    """Mel bands side by side, `low` to `high` included, which are louder by `change_db` on average."""

    low: int
    high: int
    change_db: float


def centred(spectra: npt.ArrayLike) -> Floats:
    """Spectra (n, F) in decibels, each less its mean over the bands."""
    values = np.asarray(spectra, dtype=np.float64)
    return np.asarray(values - values.mean(axis=-1, keepdims=True))


def nearest(spectrum: Floats, others: Floats) -> tuple[float, Floats]:
    """The distance of a spectrum (F,) from the two nearest of others (N, F), and the mean of these two, (F,)."""
    distances = np.sqrt(np.square(others - spectrum).mean(axis=1))
    two = np.argsort(distances, kind="stable")[:_NEAREST]
    return float(distances[two].mean()), others[two].mean(axis=0)


def follow(minutes: Floats, alarm: StateAlarm) -> tuple[list[Compared], list[StateChange]]:
    """Compare each minute of a recorder with what it is to be compared with, and find what changed.

    Args:
        minutes: (n, F) in the order of time, as `centred` gives them.
        alarm: the thresholds, and the normal minutes.
    """
    normals = alarm.spectra.numpy().astype(np.float64)
    return _follow(minutes, normals, alarm.against_normals, alarm.against_past)


def _follow(
    minutes: Floats, normals: Floats, against_normals: StateThreshold, against_past: StateThreshold | None
) -> tuple[list[Compared], list[StateChange]]:
    compared: list[Compared] = []
    changes: list[StateChange] = []
    past: list[int] = []
    alarmed: list[int] = []  # of the change that is not over yet
    for number, minute in enumerate(minutes):
        if against_past is not None and len(past) >= LEAST_PAST:
            compared.append(_compare(minute, minutes[past], against_past, with_past=True))
        else:
            compared.append(_compare(minute, normals, against_normals, with_past=False))
        if compared[-1].alarms:
            alarmed.append(number)
        if not alarmed:
            past = [*past, number][-MOST_PAST:]
            continue
        is_over = number - alarmed[-1] > MOST_QUIET
        is_usual = against_past is not None and number - alarmed[0] + 1 >= MOST_PAST
        if is_over or is_usual:
            changes.append(StateChange(alarmed, "over" if is_over else "usual"))
            past = [*past, *range(alarmed[0], number + 1)][-MOST_PAST:]
            alarmed = []
    if alarmed:
        changes.append(StateChange(alarmed, "lasting" if compared[-1].alarms else "over"))
    return compared, changes


def _compare(minute: Floats, others: Floats, threshold: StateThreshold, *, with_past: bool) -> Compared:
    distance_db, mean = nearest(minute, others)
    return Compared(distance_db, minute - mean, threshold, with_past)


def changed_bands(difference_db: Floats) -> list[BandRange]:
    """Where a spectrum differs, strongest first.

    The difference (F,) is measured from its median, so that bands that stayed are at 0. A range is of bands side by
    side that differ in one direction, by half of the largest difference or more.
    """
    change = difference_db - np.median(difference_db)
    sign = np.sign(change) * (np.abs(change) >= _SHARE_OF_LARGEST * np.abs(change).max())
    edges = np.flatnonzero(np.diff(sign, prepend=0, append=0))
    ranges = [
        BandRange(int(low), int(high) - 1, float(change[low:high].mean())) for low, high in pairwise(edges) if sign[low]
    ]
    return sorted(ranges, key=lambda bands: -abs(bands.change_db) * (bands.high - bands.low + 1))[:_MOST_RANGES]


def fit_state(
    recorders: Sequence[Floats], groups: Sequence[Sequence[str]], *, false_alarm_rate: float, share: float
) -> StateAlarm | None:
    """Fit the alarm to normal minutes.

    A threshold is the r-th smallest of n distances, r = ceil((n + 1)(1 - a)), or the largest where they are too few for
    a. The share of new normal minutes above it is expected to be (n + 1 - r) / (n + 1). Distances from the past are
    those where no minute alarms, so that all belong to the past. What this promises is a share of minutes with which a
    change begins, and not of those that it lasts.

    Args:
        recorders: the normal minutes of each recorder, (n, F) in the order of time, as `centred` gives them.
        groups: the recording of each minute; normal minutes are compared with those of other recordings.
        false_alarm_rate: a, the share of normal minutes that may begin a change.
        share: see `StateAlarm`.

    Returns:
        None where there are fewer than `FEWEST_MINUTES` minutes, or all are of one recording.
    """
    names = np.array([name for of_recorder in groups for name in of_recorder])
    if len(names) < FEWEST_MINUTES or len(set(names)) < 2:
        return None
    kept = np.linspace(0, len(names) - 1, min(len(names), MOST_MINUTES)).round().astype(int)
    names, spectra = names[kept], np.concatenate(recorders)[kept]
    from_normals = [nearest(minute, spectra[names != name])[0] for minute, name in zip(spectra, names, strict=True)]
    never = StateThreshold(math.inf, false_alarm_rate, 0)
    compared = (minute for minutes in recorders for minute in _follow(minutes, minutes[:1], never, never)[0])
    from_past = [minute.distance_db for minute in compared if minute.with_past]
    return StateAlarm(
        torch.from_numpy(spectra.astype(np.float32)),
        share,
        false_alarm_rate,
        _threshold(from_normals, false_alarm_rate),
        _threshold(from_past, false_alarm_rate) if len(from_past) >= FEWEST_MINUTES else None,
    )


def _threshold(distances: Sequence[float], rate: float) -> StateThreshold:
    n = len(distances)
    # Rounded, because 0.95 * 20 = 19.000000000000004 would cost a whole rank.
    rank = min(n, math.ceil(round((n + 1) * (1.0 - rate), 9)))
    return StateThreshold(max(_LEAST_THRESHOLD_DB, sorted(distances)[rank - 1]), (n + 1 - rank) / (n + 1), n)
