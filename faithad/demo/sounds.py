"""The sound of the demo planer: from a timeline to the samples of one microphone.

Layers are added, then the room. Tones of all rotating parts. Noise: dust extraction with the resonances of its duct,
which follow the temperature; hall; bearings; and the cutting, which the strokes of the knives modulate. Knocks: boards
hit rolls and tables, forklifts drive over the sill, valves blow. Disturbances add cracks and chatter, or a squeal.

Shape letters: P points in time (250 samples apart), K frequency bins 40 Hz apart, N samples at 20 kHz.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from faithad.demo.machine import Machine, MachineDrift, Signal, drift_at, machine_of, tones
from faithad.demo.motion import POINT_SAMPLES, SAMPLE_RATE_HZ, Curve, Motion, motion
from faithad.demo.timeline import BROKEN, STUCK, Disturbance, Timeline, stream

_TONES, _NOISE, _KNOCKS, _EXTRA = range(400, 404)

# Gives mel spectrograms the decibels of the published ones: about -25 for a quiet band, +24 for a loud line.
_GAIN = 0.5
_KNEE, _LOUDEST = 0.7, 0.97

_NOISE_HZ = np.fft.rfftfreq(2 * POINT_SAMPLES, 1 / SAMPLE_RATE_HZ)

# Quantiles of a normal distribution in equal steps: to pick from them takes a third of the time of drawing new values.
_GAUSSIAN = np.array([NormalDist().inv_cdf((i + 0.5) / 4096) for i in range(4096)], dtype=np.float32)


def planer_sound(timeline: Timeline) -> Signal:
    """The samples of a recording: (N,) float32 at 20 kHz, within full scale 1."""
    machine = machine_of(timeline.seed)
    drift = drift_at(timeline.seed, timeline.hours)
    moved = motion(timeline)
    dry, strokes = tones(machine, drift, moved, stream(timeline.seed, timeline.index, _TONES))
    rng = stream(timeline.seed, timeline.index, _NOISE)
    dry += _background(machine, drift, moved, rng)
    strokes *= _cutting(timeline, drift, moved, rng)
    dry += strokes
    _add_knocks(dry, timeline)
    for number, disturbance in enumerate(timeline.disturbances):
        rng = stream(timeline.seed, timeline.index, _EXTRA, number)
        if disturbance.anomaly_type == BROKEN:
            add_crack(dry, disturbance, rng)
        elif disturbance.anomaly_type == STUCK:
            add_squeal(dry, disturbance, rng)
    n_samples = round(timeline.duration_s * SAMPLE_RATE_HZ)
    return _limit(_in_room(dry, machine.room)[:n_samples] * np.float32(_GAIN * drift.gain))


def _hump(centre_hz: float, octaves: float) -> Curve:
    """A bell curve over K bins, in octaves."""
    octave = np.log2(np.maximum(_NOISE_HZ, 20.0) / centre_hz)
    return np.asarray(np.exp(-0.5 * (octave / octaves) ** 2))


def _share(power: Curve) -> Curve:
    """A spectrum (K,) of total power 1 without its constant part."""
    power = np.where(_NOISE_HZ > 0, power, 0.0)
    return np.asarray(power / power.sum())


def _background(machine: Machine, drift: MachineDrift, moved: Motion, rng: np.random.Generator) -> Signal:
    """Extraction, hall, bearings and rolls."""
    slope = np.maximum(_NOISE_HZ, 60.0) ** -1.3 / (1.0 + (_NOISE_HZ / 3000.0) ** 2)
    duct = np.sum([_hump(hz * (1 + 0.02 * drift.warmth), 0.09) for hz in machine.duct_hz], axis=0)
    speed = moved.spindle.mean(axis=0)
    sources = [
        (0.022 * moved.dust, slope * (1 + 6 * duct)),
        (np.full(speed.size, 0.009), slope**2),
        (0.008 * speed**2.5, _hump(1500, 0.95)),
        (0.004 * moved.feed, _hump(800, 0.5)),
    ]
    return _noise(rng, sources)


def _cutting(timeline: Timeline, drift: MachineDrift, moved: Motion, rng: np.random.Generator) -> Signal:
    """Chips, whose brightness depends on the board and the wear of the knives, and the hum of each board's body."""
    load = moved.load.mean(axis=0) * moved.hiss
    bright = np.full(load.size, 0.15 * drift.wear)
    bodies = []
    for board, curve in zip(timeline.boards, moved.board, strict=True):
        bright += board.brightness / board.load * curve
        bodies.append((0.02 * curve, _hump(board.body_hz, 0.35)))
    bright = np.clip(bright, 0.0, 1.0)
    dark_chips = (0.03 * load * np.sqrt(1.0 - bright), _hump(1800, 0.85))
    bright_chips = (0.036 * load * np.sqrt(bright), _hump(4600, 0.62))
    return _noise(rng, [dark_chips, bright_chips, *bodies])


