"""A trained model on disk: one `model.safetensors` with the weights and everything that is needed to use them.

The file holds the tensors of the network, or of the classical detector (`network.*`), the normalisation's
(`normalization.mean`, `normalization.std`), what its training clips sounded like (`sound.spectra`, `sound.limit_db`)
and, of an explained model, some of these clips (`normals.clips`; models of release 0.1.0 lack both), where it has
another score than the paper's what that was fitted to (`score.weights`, `score.normals`, `score.places`,
`score.recordings`), of an alarm for what lasts the spectra of normal minutes (`state.spectra`), and in its header one
JSON text with the model's name, its shape, the feature settings, its origin, and a digest of all this and of the
tensors. Nothing is unpickled, so a file from elsewhere cannot run code, and nothing is built nor read whose size
`header` has not checked. The same model gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from faithad import storage
from faithad.errors import CheckpointError, ConfigError, RecordingError
from faithad.features import Normalization
from faithad.model.alarm import AlarmThreshold
from faithad.model.classical import ClassicalDetector
from faithad.model.fitted_score import FittedScore
from faithad.model.header import KEY, read_header
from faithad.model.header_checks import (
    CLIPS,
    FORMAT,
    FORMAT_OF_TENSORS_ALONE,
    LIMIT,
    NORMALS,
    SCORE_TYPES,
    SPECTRA,
    STATE_SPECTRA,
    WEIGHTS,
    check_expected,
    check_header,
    misfits,
    refuse_misfits,
)
from faithad.model.state_alarm import StateAlarm
from faithad.model.table import MODELS, build_network
from faithad.model.training_sound import TrainingSound
from faithad.settings import FeatureSettings

FILE_NAME = "model.safetensors"
_TYPES = {**SCORE_TYPES, STATE_SPECTRA: torch.float32}


@dataclass(frozen=True)
class Parent:
    """The model whose alarm was fitted again to other normal clips.

    Attributes:
        folder: where it was.
        sha256: of its file, see `trained_ensemble.digest_of_files`.
    """

    folder: str
    sha256: str


@dataclass
class TrainedModel:
    """A network, or a model that is fitted, with all that it needs to score a clip.

    Attributes:
        network: `table.build_network` of that name with the weights of the best epoch, which reconstructs (B, F, T);
            or a `ClassicalDetector`, which gives scores (B,).
        normalization: applied to features before the network; the identity where none was fitted.
        features: the features that it was trained on.
        name: a row of `table.MODELS`.
        seed: of the training run.
        alarm: the threshold fitted on its validation normals; None before one is.
        best_epoch: the epoch, counted from 1, that the weights come from; 0 for a fitted model, which has no epochs.
        config_hash: of the training's settings.
        sound: what its training clips, or those that it was calibrated on, sounded like; None where that is not known.
        parent: the model that it was before its alarm and calibration were fitted again; None where it was trained.
        score: what is made of its error; None for the paper's score, and for a model that gives a score only.
        normals: (N, F, T), some training clips as the network takes them in, at most `most_normals`: baselines of the
            path methods. None where none are kept.
        state: the alarm for what lasts; None where there is none.
    """

    network: nn.Module
    normalization: Normalization
    features: FeatureSettings
    name: str
    seed: int
    alarm: AlarmThreshold | None
    best_epoch: int
    config_hash: str
    sound: TrainingSound | None = None
    score: FittedScore | None = None
    parent: Parent | None = None
    normals: Tensor | None = None
    state: StateAlarm | None = None

    @property
    def n_mels(self) -> int:
        """F of what the network takes in."""
        return int(cast(int, self.network.n_mels))

    @property
    def n_frames(self) -> int:
        """T of what the network takes in."""
        return int(cast(int, self.network.n_frames))

    @property
    def reconstructs(self) -> bool:
        """Whether the network maps to reconstructions, whose error has a worst second; else it gives scores only."""
        return MODELS[self.name].reconstructs

    @property
    def explained(self) -> bool:
        """Whether its scores are explained by attributions."""
        return MODELS[self.name].explained

    def frames_in(self, duration_s: float) -> int:
        """Frames of what the network takes in that hold sound: fewer than T for a short clip, which is filled up."""
        return min(self.n_frames, self.features.frames_in(duration_s))

    def prepare(self, log_mel: Tensor, references: Tensor | None = None) -> Tensor:
        """What the network takes in: normalised, and without the frames that it was not built for.

        Args:
            log_mel: (B, F, at least T), in the unit of the features.
            references: (B, F), the spectrum of each clip's recording; needed, and used, with the reference "recording".

        Returns:
            (B, F, T).

        Raises:
            RecordingError: the spectrograms have other bands or too few frames, or their references are not given.
        """
        n_mels, n_frames = self.n_mels, self.n_frames
        if log_mel.ndim != 3 or log_mel.shape[1] != n_mels or log_mel.shape[2] < n_frames:
            raise RecordingError(
                f"Spectrograms have the shape {tuple(log_mel.shape)}; the model {self.name!r} needs (clips, {n_mels} "
                f"mel bands, {n_frames} frames or more)."
            )
        if self.features.reference == "none":
            references = None
        elif references is None:
            raise RecordingError(
                f"The model {self.name!r} takes clips less the median spectrum of their recording "
                "(`features.reference: recording`), which is not given. Compute it from the recording, with "
                "`faithad.recording_spectrum`."
            )
        return self.normalization.apply(log_mel[..., :n_frames], references)


def describe(trained: TrainedModel) -> dict[str, Any]:
    """The model without its tensors, ready for JSON; what `load_model` compares with `expect`."""
    network = trained.network
    return {
        "name": trained.name,
        "seed": trained.seed,
        "n_mels": trained.n_mels,
        "n_frames": trained.n_frames,
        "options": getattr(network, "options", {}),
        "features": trained.features.as_json(),
        "alarm": None if trained.alarm is None else trained.alarm.as_json(),
        **({} if trained.score is None else {"score": trained.score.choices}),
        "best_epoch": trained.best_epoch,
        "config_hash": trained.config_hash,
        **parent_part(trained.parent),
        **state_part(trained.state),
    }


def parent_part(parent: Parent | None) -> dict[str, Any]:
    """What a header says of a model's parent; nothing where there is none, as in files of models that were trained."""
    return {} if parent is None else {"parent": dataclasses.asdict(parent)}


