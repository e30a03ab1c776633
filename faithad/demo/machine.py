"""The demo planer as a machine: its heads, rolls and fan, the hall around it, its drift over the hours, and its tones.

Each cutter head repeats the sound of one turn at its present speed: blade-pass harmonics, which are louder and brighter
in the wood, and side bands if the strokes of the knives are unequal.

Shape letters: H cutter heads, P points in time (250 samples apart), N samples at 20 kHz.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from faithad.demo.motion import POINT_SAMPLES, SAMPLE_RATE_HZ, Curve, Motion
from faithad.demo.timeline import stream

Signal = NDArray[np.float32]

_MACHINE, _DRIFT, _STARTS = range(300, 303)

# Turns per second and knives of the top, bottom and side heads, and how loud each is.
_HEADS = ((72.0, 8, 1.0), (77.5, 6, 0.7), (97.0, 4, 0.4))
_HIGHEST_HZ = 9_600.0

# Turns per second of feed rolls and fan, and the amplitudes of their orders 1, 2, …: gear mesh, fan blades.
_ROLLS_HZ, _ROLLS = 23.0, (1.0, 0.5, 0.35, 0.5, 0.2, 0.2, 1.0, 0.9, 0.2, 0.1, 0.1, 0.2, 0.3, 0.5)
_FAN_HZ, _FAN = 24.4, (0.6, 0.1, 0.1, 0.1, 0.1, 0.3, 0.1, 1.0, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.5)

_TURN_BITS = 13


@dataclass(frozen=True)
class Machine:
    """One machine, hall and microphone, the same for all recordings of a seed."""

    head_hz: tuple[float, ...]
    harmonics: tuple[Curve, ...]  # per head, factors on the amplitudes of its orders
    idle_turns: tuple[Signal, ...]  # per head, the sound of one turn in air
    duct_hz: Curve
    room: Signal  # impulse response


@dataclass(frozen=True)
class MachineDrift:
    """The state after some hours: knives wear within a shift, the hall warms up by day, the gain drifts."""

    wear: float  # 0 (sharp) to 1
    warmth: float  # -1 to 1
    gain: float


@functools.lru_cache(maxsize=4)
def machine_of(seed: int) -> Machine:
    """The machine of a seed."""
    rng = stream(seed, _MACHINE)
    head_hz = tuple(hz * float(rng.uniform(0.98, 1.02)) for hz, _, _ in _HEADS)
    harmonics = tuple(rng.lognormal(0.0, 0.32, size=int(_HIGHEST_HZ / hz)) for hz in head_hz)
    idle_turns = (
        _turn(_blade_pass(own, knives, tilt=1.25)) for own, (_, knives, _) in zip(harmonics, _HEADS, strict=True)
    )
    duct_hz = np.array([118.0, 205.0, 390.0, 760.0, 1480.0]) * rng.uniform(0.94, 1.06, size=5)
    return Machine(head_hz, harmonics, tuple(idle_turns), duct_hz, _room(rng))


def drift_at(seed: int, hours: float) -> MachineDrift:
    """The state after this many hours of a run that begins with sharp knives; a shift has eight hours."""
    phases = stream(seed, _DRIFT).uniform(0, 2 * np.pi, size=3)
    return MachineDrift(
        wear=(hours % 8.0) / 8.0,
        warmth=float(np.sin(2 * np.pi * hours / 24.0 + phases[0])),
        gain=float(10 ** (0.03 * np.sin(hours / 0.9 + phases[1]) + 0.02 * np.sin(hours / 0.21 + phases[2]))),
    )


def tones(machine: Machine, drift: MachineDrift, moved: Motion, rng: np.random.Generator) -> tuple[Signal, Signal]:
    """The sound of all rotating parts (N,), and the strokes of the first head (N,) that modulate the cutting noise."""
    n_points = moved.time_s.size
    total = np.zeros((n_points - 1) * POINT_SAMPLES, dtype=np.float32)

    def play(turn: Signal, positions: NDArray[np.intp], level: Curve) -> None:
        piece = turn[positions]
        piece *= samples(level)
        np.add(total, piece, out=total)

    heads = [_positions(hz * speed, rng) for hz, speed in zip(machine.head_hz, moved.spindle, strict=True)]
    play(_ROLLS_TURN, _positions(_ROLLS_HZ * moved.feed, rng), 0.012 * np.sqrt(moved.feed))
    play(_FAN_TURN, _positions(np.full(n_points, _FAN_HZ), rng), np.full(n_points, 0.012))
    # Worn knives beat the wood: the sound is louder and has stronger upper harmonics.
    tilt, blunt = 0.95 - 0.35 * drift.wear, 1.0 + 0.4 * drift.wear
    for head, (_, knives, loudness) in enumerate(_HEADS):
        in_wood = _turn(_blade_pass(machine.harmonics[head], knives, tilt=tilt))
        play(machine.idle_turns[head], heads[head], 0.026 * loudness * moved.spindle[head] ** 2)
        play(in_wood, heads[head], 0.03 * loudness * blunt * moved.load[head] * moved.tone)
    knives = _HEADS[0][1]
    play(_turn(_side_bands(machine.harmonics[0], knives)), heads[0], 0.04 * moved.load[0] * moved.runout)
    angle = 2 * np.pi * np.arange(2**_TURN_BITS) / 2**_TURN_BITS
    chop = (1.0 + 0.6 * np.cos(knives * angle)).astype(np.float32)
    strokes = np.cos(angle).astype(np.float32)[heads[0]]
    strokes *= samples(0.4 * moved.runout)
    strokes += chop[heads[0]]
    return total, strokes


def samples(curve: Curve) -> Signal:
    """A curve (P,) at every sample (N,), by linear interpolation."""
    points = curve.astype(np.float32)
    between = np.arange(POINT_SAMPLES, dtype=np.float32) / np.float32(POINT_SAMPLES)
    lines = np.multiply.outer(np.diff(points), between)
    lines += points[:-1, None]
    return np.asarray(lines.reshape(-1), dtype=np.float32)


def _positions(turns_per_s: Curve, rng: np.random.Generator) -> NDArray[np.intp]:
    """The position of each sample in the table of a turn: the cumulative speed, which 32-bit arithmetic wraps."""
    steps = samples(turns_per_s * (2.0**32 / SAMPLE_RATE_HZ)).astype(np.uint32)
    steps[0] += rng.integers(0, 2**31, dtype=np.uint32)
    np.cumsum(steps, dtype=np.uint32, out=steps)
    steps >>= np.uint32(32 - _TURN_BITS)
    return steps.astype(np.intp)


def _blade_pass(own: Curve, knives: int, *, tilt: float) -> Curve:
    """Amplitudes of the orders 1, 2, … of a head: blade-pass harmonics that fall by `tilt`, and little between them."""
    order = np.arange(1, own.size + 1)
    amplitude = own * np.maximum(order / knives, 0.6) ** -tilt
    return np.asarray(np.where(order % knives == 0, amplitude, 0.04 * amplitude))


def _side_bands(own: Curve, knives: int) -> Curve:
    """Amplitudes of the orders that are 1 or 2 away from a blade-pass harmonic."""
    order = np.arange(1, own.size + 1)
    is_side_band = np.isin(order % knives, (1, 2, knives - 2, knives - 1))
    return np.asarray(np.where(is_side_band, own * np.maximum(order / knives, 0.6) ** -0.5, 0.0))


def _turn(amplitudes: Curve) -> Signal:
    """One turn as a table with RMS 1. The orders have the phases of a chirp, so that peaks stay low."""
    order = np.arange(1, amplitudes.size + 1)
    spectrum = np.zeros(2 ** (_TURN_BITS - 1) + 1, dtype=complex)
    spectrum[order] = amplitudes * np.exp(1j * np.pi * order**2 / amplitudes.size)
    turn = np.fft.irfft(spectrum)
    return np.asarray(turn / turn.std(), dtype=np.float32)


def _room(rng: np.random.Generator) -> Signal:
    """Impulse response of a hall: direct sound, early reflections, and a tail of 0.3 s whose highs decay first."""
    n = int(0.3 * SAMPLE_RATE_HZ)
    time_s = np.arange(n) / SAMPLE_RATE_HZ
    tail = rng.standard_normal(n)
    bright = np.convolve(tail, [0.5, -0.5], mode="same") * np.exp(-time_s / 0.035)
    dark = np.convolve(tail, np.ones(5) / 5, mode="same") * np.exp(-time_s / 0.075)
    response = 0.022 * (bright + dark) * np.clip((time_s - 0.006) / 0.006, 0.0, 1.0)
    early = rng.integers(int(0.003 * SAMPLE_RATE_HZ), int(0.04 * SAMPLE_RATE_HZ), size=7)
    response[early] += rng.uniform(-0.16, 0.16, size=7)
    response[0] = 1.0
    return response.astype(np.float32)


_ROLLS_TURN, _FAN_TURN = _turn(np.array(_ROLLS)), _turn(np.array(_FAN))
