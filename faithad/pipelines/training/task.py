"""What a training is to do, as one object: the driver makes it, the processes that train receive it over Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

import ray
import torch
from torch import nn

from faithad import storage
from faithad.config.study import Study
from faithad.features import Normalization
from faithad.model.table import MODELS, build_network
from faithad.runs import layout
from faithad.settings import TrainingSettings

# Settings of `train` that say how a training is spread, not what it computes.
SPREAD = {
    *("trainings_at_once", "checkpoint_every", "workers", "cpus_per_worker", "gpus_per_worker", "max_failures"),
    "interface",
}


@dataclass(frozen=True)
class TrainingTask:
    """The training of one model with one seed.

    Attributes:
        study: the study.
        model: the model's name.
        seed: of the weights, the order of clips, the masks and the dropout.
        normalization: of the features.
        threads: of each worker that computes on a CPU.
        state: location of the last saved state, from which a training goes on that was cut off.
        fingerprint: of all settings that the model depends on.
        clips: the clips in Ray's object store, by split (see `share_clips`); without them each process reads its own.
        trial: the name of the trial of a search that this is the training of.
    """

    study: Study
    model: str
    seed: int
    normalization: Normalization
    threads: int
    state: str
    fingerprint: str
    clips: Mapping[str, ray.ObjectRef] | None = None
    trial: str | None = None

    @property
    def folder(self) -> str:
        """The location of the trained model's folder."""
        place = layout.model(self.model, self.seed) if self.trial is None else layout.trial(self.trial)
        return storage.join(self.study.root, place)

    @property
    def settings(self) -> TrainingSettings:
        values = self.study.train.model_dump(include={field.name for field in fields(TrainingSettings)})
        if not MODELS[self.model].masked:
            values["mask_ratio"] = None
        return TrainingSettings(**values, seed=self.seed)


def network_of(study: Study, model: str) -> nn.Module:
    """The untrained network, or unfitted linear model, of a study."""
    return build_network(model, study.features.n_mels, study.n_frames(model), **study.network_options(model))


class Worker(NamedTuple):
    """One of the processes that share a training, numbered by `rank` from 0, and the device that it computes on."""

    device: torch.device
    rank: int = 0
    n_workers: int = 1