def state_part(state: StateAlarm | None) -> dict[str, Any]:
    """What a header says of the alarm for what lasts; nothing where there is none."""
    return {} if state is None else {"state": state.as_json()}


def save_model(trained: TrainedModel, folder: str) -> None:
    """Write `model.safetensors` into a folder, local or remote, so that a reader never sees half of it."""
    tensors = {f"network.{key}": value for key, value in trained.network.state_dict().items()}
    tensors |= {"normalization.mean": trained.normalization.mean, "normalization.std": trained.normalization.std}
    if trained.sound is not None:
        tensors |= {SPECTRA: trained.sound.spectra, LIMIT: torch.tensor(trained.sound.limit_db, dtype=torch.float64)}
    if trained.score is not None:
        kept = dict(zip((WEIGHTS, *NORMALS), (trained.score.weights, *(trained.score.normals or ())), strict=False))
        tensors |= {key: value for key, value in kept.items() if value is not None}
    if trained.normals is not None:
        tensors[CLIPS] = trained.normals
    if trained.state is not None:
        tensors[STATE_SPECTRA] = trained.state.spectra
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    header = {"format": FORMAT, **describe(trained)}
    header["digest"] = digest_of(tensors, header)
    content = safetensors.torch.save(tensors, {KEY: json.dumps(header, sort_keys=True, allow_nan=False)})
    storage.write_bytes(storage.join(folder, FILE_NAME), content)


def load_model(folder: str, *, expect: Mapping[str, Any] | None = None) -> TrainedModel:
    """Read a model that `save_model` wrote, on the CPU and in eval mode.

    Args:
        folder: the folder that holds `model.safetensors`, local or remote.
        expect: the values that the study asks for: any of `describe`'s keys; `features` may be `FeatureSettings`.

    Raises:
        CheckpointError: the file is missing, damaged, of another format, or differs from what is expected; the text
            names each difference. Or its model comes from a package that is not installed here.
        ConfigError: the package that adds its model cannot be loaded.
    """
    location = storage.join(folder, FILE_NAME)
    tensors, header = _read(location)
    check_expected(location, header, expect or {})
    normalization = Normalization(mean=tensors.pop("normalization.mean"), std=tensors.pop("normalization.std"))
    sound = None
    if SPECTRA in tensors:
        sound = TrainingSound(tensors.pop(SPECTRA), limit_db=float(tensors.pop(LIMIT)))
    clips = tensors.pop(CLIPS, None)
    state = None if header.get("state") is None else StateAlarm.from_json(header["state"], tensors.pop(STATE_SPECTRA))
    score = None
    if (choices := header.get("score")) is not None:
        normals = [tensors.pop(key) for key in NORMALS if key in tensors]
        score = FittedScore(choices, tensors.pop(WEIGHTS, None), tuple(normals) or None)
    weights = {key.removeprefix("network."): value for key, value in tensors.items()}
    trained = TrainedModel(
        network=_network(location, header, weights),
        normalization=normalization,
        features=FeatureSettings(**header["features"]),
        alarm=None if header["alarm"] is None else AlarmThreshold.from_json(header["alarm"]),
        sound=sound,
        parent=None if header.get("parent") is None else Parent(**header["parent"]),
        score=score,
        normals=clips,
        state=state,
        **{key: header[key] for key in ("name", "seed", "best_epoch", "config_hash")},
    )
    trained.network.eval()
    return trained


