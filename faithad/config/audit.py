"""One audit's configuration: which recordings, with which trained model, explained how, written where.

Made of a YAML file (configs/audit.yaml), of the command line, or of both; the command line wins. Every default that is
not an audit's own stands in `config_sections`. Relative paths start where those of a study do, see `config`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from faithad.config.file import change, read_text, read_values, validated
from faithad.config.sections import Alarm, Attribution, Audit, Events, Explain, Section, compiled_without_gpu, refuse
from faithad.config.study import absolute
from faithad.errors import ConfigError

Location = Annotated[str, Field(min_length=1)]


class RunAudit(Audit):
    """As the audit of a study, with what suits days of recordings: only alarms are explained, in larger shards."""

    explain: Explain = "alarms"
    maps: int = Field(20, ge=-1)
    clips_per_shard: int = Field(64, ge=1)


class AuditRun(Section):
    """An audit of recordings with one trained model. See configs/audit.yaml.

    `model`: a folder with `model.safetensors`. `remainder`: what becomes of a recording's end that is shorter than a
    clip; the default leaves no second out. `annotations`: reference intervals, for tables that compare explanations
    with them. `alarm` null: the one that is stored with the model; else it is fitted anew to the scores of the model's
    validation clips.
    """

    model: Location
    recordings: Annotated[tuple[Location, ...], Field(min_length=1)]
    out: Location
    remainder: Literal["drop", "pad", "overlap"] = "overlap"
    annotations: Location | None = None
    alarm: Alarm | None = None
    attribution: Attribution = Attribution()
    audit: RunAudit = RunAudit()
    events: Events = Events()

    @model_validator(mode="after")
    def _parts_fit(self) -> AuditRun:
        found = compiled_without_gpu(self.attribution, self.audit)
        if self.audit.explain != "none" and self.events.method not in self.attribution.methods:
            reason = f"{self.events.method} is not among attribution.methods ({', '.join(self.attribution.methods)})"
            found.append((("events.method", "attribution.methods"), reason))
        if self.audit.explain != "none" and self.events.percentile not in self.audit.percentiles:
            reason = f"{self.events.percentile:g} is not among audit.percentiles {list(self.audit.percentiles)}"
            found.append((("events.percentile", "audit.percentiles"), reason))
        return refuse(self, found)

    def to_yaml(self) -> str:
        """The resolved configuration; `load_audit_run` reads it back to an equal one."""
        return yaml.safe_dump(json.loads(self.model_dump_json()), sort_keys=False)


# For the keys without a default, to go on with where they are missing: all other problems are to be told as well.
_PLACEHOLDERS = {"model": "model", "recordings": ["recordings"], "out": "out"}


def is_study(location: str) -> bool:
    """Whether a configuration is a study's: it has `data`, or lacks all of the keys that only an audit's has.

    Raises:
        ConfigError: it cannot be read.
    """
    values, _ = _read(location)
    return "data" in values or not any(key in values for key in ("model", "recordings", "out"))


def load_audit_run(
    location: str | None,
    *,
    model: str | None = None,
    recordings: Sequence[str] = (),
    out: str | None = None,
    overrides: Sequence[str] = (),
) -> AuditRun:
    """Read and validate an audit.

    Args:
        location: a YAML file, local or a URI; None where all is said by the other arguments.
        model: in place of the file's key of this name, as are the next two.
        recordings: folders, files or URIs.
        out: where the results go.
        overrides: `section.key=value` strings; the value is read as YAML.

    Raises:
        ConfigError: the file cannot be read, or one or more keys are missing, unknown, of a wrong type or impossible.
    """
    values, repeated = ({}, []) if location is None else _read(location)
    given = {"model": model, "recordings": list(recordings), "out": out}
    values |= {key: value for key, value in given.items() if value}
    for override in overrides:
        change(values, override)
    name = location or "The audit (--model, --recordings, --out, --set)"
    how = "give" if location is None else "give it a value, or"
    ask = {key: f"{how} --{key} FOLDER" for key in given}
    run = validated(AuditRun, values, name=name, repeated=repeated, placeholders=_PLACEHOLDERS, ask=ask)
    return run.model_copy(
        update={
            "model": absolute(run.model),
            "recordings": tuple(absolute(place) for place in run.recordings),
            "out": absolute(run.out),
            "annotations": None if run.annotations is None else absolute(run.annotations),
        }
    )


def _read(location: str) -> tuple[dict[str, Any], list[str]]:
    text = read_text(location)
    try:
        values, repeated = read_values(text)
    except ConfigError as error:
        raise ConfigError(f"{location} is {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{location} must hold keys and values, found {type(values).__name__}")
    return values, repeated
