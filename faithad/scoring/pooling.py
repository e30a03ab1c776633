"""From the error of each cell to one number for a clip: weightings of the bands, and poolings of the frames.

Shape letters: F mel bands, T frames, W windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from faithad.errors import StudyError

if TYPE_CHECKING:
    from torch import Tensor

PoolingFunction: TypeAlias = "Callable[[Tensor, float], Tensor]"

# Of the pooling `worst_window`, and of the windows that say where an alarmed clip is above the threshold.
WINDOW_S = 0.25
# Times that differ by rounding only are the same time.
_TOLERANCE_S = 1e-6


class Weighting(NamedTuple):
    """What the error of each band is divided by. A new weighting is a row of `WEIGHTINGS`.

    Attributes:
        title: in reports.
        fit: the errors (F, T) of normal clips to (F,); None if it fits nothing and divides by nothing.
    """

    title: str
    fit: Callable[[Iterable[Tensor]], Tensor] | None


class Pooling(NamedTuple):
    """How the errors of the frames of a clip become one number. A new pooling is a row of `POOLINGS`.

    Attributes:
        title: in reports.
        compute: (errors of the frames (T,), frames per second) to a number ().
    """

    title: str
    compute: PoolingFunction


def band_errors(errors: Iterable[Tensor]) -> Tensor:
    """The mean error of each band over all frames of normal clips: (F, T) each, to (F,) float64.

    Raises:
        StudyError: there is no clip, or a band without any error, which nothing can be divided by.
    """
    import torch

    total, n_frames = None, 0
    for error in errors:
        of_clip = error.sum(dim=1, dtype=torch.float64)
        total = of_clip if total is None else total + of_clip
        n_frames += error.shape[1]
    if total is None:
        raise StudyError("There are no normal clips to fit the weights of the bands to.")
    if not bool((total > 0).all()):
        band = int((total > 0).logical_not().nonzero()[0])
        raise StudyError(
            f"Mel band {band} has no error in any normal clip, so that it cannot be weighted: is it silent in all of "
            "them? Use the weighting 'none'."
        )
    return total / n_frames


def weighted(errors: Tensor, weights: Tensor | None) -> Tensor:
    """The error of each cell (..., F, T), divided by the weights (F,) if there are any."""
    return errors if weights is None else errors / weights.to(errors.device)[:, None]


def frame_errors(errors: Tensor) -> Tensor:
    """The mean over the bands of the error (F, T): (T,) float64."""
    import torch

    return errors.mean(dim=0, dtype=torch.float64)


def _mean(errors: Tensor, frames_per_s: float) -> Tensor:
    return errors.mean()


def _worst_second(errors: Tensor, frames_per_s: float) -> Tensor:
    """As `evaluation.detection.worst_second`: the last second runs to the last frame."""
    n_seconds = max(1, math.ceil((len(errors) - 1) / frames_per_s - _TOLERANCE_S))
    return _means(errors, [math.ceil((k - _TOLERANCE_S) * frames_per_s) for k in range(1, n_seconds)]).max()


def worst_window(window_s: float) -> PoolingFunction:
    """The largest mean over windows side by side; the last one runs to the last frame, so that none is shorter."""

    def pool(errors: Tensor, frames_per_s: float) -> Tensor:
        return window_means(errors, frames_per_s, window_s=window_s).max()

    return pool


def window_means(errors: Tensor, frames_per_s: float, *, window_s: float = WINDOW_S) -> Tensor:
    """The mean error of each window, (T,) to (W,): windows side by side, the last of which runs to the last frame."""
    width = window_frames(frames_per_s, window_s=window_s)
    return _means(errors, list(range(width, len(errors) - width + 1, width)))


def window_frames(frames_per_s: float, *, window_s: float = WINDOW_S) -> int:
    """Frames of each window but the last."""
    return max(1, round(window_s * frames_per_s))


def top_share(share: float) -> PoolingFunction:
    """The mean over this share of the frames, those with the largest errors, and over one frame at least."""

    def pool(errors: Tensor, frames_per_s: float) -> Tensor:
        return errors.topk(max(1, round(share * len(errors)))).values.mean()

    return pool


def _means(errors: Tensor, starts: list[int]) -> Tensor:
    """The mean of each window, (W,); `starts` are those without the first, which starts with the clip."""
    import torch

    return torch.stack([window.mean() for window in errors.tensor_split(starts)])


WEIGHTINGS = {
    "none": Weighting("all bands alike", None),
    "band": Weighting("each band by its error in normal sound", band_errors),
}
POOLINGS = {
    "mean": Pooling("whole clip", _mean),
    "worst_second": Pooling("worst second", _worst_second),
    "worst_window": Pooling("worst quarter of a second", worst_window(WINDOW_S)),
    "top_share": Pooling("worst 5 % of the frames", top_share(0.05)),
}
