"""What `ensemble.safetensors` says of its members, against its own bounds and the shapes and values of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from faithad.errors import CheckpointError, ConfigError
from faithad.model.checkpoint import TrainedModel
from faithad.model.fitted_score import MOST_NORMALS
from faithad.model.header import AlarmPart, HeaderPart, ParentPart, StatePart
from faithad.model.header_checks import STATE_SPECTRA, state_problems
from faithad.model.table import MODELS
from faithad.scoring.choices import Score

FORMAT = 1
_MOST_MEMBERS = 16


class MemberPart(HeaderPart):
    name: str
    sha256: str
    score: dict[str, str]


class RescoringPart(HeaderPart):
    share: Annotated[float, Field(gt=0, lt=1)]
    members: Annotated[list[str], Field(min_length=1, max_length=_MOST_MEMBERS)]
    threshold: float
    lowest: float


class EnsembleHeader(HeaderPart):
    format: int
    digest: str
    seed: Annotated[int, Field(ge=0)]
    members: Annotated[list[MemberPart], Field(min_length=1, max_length=_MOST_MEMBERS)]
    alarm: AlarmPart
    config_hash: str
    parent: ParentPart | None = None
    state: StatePart | None = None
    rescoring: RescoringPart | None = None


def checked_header(header: Mapping[str, Any], location: str) -> EnsembleHeader:
    """The header, if every value has its type and its bounds."""
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{location} has the format {header.get('format')!r}; this version of faithad reads {FORMAT}."
        )
    try:
        checked = EnsembleHeader.model_validate(dict(header))
        for part in checked.members:
            Score(**part.score)
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"{'.'.join(map(str, first['loc']))} ({first['msg']}, found {first['input']!r:.80})"
    except (ConfigError, TypeError) as error:
        problem = f"members: {str(error).rstrip('.')}"
    else:
        names = [part.name for part in checked.members]
        # A name is part of a path.
        unknown = [name for name in names if name not in MODELS or not MODELS[name].reconstructs]
        local = all(part.score.get("calibration") == "local" for part in checked.members)
        problem = f"members ({unknown[0]!r} is no model that reconstructs)" if unknown else ""
        problem = problem or ("" if len(set(names)) == len(names) else f"members ({names}: they must differ)")
        problem = problem or ("" if local else "members (each needs the calibration 'local')")
        problem = problem or ("" if checked.alarm.pooling == "ensemble" else "alarm.pooling (it must be 'ensemble')")
        whole = len(checked.alarm.window_thresholds) in (0, len(names))
        problem = problem or ("" if whole else "alarm.window_thresholds (it must hold one for each member)")
        later = [] if checked.rescoring is None else checked.rescoring.members
        is_part = set(later) < set(names)
        problem = problem or ("" if is_part else "rescoring.members (they must be some of the members, and not all)")
        if not problem:
            return checked
    raise CheckpointError(f"{location} is damaged: its header lacks or garbles {problem}. Train again.")


def check_shapes(
    shapes: Mapping[str, tuple[int, ...]], members: Mapping[str, TrainedModel], header: EnsembleHeader, location: str
) -> None:
    """Return if the tensors are those of these members and of at most `MOST_NORMALS` clips, before any is read."""
    n = (shapes.get("places") or (0,))[0]
    n_mels = next(iter(members.values())).n_mels
    wanted: dict[str, tuple[int, ...]] = {"places": (n, n_mels), "recordings": (n,)}
    wanted |= {"means": (len(members),), "deviations": (len(members),)}
    for part in header.members:
        wanted[f"{part.name}.scores"] = (n,)
        if part.score.get("weighting") != "none":
            wanted[f"{part.name}.weights"] = (n_mels,)
    if not 1 <= n <= MOST_NORMALS:
        raise CheckpointError(f"{location} is damaged: it holds {n:,} normal clips; 1 to {MOST_NORMALS:,} are allowed.")
    shapes = dict(shapes)
    problems = state_problems(header.state is not None, shapes, n_mels)
    if problems:
        raise CheckpointError(f"{location} is damaged: {problems[0]}. Train again.")
    for key in sorted(set(wanted) | set(shapes)):
        if wanted.get(key) != shapes.get(key):
            raise CheckpointError(
                f"{location} is damaged: {key} is {shapes.get(key, 'missing')} instead of "
                f"{wanted.get(key, 'unknown')}. Train again."
            )


def check_values(tensors: Mapping[str, Tensor], location: str) -> None:
    for key, tensor in tensors.items():
        wanted = {"places": torch.float32, "recordings": torch.int64, STATE_SPECTRA: torch.float32}.get(
            key, torch.float64
        )
        positive = key == "deviations" or key.endswith(".weights")
        if tensor.dtype != wanted or not bool(tensor.isfinite().all()) or (positive and not bool((tensor > 0).all())):
            raise CheckpointError(
                f"{location} is damaged: {key} holds values that are no finite or no allowed numbers. Train again."
            )
