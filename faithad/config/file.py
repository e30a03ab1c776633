"""From YAML to a validated model, with every problem of the file in one error.

Pydantic checks a section as a whole only if all its values are valid, so one wrong value would hide other problems.
Therefore wrong keys are removed, as if the file had left them to their defaults, and the rest is validated again. A
problem that the next validation finds in a removed key follows from the first problem and is not reported. A required
key has no default; the first of its `Field(examples=[...])` replaces a wrong or missing value.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from faithad.config.yaml_text import read_mapping, read_yaml
from faithad.errors import ConfigError
from faithad.vocabulary import count

Model = TypeVar("Model", bound=BaseModel)
Key = tuple[str, ...]
# Dotted keys of a section whose values do not fit each other, and why.
KeyProblem = tuple[tuple[str, ...], str]

# Our words for pydantic's types of errors, and (`_BOUNDS`) for its names of bounds.
_WORDS = {
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    "finite_number": "must be a finite number",
    "string_type": "must be text: write a number in quotes",
    "tuple_type": "must be a list, such as [a, b]",
    "model_type": "must be a section, with keys and values of its own",
}
_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}

# Of more unknown keys than this, the message gives only the number.
_MOST_UNKNOWN = 10
# Characters of a wrong value in a message.
_MOST_SHOWN = 200


class SectionError(ValueError):
    """Values of a section do not fit each other.

    Each problem names the dotted keys that take part in it, relative to the section, and says what is wrong. Messages
    name the first key.
    """

    def __init__(self, problems: Iterable[KeyProblem]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(f"{keys[0]}: {message}" for keys, message in self.problems))


class _Problem(NamedTuple):
    line: str
    keys: tuple[Key, ...]
    section: Key


def parse(
    model: type[Model],
    text: str,
    *,
    name: str,
    changes: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    ask: Mapping[str, str] | None = None,
) -> Model:
    """Make a model of YAML text, whose values `changes` and then `overrides` (`section.key=value`) replace.

    The other arguments and the errors are those of `validated`.
    """
    required = ", ".join(f"{key}: ..." for key, field in model.model_fields.items() if field.is_required())
    values, repeated = read_mapping(text, name=name, hint=f" ({required})")
    values |= changes or {}
    for override in overrides:
        _change(values, override)
    return validated(model, values, name=name, repeated=repeated, ask=ask)


def _change(values: dict[str, Any], override: str) -> None:
    """Set one value as `section.key=value` says; missing sections are created."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override!r} is not of the form section.key=value, such as train.epochs=3")
    value, repeated = read_yaml(text, name=f"--set {override!r}: the value")
    if repeated:
        raise ConfigError(f"--set {override!r}: {repeated[0]}")
    *sections, last = key.strip().split(".")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        if not isinstance(values[section], dict):
            raise ConfigError(f"--set {override!r}: {section} is a value, not a section")
        values = values[section]
    values[last] = value


def validated(
    model: type[Model],
    values: dict[str, Any],
    *,
    name: str,
    repeated: Iterable[str] = (),
    ask: Mapping[str, str] | None = None,
) -> Model:
    """Make a model of plain values.

    Args:
        model: describes the keys and values.
        values: not changed.
        name: of the values, for messages.
        repeated: problems that are known already, one line each.
        ask: what to do if a required key is missing, by key.

    Raises:
        ConfigError: there are problems; the message has one line for each, with its key.
    """
    lines = list(repeated)
    values = copy.deepcopy(values)
    removed: set[Key] = set()
    n_more = 0
    while True:
        try:
            made = model.model_validate(values)
            break
        except ValidationError as error:
            errors, more_unknown = _without_many_unknown(list(_relevant(error)), values)
            n_more += more_unknown
            problems = [problem for details in errors for problem in _problems(details, model, values, ask or {})]
        lines += [problem.line for problem in problems if not any(_touches(key, removed) for key in problem.keys)]
        # If all keys of a section are removed and it is still invalid, the whole section is removed.
        fresh = {key for problem in problems for key in problem.keys if key not in removed}
        fresh = fresh or {problem.section for problem in problems if problem.section not in removed}
        fresh.discard(())
        if not fresh:
            break
        for key in fresh:
            _remove(values, key, model)
        removed |= fresh
    if lines:
        more = [f"and {count(n_more, 'more unknown key')}"] if n_more else []
        raise ConfigError(
            "\n  ".join([f"{name} has {count(len(lines) + n_more, 'problem')}:", *dict.fromkeys(lines), *more])
        )
    return made


def _relevant(error: ValidationError) -> Iterator[ErrorDetails]:
    """All but "too short" of a list with invalid elements, which pydantic does not count."""
    lists = {details["loc"][:length] for details in error.errors() for length in range(len(details["loc"]))}
    return (details for details in error.errors() if details["type"] != "too_short" or details["loc"] not in lists)


