"""What the header of `model.safetensors` says, against the shapes of the tensors and against what a study asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from faithad.errors import CheckpointError, ConfigError
from faithad.model.fitted_score import MOST_NORMALS
from faithad.model.header import FileHeader, require_possible
from faithad.model.state_alarm import MOST_MINUTES
from faithad.model.table import MODELS, build_network
from faithad.model.training_sound import MOST_CLIPS, most_normals
from faithad.settings import FeatureSettings
from faithad.vocabulary import listed

FORMAT = 4
# Whose digest does not cover the header; release 0.1.0 wrote it.
FORMAT_OF_TENSORS_ALONE = 3
# Of a classical detector, whose number of support vectors nothing else limits; 60,000 clips of 80 x 401.
_MOST_DETECTOR_BYTES = 8 << 30
# Names of tensors.
SPECTRA, LIMIT, CLIPS = "sound.spectra", "sound.limit_db", "normals.clips"
STATE_SPECTRA = "state.spectra"
WEIGHTS, NORMALS = "score.weights", ("score.normals", "score.places", "score.recordings")
SCORE_TYPES = dict(zip((WEIGHTS, *NORMALS), (torch.float64, torch.float64, torch.float32, torch.int64), strict=True))


def check_header(location: str, header: Mapping[str, Any], announced: FileHeader) -> None:
    """Refuse a header that contradicts itself or the shapes of the tensors, before these are read.

    Raises:
        CheckpointError: the header contradicts itself or the shapes.
    """
    if header.get("format") not in (FORMAT_OF_TENSORS_ALONE, FORMAT):
        raise CheckpointError(
            f"{location} has the format {header.get('format')!r}; this version of faithad reads "
            f"{FORMAT_OF_TENSORS_ALONE} and {FORMAT}."
        )
    require_model(location, header.get("name"))
    require_possible(header, location)
    name, n_mels, n_frames = header["name"], header["n_mels"], header["n_frames"]
    shapes = dict(announced.shapes)
    problems = [
        f"{key} is {shape} instead of {(n_mels,)}"
        for key in ("normalization.mean", "normalization.std")
        if (shape := shapes.pop(key, None)) != (n_mels,)
    ]
    spectra, limit = shapes.pop(SPECTRA, None), shapes.pop(LIMIT, None)
    if spectra != limit and (
        not spectra or spectra[1:] != (n_mels,) or not 0 < spectra[0] <= MOST_CLIPS or limit != ()
    ):
        problems.append(f"{SPECTRA} is {spectra} and {LIMIT} {limit} instead of (clips, {n_mels}) and ()")
    problems += _score_problems(header.get("score"), shapes, n_mels)
    most = most_normals(n_mels, n_frames)
    clips = shapes.pop(CLIPS, (1, n_mels, n_frames))
    if clips[1:] != (n_mels, n_frames) or not 0 < clips[0] <= most:
        problems.append(f"{CLIPS} is {clips} instead of (1 to {most}, {n_mels}, {n_frames})")
    problems += state_problems(header.get("state") is not None, shapes, n_mels)
    if not MODELS[name].reconstructs:
        if announced.n_bytes > _MOST_DETECTOR_BYTES:
            raise CheckpointError(f"{location} has {announced.n_bytes:,} bytes: above {_MOST_DETECTOR_BYTES:,}.")
    else:
        try:
            network = _network_without_memory(name, n_mels, n_frames, header["options"])
        except (ValueError, TypeError, RuntimeError, ConfigError) as error:
            raise CheckpointError(
                f"{location} is damaged: its header lacks or garbles what {name!r} is built of: {error} Train again."
            ) from error
        problems += misfits({key.removeprefix("network."): shape for key, shape in shapes.items()}, network)
    # A tensor that is merely missing takes no memory; the digest tells of the damage.
    if any(not problem.endswith(" is missing") for problem in problems):
        refuse_misfits(location, problems)


def _score_problems(choices: Mapping[str, str] | None, shapes: dict[str, tuple[int, ...]], n_mels: int) -> list[str]:
    """What is wrong with the tensors of a fitted score; they are taken out of the shapes."""
    stored = {key: shape for key in (WEIGHTS, *NORMALS) if (shape := shapes.pop(key, None)) is not None}
    wanted: dict[str, tuple[int, ...]] = {}
    if choices is not None and choices["weighting"] != "none":
        wanted[WEIGHTS] = (n_mels,)
    if choices is not None and choices["calibration"] != "none":
        n = (stored.get(NORMALS[0]) or (0,))[0]
        if not 1 <= n <= MOST_NORMALS:
            return [f"{NORMALS[0]} holds {n:,} normal clips; 1 to {MOST_NORMALS:,} are allowed"]
        wanted |= dict(zip(NORMALS, ((n,), (n, n_mels), (n,)), strict=True))
    return [
        f"{key} is {stored.get(key, 'missing')} instead of {wanted.get(key, 'unknown')}"
        for key in SCORE_TYPES
        if stored.get(key) != wanted.get(key)
    ]


def state_problems(has_state: bool, shapes: dict[str, tuple[int, ...]], n_mels: int) -> list[str]:
    """What is wrong with the spectra of the alarm for what lasts; they are taken out of the shapes."""
    shape = shapes.pop(STATE_SPECTRA, None)
    if not has_state:
        return [] if shape is None else [f"{STATE_SPECTRA} is {shape} instead of unknown"]
    if shape is not None and len(shape) == 2 and shape[1] == n_mels and 2 <= shape[0] <= MOST_MINUTES:
        return []
    return [f"{STATE_SPECTRA} is {shape or 'missing'} instead of (2 to {MOST_MINUTES:,}, {n_mels})"]


def check_expected(location: str, header: Mapping[str, Any], expect: Mapping[str, Any]) -> None:
    """Return if the header has the settings that a study asks for.

    Raises:
        CheckpointError: it lacks or contradicts one.
    """
    saved = _flatten({**header, "features": FeatureSettings(**header["features"])})
    wanted = _flatten(expect)
    unknown = sorted(set(wanted) - set(saved))
    if unknown:
        raise CheckpointError(f"{location} does not say {', '.join(unknown)}, which the study asks for. Train again.")
    differences = [
        f"{key} is {saved[key]!r}, asked for {value!r}" for key, value in wanted.items() if saved[key] != value
    ]
    if differences:
        raise CheckpointError(
            f"{location} does not fit the study: {'; '.join(differences)}. "
            "Train again, or set the study to what the model was trained with."
        )


def _flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings as `features.n_fft`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = dataclasses.asdict(value) if isinstance(value, FeatureSettings) else value
        if isinstance(inner, Mapping):
            flat |= {f"{key}.{name}": setting for name, setting in inner.items()}
        else:
            flat[key] = inner
    return flat


def _network_without_memory(name: str, n_mels: int, n_frames: int, options: Mapping[str, Any]) -> nn.Module:
    """The network without memory for its weights, where it can be built so."""
    try:
        with torch.device("meta"):
            return build_network(name, n_mels, n_frames, **options)
    except RuntimeError:  # a package's network may compute with values as it is built
        return build_network(name, n_mels, n_frames, **options)


def misfits(shapes: Mapping[str, Sequence[int]], network: nn.Module) -> list[str]:
    """Which tensors a network lacks, does not know, or has in another shape."""
    needed = network.state_dict()
    problems = [f"{key} is missing" for key in needed if key not in shapes]
    problems += [f"{key} is unknown" for key in shapes if key not in needed]
    problems += [
        f"{key} is {tuple(shapes[key])} instead of {tuple(tensor.shape)}"
        for key, tensor in needed.items()
        if key in shapes and tuple(shapes[key]) != tuple(tensor.shape)
    ]
    return problems


def refuse_misfits(location: str, problems: Sequence[str]) -> None:
    """Return if there are no problems, see `misfits`.

    Raises:
        CheckpointError: with the first of them.
    """
    if problems:
        text = listed(problems, most=5, separator="; ")
        raise CheckpointError(f"The tensors of {location} do not fit the network that its header describes: {text}.")


def require_model(location: str, name: object) -> None:
    """Return if this installation has the model.

    Raises:
        CheckpointError: it does not, or this is no name.
    """
    if not isinstance(name, str):
        raise CheckpointError(f"{location} is damaged: its header calls the model {name!r}. Train again.")
    if name not in MODELS:
        raise CheckpointError(
            f"{location} is a model {name!r}, which this installation does not have: install the package that adds it."
        )
    MODELS[name]  # imports its package, whose own problems are no damage of the file
