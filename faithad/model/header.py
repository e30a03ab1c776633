"""The header of `model.safetensors`: what a model says about itself, checked before a tensor is read.

A file may come from anywhere, and its header decides how much memory a network, a clip and a spectrogram take. So every
value has a type and bounds, and the sizes that the file announces must be those that it has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import pyarrow as pa
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from faithad.errors import CheckpointError, ConfigError
from faithad.settings import FeatureSettings
from faithad.vocabulary import ERROR_POOLINGS, FITTED

# One key only: safetensors writes several in the order of a hash map, which changes from run to run.
KEY = "faithad"

# A network of 1,000 layers needs a tenth of this.
_MOST_HEADER_BYTES = 10_000_000

_Size = Annotated[int, Field(ge=1, le=1 << 20)]
# A duration in seconds, and the threshold of clips that are as short.
_Length = Annotated[list[float], Field(min_length=2, max_length=2)]
_MOST_LENGTHS = 32


def _rising(lengths: list[list[float]]) -> list[list[float]]:
    durations_s = [0.0, *(duration_s for duration_s, _ in lengths)]
    if sorted(set(durations_s)) != durations_s:
        raise ValueError("durations must be above 0 and rise")
    return lengths


class HeaderPart(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Features(HeaderPart):
    sample_rate_hz: Annotated[int, Field(ge=1, le=384_000)]
    n_fft: _Size
    hop_samples: _Size
    n_mels: _Size
    scale: str
    clip_s: Annotated[float, Field(gt=0, le=600)]
    reference: str = "none"


class _TailPart(HeaderPart):
    start: float
    scale: Annotated[float, Field(gt=0)]
    n_above: Annotated[int, Field(ge=1)]
    log_scale: Annotated[float, Field(gt=0)] | None = None


class AlarmPart(HeaderPart):
    """`by_length`, `asked_per_hour` and `tail` are missing in models of release 0.1.0."""

    rule: str
    pooling: str
    false_alarm_rate: Annotated[float, Field(gt=0, lt=1)]
    threshold: float
    false_alarms_per_hour: Annotated[float, Field(ge=0)]
    n_validation: Annotated[int, Field(ge=0)]
    by_length: Annotated[list[_Length], Field(max_length=_MOST_LENGTHS), AfterValidator(_rising)] = []
    asked_per_hour: Annotated[float, Field(gt=0)] | None = None
    tail: _TailPart | None = None
    window_thresholds: list[float] = []


class ScorePart(HeaderPart):
    residual: str
    weighting: str
    pooling: str
    calibration: str


class ParentPart(HeaderPart):
    folder: str
    sha256: str


class _StateThresholdPart(HeaderPart):
    threshold_db: Annotated[float, Field(gt=0)]
    false_alarm_rate: Annotated[float, Field(gt=0, lt=1)]
    n_minutes: Annotated[int, Field(ge=1)]


class StatePart(HeaderPart):
    share: Annotated[float, Field(gt=0, lt=1)]
    asked_rate: Annotated[float, Field(gt=0, lt=1)]
    against_normals: _StateThresholdPart
    against_past: _StateThresholdPart | None


class _ModelHeader(HeaderPart):
    format: int
    digest: str
    name: str
    seed: Annotated[int, Field(ge=0)]
    n_mels: _Size
    n_frames: _Size
    options: dict[str, Any]
    features: _Features
    alarm: AlarmPart | None
    score: ScorePart | None = None
    best_epoch: Annotated[int, Field(ge=0)]
    config_hash: str
    parent: ParentPart | None = None
    state: StatePart | None = None


class FileHeader(NamedTuple):
    """`model`: the JSON that `checkpoint.save_model` wrote. `shapes`: of each tensor. `n_bytes`: of the whole file."""

    model: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    n_bytes: int


def read_header(file: pa.NativeFile, location: str) -> FileHeader:
    """The header of an opened safetensors file. Reads no tensor.

    Raises:
        CheckpointError: it is no safetensors file, is not faithad's, or has another size than its header announces.
    """
    try:
        # Of a local file too, whose header safetensors would give: 8 bytes of length, then JSON.
        length, n_bytes = int.from_bytes(file.read(8), "little"), int(file.size())
        if not 2 <= length <= min(_MOST_HEADER_BYTES, n_bytes - 8):
            raise ValueError(f"it announces a header of {length:,} bytes and has {n_bytes:,} in all")
        listing = json.loads(file.read(length))
        metadata = listing.pop("__metadata__", {})
        shapes = {name: tuple(map(int, entry["shape"])) for name, entry in listing.items()}
        announced = 8 + length + max((int(entry["data_offsets"][1]) for entry in listing.values()), default=0)
        if announced != n_bytes:
            raise ValueError(f"its header announces {announced:,} bytes, and it has {n_bytes:,}")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{location} is damaged or no safetensors file: {error}. Train again.") from error
    if not isinstance(metadata, dict) or KEY not in metadata:
        raise CheckpointError(f"{location} was not written by faithad: its header lacks {KEY!r}.")
    try:
        model = json.loads(metadata[KEY])
        if not isinstance(model, dict):
            raise ValueError(f"it is {type(model).__name__}, no JSON object")
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{location} is damaged: its header cannot be read: {error}. Train again.") from error
    return FileHeader(model, shapes, n_bytes)


def require_possible(model: Mapping[str, Any], location: str) -> None:
    """Return if every value of the header has its type, is finite and within bounds.

    Raises:
        CheckpointError: a value is not; the first such value is named.
    """
    try:
        _ModelHeader.model_validate(dict(model))
        features = FeatureSettings(**model["features"])
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"{'.'.join(map(str, first['loc']))} ({first['msg']}, found {first['input']!r:.80})"
    except ConfigError as error:
        problem = f"features: {str(error).rstrip('.')}"
    else:
        problem = _contradiction(model, features)
    if problem:
        raise CheckpointError(f"{location} is damaged: its header lacks or garbles {problem}. Train again.")


def _contradiction(model: Mapping[str, Any], features: FeatureSettings) -> str:
    if model["n_mels"] != features.n_mels:
        return f"n_mels (the network takes {model['n_mels']} mel bands, its features have {features.n_mels})"
    if model["n_frames"] > features.n_frames:
        return f"n_frames (the network takes {model['n_frames']} frames, a clip has {features.n_frames})"
    allowed = list(ERROR_POOLINGS) if model.get("score") is None else [FITTED]
    pooling = allowed[0] if model["alarm"] is None else model["alarm"]["pooling"]
    return "" if pooling in allowed else f"alarm.pooling ({pooling!r}; allowed: {', '.join(allowed)})"
