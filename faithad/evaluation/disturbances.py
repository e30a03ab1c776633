"""A task for a model that needs no test label: synthetic disturbances, put into normal clips, that it has to notice.

A model is judged by the ROC AUC of its scores E(x) on disturbed against undisturbed clips, all made of validation
normals. Mask ratio and patch size can be chosen by it without ever seeing a labelled clip (METHOD: the paper chose
them by test AUC).

Sounds add as powers: a disturbance is a pattern of levels in decibels, and 10^(x/10) + 10^(pattern/10) is what a
microphone would hear of both. Its level counts from the clip's own: the mean level of each mel band, plus a number of
times the clip's level spread, drawn anew for each clip, from hardly there to plain. So no recording level, sensor or
normalisation makes the task easy or impossible. The kinds:

    impact      one blow over all bands, with a decay
    rattle      blows in a row, five to twelve a second, in the upper bands
    tone        a steady line of one band, and weakly of its neighbours
    band_noise  noise in some neighbouring bands
    level_drop  all bands fall: a machine that stops
    level_step  all bands rise at a moment and stay there to the clip's end
    drop_out    the sound is gone for a moment: a loose contact
    rubbing     broad noise that swells and fades once or a few times a second

The first five, `PROXY_KINDS`, are those of the proxy AUC, by which searches choose mask ratio, patch and settings;
searches of release 0.1.0 used only these. Scores are chosen by all kinds.

All that is drawn for a disturbance is keyed by (seed, clip_id, kind): every model is judged on the very same task.

Shape letters: n clips, F mel bands, T frames, m disturbed clips.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from faithad.errors import StudyError
from faithad.evaluation.arrays import Integers, Reals
from faithad.evaluation.detection import auc
from faithad.evaluation.statistics import refuse_not_finite
from faithad.settings import FeatureSettings

Floats = npt.NDArray[np.float32]

# More disturbed clips than this hardly sharpen the AUC: beyond, each clip gets fewer kinds.
_DISTURBED_CLIPS = 200
# A clip without any spread (digital silence) is still disturbed.
_LEAST_SPREAD_DB = 0.5


class DisturbedClips(NamedTuple):
    """Disturbed copies of clips.

    Attributes:
        log_mels: (m, F, T) float32, in the unit of the features.
        sources: which clip each is a copy of, (m,).
        kinds: what was put into each, (m,).
    """

    log_mels: Floats
    sources: Integers
    kinds: list[str]


def n_disturbed(n_clips: int, *, n_kinds: int | None = None) -> int:
    """How many disturbed clips the task makes of this many normal ones; of the kinds of the proxy AUC by default."""
    return n_clips * min(n_kinds or len(PROXY_KINDS), math.ceil(_DISTURBED_CLIPS / max(1, n_clips)))


def disturbed_clips(
    log_mels: npt.ArrayLike,
    clip_ids: Sequence[str],
    *,
    settings: FeatureSettings,
    seed: int,
    kinds: Sequence[str] | None = None,
) -> DisturbedClips:
    """Copies of normal clips with a disturbance in each.

    Each clip is copied once for each kind, or, where that makes more than is needed for a sharp AUC, for some of the
    kinds, in turn.

    Args:
        log_mels: (n, F, T), in the unit of the features.
        clip_ids: (n,).
        settings: what a spectrogram is: its scale and its frames per second.
        seed: of the task.
        kinds: of `KINDS`; `PROXY_KINDS` by default.

    Raises:
        StudyError: there is no clip.
    """
    clips = np.asarray(log_mels, dtype=np.float32)
    if not len(clips):
        raise StudyError("There are no validation clips to put disturbances into.")
    names = tuple(kinds or PROXY_KINDS)
    per_clip = n_disturbed(len(clips), n_kinds=len(names)) // len(clips)
    chosen = [(n, names[(n + turn) % len(names)]) for n in range(len(clips)) for turn in range(per_clip)]
    made = np.empty((len(chosen), *clips.shape[1:]), dtype=np.float32)
    for position, (n, kind) in enumerate(chosen):
        made[position] = disturb(clips[n], kind, settings=settings, seed=seed, clip_id=clip_ids[n])
    return DisturbedClips(made, np.array([n for n, _ in chosen]), [kind for _, kind in chosen])


def disturb(log_mel: npt.ArrayLike, kind: str, *, settings: FeatureSettings, seed: int, clip_id: str) -> Floats:
    """One clip with a disturbance of one kind in it.

    Args:
        log_mel: (F, T), in the unit of the features.
        kind: one of `KINDS`.
        settings: what a spectrogram is: its scale and its frames per second.
        seed: of the task.
        clip_id: of the clip.

    Returns:
        (F, T) float32, in the unit of the features.
    """
    key = hashlib.sha256(f"{seed}/{clip_id}/{kind}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(key[:16], "big"))
    unit_db = 1.0 if settings.scale == "db" else 10.0
    level = np.asarray(log_mel, dtype=np.float64) * unit_db
    spread = max(float(np.median(level.std(axis=1))), _LEAST_SPREAD_DB)
    draw_pattern, weakest, strongest = _KINDS[kind]
    excess = spread * float(rng.uniform(weakest, strongest))
    n_mels, n_frames = level.shape
    pattern = draw_pattern(rng, n_mels, n_frames, settings.frames_per_s)
    if kind in _CHANGES:
        changed = level + _CHANGES[kind] * excess * pattern
    else:
        changed = np.logaddexp2(
            level * _BITS_PER_DB, (level.mean(axis=1, keepdims=True) + excess + pattern) * _BITS_PER_DB
        )
        changed /= _BITS_PER_DB
    result: Floats = (changed / unit_db).astype(np.float32)
    return result


def proxy_auc(normal: npt.ArrayLike, disturbed: npt.ArrayLike) -> float:
    """ROC AUC of anomaly scores of undisturbed against those of disturbed clips.

    Raises:
        StudyError: scores that are not finite, or none.
    """
    scores = np.concatenate([np.asarray(part, dtype=np.float64) for part in (normal, disturbed)])
    refuse_not_finite(scores, "anomaly scores of the proxy task")
    return auc(scores, np.repeat([0, 1], [np.size(normal), np.size(disturbed)]))


def _impact(rng: np.random.Generator, n_mels: int, n_frames: int, frames_per_s: float) -> Reals:
    """One blow: at once there, 20 dB less after 0.05 to 0.3 s, brighter or duller than the clip."""
    tilt = np.linspace(-0.5, 0.5, n_mels) * rng.uniform(-12.0, 12.0)
    onset = int(rng.integers(n_frames))
    return _blow(n_frames, onset, rng.uniform(0.05, 0.3) * frames_per_s) + tilt[:, None]


def _rattle(rng: np.random.Generator, n_mels: int, n_frames: int, frames_per_s: float) -> Reals:
    first, last = _span(rng, n_frames, frames_per_s, 1.0, 3.0)
    # Slower than the frames follow each other, or it would be a steady noise.
    period = max(2.0, frames_per_s / rng.uniform(5.0, 12.0))
    decay = rng.uniform(0.02, 0.06) * frames_per_s
    blows = [_blow(n_frames, round(onset), decay) for onset in np.arange(first, last, period)]
    pattern = np.full((n_mels, n_frames), -np.inf)
    lowest = int(rng.integers(n_mels // 4, n_mels // 2 + 1))
    pattern[lowest:] = np.max(blows, axis=0)
    return pattern


def _tone(rng: np.random.Generator, n_mels: int, n_frames: int, frames_per_s: float) -> Reals:
    first, last = _span(rng, n_frames, frames_per_s, 1.0, 4.0)
    centre = int(rng.integers(n_mels))
    pattern = np.full((n_mels, n_frames), -np.inf)
    for band in range(max(0, centre - 1), min(n_mels, centre + 2)):
        pattern[band, first:last] = -12.0 * abs(band - centre)
    return pattern


def _band_noise(rng: np.random.Generator, n_mels: int, n_frames: int, frames_per_s: float) -> Reals:
    """The power of noise in one cell of a spectrogram is exponentially distributed around its mean."""
    first, last = _span(rng, n_frames, frames_per_s, 0.5, 2.0)
    width = int(rng.integers(max(1, n_mels // 10), n_mels // 4 + 1))
    lowest = int(rng.integers(n_mels - width + 1))
    pattern = np.full((n_mels, n_frames), -np.inf)
    power = rng.exponential(size=(width, last - first))
    pattern[lowest : lowest + width, first:last] = 10.0 * np.log10(np.maximum(power, 1e-6))
    return pattern


def _level_drop(rng: np.random.Generator, n_mels: int, n_frames: int, frames_per_s: float) -> Reals:
    """Where the level falls: 1, elsewhere 0."""
    first, last = _span(rng, n_frames, frames_per_s, 0.5, 2.0)
    pattern = np.zeros((n_mels, n_frames))
    pattern[:, first:last] = 1.0
    return pattern


def _level_step(rng: np.random.Generator, n_mels: int, n_frames: int, frames_per_s: float) -> Reals:
    """Where the level rises: 1, elsewhere 0; to the clip's end."""
    pattern = np.zeros((n_mels, n_frames))
    pattern[:, int(rng.integers(n_frames // 4, 3 * n_frames // 4 + 1)) :] = 1.0
    return pattern


def _drop_out(rng: np.random.Generator, n_mels: int, n_frames: int, frames_per_s: float) -> Reals:
    """Where the sound is gone: 1, elsewhere 0."""
    first, last = _span(rng, n_frames, frames_per_s, 0.05, 0.5)
    pattern = np.zeros((n_mels, n_frames))
    pattern[:, first:last] = 1.0
    return pattern


def _rubbing(rng: np.random.Generator, n_mels: int, n_frames: int, frames_per_s: float) -> Reals:
    """Noise of some octaves that swells by 12 dB, 0.8 to 4 times a second."""
    first, last = _span(rng, n_frames, frames_per_s, 2.0, 6.0)
    lowest = int(rng.integers(n_mels // 2 + 1))
    swing = np.sin(2 * math.pi * rng.uniform(0.8, 4.0) * np.arange(last - first) / frames_per_s) - 1.0
    power = rng.exponential(size=(n_mels - lowest, last - first))
    pattern = np.full((n_mels, n_frames), -np.inf)
    pattern[lowest:, first:last] = 6.0 * swing + 10.0 * np.log10(np.maximum(power, 1e-6))
    return pattern


_BITS_PER_DB = math.log2(10.0) / 10.0

# For each kind its pattern (F, T), in dB relative to the disturbance's level, and the range of that level above the
# clip's own, in level spreads: a pattern that fills fewer cells must stand out further to be noticed at all.
_KINDS: dict[str, tuple[Callable[[np.random.Generator, int, int, float], Reals], float, float]] = {
    "impact": (_impact, 0.5, 5.0),
    "rattle": (_rattle, 0.5, 5.0),
    "tone": (_tone, 1.0, 8.0),
    "band_noise": (_band_noise, 0.5, 5.0),
    "level_drop": (_level_drop, 0.5, 3.0),
    "level_step": (_level_step, 0.3, 2.0),
    "drop_out": (_drop_out, 2.0, 10.0),
    "rubbing": (_rubbing, 0.5, 5.0),
}
# Kinds that raise or lower what is there, and add no sound of their own.
_CHANGES = {"level_drop": -1.0, "level_step": 1.0, "drop_out": -1.0}
KINDS = tuple(_KINDS)
PROXY_KINDS = KINDS[:5]


def _span(
    rng: np.random.Generator, n_frames: int, frames_per_s: float, shortest_s: float, longest_s: float
) -> tuple[int, int]:
    """A stretch of frames, half-open, anywhere in the clip."""
    length = min(n_frames, max(1, round(rng.uniform(shortest_s, longest_s) * frames_per_s)))
    first = int(rng.integers(n_frames - length + 1))
    return first, first + length


def _blow(n_frames: int, onset: int, decay_frames: float) -> Reals:
    """(T,): nothing before the onset, 0 dB there, then 20 dB less with each `decay_frames`."""
    after = np.arange(n_frames) - onset
    return np.where(after < 0, -np.inf, -20.0 * after / decay_frames)
