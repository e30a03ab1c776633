"""Several trained models as the members of one, whose scores are to be fitted to normal clips together."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch

from faithad.errors import ConfigError
from faithad.model.checkpoint import Parent, TrainedModel
from faithad.model.table import MODELS
from faithad.scoring.choices import Score, robust
from faithad.scoring.ensemble import Ensemble
from faithad.scoring.score import Detector
from faithad.scoring.trained_ensemble import AnyModel, TrainedEnsemble, digest_of_files, find_unlike, load_any


def load_together(folders: Sequence[str]) -> AnyModel:
    """The model in a folder, or an ensemble of those in several, whose scores are not fitted yet.

    The ensemble has seed, alarm and alarm for what lasts of the first model. Its members name what they come from as
    their parents. A model with the paper's score gets the robust one.

    Raises:
        CheckpointError: a model is missing or damaged.
        ConfigError: two models have the same name, take in different features, or give a score only.
    """
    loaded = [load_any(folder) for folder in folders]
    first = loaded[0]
    if len(loaded) == 1:
        return first
    members: dict[str, TrainedModel] = {}
    scores: dict[str, Score] = {}
    for folder, trained in zip(folders, loaded, strict=True):
        parent = Parent(folder, digest_of_files(folder))
        own = trained.members if isinstance(trained, TrainedEnsemble) else {trained.name: trained}
        for name, member in own.items():
            if name in members:
                raise ConfigError(
                    f"Two models are called {name!r}, the second in {folder}: the names of members differ."
                )
            if not member.reconstructs:
                raise ConfigError(f"The model {name!r} in {folder} gives a score only, and cannot be a member.")
            if isinstance(trained, TrainedEnsemble):
                scores[name] = trained.ensemble.members[name].score
            else:
                scores[name] = robust(name) if member.score is None else Score(**member.score.choices)
            members[name] = replace(member, alarm=None, score=None, state=None, parent=parent)
    n_frames = min(member.n_frames for member in members.values())
    members = {name: _of_frames(member, n_frames) for name, member in members.items()}
    if unlike := find_unlike(list(members.values())):
        raise ConfigError(
            f"{' and '.join(unlike)} take in different features or numbers of frames. Train them in one study "
            "(`models`), which gives them the same; the MAE takes fewer frames than the AE."
        )
    uncalibrated = [name for name, score in scores.items() if score.calibration != "local"]
    if uncalibrated:
        raise ConfigError(
            f"The score of {uncalibrated[0]} has no calibration, and scores are only added once they are calibrated: "
            "set `score: robust` in its study, or leave it at paper."
        )
    detectors = {
        name: Detector(member.network, scores[name], member.features.frames_per_s) for name, member in members.items()
    }
    unfitted = torch.zeros(len(members), dtype=torch.float64)
    ensemble = Ensemble(detectors, unfitted, unfitted + 1.0)
    return TrainedEnsemble(members, ensemble, first.seed, first.alarm, first.config_hash, state=first.state)


def _of_frames(trained: TrainedModel, n_frames: int) -> TrainedModel:
    """A linear model for fewer frames; it takes any number. Other models as they are."""
    if trained.n_frames == n_frames or not MODELS[trained.name].linear:
        return trained
    network = copy.deepcopy(trained.network)
    network.n_frames = n_frames  # type: ignore[assignment]
    normals = None if trained.normals is None else trained.normals[..., :n_frames]
    return replace(trained, network=network, normals=normals)
