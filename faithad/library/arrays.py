"""What a notebook gives, as a model takes it in: a batch of tensors, short clips filled up, a reference for each."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faithad.clips.recordings import SHORTEST_CLIP_S
from faithad.errors import RecordingError
from faithad.evaluation.arrays import Bools
from faithad.evaluation.peaks import as_array
from faithad.features import fill_up
from faithad.scoring.trained_ensemble import AnyModel
from faithad.settings import frames_in

Array = npt.NDArray[Any] | Tensor


def fill_short(model: AnyModel, log_mels: Array) -> tuple[Tensor, list[int]]:
    """Log-mels (B, F, at least T), short clips filled up; and how many of the T frames hold sound, of each.

    Raises:
        RecordingError: a clip has less than a second of sound, or the array another number of axes.
    """
    batch = as_batch(log_mels)
    if batch.ndim != 3:
        raise RecordingError(f"Log-mels have the shape {tuple(batch.shape)}; needed is (clips, mel bands, frames).")
    width = max(batch.shape[-1], model.n_frames)
    needed = min(model.n_frames, frames_in(SHORTEST_CLIP_S, model.features.frames_per_s))
    lengths = [n_heard(is_heard) for is_heard in (~batch.isnan()).any(dim=1).numpy()]
    for number, n in enumerate(lengths):
        if n < needed:
            raise RecordingError(f"clip {number} is too short to judge: {n} of at least {needed} frames hold sound.")
    if min(lengths, default=width) < width:
        batch = torch.stack([fill_up(clip[:, :n], width) for clip, n in zip(batch, lengths, strict=True)])
    return batch, [min(n, model.n_frames) for n in lengths]


def n_heard(is_heard: Bools) -> int:
    """The number of frames up to the last one that holds sound; all if there is none, for others to complain."""
    return int(np.max(np.flatnonzero(is_heard), initial=-1)) + 1 or len(is_heard)


def duration_of(model: AnyModel, n_frames: int) -> float:
    """The length of a clip of which so many frames hold sound."""
    return model.features.clip_s if n_frames == model.n_frames else (n_frames - 1) / model.features.frames_per_s


def references_of(model: AnyModel, reference: Array | None, n_clips: int) -> Tensor | None:
    """The reference of each clip, (B, F); None where the model needs none, or where it is not given."""
    if reference is None or model.features.reference == "none":
        return None
    given, shape = as_tensor(reference), (n_clips, model.n_mels)
    if tuple(given.shape) not in (shape, shape[1:]):
        raise RecordingError(f"The reference has the shape {tuple(given.shape)}; needed is {shape[1:]} or {shape}.")
    return given.expand(shape)


def as_batch(maps: Array) -> Tensor:
    """(F, T) or (B, F, T) as (B, F, T)."""
    tensor = as_tensor(maps)
    return tensor[None] if tensor.ndim == 2 else tensor


def as_tensor(values: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(as_array(values))).to(torch.float32)
