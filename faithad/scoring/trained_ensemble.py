"""An ensemble on disk: one folder with a folder for each member, and `ensemble.safetensors` with what calibrates them.

    frame_pca/model.safetensors, frame_ridge/model.safetensors    the members, as `model.checkpoint` writes them
    ensemble.safetensors                                          the rest

`ensemble.safetensors` holds, of at most `MOST_NORMALS` normal clips, the mean spectra (`places`), the numbers of their
recordings (`recordings`) and the members' scores (`<member>.scores`), the weights of the mel bands
(`<member>.weights`), `means` and `deviations`, by which the scores are standardised, and of an alarm for what lasts the
spectra of normal minutes (`state.spectra`). Its header holds one JSON text with the members, their scores and the
SHA-256 of their files, the alarms, and a digest of all this and of the tensors. As for `model.safetensors`, nothing is
unpickled, and nothing is read whose size has not been checked.

Shape letters: M members, N normal clips, B clips, F mel bands, T frames.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from faithad import storage
from faithad.errors import CheckpointError, ConfigError
from faithad.features import Normalization
from faithad.model import checkpoint
from faithad.model.alarm import AlarmThreshold
from faithad.model.checkpoint import Parent, TrainedModel, digest_of, load_model, parent_part, state_part
from faithad.model.header import KEY, read_header
from faithad.model.header_checks import STATE_SPECTRA
from faithad.model.state_alarm import StateAlarm
from faithad.model.training_sound import TrainingSound
from faithad.scoring.calibration import NormalScores
from faithad.scoring.choices import Score
from faithad.scoring.ensemble import Ensemble, Rescoring
from faithad.scoring.ensemble_header import (
    FORMAT,
    EnsembleHeader,
    MemberPart,
    check_shapes,
    check_values,
    checked_header,
)
from faithad.scoring.score import Detector
from faithad.settings import FeatureSettings
from faithad.vocabulary import listed

FILE_NAME = "ensemble.safetensors"
NAME = "robust"


@dataclass
class TrainedEnsemble:
    """Several models whose calibrated scores are added, with all that is needed to score a clip.

    Attributes:
        members: by name; they share features, normalisation, and the frames that they take in.
        ensemble: their detectors, by the same names.
        seed: of the training.
        alarm: the threshold of the sum.
        config_hash: of the training's settings.
        parent: see `TrainedModel`.
        state: see `TrainedModel`.
    """

    members: dict[str, TrainedModel]
    ensemble: Ensemble
    seed: int
    alarm: AlarmThreshold | None
    config_hash: str
    parent: Parent | None = None
    state: StateAlarm | None = None
    name: str = NAME
    explained: bool = True
    reconstructs: bool = True

    @property
    def _first(self) -> TrainedModel:
        return next(iter(self.members.values()))

    @property
    def n_mels(self) -> int:
        """F of what the members take in."""
        return self._first.n_mels

    @property
    def n_frames(self) -> int:
        """T of what the members take in."""
        return self._first.n_frames

    @property
    def features(self) -> FeatureSettings:
        return self._first.features

    @property
    def lowest_rescored(self) -> float | None:
        """The lowest threshold that an alarm may have, see `fit_alarm`; None where all members score every clip."""
        return None if self.ensemble.rescoring is None else self.ensemble.rescoring.lowest

    @property
    def normalization(self) -> Normalization:
        return self._first.normalization

    @property
    def sound(self) -> TrainingSound | None:
        return self._first.sound

    def frames_in(self, duration_s: float) -> int:
        """As `TrainedModel.frames_in`."""
        return self._first.frames_in(duration_s)

    def prepare(self, log_mel: Tensor, references: Tensor | None = None) -> Tensor:
        """As `TrainedModel.prepare`."""
        return self._first.prepare(log_mel, references)


AnyModel = TrainedModel | TrainedEnsemble


def describe(trained: AnyModel) -> dict[str, Any]:
    """A model or an ensemble without its tensors, ready for JSON."""
    if isinstance(trained, TrainedModel):
        return checkpoint.describe(trained)
    scores = {name: dataclasses.asdict(detector.score) for name, detector in trained.ensemble.members.items()}
    return {
        "name": trained.name,
        "seed": trained.seed,
        "n_mels": trained.n_mels,
        "n_frames": trained.n_frames,
        "features": trained.features.as_json(),
        "alarm": None if trained.alarm is None else trained.alarm.as_json(),
        "members": [checkpoint.describe(member) | {"score": scores[name]} for name, member in trained.members.items()],
        "config_hash": trained.config_hash,
        **parent_part(trained.parent),
        **state_part(trained.state),
        **_rescoring_part(trained.ensemble.rescoring),
    }


def _rescoring_part(rescoring: Rescoring | None) -> dict[str, Any]:
    """What a header says of rescoring; nothing where all members score every clip."""
    return {} if rescoring is None else {"rescoring": dataclasses.asdict(rescoring)}


def save_ensemble(trained: TrainedEnsemble, folder: str) -> None:
    """Write the members into folders of their own and then `ensemble.safetensors`, which makes the folder a model."""
    for name, member in trained.members.items():
        checkpoint.save_model(member, storage.join(folder, name))
    detectors = trained.ensemble.members
    normals = next(iter(detectors.values())).normals
    if normals is None or trained.alarm is None:
        raise ConfigError("An ensemble is saved with the calibration 'local' and an alarm.")
    tensors = {"places": normals.places, "recordings": normals.recordings}
    tensors |= {"means": trained.ensemble.means, "deviations": trained.ensemble.deviations}
    for name, detector in detectors.items():
        if detector.normals is not None:
            tensors[f"{name}.scores"] = detector.normals.scores
        if detector.weights is not None:
            tensors[f"{name}.weights"] = detector.weights
    if trained.state is not None:
        tensors[STATE_SPECTRA] = trained.state.spectra
    tensors = {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}
    header = {
        "format": FORMAT,
        "seed": trained.seed,
        "members": [
            {"name": name, "sha256": _sha256(folder, name), "score": dataclasses.asdict(detector.score)}
            for name, detector in detectors.items()
        ],
        "alarm": trained.alarm.as_json(),
        "config_hash": trained.config_hash,
        **parent_part(trained.parent),
        **state_part(trained.state),
        **_rescoring_part(trained.ensemble.rescoring),
    }
    header["digest"] = digest_of(tensors, header)
    content = safetensors.torch.save(tensors, {KEY: json.dumps(header, sort_keys=True, allow_nan=False)})
    storage.write_bytes(storage.join(folder, FILE_NAME), content)


def save_any(trained: AnyModel, folder: str) -> None:
    """Write a model or an ensemble, whose own file is written last."""
    if isinstance(trained, TrainedEnsemble):
        save_ensemble(trained, folder)
    else:
        checkpoint.save_model(trained, folder)


def load_any(folder: str, *, expect: Mapping[str, Any] | None = None) -> AnyModel:
    """Read a model or an ensemble, on the CPU and in eval mode.

    Args:
        folder: that holds `model.safetensors` or `ensemble.safetensors`, local or remote.
        expect: of a model, see `load_model`.

    Raises:
        CheckpointError: a file is missing, damaged, of another format, or not what is expected.
        ConfigError: the package that adds a model cannot be loaded.
    """
    if expect is not None or not storage.exists(storage.join(folder, FILE_NAME)):
        trained = load_model(folder, expect=expect)
        try:
            if trained.score is not None:
                Score(**trained.score.choices).require_fits(trained.name)
        except ConfigError as error:
            raise CheckpointError(f"{folder} cannot be used: its score has {error} Train again.") from error
        return trained
    return _load_ensemble(folder)


def digest_of_files(folder: str) -> str:
    """SHA-256 of the file that says which model lies in a folder; an ensemble's file holds its members' digests."""
    location = storage.join(folder, FILE_NAME)
    if not storage.exists(location):
        location = storage.join(folder, checkpoint.FILE_NAME)
    return hashlib.sha256(storage.read_bytes(location)).hexdigest()


def _load_ensemble(folder: str) -> TrainedEnsemble:
    location = storage.join(folder, FILE_NAME)
    with storage.open_input(location) as file:
        announced = read_header(file, location)
        header = checked_header(announced.model, location)
        members = {part.name: _member(folder, part, location) for part in header.members}
        _require_alike(members, location)
        check_shapes(announced.shapes, members, header, location)
        file.seek(0)
        content = bytes(file.read())
    try:
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError) as error:
        raise CheckpointError(f"{location} is damaged or no safetensors file: {error}. Train again.") from error
    if header.digest != digest_of(tensors, announced.model):
        raise CheckpointError(
            f"{location} is damaged: its tensors are not those that were written, or its header is not. Train again."
        )
    check_values(tensors, location)
    frames_per_s = next(iter(members.values())).features.frames_per_s
    detectors = {
        part.name: Detector(
            members[part.name].network,
            Score(**part.score),
            frames_per_s,
            tensors.get(f"{part.name}.weights"),
            NormalScores(tensors[f"{part.name}.scores"], tensors["places"], tensors["recordings"]),
        )
        for part in header.members
    }
    ensemble = Ensemble(detectors, tensors["means"], tensors["deviations"], _rescoring(header))
    alarm = AlarmThreshold.from_json(header.alarm.model_dump())
    parent = None if header.parent is None else Parent(**header.parent.model_dump())
    state = None
    if header.state is not None:
        state = StateAlarm.from_json(header.state.model_dump(), tensors[STATE_SPECTRA])
    return TrainedEnsemble(members, ensemble, header.seed, alarm, header.config_hash, parent, state)


def _rescoring(header: EnsembleHeader) -> Rescoring | None:
    part = header.rescoring
    return None if part is None else Rescoring(part.share, tuple(part.members), part.threshold, part.lowest)


def _member(folder: str, part: MemberPart, location: str) -> TrainedModel:
    member = load_model(storage.join(folder, part.name), expect={"name": part.name})
    if _sha256(folder, part.name) != part.sha256:
        raise CheckpointError(
            f"{storage.join(folder, part.name, checkpoint.FILE_NAME)} is not the model that {location} was made with. "
            "Copy the whole folder again, or train again."
        )
    return member


def _sha256(folder: str, member: str) -> str:
    location = storage.join(folder, member, checkpoint.FILE_NAME)
    return hashlib.sha256(storage.read_bytes(location)).hexdigest()


def _require_alike(members: Mapping[str, TrainedModel], location: str) -> None:
    """Return if the members take in the same: one spectrogram of a clip serves all."""
    if unlike := find_unlike(list(members.values())):
        raise CheckpointError(f"The members of {location} were trained on different features: {listed(unlike)}.")


def find_unlike(members: Sequence[TrainedModel]) -> list[str]:
    """The names of the first two models that take in different features; none where all take in the same."""
    first, *others = members
    for member in others:
        same = (member.features, member.n_mels, member.n_frames) == (first.features, first.n_mels, first.n_frames)
        pairs = [(getattr(m.normalization, key) for m in (first, member)) for key in ("mean", "std")]
        if not same or not all(torch.equal(*pair) for pair in pairs):
            return [first.name, member.name]
    return []
