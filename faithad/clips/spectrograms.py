"""Read the published planer data: log-mel spectrograms, one `.pt` file per clip.

A spectrogram is float32, (F, T): mel bands by frames, decibels. Code that a file may contain is never run. Errors are
`RecordingError`s whose text goes into a ledger unchanged, as in `recordings`.
"""

from __future__ import annotations

import io
import pickle
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from faithad import storage
from faithad.clips.recordings import count_bad
from faithad.clips.sound_files import reasons
from faithad.errors import RecordingError

_HOW_TO_SAVE = "Write it with torch.save(tensor, path), tensor being float32 of shape (mel bands, frames)."


def read_spectrogram(uri: str, *, shape: tuple[int, int] | None) -> npt.NDArray[np.float32]:
    """Read one published clip: a file with one float tensor (F, T), decibels, written by `torch.save`.

    Args:
        uri: the `.pt` file. One channel before the two axes, (1, F, T), as torchaudio gives it, is left out.
        shape: the (F, T) that it must have; None allows any shape.

    Returns:
        (F, T) float32.

    Raises:
        RecordingError: the file is unreadable or no tensor, has another shape or values that are NaN or infinite, or
            loading it would run code from it.
    """
    tensor = _load_tensor(uri)
    if not isinstance(tensor, torch.Tensor):
        raise RecordingError(f"{uri} holds a {type(tensor).__name__}, not a tensor. {_HOW_TO_SAVE}")
    if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise RecordingError(
            f"{uri} holds a tensor of type {tensor.dtype}, {tensor.layout}, on {tensor.device.type}; a dense tensor "
            f"of floating-point numbers is needed. {_HOW_TO_SAVE}"
        )
    if tensor.dim() == 3 and len(tensor) == 1:
        tensor = tensor[0]
    if tensor.dim() != 2 or (shape is not None and tuple(tensor.shape) != shape):
        expected = "two axes (mel bands, frames)" if shape is None else f"{shape} (mel bands, frames)"
        raise RecordingError(
            f"{uri} has the shape {tuple(tensor.shape)}; {expected} expected. Were its features computed otherwise?"
        )
    spectrogram = tensor.detach().to(torch.float32).numpy()
    if not np.isfinite(spectrogram).all():
        raise RecordingError(
            f"{uri} holds NaN or infinite values ({count_bad(spectrogram)}). A logarithm of zero does this: compute "
            "the spectrogram again with a floor under the power."
        )
    return spectrogram


def _load_tensor(uri: str) -> Any:
    with reasons(uri):
        content = storage.read_bytes(uri)
    if not content:
        raise RecordingError(f"{uri} is empty (0 bytes): the copy wrote nothing. Copy it again.")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise nearly anything
        code = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and code:
            raise RecordingError(
                f"{uri} holds more than a tensor: loading it would run code ({code[1]}), which is never done. "
                f"{_HOW_TO_SAVE}"
            ) from error
        raise RecordingError(
            f"{uri} is no spectrogram: torch cannot load it ({type(error).__name__}). It is damaged, truncated or "
            "another kind of file: copy it again."
        ) from error