def _noise(rng: np.random.Generator, sources: list[tuple[Curve, Curve]]) -> Signal:
    """Gaussian noise (N,) of several sources, each a level (P,) and the shape of its power over frequency (K,).

    It consists of overlapping windows of 25 ms, which are drawn independently.
    """
    n_points, n_bins = sources[0][0].size, _NOISE_HZ.size
    power = np.zeros((n_points, n_bins), dtype=np.float32)
    for level, shape in sources:
        heard = np.flatnonzero(level)
        if heard.size:
            inside = slice(heard[0], heard[-1] + 1)
            # No matrix product of BLAS, whose last bits may depend on the number of its threads.
            power[inside] += np.multiply.outer(
                np.square(POINT_SAMPLES * level[inside]).astype(np.float32), _share(shape).astype(np.float32)
            )
    draws = _GAUSSIAN[rng.integers(0, _GAUSSIAN.size, (n_points, 2 * n_bins), dtype=np.uint16)].view(np.complex64)
    draws *= np.sqrt(power, out=power)
    pieces = np.fft.irfft(draws, n=2 * POINT_SAMPLES, axis=1)
    pieces *= np.sin(np.pi * (np.arange(2 * POINT_SAMPLES) + 0.5) / (2 * POINT_SAMPLES)).astype(np.float32)
    # A piece is centred on its point: its second half overlaps the first half of the next piece.
    return np.asarray((pieces[:-1, POINT_SAMPLES:] + pieces[1:, :POINT_SAMPLES]).reshape(-1), dtype=np.float32)


def _add(signal: Signal, onset_s: float, piece: Curve) -> None:
    """Add the part of a piece that lies inside the signal."""
    start = round(onset_s * SAMPLE_RATE_HZ)
    inside = slice(max(start, 0), min(start + piece.size, signal.size))
    if inside.start < inside.stop:
        signal[inside] += piece[inside.start - start : inside.stop - start].astype(np.float32)


