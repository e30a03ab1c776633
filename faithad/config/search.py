"""The section `search` of a study: which settings its trials have, and how they are compared."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from faithad.config.base import Fraction, ScoreChoice, Section, Seed, all_different, read_score, refuse
from faithad.config.file import KeyProblem, SectionError, in_words
from faithad.config.sections import Network, Train
from faithad.model.table import MODELS

Value = int | float | str


def _linear(name: str) -> str:
    allowed = [row.name for row in MODELS.values() if row.linear]
    if name not in allowed:
        raise ValueError(f"allowed: {', '.join(allowed)}, which are compared with and without the search's network")
    return name


_SECTIONS: dict[str, type[Section]] = {"train": Train, "model": Network}
# Settings of `train` that have a key of their own, that all trials share, or that change no result.
_NOT_SEARCHED = {
    **{"mask_ratio": "search.mask_ratios says which are tried", "patch": "search.patches says which are tried"},
    "epochs": "trials are compared after equally many epochs",
    "init_from": "all trials start alike",
    **dict.fromkeys(
        ("compile", "checkpoint_every", "trainings_at_once", "workers", "cpus_per_worker", "gpus_per_worker"),
        "it changes how long a training takes and not what it learns",
    ),
    **dict.fromkeys(("max_failures", "interface"), "it does not change what a training learns"),
}
_RANGES = {"uniform": False, "log_uniform": True}


@dataclass(frozen=True)
class Range:
    """A setting that is drawn between two bounds: uniformly, or so that its logarithm is. Of whole numbers, both bounds
    count.
    """

    low: float
    high: float
    log: bool = False


# What is tried, by setting, such as `train.learning_rate`: choices, or a range.
Space = Mapping[str, tuple[Value, ...] | Range]


def _read_space(sections: Any) -> Space:
    if not isinstance(sections, dict):
        raise ValueError(f"must be a section with {' and '.join(_SECTIONS)}, each with the settings to try")
    space: dict[str, tuple[Value, ...] | Range] = {}
    problems: list[KeyProblem] = []
    for section, settings in sections.items():
        if section not in _SECTIONS or not isinstance(settings, dict):
            problems.append(((str(section),), f"allowed: {', '.join(_SECTIONS)}, each with the settings to try"))
            continue
        for name, tried in settings.items():
            try:
                space[f"{section}.{name}"] = _tried(section, str(name), tried)
            except ValueError as error:
                problems.append(((f"{section}.{name}",), str(error)))
    if problems:
        raise SectionError(problems)
    return space


def _tried(section: str, name: str, tried: Any) -> tuple[Value, ...] | Range:
    fields = [field for field in _SECTIONS[section].model_fields if section != "train" or field not in _NOT_SEARCHED]
    if section == "train" and name in _NOT_SEARCHED:
        raise ValueError(f"is no setting to try: {_NOT_SEARCHED[name]}")
    if name not in fields:
        close = difflib.get_close_matches(name, fields, n=1)
        raise ValueError(f"unknown; did you mean {close[0]!r}?" if close else f"unknown; allowed: {', '.join(fields)}")
    if isinstance(tried, list | tuple) and tried:
        choices = tuple(_value(section, name, choice) for choice in tried)
        if len(set(choices)) < len(choices):
            raise ValueError(f"its choices must be different, found {list(tried)}")
        return choices
    if isinstance(tried, dict) and len(tried) == 1 and set(tried) <= set(_RANGES):
        ((kind, bounds),) = tried.items()
        if isinstance(bounds, list | tuple) and len(bounds) == 2:
            low, high = (_value(section, name, bound) for bound in bounds)
            if isinstance(low, str) or isinstance(high, str):
                raise ValueError("its values are names: give a list of choices")
            if not low < high or (_RANGES[kind] and low <= 0):
                raise ValueError(f"{kind} needs two bounds that rise{' above 0' * _RANGES[kind]}, found {list(bounds)}")
            return Range(low, high, log=_RANGES[kind])
    raise ValueError(
        f"must be a list of choices, {{uniform: [low, high]}} or {{log_uniform: [low, high]}}, found {tried!r:.200}"
    )


def _value(section: str, name: str, value: Any) -> Value:
    """The value as the section takes it."""
    field = _SECTIONS[section].model_fields[name]
    try:
        if isinstance(value, bool):
            raise ValueError(f"true and false are no values here, found {value!r}")
        checks: TypeAdapter[Value] = TypeAdapter(cast(Any, Annotated[field.annotation, field]))
        return checks.validate_python(value)
    except ValidationError as error:
        raise ValueError(f"{in_words(error.errors()[0], {})}, found {value!r:.200}") from error


def _plain_space(space: Space) -> dict[str, dict[str, Any]]:
    """As the YAML has it."""
    plain: dict[str, dict[str, Any]] = {}
    kinds = {log: kind for kind, log in _RANGES.items()}
    for key, tried in space.items():
        section, _, name = key.partition(".")
        of_section = plain.setdefault(section, {})
        of_section[name] = {kinds[tried.log]: [tried.low, tried.high]} if isinstance(tried, Range) else list(tried)
    return plain


_Scores = Literal["all"] | tuple[ScoreChoice, ...]


def _read_scores(scores: Any) -> _Scores:
    if scores == "all":
        return "all"
    if not isinstance(scores, list | tuple):
        raise ValueError("must be all, or a list of scores such as [paper, robust]")
    read = tuple(read_score(score) for score in scores)
    if len(set(read)) < len(read):
        raise ValueError("must be different scores")
    return read


def _plain_scores(scores: _Scores) -> str | list[str | dict[str, str]]:
    """As the YAML has it."""
    return scores if isinstance(scores, str) else [each if isinstance(each, str) else asdict(each) for each in scores]


class Search(Section):
    """The search over mask ratio, patch size and further settings, for the MAE.

    `algorithm`: `grid` tries every combination of `mask_ratios`, `patches` and the choices of `space`; `optuna` draws
    `trials` of them, the ratio from the range that `mask_ratios` spans. `space`: further settings of `train` and
    `model`, each a list of choices, or for `optuna` a range: `{uniform: [low, high]}`, `{log_uniform: [low, high]}`.
    `scheduler`: `asha` stops trials that fall behind after `grace_epochs`.
    `objective`: `proxy_auc` (synthetic disturbances in validation normals, no test label), `validation_loss`, or
    `test_auc` (the paper's choice, which sees test labels); losses of different mask ratios are not the same quantity.
    `scores`: scores that are compared with the best trial's model, `all` for every combination of the four choices, or
    a list of them as `score` takes them; the best one is that of `best/` and `best.yaml`. By default none are, and
    `best/` has the paper's.
    `members`: linear models, each alone and together, with and without the best trial's model, that are compared as the
    members of an ensemble; the best one is that of `best_ensemble/`. By default none are.
    A trial of several workers shares `cpus_per_trial` and `gpus_per_trial` among them. `trials_at_once` null: as many
    as the cluster carries.
    """

    mask_ratios: tuple[Fraction, ...] = (0.15, 0.30, 0.50, 0.75, 0.90)
    patches: tuple[Annotated[int, Field(ge=1)], ...] = (4, 8)
    space: Annotated[Space, PlainValidator(_read_space), PlainSerializer(_plain_space)] = Field({})
    algorithm: Literal["grid", "optuna"] = "grid"
    trials: int = Field(20, ge=1)
    scheduler: Literal["none", "asha"] = "none"
    grace_epochs: int = Field(10, ge=1)
    reduction_factor: int = Field(3, ge=2)
    objective: Literal["proxy_auc", "validation_loss", "test_auc"] = "proxy_auc"
    scores: Annotated[
        Literal["all"] | tuple[ScoreChoice, ...], PlainValidator(_read_scores), PlainSerializer(_plain_scores)
    ] = ()
    members: tuple[Annotated[str, AfterValidator(_linear)], ...] = ()
    cpus_per_trial: float = Field(1, gt=0)
    gpus_per_trial: float = Field(0, ge=0)
    trials_at_once: int | None = Field(None, ge=1)
    seed: Seed = 0

    @model_validator(mode="after")
    def _choices_differ(self) -> Search:
        keys = ["mask_ratios", "patches", *(["members"] if self.members else [])]
        return refuse(self, [problem for key in keys for problem in all_different(self, key)])

    @model_validator(mode="after")
    def _a_grid_has_choices(self) -> Search:
        ranges = [key for key, tried in self.space.items() if isinstance(tried, Range)]
        reason = "is a range, from which algorithm 'optuna' draws; 'grid' needs a list of choices"
        return refuse(self, [((f"space.{key}", "algorithm"), reason) for key in ranges if self.algorithm == "grid"])
