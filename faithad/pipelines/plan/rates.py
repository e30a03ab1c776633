"""How fast the work goes: what `faithad plan` measures, writes with --save-rates, and reads again with --rates."""

from __future__ import annotations

import json
from typing import Any

import yaml
from pydantic import Field

from faithad import storage
from faithad.config.audit import AuditRun
from faithad.config.sections import Section
from faithad.config.study import Study
from faithad.errors import StudyError
from faithad.pipelines.plan.counts import Counts
from faithad.runs.stages import flatten
from faithad.settings import FeatureSettings

_HEADER = """\
# Rates for `faithad plan --rates`, in seconds; `cpu` and `gpu`: of one core or one GPU, for one clip. They hold for the
# settings below, and may be edited: figures of a GPU that were measured elsewhere go under `gpu`, in the form of `cpu`.
# Where the recordings are not at hand, say how many clips there will be: `clips: {train: , validation: , test: ,
# annotated: , recordings: }`.
"""


class Speed(Section):
    """Seconds of one core, or of one whole GPU, for a clip, by model; a missing model has not been measured.

    `explain`: all methods, and what is computed of their maps. `learn`: in one epoch, by a training on `threads`
    threads. `shard`: of each shard beside its clips.
    """

    score: dict[str, float] = Field({})
    explain: dict[str, float] = Field({})
    learn: dict[str, float] = Field({})
    threads: int = Field(1, ge=1)
    shard: float = Field(0, ge=0)


class TableBytes(Section):
    """Of a table: each file, each clip in it, and more for a clip whose whole maps are kept."""

    file: float
    clip: float = 0.0
    maps: float = 0.0


class Rates(Section):
    """What a plan multiplies. `read`: seconds of a core for the features of a clip. `fixed`: seconds of each stage,
    however much there is to do: the start of processes, most of all.
    """

    measured: str
    settings: dict[str, Any]
    clips: Counts | None = None
    read: float = Field(ge=0)
    cpu: Speed = Speed()
    gpu: Speed | None = None
    fixed: dict[str, float] = Field({})
    bytes: dict[str, TableBytes]


def write_rates(rates: Rates, location: str) -> None:
    """Write them with four digits, which are more than a measurement gives."""
    values = json.loads(rates.model_dump_json(exclude_none=True), parse_float=lambda text: float(f"{float(text):.4g}"))
    storage.write_text(location, _HEADER + yaml.safe_dump(values, sort_keys=False))


def rate_settings(of: Study | AuditRun, features: FeatureSettings) -> dict[str, Any]:
    """The settings that rates depend on."""
    values = flatten("features", vars(features))
    values |= flatten("attribution", of.attribution.model_dump(mode="json", exclude={"seed"}))
    values |= {"audit.percentiles": len(of.audit.percentiles), "audit.micro_batch": of.audit.micro_batch}
    if isinstance(of, Study):
        names = {"batch_size", "patch", "precision", "optimizer", "compile"}
        values |= flatten("train", of.train.model_dump(mode="json", include=names))
    return values


def refuse_other_settings(rates: Rates, wanted: dict[str, Any], *, name: str) -> None:
    """Rates of other work say nothing about this one.

    Raises:
        StudyError: settings differ; each is named.
    """
    stated = {key: rates.settings.get(key, "not said") for key in wanted}
    lines = [f"  {key}: {stated[key]!r} there, {wanted[key]!r} here\n" for key in wanted if stated[key] != wanted[key]]
    if lines:
        raise StudyError(
            f"The rates in {name} hold for other settings:\n{''.join(lines)}Measure them anew with --save-rates, or "
            "change what the file says under `settings` if its figures hold for these."
        )
