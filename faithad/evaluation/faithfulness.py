"""Is the explained part what the reconstruction error comes from?

The frames that an explanation points at are replaced by the model's own reconstruction, x' = m f(x) + (1 - m) x, and
the anomaly score E is computed again: FF = max(0, 1 - E(x') / E(x)) (Deschênes et al. 2026, arXiv 2601.12660,
faithfulness). A mask covers all mel bands of its frames. Two modes:

    frame      the mask is the peaks themselves (the paper calls it fidelity); needs no annotation
    segment    every second that holds a peak, cut down to the annotated intervals; for annotated clips only

The protocol `corrected` keeps the sign, FF = 1 - E(x') / E(x), and puts it between chance and the best frames:
(FF - FF_random) / (FF_best - FF_random), where as many frames are replaced at random and by the error map. That is 0
for chance and 1 for the error map, which is the upper control: it is chosen by the quantity that is scored.

Masks of rising percentiles are nested and segment masks few, so many are equal: each distinct (clip, mask) pair costs
one forward pass, and an empty mask none.

Shape letters: B clips, F mel bands, T frames, M masks, P percentiles.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from faithad.evaluation.arrays import Bools, Integers, Reals
from faithad.evaluation.temporal import Intervals, flagged_segments, interval_frames, segment_starts
from faithad.features import fill_up
from faithad.model.micro_batches import MicroBatches

Network = Callable[[Tensor], Tensor]
ClipScore = Callable[[Tensor, int, Integers], Tensor]

# A clip has an even error where the best frames take away no more than this share beyond what random frames do.
_EVEN = 0.01


class MaskErrors(NamedTuple):
    """Answers of `errors_after_replacement`: the masks (M, T), the clip of each (M,), and E(x') of each (M,)."""

    masks: Bools
    clip_index: Integers
    errors: Reals


def segment_masks(peaks: Bools, intervals: Intervals, frames_per_s: float) -> Bools:
    """The annotated frames of every second that holds a peak: bool (..., P, T) in, the same shape out."""
    n_frames = peaks.shape[-1]
    starts = segment_starts(n_frames, frames_per_s)
    flagged = flagged_segments(peaks, frames_per_s)
    whole_seconds: Bools = np.repeat(flagged, np.diff(starts, append=n_frames), axis=-1)
    return whole_seconds & interval_frames(intervals, n_frames, frames_per_s)


def errors_after_replacement(
    network: Network,
    x: Tensor,
    reconstruction: Tensor,
    masks: Bools,
    clip_index: npt.NDArray[np.integer] | None = None,
    *,
    error_before: npt.ArrayLike | Tensor,
    micro_batch: int,
    n_frames: Sequence[int] | None = None,
    score: ClipScore | None = None,
    known: MaskErrors | None = None,
) -> Reals:
    """E(x') of each mask, the mean of (f(x') - x')² over mel bands and frames, or another score.

    Of a short clip, the frames that hold sound are replaced, compared, and filled up anew for the network.

    A module is run in eval mode, whatever its mode, and left as it was. The values do not depend on `micro_batch` nor
    on the other masks, but for the rounding of float32. Where a GPU's memory does not suffice, `micro_batch` is halved.

    Args:
        network: f, maps (batch, F, T) to (batch, F, T); `faithad.model.fast_network` is quicker than the network
            itself. On a CPU it is called from several threads.
        x: the clips, (B, F, T), or one clip (F, T). All forwards run on its device.
        reconstruction: f(x), the shape of x.
        masks: the frames to replace, bool (M, T).
        clip_index: which clip each mask belongs to, int (M,); may be left out for a single clip.
        error_before: E(x) of each clip, (B,) or a number for one clip; the answer where a mask is empty.
        micro_batch: pairs of (clip, mask) in one forward.
        n_frames: how many frames of each clip hold sound, (B,); all T by default. No mask may go beyond.
        score: (clips (N, F, T), filled up; how many of their frames hold sound; their numbers in x (N,)) to scores
            (N,), in place of the mean squared error.
        known: answers of an earlier call with the same clips, which are not computed again.

    Returns:
        float64 (M,).

    Raises:
        ValueError: shapes that do not fit together.
    """
    if x.ndim == 2:
        x, reconstruction = x[None], reconstruction[None]
    clips = _clip_of_each_mask(x, masks, clip_index)
    before = _to_float64(error_before).reshape(-1)
    if reconstruction.shape != x.shape or before.shape != (len(x),):
        raise ValueError(
            f"{len(x)} clips of shape {tuple(x.shape)} need reconstructions of that shape and one error_before each, "
            f"got {tuple(reconstruction.shape)} and {before.shape}"
        )
    errors: Reals = before[clips]
    is_known = np.zeros(len(masks), dtype=np.bool_)
    if known is not None:
        n_known = len(known.errors)
        first, inverse = _distinct(np.concatenate([known.clip_index, clips]), np.concatenate([known.masks, masks]))
        equal = first[inverse[n_known:]]
        is_known = equal < n_known
        errors = np.where(is_known, np.append(known.errors, errors)[equal], errors)
    needed = np.flatnonzero(masks.any(axis=1) & ~is_known)
    if not needed.size:
        return errors
    first, inverse = _distinct(clips[needed], masks[needed])
    pairs = needed[first]
    lengths = np.full(len(x), x.shape[-1]) if n_frames is None else np.asarray(n_frames)
    of_pairs = lengths[clips[pairs]]
    groups = [pairs[of_pairs == length] for length in np.unique(of_pairs)]

    def evaluate(part: Sequence[int]) -> Tensor:
        chosen = list(part)
        length = int(lengths[clips[chosen[0]]])
        with torch.inference_mode():  # a mode of the thread that runs this
            return _errors(network, x, reconstruction, masks[chosen], clips[chosen], length, score)

    with _eval_mode(network):
        batches = MicroBatches(evaluate, limit=micro_batch, device=x.device)
        parts = [result for _, result in batches.results([group.tolist() for group in groups])]
    after = np.empty(len(pairs))
    after[np.argsort(of_pairs, kind="stable")] = _to_float64(torch.cat(parts))
    errors[needed] = after[inverse]
    return errors


def faithfulness_score(error_before: npt.ArrayLike, error_after: npt.ArrayLike) -> Reals:
    """FF = max(0, 1 - after / before), elementwise; 0 where the clip had no error to explain.

    NaN stays NaN: a score that could not be computed is not a score of 0.
    """
    before, after = np.broadcast_arrays(_to_float64(error_before), _to_float64(error_after))
    nothing_to_explain = before == 0
    score: Reals = np.maximum(0.0, 1.0 - after / np.where(nothing_to_explain, 1.0, before))
    return np.where(nothing_to_explain, 0.0, score)


def signed_faithfulness(error_before: npt.ArrayLike, error_after: npt.ArrayLike) -> Reals:
    """FF = 1 - after / before, elementwise, negative where the error grows; NaN where there was no error to explain."""
    before, after = np.broadcast_arrays(_to_float64(error_before), _to_float64(error_after))
    score: Reals = 1.0 - np.divide(after, before, out=np.full(before.shape, np.nan), where=before != 0)
    return score


def normalized_faithfulness(faithfulness: npt.ArrayLike, random: npt.ArrayLike, best: npt.ArrayLike) -> Reals:
    """FF of one clip between that of random frames (0) and that of the best ones (1), (..., P).

    Args:
        faithfulness: with its sign, (..., P).
        random: mean over the draws of as many random frames, (P,).
        best: of as many frames of the error map, (P,).

    Returns:
        NaN at all percentiles if `best` is less than 0.01 above `random` at any: the clip has an even error.
    """
    values, chance, span = (np.asarray(part, np.float64) for part in (faithfulness, random, np.subtract(best, random)))
    if not (span >= _EVEN).all():
        return np.full(values.shape, np.nan)
    normalized: Reals = (values - chance) / span
    return normalized


def _errors(
    network: Network,
    x: Tensor,
    reconstruction: Tensor,
    masks: Bools,
    clips: Integers,
    n_frames: int,
    score: ClipScore | None,
) -> Tensor:
    """Of clips of which `n_frames` hold sound."""
    index = torch.from_numpy(clips).to(x.device)
    mask = torch.from_numpy(masks).to(x.device)[:, None, :]
    replaced = torch.where(mask, reconstruction[index], x[index])[..., :n_frames]
    filled = fill_up(replaced, x.shape[-1])
    if score is not None:
        return score(filled, n_frames, clips)
    return (network(filled)[..., :n_frames] - replaced).square().mean(dim=(1, 2))


def _clip_of_each_mask(x: Tensor, masks: Bools, clip_index: npt.NDArray[np.integer] | None) -> Integers:
    if masks.ndim != 2 or masks.dtype != np.bool_ or masks.shape[1] != x.shape[-1]:
        raise ValueError(f"masks must be bool (M, {x.shape[-1]}), got {masks.dtype} {masks.shape}")
    if clip_index is None and len(x) != 1:
        raise ValueError(f"clip_index says which of the {len(x)} clips each mask belongs to, and is missing")
    clips = np.zeros(len(masks), np.int64) if clip_index is None else np.asarray(clip_index, dtype=np.int64)
    if clips.shape != (len(masks),) or (clips.size and not 0 <= clips.min() <= clips.max() < len(x)):
        raise ValueError(f"clip_index must hold {len(masks)} numbers from 0 to {len(x) - 1}")
    return clips


def _distinct(clips: Integers, masks: Bools) -> tuple[Integers, Integers]:
    """The first row of every distinct (clip, mask) pair, and for each row the pair that it is."""
    # One opaque value per row: sorting those is far quicker than sorting rows column by column.
    rows = np.concatenate([clips[:, None].view(np.uint8), np.packbits(masks, axis=1)], axis=1)
    opaque = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.shape[1]))).reshape(-1)
    _, first, inverse = np.unique(opaque, return_index=True, return_inverse=True)
    return first, inverse


def _to_float64(values: npt.ArrayLike | Tensor) -> Reals:
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    return np.array(values, dtype=np.float64)


@contextlib.contextmanager
def _eval_mode(network: Network) -> Iterator[None]:
    modes = [(module, module.training) for module in network.modules()] if isinstance(network, nn.Module) else []
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training