def _knock(rng: np.random.Generator, hz: float, decay_s: float, hardness: float) -> Curve:
    """A struck body with a peak of about 1: a damped tone, and a click that grows with the hardness."""
    time_s = np.arange(int(6 * decay_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    tone = np.sin(2 * np.pi * hz * time_s * (1 + 0.1 * np.exp(-time_s / decay_s))) * np.exp(-time_s / decay_s)
    click = rng.standard_normal(time_s.size) * np.exp(-time_s / (0.12 * decay_s))
    return np.asarray((tone + hardness * click) * np.clip(time_s / 0.0015, 0.0, 1.0))


def _add_knocks(dry: Signal, timeline: Timeline) -> None:
    rng = stream(timeline.seed, timeline.index, _KNOCKS)
    for board in timeline.boards:
        _add(dry, board.onset_s - 0.35, 0.05 * rng.lognormal(0, 0.4) * _knock(rng, rng.uniform(170, 330), 0.03, 0.5))
        fall_s = board.offset_s + rng.uniform(0.9, 1.5)
        _add(dry, fall_s, 0.06 * rng.lognormal(0, 0.5) * _knock(rng, rng.uniform(90, 210), 0.06, 0.35))
    for onset_s, level in timeline.thumps:
        _add(dry, onset_s, 0.16 * level * _knock(rng, rng.uniform(42, 95), 0.16, 0.1))
        _add(dry, onset_s + rng.uniform(0.12, 0.3), 0.11 * level * _knock(rng, rng.uniform(42, 95), 0.12, 0.1))
    for onset_s, level in timeline.blasts:
        time_s = np.arange(int(rng.uniform(0.12, 0.5) * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
        air = np.diff(rng.standard_normal(time_s.size + 1)) * np.exp(-2.0 * time_s / time_s[-1])
        _add(dry, onset_s, 0.05 * level * air * np.clip(np.minimum(time_s, time_s[::-1]) / 0.01, 0.0, 1.0))


def add_crack(dry: Signal, disturbance: Disturbance, rng: np.random.Generator) -> None:
    """The board splits with a few cracks, then its pieces chatter between rolls and table until they are through."""
    strength = disturbance.strength
    for delay_s, level in ((0.0, 0.34), (rng.uniform(0.03, 0.09), 0.2), (rng.uniform(0.12, 0.3), 0.13)):
        _add(dry, disturbance.onset_s + delay_s, strength * level * _knock(rng, rng.uniform(700, 1500), 0.04, 1.0))
    at_s = disturbance.onset_s + 0.35
    rattle_hz = rng.uniform(13.0, 19.0)
    while at_s < disturbance.offset_s - 0.05:
        fading = 1.0 - 0.6 * (at_s - disturbance.onset_s) / (disturbance.offset_s - disturbance.onset_s)
        level = 0.1 * strength * fading * rng.lognormal(0.0, 0.5)
        _add(dry, at_s, level * _knock(rng, rng.uniform(350, 1100), 0.012, 0.9))
        at_s += rng.gamma(6.0, 1.0 / 6.0) / rattle_hz


def add_squeal(dry: Signal, disturbance: Disturbance, rng: np.random.Generator) -> None:
    """Wood slips on steel: a gliding tone with two overtones, modulated by about 30 slips a second."""
    n = round((disturbance.offset_s - disturbance.onset_s) * SAMPLE_RATE_HZ)
    time_s = np.arange(n) / SAMPLE_RATE_HZ
    n_knots = max(int(4 * time_s[-1]), 2) + 1
    knots_s = np.linspace(0.0, time_s[-1], n_knots)
    pitch_hz = np.interp(time_s, knots_s, rng.uniform(1700, 3100) * rng.lognormal(0.0, 0.045, n_knots))
    level = np.interp(time_s, knots_s, np.clip(rng.normal(0.75, 0.4, n_knots), 0.0, 1.4))
    angle = 2 * np.pi * np.cumsum(pitch_hz) / SAMPLE_RATE_HZ
    slip = 1.0 + 0.6 * np.sin(2 * np.pi * rng.uniform(24, 38) * time_s)
    edge = np.clip(np.minimum(time_s, time_s[::-1]) / 0.15, 0.0, 1.0)
    tone = np.sin(angle) + 0.45 * np.sin(2 * angle + 0.7) + 0.2 * np.sin(3 * angle + 1.9)
    _add(dry, disturbance.onset_s, 0.035 * disturbance.strength**1.5 * level * slip * edge * tone)


def _in_room(dry: Signal, room: Signal) -> Signal:
    """Convolution in blocks, whose tails overlap the next block."""
    block, size = 24_000, 30_000
    blocks = np.zeros((-(-dry.size // block), block), dtype=np.float32)
    blocks.reshape(-1)[: dry.size] = dry
    spectra = np.fft.rfft(blocks, n=size, axis=1)
    spectra *= np.fft.rfft(room, n=size)
    wet = np.fft.irfft(spectra, n=size, axis=1)
    wet[1:, : size - block] += wet[:-1, block:]
    return np.asarray(wet[:, :block].reshape(-1)[: dry.size], dtype=np.float32)


def _limit(signal: Signal) -> Signal:
    """Soft clipping, as in an amplifier: unchanged below the knee, never above the loudest value."""
    loud = np.abs(signal) > _KNEE
    over = (np.abs(signal[loud]) - _KNEE) / (_LOUDEST - _KNEE)
    signal[loud] = np.sign(signal[loud]) * (_KNEE + (_LOUDEST - _KNEE) * np.tanh(over))
    return signal