def stored_score(folder: str) -> dict[str, str] | None:
    """The choices of the score that is stored with a model, None for the paper's. Only the header is read.

    Raises:
        CheckpointError: as `load_model`.
    """
    score: dict[str, str] | None = _read_header(folder).get("score")
    return score


def read_digest(folder: str) -> str:
    """The digest over all that a model's file holds. Only the header is read.

    Raises:
        CheckpointError: as `load_model`.
    """
    return str(_read_header(folder)["digest"])


def _read_header(folder: str) -> Mapping[str, Any]:
    location = storage.join(folder, FILE_NAME)
    try:
        with storage.open_input(location) as file:
            return read_header(file, location).model
    except FileNotFoundError as error:
        raise _no_model(location) from error


def _no_model(location: str) -> CheckpointError:
    return CheckpointError(f"There is no trained model at {location}. Run the training first.")


def read_state(location: str) -> dict[str, Any]:
    """The state of a training that `torch.save` wrote, local or remote; tensors and plain values only.

    Raises:
        CheckpointError: it is damaged, or it could only be loaded by running code from it, which is never done.
    """
    content = io.BytesIO(storage.read_bytes(location))
    try:
        state: dict[str, Any] = torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise CheckpointError(
            f"{location} is no state of a training ({type(error).__name__}): it is damaged, or it holds code, which is "
            "never run. Remove it; the training then begins anew."
        ) from error
    return state


def _network(location: str, header: Mapping[str, Any], weights: dict[str, Tensor]) -> nn.Module:
    """The network, or the detector, that the header describes, with these tensors."""
    name, n_mels, n_frames = header["name"], header["n_mels"], header["n_frames"]
    if not MODELS[name].reconstructs:
        try:
            return ClassicalDetector(name, n_mels, n_frames, weights)
        except ConfigError as error:
            raise CheckpointError(f"The tensors of {location} do not fit its header: {error}") from error
    network = build_network(name, n_mels, n_frames, **header["options"])
    problems = misfits({key: value.shape for key, value in weights.items()}, network)
    problems += [
        f"{key} is {weights[key].dtype} instead of {tensor.dtype}"
        for key, tensor in network.state_dict().items()
        if key in weights and weights[key].dtype != tensor.dtype
    ]
    refuse_misfits(location, problems)
    network.load_state_dict(weights)
    return network


def _read(location: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header. The tensors are read once the header has passed all checks that need none."""
    try:
        with storage.open_input(location) as file:
            announced = read_header(file, location)
            header = announced.model
            check_header(location, header, announced)
            file.seek(0)
            content = bytes(file.read())
    except FileNotFoundError as error:
        raise _no_model(location) from error
    except (OSError, MemoryError) as error:
        raise CheckpointError(f"{location} cannot be read: {error or 'there is too little memory for it'}") from error
    try:
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError) as error:
        raise CheckpointError(f"{location} is damaged or no safetensors file: {error}. Train again.") from error
    described = None if header["format"] == FORMAT_OF_TENSORS_ALONE else header
    if header["digest"] != digest_of(tensors, described):
        raise CheckpointError(
            f"{location} is damaged: its tensors are not those that were written, or its header is not. Train again."
        )
    for key, tensor in tensors.items():
        is_positive = key in ("normalization.std", WEIGHTS)
        is_of_type = tensor.dtype == _TYPES.get(key, tensor.dtype)
        if not (is_of_type and bool(tensor.isfinite().all()) and (not is_positive or bool((tensor > 0).all()))):
            raise CheckpointError(
                f"{location} is damaged: {key} holds values that are no finite or no allowed numbers."
            )
    return tensors, header


def digest_of(tensors: Mapping[str, Tensor], header: Mapping[str, Any] | None) -> str:
    """A hash over the header, and over names, types, shapes and contents: safetensors would not notice a flipped bit.

    `header` None leaves it out, as format 3 did.
    """
    digest = hashlib.sha256()
    if header is not None:
        described = {key: value for key, value in header.items() if key != "digest"}
        digest.update(json.dumps(described, sort_keys=True).encode())
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f"{key}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
