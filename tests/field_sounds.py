"""The small benchmark of real sound, `../shared/data/field_sounds`, for the tests and benchmarks that need it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from faithad.features import log_mel
from faithad.settings import FeatureSettings

FOLDER = Path(__file__).parents[2] / "shared" / "data" / "field_sounds"
SETTINGS = FeatureSettings()

needs_field_sounds = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"{FOLDER} is not on this machine")


class Split(NamedTuple):
    """N clips of 10 s."""

    log_mels: Tensor  # (N, F, 401), decibels
    recordings: list[str]
    anomalous: np.ndarray  # bool (N,)


def read_split(name: str, *, most: int | None = None) -> Split:
    """`train` or `test`, or the first clips of it."""
    with open(FOLDER / "annotations.csv", newline="") as file:
        events = {(row[0], int(row[2])) for row in list(csv.reader(file))[1:]}
    parts, recordings, anomalous = list[Tensor](), list[str](), list[bool]()
    for path in sorted((FOLDER / name).glob("*.flac")):
        sound, _ = soundfile.read(path, dtype="float32")
        waveforms = torch.from_numpy(sound[: len(sound) // SETTINGS.clip_samples * SETTINGS.clip_samples])
        parts.append(log_mel(waveforms.view(-1, SETTINGS.clip_samples), SETTINGS))
        recordings += [path.name] * len(parts[-1])
        anomalous += [(path.name, k + 1) in events for k in range(len(parts[-1]))]
        if most is not None and len(recordings) >= most:
            break
    return Split(torch.cat(parts)[:most], recordings[:most], np.array(anomalous[:most]))
