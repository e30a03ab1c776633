"""What all sections of a configuration have in common, and the kinds of values that several of them have.

Each section checks itself; what it refuses is reported under the key concerned, together with all other problems of the
file.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import fields
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from faithad import locations
from faithad.attribution.methods import METHODS
from faithad.config.file import KeyProblem, SectionError
from faithad.errors import ConfigError
from faithad.scoring.choices import Score
from faithad.vocabulary import CHANNEL_NAMES, ChannelChoice

# The most channels that a WAV header can count.
_MOST_CHANNELS = 65_535


def clips_to_explain(*names: str) -> AfterValidator:
    """Which clips are explained: a string must be one of these names, or `top:N`."""

    def check(choice: str) -> str:
        if choice not in names and re.fullmatch(r"top:[1-9][0-9]{0,8}", choice) is None:
            raise ValueError(f"allowed: {', '.join(names)}, or top:N with N at least 1")
        return choice

    return AfterValidator(check)


def one_of(names: Collection[str]) -> AfterValidator:
    """A string must be one of these names, which are looked up when it is checked."""

    def check(name: str) -> str:
        if name not in names:
            raise ValueError(f"allowed: {', '.join(names)}")
        return name

    return AfterValidator(check)


def _channel(choice: Any) -> Any:
    if isinstance(choice, str) and choice.isdecimal():  # from the command line
        choice = int(choice)
    if choice in CHANNEL_NAMES or (isinstance(choice, int) and 1 <= choice <= _MOST_CHANNELS):
        return choice
    raise ValueError(f"must be the number of a channel, from 1, or one of {', '.join(CHANNEL_NAMES)}")


def read_score(choice: Any) -> Any:
    if choice in NAMED_SCORES or isinstance(choice, Score):
        return choice
    names = [field.name for field in fields(Score)]
    if not isinstance(choice, dict):
        raise ValueError(f"allowed: {', '.join(NAMED_SCORES)}, or a choice of {', '.join(names)}")
    if unknown := sorted(str(key) for key in choice if key not in names):
        raise ValueError(f"{unknown[0]!r} is no part of a score; allowed: {', '.join(names)}")
    try:
        return Score(**{key: str(value) for key, value in choice.items()})
    except ConfigError as error:
        raise ValueError(str(error)) from error


MethodName = Annotated[str, one_of(METHODS)]
Explain = Annotated[str, clips_to_explain("all", "alarms", "none")]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Channel = Annotated[ChannelChoice, BeforeValidator(_channel)]
Percentile = Annotated[float, Field(ge=0, le=100)]
# The method of an audit's events that is chosen by how faithful it is.
TRUSTED = "trusted"
NAMED_SCORES = ("paper", "robust")
ScoreChoice = Annotated[Literal["paper", "robust"] | Score, BeforeValidator(read_score)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
AnySection = TypeVar("AnySection", bound="Section")


class Section(BaseModel):
    """Frozen, so that a study can be hashed and sent to any worker; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value(cls, value: Any) -> Any:
        """No setting is a truth value, and none may pass for the number 1 or 0."""
        if isinstance(value, bool) or (isinstance(value, list | tuple) and any(isinstance(v, bool) for v in value)):
            raise ValueError(
                "true and false (also yes, no, on and off) are no values here: write a number, or quote the word"
            )
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _no_secret(cls, value: Any) -> Any:
        """What a configuration says is written to the root and shown in the report: no secrets, no line breaks."""
        for text in value if isinstance(value, list | tuple) else [value]:
            if isinstance(text, str) and (problem := locations.location_problem(text)) is not None:
                raise ValueError(problem)
        return value


def refuse(section: AnySection, problems: list[KeyProblem]) -> AnySection:
    """Return the section if it has no problems.

    Raises:
        SectionError: it has some; the error names all of them.
    """
    if problems:
        raise SectionError(problems)
    return section


def all_different(section: Section, key: str) -> list[KeyProblem]:
    values = getattr(section, key)
    if values and len(set(values)) == len(values):
        return []
    return [((key,), f"must be one or more different values, found {list(values)}")]
