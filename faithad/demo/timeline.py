"""The events of one recording of the demo mill: boards, idling, thumps, disturbances. `sounds` makes them audible.

A recording is a function of (seed, index): every random draw comes from a stream that is keyed by both and by what is
drawn, so recordings can be made in any order. Times are seconds from the start of the recording.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

BROKEN, STUCK, UNEVEN = "broken_board", "board_stuck", "Uneven_thick_wood"
ANOMALY_TYPES = (BROKEN, STUCK, UNEVEN)

# Weaker disturbances cannot be heard, so an expert marks no interval.
AUDIBLE_STRENGTH = 0.33
_FAINTEST_STRENGTH = 0.1

# For each type: possible lengths of a disturbance in whole seconds and their probabilities, the pause before the next
# one, and how long a recording stays disturbed. As in the published annotations, uneven boards are many short marks, a
# stuck board lasts long, and a board breaks once and rattles on.
_LENGTHS_S: dict[str, tuple[tuple[int, ...], tuple[float, ...]]] = {
    UNEVEN: ((1, 2, 3, 4), (0.46, 0.26, 0.16, 0.12)),
    STUCK: ((2, 3, 4, 6, 9), (0.2, 0.3, 0.3, 0.12, 0.08)),
    BROKEN: ((3, 4, 5), (0.2, 0.5, 0.3)),
}
_PAUSES_S: dict[str, tuple[int, int]] = {UNEVEN: (2, 7), STUCK: (3, 8), BROKEN: (4, 8)}
_RUN_S: dict[str, tuple[int, int]] = {UNEVEN: (30, 56), STUCK: (18, 36), BROKEN: (8, 16)}

# Name, load of its width (38 x 64, 89 or 140 mm) on the spindles, feed speed in m/s.
_SIZES = (("2x3", 0.72, 1.25), ("2x4", 0.88, 1.12), ("2x6", 1.1, 0.98))
_LENGTHS_M = (2.44, 3.05, 3.66, 4.27, 4.88)
_RECORDINGS_PER_BATCH = 3
_SHORTEST_PASSAGE_S = 1.2

_DISTURBANCES, _BOARDS, _HARMLESS, _BATCHES = range(100, 104)


Pairs = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Disturbance:
    """One disturbance, of strength 0 (no change) to 1 (the worst)."""

    anomaly_type: str
    onset_s: float
    offset_s: float
    strength: float

    @property
    def audible(self) -> bool:
        return self.strength >= AUDIBLE_STRENGTH

    @property
    def marked_s(self) -> tuple[int, int]:
        """The interval that an expert would mark, in whole seconds."""
        return math.floor(self.onset_s), math.ceil(self.offset_s)


@dataclass(frozen=True)
class Board:
    """One board: when its front reaches the first cutter head, when its end leaves it, and how it cuts."""

    onset_s: float
    offset_s: float
    load: float
    brightness: float
    body_hz: float


@dataclass(frozen=True)
class Timeline:
    """Everything that determines the sound of one recording.

    `spindle` and `feed` are (time, speed) corner points, speed 1 in normal operation. `thumps` of forklifts
    and `blasts` of compressed air are (time, level).
    """

    seed: int
    index: int
    duration_s: float
    hours: float
    size: str
    feed_m_per_s: float
    boards: tuple[Board, ...]
    spindle: Pairs
    feed: Pairs
    thumps: Pairs
    blasts: Pairs
    disturbances: tuple[Disturbance, ...]


def stream(seed: int, *key: int) -> np.random.Generator:
    """The random stream of a key."""
    return np.random.default_rng([seed, *key])


def disturb(seed: int, index: int, anomaly_type: str, *, duration_s: float) -> tuple[Disturbance, ...]:
    """The disturbances of one recording. Whole seconds lie between them, and at least one is audible.

    Their strength changes from one 10 s window to the next, so that some clips have only inaudible ones.
    """
    rng = stream(seed, index, _DISTURBANCES)
    whole_s = int(duration_s)
    shortest_s, longest_s = (min(limit, whole_s) for limit in _RUN_S[anomaly_type])
    run_s = int(rng.integers(shortest_s, longest_s + 1))
    at_s = start_s = int(rng.integers(0, whole_s - run_s + 1))
    # Faint disturbances are more frequent than strong ones.
    severity = _FAINTEST_STRENGTH + (1.0 - _FAINTEST_STRENGTH) * rng.random(whole_s // 10 + 1) ** 1.6
    lengths_s, odds = _LENGTHS_S[anomaly_type]
    spans: list[tuple[int, int]] = []
    while at_s < start_s + run_s:
        length_s = min(int(rng.choice(lengths_s, p=odds)), whole_s - at_s)
        spans.append((at_s, at_s + length_s))
        at_s += length_s + int(rng.integers(*_PAUSES_S[anomaly_type]))
    windows = [onset // 10 for onset, _ in spans]
    if severity[windows].max() < AUDIBLE_STRENGTH:
        severity[int(rng.choice(windows))] = rng.uniform(0.5, 1.0)
    return tuple(
        Disturbance(
            anomaly_type,
            onset + float(rng.uniform(0.02, 0.25)),
            offset - float(rng.uniform(0.02, 0.25)),
            float(severity[onset // 10]),
        )
        for onset, offset in spans
    )


def timeline(
    seed: int, index: int, *, duration_s: float, hours: float, disturbances: tuple[Disturbance, ...] = ()
) -> Timeline:
    """Boards and everything harmless around the disturbances of a recording that starts `hours` after the first one."""
    rng = stream(seed, index, _HARMLESS)
    size, load, feed_m_per_s = _batch(seed, index)
    feed_m_per_s *= float(rng.uniform(0.97, 1.03))
    spindle, feed, idle = _operation(rng, duration_s, steady=bool(disturbances))
    thumps, blasts = (
        tuple(zip(rng.uniform(0, duration_s, n).tolist(), rng.uniform(0.2, 1.0, n).tolist(), strict=True))
        for n in rng.poisson([duration_s / 20.0, duration_s / 14.0])
    )
    boards = _boards(stream(seed, index, _BOARDS), duration_s, load, feed_m_per_s, disturbances, idle)
    return Timeline(
        seed, index, duration_s, hours, size, feed_m_per_s, boards, spindle, feed, thumps, blasts, disturbances
    )


def _batch(seed: int, index: int) -> tuple[str, float, float]:
    """Size, load and feed speed: one size for a few recordings, all three sizes in three consecutive batches."""
    batch = index // _RECORDINGS_PER_BATCH
    order = stream(seed, batch // len(_SIZES), _BATCHES).permutation(len(_SIZES))
    return _SIZES[int(order[batch % len(_SIZES)])]


def _operation(
    rng: np.random.Generator, duration_s: float, *, steady: bool
) -> tuple[Pairs, Pairs, list[tuple[float, float]]]:
    """Corner points of spindle and feed speed, and the intervals without boards."""
    kind = rng.choice(["planing", "pause", "idle", "restart"], p=[0.63, 0.27, 0.06, 0.04])
    length_s = float(rng.uniform(0.15, 0.5)) * duration_s
    onset_s = float(rng.uniform(-0.3, 0.9)) * duration_s
    offset_s = onset_s + length_s
    running: Pairs = ((0.0, 1.0),)
    if kind == "planing" or steady:
        return running, running, []
    if kind == "idle":
        return running, ((0.0, 0.0),), [(-10.0, duration_s + 10.0)]
    feed = ((onset_s + 1.0, 1.0), (onset_s + 2.5, 0.0), (offset_s - 2.0, 0.0), (offset_s - 0.7, 1.0))
    if kind == "pause":
        return running, feed, [(onset_s, offset_s)]
    # The heads are switched off; they slow down for longer than they need to speed up again.
    down_s, up_s = onset_s + 2.0, onset_s + 14.0
    spindle = ((down_s, 1.0), (down_s + 3.5, 0.62), (down_s + 8.0, 0.4), (up_s, 0.4), (up_s + 5.0, 1.0))
    restart_s = max(offset_s, up_s + 7.0)
    return spindle, (*feed[:2], (restart_s - 2.0, 0.0), (restart_s - 0.7, 1.0)), [(onset_s, restart_s)]


def _boards(
    rng: np.random.Generator,
    duration_s: float,
    load: float,
    feed_m_per_s: float,
    disturbances: tuple[Disturbance, ...],
    idle: list[tuple[float, float]],
) -> tuple[Board, ...]:
    """One board around each disturbance, then ordinary boards with short gaps wherever there is room."""

    def board(onset_s: float, offset_s: float) -> Board:
        hard = 1.5 if rng.random() < 0.07 else 1.0
        return Board(
            onset_s,
            offset_s,
            load=load * hard * float(rng.lognormal(0.0, 0.13)),
            brightness=float(np.clip(rng.normal(0.5, 0.16), 0.1, 0.9)),
            body_hz=float(rng.uniform(340.0, 820.0)),
        )

    taken: list[tuple[float, float]] = []
    for disturbance in disturbances:
        onset_s = disturbance.onset_s - float(rng.uniform(0.3, 1.2))
        offset_s = disturbance.offset_s + float(rng.uniform(0.2, 1.0))
        if taken and onset_s < taken[-1][1] + 0.4:
            onset_s = taken.pop()[0]
        taken.append((onset_s, offset_s))
    boards = [board(*span) for span in taken]
    at_s = -float(rng.uniform(0.5, 4.0))
    for busy_onset_s, busy_offset_s in [*sorted([*taken, *idle]), (duration_s + 6.0, math.inf)]:
        while at_s < busy_onset_s - _SHORTEST_PASSAGE_S:
            passage_s = float(rng.choice(_LENGTHS_M)) / feed_m_per_s
            gap_s = float(rng.uniform(2.0, 4.0)) if rng.random() < 0.07 else 0.3 + float(rng.exponential(0.35))
            offset_s = min(at_s + passage_s, busy_onset_s - 0.3)
            if offset_s - at_s >= _SHORTEST_PASSAGE_S and at_s < duration_s:
                boards.append(board(at_s, offset_s))
            at_s += passage_s + gap_s
        at_s = busy_offset_s + 0.3 + float(rng.exponential(0.3))
    return tuple(sorted(boards, key=lambda board: board.onset_s))
