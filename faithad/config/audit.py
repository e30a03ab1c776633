"""One audit's configuration: which recordings, with which trained model, explained how, written where.

It comes from a YAML file (configs/audit.yaml), from the command line, or from both; the command line wins. Defaults
that an audit shares with a study are in `sections`. Relative paths start where those of a study do, see `study`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Literal

import yaml
from pydantic import Field, model_validator

from faithad.config.base import TRUSTED, Channel, Explain, ScoreChoice, Section, refuse
from faithad.config.file import parse, validated
from faithad.config.sections import Alarm, Attribution, Audit, Events, Follow, Report, compiled_without_gpu
from faithad.config.study import Study, absolute, load_study
from faithad.config.yaml_text import read_mapping, read_text
from faithad.settings import JudgingSettings

Location = Annotated[str, Field(min_length=1)]


class RunAudit(Audit):
    """The audit of a study with defaults for days of recordings: only alarms are explained, in larger shards."""

    explain: Explain = "alarms"
    maps: int = Field(20, ge=-1)
    clips_per_shard: int = Field(64, ge=1)


class AuditRun(Section):
    """An audit of recordings with one trained model. See configs/audit.yaml.

    `model`: a folder with `model.safetensors`. `remainder`: what happens to the end of a recording that is shorter than
    a clip; the default leaves no second out. `channel`: which channel of a recording is heard, see
    `clips.channels.heard_channels`. `annotations`: reference intervals, with which tables compare the explanations.
    `alarm` null: the rule that is stored with the model; otherwise its threshold is fitted again to the scores of the
    model's validation clips; an alarm for what lasts stays the model's own. `score` null: the one that is stored with
    the model; `paper`: its mean squared error. Any other must be the stored one, because it was fitted to normal clips.
    """

    model: Location = Field(examples=["model"])
    recordings: tuple[Location, ...] = Field(min_length=1, examples=[["recordings"]])
    out: Location = Field(examples=["out"])
    remainder: Literal["drop", "pad", "overlap"] = "overlap"
    channel: Channel = "auto"
    annotations: Location | None = None
    score: ScoreChoice | None = None
    alarm: Alarm | None = None
    attribution: Attribution = Attribution()
    audit: RunAudit = RunAudit()
    events: Events = Events()
    follow: Follow = Follow()
    report: Report = Report()

    @model_validator(mode="after")
    def _parts_fit(self) -> AuditRun:
        problems = compiled_without_gpu(self.attribution, self.audit)
        if self.audit.explain != "none" and self.events.method not in (TRUSTED, *self.attribution.methods):
            reason = f"{self.events.method} is not among attribution.methods ({', '.join(self.attribution.methods)})"
            problems.append((("events.method", "attribution.methods"), reason))
        if self.audit.explain != "none" and self.events.percentile not in self.audit.percentiles:
            reason = f"{self.events.percentile:g} is not among audit.percentiles {list(self.audit.percentiles)}"
            problems.append((("events.percentile", "audit.percentiles"), reason))
        return refuse(self, problems)

    @property
    def judging(self) -> JudgingSettings:
        """As in the paper, and with random frames to compare the explanations of the events with."""
        return JudgingSettings(chance_at=(self.events.percentile,))

    def to_yaml(self) -> str:
        """The resolved configuration; `load_audit_run` reads it back to an equal one."""
        return yaml.safe_dump(json.loads(self.model_dump_json()), sort_keys=False)


def load_written_audit(location: str) -> AuditRun:
    """Read the `audit.yaml` that an audit has written. An `engine`, which release 0.1.0 could choose, is left out.

    Raises:
        ConfigError: as `load_audit_run`.
    """
    values, repeated = read_mapping(read_text(location), name=location)
    if isinstance(attribution := values.get("attribution"), dict):
        attribution.pop("engine", None)
    return validated(AuditRun, values, name=location, repeated=repeated)


def is_study(location: str) -> bool:
    """Whether a configuration describes a study: it has `data`, or none of the keys that only an audit has.

    Raises:
        ConfigError: it cannot be read.
    """
    values, _ = read_mapping(read_text(location), name=location)
    return "data" in values or not any(key in values for key in ("model", "recordings", "out"))


def load_study_or_audit(
    location: str | None,
    *,
    model: str | None = None,
    recordings: Sequence[str] | None = None,
    out: str | None = None,
    channel: str | None = None,
    overrides: Sequence[str] = (),
) -> Study | AuditRun:
    """Read and validate what `faithad audit` is given: a study's file alone, or an audit. Arguments: `load_audit_run`.

    Raises:
        ConfigError: as `load_study` and `load_audit_run`.
    """
    if location is not None and not (model or recordings or out) and is_study(location):
        return load_study(location, overrides=overrides)
    return load_audit_run(
        location, model=model, recordings=recordings or (), out=out, channel=channel, overrides=overrides
    )


def load_audit_run(
    location: str | None,
    *,
    model: str | None = None,
    recordings: Sequence[str] = (),
    out: str | None = None,
    channel: str | None = None,
    overrides: Sequence[str] = (),
) -> AuditRun:
    """Read and validate an audit.

    Args:
        location: a YAML file, local or a URI; None if the other arguments say everything.
        model: replaces the key `model` of the file.
        recordings: folders, files or URIs; replace the key of this name.
        out: where the results go; replaces the key of this name.
        channel: which channel is heard; replaces the key of this name.
        overrides: `section.key=value` strings; the value is YAML.

    Raises:
        ConfigError: the file cannot be read, or keys are missing, unknown, of a wrong type or impossible.
    """
    given = {"model": model, "recordings": list(recordings), "out": out}
    changes = given | {"channel": channel}
    how = "give" if location is None else "give it a value, or"
    run = parse(
        AuditRun,
        "{}" if location is None else read_text(location),
        name=location or "The audit (--model, --recordings, --out, --set)",
        changes={key: value for key, value in changes.items() if value},
        overrides=overrides,
        ask={key: f"{how} --{key} FOLDER" for key in given},
    )
    return run.model_copy(
        update={
            "model": absolute(run.model),
            "recordings": tuple(absolute(place) for place in run.recordings),
            "out": absolute(run.out),
            "annotations": None if run.annotations is None else absolute(run.annotations),
        }
    )
