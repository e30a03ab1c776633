"""The clips that trainings learn from: one copy in the memory of each machine, or on each GPU that has room for it.

Each worker needs every clip (see `model.training`), and a machine runs many at once: of several trainings, or of one.
On the host they all read the same pages, those of Ray's object store. The paper's 4,327 clips take 554 MB there; a copy
for each worker would take as much again and again.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from faithad.config.study import Study
from faithad.features import Normalization
from faithad.pipelines.features import TRAINING_SPLITS, load_features
from faithad.settings import FeatureSettings

# Clips that are normalised at once: no second copy of all of them.
_CLIPS_AT_ONCE = 64


def share_clips(study: Study, normalization: Normalization) -> dict[str, ray.ObjectRef]:
    """Have the normalised features of each split loaded into Ray's object store.

    They stay there as long as the references are held. Loaded by a task, they come back where a machine is lost.

    Returns:
        To go into the arguments of trainings as `clips`.
    """
    # Without a core of its own: a worker that waits for clips may hold the last one.
    load = ray.remote(_load).options(num_cpus=0)
    return {split: load.remote(study.root, split, study.feature_settings, normalization) for split in TRAINING_SPLITS}


def training_clips(arguments: Mapping[str, Any], study: Study, split: str) -> Tensor:
    """The clips of a split as the model takes them in, (n, F, T); not to be written to.

    Args:
        arguments: of the training: `model` and `clips` (of `share_clips`), or in their place `mean` and `std` of the
            normalisation: then they are loaded here, without Ray.
        study: the study.
        split: `train` or `validation`.
    """
    if "clips" in arguments:
        clips = ray.get(arguments["clips"][split])
    else:
        normalization = Normalization(torch.tensor(arguments["mean"]), torch.tensor(arguments["std"]))
        clips = _load(study.root, split, study.feature_settings, normalization)
    with warnings.catch_warnings():
        # What is shared is read-only, and tensors know no such thing.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(clips)[..., : study.n_frames(arguments["model"])]


def placed(clips: Tensor, device: torch.device) -> Tensor:
    """On the device where they take no more than half of its free memory; else where they are, on the host."""
    if device.type == "cuda" and 2 * clips.nbytes > torch.cuda.mem_get_info(device)[0]:
        return clips
    return clips.to(device)


def _load(root: str, split: str, settings: FeatureSettings, normalization: Normalization) -> np.ndarray:
    clips = load_features(root, split, settings)
    for part in clips.split(_CLIPS_AT_ONCE):
        part.copy_(normalization.apply(part))
    return clips.numpy()
