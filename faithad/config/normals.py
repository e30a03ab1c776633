"""What `faithad train --normals` and `faithad calibrate` are given: normal recordings, and where the model goes.

Everything but these two has a default, so that a first audit needs no file. Defaults that a study shares are in
`sections`. Relative paths start where those of a study do, see `study`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Literal

import yaml
from pydantic import Field, model_validator

from faithad.config.audit import Location
from faithad.config.base import Channel, Section, Seed, refuse
from faithad.config.file import parse
from faithad.config.sections import FalseAlarms, Features
from faithad.config.study import absolute
from faithad.errors import ConfigError
from faithad.settings import FeatureSettings, minute_s

StateShare = Annotated[float, Field(ge=0, lt=1)]

# Frames below which no model can be built.
_FEWEST_FRAMES = 16


class NormalFeatures(Features):
    """Features as the linear models need them: standardised, and the median spectrum of the recording, or of the clip,
    taken out (docs/references.md).
    """

    normalization: Literal["training"] = "training"
    reference: Literal["clip", "recording"] = "recording"


class NormalAlarm(FalseAlarms):
    """`state_share`: how much of the promised false alarms the alarm for what lasts may raise, the alarm of clips the
    rest; 0: no such alarm; null: half, where the normal recordings are long enough to compare minutes with a
    recorder's own past. A rate of 0.05 then is 0.025 of the clips, and changes that begin with 0.025 of the minutes; 2
    false alarms per hour are one of each.
    """

    state_share: StateShare | None = None


class _NormalRecordings(Section):
    """Recordings of normal operation, and the folder of the model that is fitted to them.

    `normals`: folders, files or URIs of recordings. `to`: the model's folder. `remainder`: what happens to the end of a
    recording that is shorter than a clip. `channel`: which channel of a recording is heard, see
    `clips.channels.heard_channels`.
    """

    normals: tuple[Location, ...] = Field(min_length=1, examples=[["normals"]])
    to: Location = Field(examples=["to"])
    remainder: Literal["drop", "pad", "overlap"] = "overlap"
    channel: Channel = "auto"

    @property
    def recordings(self) -> tuple[str, ...]:
        return self.normals

    @property
    def out(self) -> str:
        return self.to

    @property
    def annotations(self) -> None:
        """Normal recordings have none."""
        return


class CalibrationRun(_NormalRecordings):
    """A trained model's alarm, fitted again to other normal recordings.

    `models`: the folder of the trained model, or several, which become the members of one. `normals` may also be the
    results of one audit.
    `false_alarms_per_hour`: how often normal sound may alarm; null for as often as with the model's own alarm.
    `state_share`: as in `NormalAlarm`; null for that of the model. `rescore_share`: linear members score all clips, and
    networks only those that score higher by them than all but this share of the normal ones; 1: all members score all
    clips; null: as in the model.
    """

    models: tuple[Location, ...] = Field(min_length=1, examples=[["model"]])
    false_alarms_per_hour: float | None = Field(None, gt=0)
    state_share: StateShare | None = None
    rescore_share: float | None = Field(None, gt=0, le=1)


class NormalsRun(_NormalRecordings):
    """A training on normal recordings alone: both linear models, and the threshold of the sum of their scores.

    `add_normals`: reviewed audits, whose rejected events are normal sound.
    """

    add_normals: tuple[Location, ...] = ()
    clip_s: float = Field(10.0, ge=1, le=600)
    features: NormalFeatures = NormalFeatures()
    alarm: NormalAlarm = NormalAlarm()
    seed: Seed = 0

    @property
    def feature_settings(self) -> FeatureSettings:
        return self.features.settings(self.clip_s)

    @property
    def false_alarm_rate(self) -> float:
        """The share of normal clips that may alarm."""
        return self.alarm.rate(self.clip_s)

    @property
    def minute_rate(self) -> float:
        """The same of minutes, of which an hour has fewer."""
        return self.alarm.rate(minute_s(self.clip_s))

    @model_validator(mode="after")
    def _parts_fit(self) -> NormalsRun:
        problems = self.alarm.problems(self.clip_s)
        try:
            frames = self.feature_settings.n_frames
        except ConfigError as error:
            return refuse(self, [*problems, (("clip_s", "features.n_fft"), str(error).removeprefix("clip_s "))])
        if frames < _FEWEST_FRAMES:
            reason = f"a clip of {self.clip_s:g} s has {frames} frames, and {_FEWEST_FRAMES} are needed"
            problems.append((("clip_s", "features.hop_samples"), reason))
        return refuse(self, problems)

    def to_yaml(self) -> str:
        """The resolved configuration."""
        return yaml.safe_dump(json.loads(self.model_dump_json()), sort_keys=False)


def load_normals_run(
    normals: Sequence[str],
    to: str | None,
    *,
    add_normals: Sequence[str] = (),
    false_alarms_per_hour: float | None = None,
    overrides: Sequence[str] = (),
) -> NormalsRun:
    """Validate what `faithad train --normals` is given.

    Args:
        normals: folders, files or URIs.
        to: the model's folder.
        add_normals: folders or URIs of reviewed audits.
        false_alarms_per_hour: as the setting of this name.
        overrides: `section.key=value` strings; the value is YAML.

    Raises:
        ConfigError: a value is missing, unknown, of a wrong type or impossible.
    """
    given = {"normals": list(normals), "to": to}
    changes = {key: value for key, value in {**given, "add_normals": list(add_normals)}.items() if value}
    per_hour = [] if false_alarms_per_hour is None else [f"alarm.false_alarms_per_hour={false_alarms_per_hour}"]
    run = parse(
        NormalsRun,
        "{}",
        name="The training (--normals, --to, --set)",
        changes=changes,
        overrides=[*overrides, *per_hour],
        ask={key: f"give --{key} FOLDER" for key in given},
    )
    places = {name: tuple(map(absolute, getattr(run, name))) for name in ("normals", "add_normals")}
    return run.model_copy(update={**places, "to": absolute(run.to)})


def load_calibration_run(
    models: Sequence[str],
    normals: Sequence[str],
    to: str,
    *,
    false_alarms_per_hour: float | None = None,
    overrides: Sequence[str] = (),
) -> CalibrationRun:
    """Validate what `faithad calibrate` is given.

    Args:
        models: the folders of trained models.
        normals: folders, files or URIs, or the folder of an audit.
        to: the folder of the new model.
        false_alarms_per_hour: as the setting of this name.
        overrides: `key=value` strings; the value is YAML.

    Raises:
        ConfigError: a value is missing, unknown, of a wrong type or impossible.
    """
    given = {"models": list(models), "normals": list(normals), "to": to, "false_alarms_per_hour": false_alarms_per_hour}
    run = parse(
        CalibrationRun,
        "{}",
        name="The calibration (--model, --normals, --to, --set)",
        changes={key: value for key, value in given.items() if value is not None},
        overrides=overrides,
        ask={"models": "give --model", "normals": "give --normals", "to": "give --to"},
    )
    places = {name: tuple(map(absolute, getattr(run, name))) for name in ("models", "normals")}
    return run.model_copy(update={**places, "to": absolute(run.to)})
