"""The clips that trainings learn from: one copy in the memory of each machine, or on each GPU that has room for it.

Each worker needs every clip (see `model.training`), and a machine runs many workers, of one training or of several. On
the host they all read the same pages of Ray's object store: 554 MB for the paper's 4,327 clips, which each worker would
otherwise hold once more.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import ray
import torch
from torch import Tensor

from faithad.config.study import Study
from faithad.features import Normalization
from faithad.pipelines.features import TRAINING_SPLITS, load_features, load_references, read_inputs
from faithad.pipelines.training.task import TrainingTask
from faithad.settings import FeatureSettings

# Normalising this many clips at a time needs no second copy of all of them.
_CLIPS_AT_ONCE = 64


def share_clips(study: Study, normalization: Normalization) -> dict[str, ray.ObjectRef]:
    """Load the normalised features of each split into Ray's object store, for the `clips` of tasks.

    They stay there as long as the references are held. Tasks load them, so that Ray loads them again elsewhere after a
    machine was lost.
    """
    # Without a core of its own: a worker that waits for clips may hold the last one.
    load = ray.remote(_load).options(num_cpus=0)
    return {split: load.remote(study.root, split, study.feature_settings, normalization) for split in TRAINING_SPLITS}


def training_clips(task: TrainingTask, split: str) -> Tensor:
    """The clips of a split (`train` or `validation`) as the model takes them in, (n, F, T); never write to them."""
    if task.clips is not None:
        clips = ray.get(task.clips[split])
    else:
        clips = _load(task.study.root, split, task.study.feature_settings, task.normalization)
    with warnings.catch_warnings():
        # Arrays in the object store are read-only, which tensors cannot express.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(clips)[..., : task.study.n_frames(task.model)]


def read_clips(task: TrainingTask, split: str) -> Iterator[Tensor]:
    """As `training_clips`, but one shard (b, F, T) after the other, so that memory never holds all of them."""
    for clips in read_inputs(task.study.root, split, task.study.feature_settings, task.normalization):
        yield clips[..., : task.study.n_frames(task.model)]


def placed(clips: Tensor, device: torch.device) -> Tensor:
    """The clips on the device if they take at most half of its free memory; otherwise where they are, on the host."""
    if device.type == "cuda" and 2 * clips.nbytes > torch.cuda.mem_get_info(device)[0]:
        return clips
    return clips.to(device)


def _load(root: str, split: str, settings: FeatureSettings, normalization: Normalization) -> np.ndarray:
    clips, references = load_features(root, split, settings), load_references(root, split, settings)
    for start in range(0, len(clips), _CLIPS_AT_ONCE):
        places = slice(start, start + _CLIPS_AT_ONCE)
        clips[places] = normalization.apply(clips[places], None if references is None else references[places])
    return clips.numpy()
