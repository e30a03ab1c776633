"""What an F-score must beat: a rule that flags every second, a curve that knows nothing, and curves without a model.

Annotated events fill many of the ten seconds of a clip, so the first two score high, and a level meter finds many
faults. A method says something about a clip only where it does better.

Curves without a model, computed from the log-mel spectrogram of a clip alone:

    level          mel power of each frame, summed over the bands
    level_change   absolute difference of the level from the frame before
    outlier        sum over the bands of z², z the distance from the band's mean in training, in standard deviations

Shape letters: F mel bands, T frames, N clips, P percentiles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from faithad.evaluation.arrays import Bools, Reals
from faithad.evaluation.peaks import PEAKS, highest_frames
from faithad.evaluation.temporal import Intervals, localization, segment_truth
from faithad.vocabulary import LEVEL, PAPER

# The lines that an F-score is compared with, as the tables name them.
RANDOM, ALWAYS = "random", "always"
LEVEL_CHANGE, OUTLIER = "level_change", "outlier"
NO_MODEL = (LEVEL, LEVEL_CHANGE, OUTLIER)
# The annotated seconds themselves; for faithfulness, the frames with the highest error.
ORACLE = "oracle"
# The error of this linear model, where it is one of the study's models.
LINEAR = "frame_pca"

_FRAME_DRAWS = 16


def level(log_mel: npt.ArrayLike, power_of_ten: float) -> Reals:
    """The mel power of each frame, summed over the bands: (F, T) to (T,).

    Args:
        log_mel: `power_of_ten` times the decadic logarithm of the mel power: 10 for decibels, 1 for log10.
        power_of_ten: see `log_mel`.
    """
    with np.errstate(over="ignore"):
        power: Reals = np.power(10.0, np.asarray(log_mel, dtype=np.float64) / power_of_ten).sum(axis=0)
    return power


def no_model_curves(
    log_mel: npt.ArrayLike,
    *,
    power_of_ten: float,
    training: tuple[npt.ArrayLike, npt.ArrayLike] | None,
) -> dict[str, Reals]:
    """The curves (T,) without a model of one clip, by their names in `NO_MODEL`.

    Args:
        log_mel: (F, T), see `level`.
        power_of_ten: see `level`.
        training: mean and standard deviation of each band in training, each (F,); None where they are not known, and
            there is then no `outlier`.
    """
    values, power = np.asarray(log_mel, dtype=np.float64), level(log_mel, power_of_ten)
    curves = {LEVEL: power, LEVEL_CHANGE: np.abs(np.diff(power, prepend=power[:1]))}
    if training is not None:
        mean, std = (np.asarray(part, dtype=np.float64)[:, None] for part in training)
        curves[OUTLIER] = np.square((values - mean) / std).sum(axis=0)
    return curves


def every_second_f_score(intervals: Intervals, n_frames: int, frames_per_s: float) -> float:
    """F-score of one clip when every second is flagged."""
    everywhere = np.ones((1, n_frames), dtype=np.bool_)
    return float(localization(everywhere, intervals, frames_per_s=frames_per_s).f_score[0])


def oracle_f_score(intervals: Intervals, n_frames: int, frames_per_s: float) -> float:
    """F-score of one clip when the annotated seconds themselves are flagged: 1, or 0 where no second is annotated."""
    return float(segment_truth(intervals, n_frames, frames_per_s).any())


def random_curve_f_score(
    intervals: Intervals,
    n_frames: int,
    frames_per_s: float,
    percentiles: Sequence[float],
    *,
    clip_id: str,
    seed: int,
    n_draws: int = 100,
    protocol: str = PAPER,
) -> Reals:
    """Mean F-score of one clip over curves of independent noise, one value per percentile.

    The noise is keyed by (seed, clip), so a clip's control does not depend on the other clips. Only the order of the
    frames matters, hence not the distribution that the noise is drawn from.

    Returns:
        float64 (P,).
    """
    curves = _keyed_generator(f"random curve/{seed}/{clip_id}").random((n_draws, n_frames))
    scores = localization(PEAKS[protocol](curves, percentiles), intervals, frames_per_s=frames_per_s).f_score
    mean: Reals = scores.mean(axis=0)
    return mean


def control_f_scores(
    clips: Mapping[str, Intervals],
    n_frames: npt.ArrayLike,
    frames_per_s: float,
    percentiles: Sequence[float],
    *,
    seed: int,
    n_draws: int = 100,
    protocol: str = PAPER,
) -> tuple[Reals, Reals]:
    """Both controls of many clips, `clip_id` to intervals.

    Args:
        clips: N of them.
        n_frames: frames of each clip, (N,), or one number for all.
        frames_per_s: frames in one second.
        percentiles: P numbers from 0 to 100.
        seed: of the noise.
        n_draws: random curves per clip.
        protocol: which of `PEAKS` gives the peaks of a curve.

    Returns:
        random curve (N, P) and every second (N,), in the order of the clips.
    """
    random, every_second = np.zeros((len(clips), len(percentiles))), np.zeros(len(clips))
    lengths = np.broadcast_to(n_frames, len(clips)).tolist()
    for row, ((clip_id, intervals), length) in enumerate(zip(clips.items(), lengths, strict=True)):
        every_second[row] = every_second_f_score(intervals, length, frames_per_s)
        random[row] = random_curve_f_score(
            intervals, length, frames_per_s, percentiles, clip_id=clip_id, seed=seed, n_draws=n_draws, protocol=protocol
        )
    return random, every_second


def random_frames(clip_id: str, n_frames: int, percentiles: Sequence[float], *, n_draws: int = _FRAME_DRAWS) -> Bools:
    """As many random frames of a clip as `highest_frames` has at each percentile: bool (K, P, T) of K draws.

    They are keyed by the clip, so that they are the same for all models with the same frames.
    """
    return highest_frames(_keyed_generator(f"random frames/{clip_id}").random((n_draws, n_frames)), percentiles)


def _keyed_generator(key: str) -> np.random.Generator:
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))