def _without_many_unknown(errors: list[ErrorDetails], values: dict[str, Any]) -> tuple[list[ErrorDetails], int]:
    """The errors with the first unknown keys only, and the number of the others, which are removed."""
    unknown = [details for details in errors if details["type"] == "extra_forbidden"][_MOST_UNKNOWN:]
    for details in unknown:
        place = tuple(str(part) for part in details["loc"])
        _section_of(values, place).pop(place[-1], None)
    left_out = {id(details) for details in unknown}
    return [details for details in errors if id(details) not in left_out], len(unknown)


def in_words(details: ErrorDetails, limits: Mapping[str, float]) -> str:
    """The message of a pydantic error in our words; `limits` are all bounds, the error has only the one crossed."""
    crossed = {name: bound for name, bound in details.get("ctx", {}).items() if name in _BOUNDS}
    if crossed:
        bounds = {**crossed, **limits}
        return f"must be {' and '.join(f'{_BOUNDS[name]} {bounds[name]:g}' for name in _BOUNDS if name in bounds)}"
    message = details["msg"].removeprefix("Value error, ").replace("Input should be", "must be", 1)
    return _WORDS.get(details["type"], message)


def _limits(field: FieldInfo | None) -> dict[str, float]:
    """The bounds of a number, or of the numbers in a list."""
    if field is None:
        return {}
    marks = list(field.metadata)
    for element in get_args(field.annotation):
        for mark in getattr(element, "__metadata__", ()):
            marks += mark.metadata if isinstance(mark, FieldInfo) else [mark]
    return {name: getattr(mark, name) for mark in marks for name in _BOUNDS if hasattr(mark, name)}


def _problems(
    details: ErrorDetails, model: type[BaseModel], values: dict[str, Any], ask: Mapping[str, str]
) -> Iterator[_Problem]:
    """The problems that one pydantic error reports, with the keys that take part in them."""
    place = tuple(str(part) for part in details["loc"])
    # A list is removed as a whole, so its elements are no keys.
    in_list = [position for position, part in enumerate(details["loc"]) if isinstance(part, int)]
    key = place[: in_list[0]] if in_list and details["type"] != "invalid_key" else place
    label = ".".join(place) or "(whole file)"
    cause = details.get("ctx", {}).get("error")
    if isinstance(cause, SectionError):
        for names, message in cause.problems:
            keys = tuple((*place, *name.split(".")) for name in names)
            yield _Problem(f"{'.'.join(keys[0])}: {message}", keys, place)
    elif details["type"] == "extra_forbidden":
        fields = list(_model_at(model, place[:-1]).model_fields)
        close = difflib.get_close_matches(place[-1], fields, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(fields)}"
        # The key that was meant counts as removed, unless the file has it, too.
        meant = [(*place[:-1], *close)] if close and close[0] not in _section_of(values, key) else []
        yield _Problem(f"{label}: unknown key; {hint}", (key, *meant), place[:-1])
    elif details["type"] == "too_short":
        yield _Problem(
            f"{label}: give {details['ctx']['min_length']} or more, found {_shown(details['input'])}", (key,), key[:-1]
        )
    elif details["type"] == "missing":
        yield _Problem(f"{label}: missing, {ask.get(label, 'give it a value')}", (key,), place[:-1])
    else:
        value = details["input"]
        ending = "" if isinstance(value, dict | BaseModel) else f", found {_shown(value)}"
        limits = _limits(_model_at(model, key[:-1]).model_fields.get(key[-1])) if key else {}
        yield _Problem(f"{label}: {in_words(details, limits)}{ending}", (key,), key[:-1])


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def _touches(key: Key, removed: set[Key]) -> bool:
    """Whether a key, a section above it or a part of it was removed."""
    return any(key[: len(other)] == other or other[: len(key)] == key for other in removed)


def _remove(values: dict[str, Any], key: Key, model: type[BaseModel]) -> None:
    section = _section_of(values, key)
    for same in [other for other in section if str(other) == key[-1]]:
        del section[same]
    field = model.model_fields.get(key[0])
    if len(key) == 1 and field is not None and field.examples:
        values[key[0]] = copy.deepcopy(field.examples[0])


def _section_of(values: dict[str, Any], key: Key) -> dict[Any, Any]:
    """The mapping that contains a key; an empty one if there is none."""
    inner: Any = values
    for part in key[:-1]:
        inner = inner.get(part) if isinstance(inner, dict) else None
    return inner if isinstance(inner, dict) else {}


def _model_at(model: type[BaseModel], place: Key) -> type[BaseModel]:
    """The model of a section, or of the sections in a list or a table."""
    for part in place:
        if part not in model.model_fields:  # the number or name of a section in a list or a table
            continue
        annotation = model.model_fields[part].annotation
        for candidate in (annotation, *getattr(annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
    return model
