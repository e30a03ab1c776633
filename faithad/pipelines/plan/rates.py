"""How fast things go: what `faithad plan` measures, writes with --save-rates, and reads again with --rates.

All times are seconds. Those of `cpu` and `gpu` are of one core or one GPU that works on one clip, while all others of
the machine do the same.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import Field, model_validator

from faithad import storage
from faithad.config.audit import AuditRun
from faithad.config.sections import Section, refuse
from faithad.config.study import Study
from faithad.errors import StudyError
from faithad.pipelines.plan.machines import read_section
from faithad.runs.stages import flatten
from faithad.settings import FeatureSettings

Seconds = float

_HEADER = """\
# Rates for `faithad plan --rates`, in seconds; `cpu` and `gpu`: of one core or one GPU, for one clip. They hold for the
# settings below, and may be edited: figures of a GPU that were measured elsewhere go under `gpu`, in the form of `cpu`.
"""


class StatedClips(Section):
    """How many clips there are, where the recordings are not at hand."""

    train: int = Field(0, ge=0)
    validation: int = Field(0, ge=0)
    test: int = Field(ge=1)
    annotated: int = Field(0, ge=0)
    recordings: int = Field(ge=1)

    @model_validator(mode="after")
    def _annotated_are_of_the_test(self) -> StatedClips:
        reason = f"{self.annotated} may not exceed test ({self.test})"
        return refuse(self, [(("annotated", "test"), reason)] if self.annotated > self.test else [])


class Speed(Section):
    """Of one core, or of one whole GPU whatever share an actor has; null or missing where nobody has measured it.

    `train` and `validation`: by model, then by the threads of a training (on a GPU: 1). `score`: by model. `shard`: of
    a shard, beside its clips. `annotated`: what an explained clip with reference intervals takes more than others.
    """

    read: Seconds | None = Field(None, ge=0)
    shard: Seconds = Field(0, ge=0)
    score: dict[str, Seconds] = Field({})
    explain: Seconds | None = Field(None, ge=0)
    annotated: Seconds = Field(0, ge=0)
    train: dict[str, dict[int, Seconds]] = Field({})
    validation: dict[str, dict[int, Seconds]] = Field({})


class Scheduling(Section):
    """What a shard takes of each process beside the work itself.

    The driver's share does not grow with the number of actors, as far as 64 of them: `tests/benchmarks/scheduling.py`.
    """

    driver: Seconds = Field(ge=0)
    reader: Seconds = Field(ge=0)
    actor: Seconds = Field(ge=0)


class Fixed(Section):
    """What does not depend on how much there is to do. `program`: Python and what it imports; `ray`: its start;
    `process`: the start of a worker's process. `stages`: what else is in each stage, by its name. It is what a trial
    run took beyond all other rates.
    """

    program: Seconds = Field(ge=0)
    ray: Seconds = Field(ge=0)
    process: Seconds = Field(ge=0)
    stages: dict[str, Seconds] = Field({})


class Driver(Section):
    """What one process does alone: `synth` a recording of the demo mill (one core), `index` a recording, and `conclude`
    (ledgers, tables, report) a clip of one model.
    """

    synth: Seconds = Field(0, ge=0)
    index: Seconds = Field(ge=0)
    conclude: Seconds = Field(ge=0)


class FileBytes(Section):
    """Of one table: a file, each clip in it, and more for a clip with reference intervals or with whole maps."""

    file: float
    clip: float
    annotated: float = 0.0
    maps: float = 0.0


class Rates(Section):
    """All that a plan rests on."""

    measured: str
    settings: dict[str, Any]
    clips: StatedClips | None = None
    cpu: Speed = Speed()
    gpu: Speed | None = None
    scheduling: Scheduling
    fixed: Fixed
    driver: Driver
    bytes: dict[str, FileBytes]
    memory_gib: float | None = Field(None, gt=0)

    def to_yaml(self) -> str:
        return _HEADER + yaml.safe_dump(_rounded(self.model_dump(exclude_none=True)), sort_keys=False)


def read_rates(location: str) -> Rates:
    """Read what `write_rates` wrote, or somebody stated.

    Raises:
        ConfigError: the file cannot be read, or one or more keys are unknown, missing or impossible.
    """
    return read_section(Rates, location)


def write_rates(rates: Rates, location: str) -> None:
    storage.write_text(location, rates.to_yaml())


def require_writable(location: str) -> None:
    """Refuse a place where `write_rates` would fail; what stands there is left as it is.

    Raises:
        StudyError: it is a folder, or nothing can be written there.
    """
    probe = f"{location}.{uuid.uuid4().hex}"
    try:
        storage.write_text(probe, "")
        storage.delete(probe)
    except StudyError as error:
        raise StudyError(str(error).replace(probe, location)) from error
    if storage.is_folder(location):
        raise StudyError(f"--save-rates {location!r} is a folder: name a file, such as rates.yaml in it.")


def rate_settings(of: Study | AuditRun, features: FeatureSettings) -> dict[str, Any]:
    """The settings that rates depend on."""
    values = flatten("features", vars(features))
    values |= flatten("attribution", of.attribution.model_dump(mode="json", exclude={"seed"}))
    values["audit.percentiles"] = len(of.audit.percentiles)
    values["audit.micro_batch"] = of.audit.micro_batch
    if isinstance(of, Study):
        names = {"batch_size", "patch", "precision", "optimizer", "compile"}
        values |= flatten("train", of.train.model_dump(mode="json", include=names))
    return values


def refuse_other_settings(rates: Rates, wanted: Mapping[str, Any], *, name: str) -> None:
    """Rates of other work say nothing about this one.

    Raises:
        StudyError: settings differ; each is named.
    """
    lines = [
        f"  {key}: {rates.settings[key]!r} there, {value!r} here"
        for key, value in wanted.items()
        if key in rates.settings and rates.settings[key] != value
    ]
    lines += [f"  {key}: not said there" for key in wanted if key not in rates.settings]
    if lines:
        raise StudyError(
            f"The rates in {name} hold for other settings:\n" + "\n".join(lines) + "\nMeasure them anew with "
            "--save-rates, or change what the file says under `settings` if its figures hold for these."
        )


def _rounded(value: Any) -> Any:
    """Four digits are more than any of this is good for."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
