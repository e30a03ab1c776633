"""The motion of the demo planer in a timeline: speeds, loads and levels, 80 points a second.

Disturbances act here: each one changes a few curves, from which `sounds` makes the sound.

Shape letters: H cutter heads, P points in time, 250 samples apart at 20 kHz.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from faithad.demo.timeline import BROKEN, STUCK, UNEVEN, Disturbance, Timeline, stream

SAMPLE_RATE_HZ = 20_000
POINT_SAMPLES = 250
POINTS_PER_S = SAMPLE_RATE_HZ // POINT_SAMPLES

# Positions of the heads along the feed, in metres behind the first one: top, bottom, sides.
HEAD_POSITIONS_M = (0.0, 0.42, 0.85)

_JITTER, _GRAIN, _DUST, _EFFECTS = range(200, 204)

Curve = NDArray[np.float64]


@dataclass
class Motion:
    """Curves over P points. Speeds are 1 in normal operation, loads are 1 for an average board, levels are factors."""

    time_s: Curve  # (P,)
    spindle: Curve  # (H, P)
    feed: Curve  # (P,)
    load: Curve  # (H, P)
    board: Curve  # (boards, P): each board's own part of the first head's load
    tone: Curve  # (P,) level of the cutting tones
    hiss: Curve  # (P,) level of the cutting noise
    runout: Curve  # (P,) how unequal the knives' strokes are within a turn: side bands
    dust: Curve  # (P,) level of the extraction


def motion(timeline: Timeline) -> Motion:
    """The curves of a recording, with a point at each end: ordinary operation, then the effects of disturbances."""
    n_points = int(np.ceil(timeline.duration_s * POINTS_PER_S)) + 1
    time_s = np.arange(n_points) / POINTS_PER_S
    grain = _grain(stream(timeline.seed, timeline.index, _GRAIN), n_points)
    cuts = [_gate(time_s, board.onset_s, board.offset_s, 0.05, 0.07) * board.load for board in timeline.boards]
    board = np.array(cuts).reshape(-1, n_points) * grain
    load = np.stack([_delayed(board.sum(axis=0), metres / timeline.feed_m_per_s) for metres in HEAD_POSITIONS_M])
    rng = stream(timeline.seed, timeline.index, _JITTER)
    jitter = np.stack([0.0006 * _wander(rng, n_points, cutoff_hz=1.5) for _ in HEAD_POSITIONS_M])
    feed = np.interp(time_s, *np.array(timeline.feed).T)
    moved = Motion(
        time_s=time_s,
        spindle=np.interp(time_s, *np.array(timeline.spindle).T) * (1.0 + jitter),
        feed=feed * (1.0 - 0.02 * load[0]),
        load=load,
        board=board,
        tone=np.ones(n_points),
        hiss=np.ones(n_points),
        runout=np.full(n_points, 0.12),
        dust=1.0 + 0.12 * _wander(stream(timeline.seed, timeline.index, _DUST), n_points, cutoff_hz=0.4),
    )
    for number, disturbance in enumerate(timeline.disturbances):
        rng = stream(timeline.seed, timeline.index, _EFFECTS, number)
        _CHANGES[disturbance.anomaly_type](moved, disturbance, rng)
    # A motor slows down under load, delayed by the inertia of the head.
    moved.spindle *= 1.0 - 0.007 * np.stack([_lagged(row, 0.25) for row in moved.load])
    return moved


def _break(moved: Motion, disturbance: Disturbance, rng: np.random.Generator) -> None:
    """The pieces jam and tumble: speed and load of the heads become unsteady until they are through."""
    inside = _gate(moved.time_s, disturbance.onset_s, disturbance.offset_s, 0.03, 0.5) * disturbance.strength
    moved.spindle *= 1.0 + 0.022 * inside * _wander(rng, moved.time_s.size, cutoff_hz=3.0)
    unsteady = inside * _wander(rng, moved.time_s.size, cutoff_hz=9.0)
    moved.load *= np.clip(1.0 + 0.5 * unsteady, 0.2, None)
    moved.runout += 0.5 * inside
    moved.hiss *= 1.0 + 0.25 * inside


def _stall(moved: Motion, disturbance: Disturbance, rng: np.random.Generator) -> None:
    """The feed slips and stops. The knives rub on one place and cut less, and the spindle slows down."""
    seconds = disturbance.offset_s - disturbance.onset_s
    slow = _gate(moved.time_s, disturbance.onset_s, disturbance.offset_s, min(0.7, seconds / 3), 0.4)
    slow *= disturbance.strength
    moved.feed *= 1.0 - np.minimum(0.97, 1.5 * slow)
    moved.spindle *= 1.0 - 0.045 * slow * (1.0 + 0.1 * _wander(rng, moved.time_s.size, cutoff_hz=1.0))
    moved.hiss *= 1.0 - 0.4 * slow
    moved.tone *= 1.0 + 0.6 * slow


def _thicken(moved: Motion, disturbance: Disturbance, rng: np.random.Generator) -> None:
    """More wood per stroke: load, level and side bands rise, and the board shakes."""
    inside = _gate(moved.time_s, disturbance.onset_s, disturbance.offset_s, 0.08, 0.12) * disturbance.strength
    shake_hz = rng.uniform(9.0, 15.0)
    shake = np.sin(2 * np.pi * shake_hz * moved.time_s + rng.uniform(0, 2 * np.pi))
    moved.load *= 1.0 + inside * (0.8 + 0.5 * shake)
    moved.hiss *= 1.0 + 0.35 * inside
    moved.tone *= 1.0 + 0.3 * inside
    moved.runout += 1.25 * inside


_CHANGES: dict[str, Callable[[Motion, Disturbance, np.random.Generator], None]] = {
    BROKEN: _break,
    STUCK: _stall,
    UNEVEN: _thicken,
}


def _grain(rng: np.random.Generator, n_points: int) -> Curve:
    """The hardness of the wood along the boards: slow changes, and a knot of about 50 ms every second or two."""
    knots = np.zeros(n_points)
    knots[rng.integers(0, n_points, rng.poisson(0.7 * n_points / POINTS_PER_S))] = 1.0
    knots *= rng.gamma(2.0, 0.3, n_points)
    return 1.0 + 0.13 * _wander(rng, n_points, cutoff_hz=3.0) + np.convolve(knots, [0.5, 1.0, 1.0, 0.5], mode="same")


def _gate(time_s: Curve, onset_s: float, offset_s: float, rise_s: float, fall_s: float) -> Curve:
    """0 outside, 1 inside, with ramps inside."""
    gate: Curve = np.clip(np.minimum((time_s - onset_s) / rise_s, (offset_s - time_s) / fall_s), 0.0, 1.0)
    return gate


def _delayed(curve: Curve, delay_s: float) -> Curve:
    points = min(round(delay_s * POINTS_PER_S), curve.size)
    return np.concatenate([np.full(points, curve[0]), curve[: curve.size - points]])


def _lagged(curve: Curve, lag_s: float) -> Curve:
    """The curve after a first-order lag, by convolution with its impulse response."""
    kernel = np.exp(-np.arange(int(5 * lag_s * POINTS_PER_S)) / (lag_s * POINTS_PER_S))
    padded = np.concatenate([np.full(kernel.size - 1, curve[0]), curve])
    return np.convolve(padded, kernel / kernel.sum(), mode="valid")


def _wander(rng: np.random.Generator, n_points: int, *, cutoff_hz: float) -> Curve:
    """Noise of unit variance below a cutoff: the unsteadiness of every machine."""
    frequency_hz = np.fft.rfftfreq(n_points, 1 / POINTS_PER_S)
    spectrum = np.fft.rfft(rng.standard_normal(n_points)) / (1.0 + (frequency_hz / cutoff_hz) ** 2)
    spectrum[0] = 0.0
    curve = np.fft.irfft(spectrum, n_points)
    return np.asarray(curve / curve.std())
