"""From a configuration's text to its validated model, and every problem on the way told at once.

`read_values` and `change` turn YAML and `--set` strings into plain values; `validated` makes a model of them or raises
one `ConfigError` with a line for each problem. A wrong value must not hide what else is wrong: wrong keys are taken
out, as if the file had left them to their defaults, and the rest is validated again. What the second look then says
about such a key only follows from the first problem, and is not told.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from faithad.errors import ConfigError, StudyError
from faithad.vocabulary import count

Model = TypeVar("Model", bound=BaseModel)
Key = tuple[str, ...]

# Pydantic's types of errors, in the words of this project; `_BOUNDS` by the names that it has for bounds.
_WORDS = {
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    "finite_number": "must be a finite number",
    "string_type": "must be text: write a number in quotes",
    "tuple_type": "must be a list, such as [a, b]",
    "model_type": "must be a section, with keys and values of its own",
}
_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


class Problems(ValueError):
    """Everything that a check of several keys together found; raised by a model's validators.

    Args:
        found: for each problem the dotted keys that take part in it, relative to the model, and what is wrong. The
            first key is the one that the message stands under.
    """

    def __init__(self, found: Iterable[tuple[tuple[str, ...], str]]) -> None:
        self.found = list(found)
        super().__init__("; ".join(f"{keys[0]}: {message}" for keys, message in self.found))


class _Problem(NamedTuple):
    line: str
    keys: tuple[Key, ...]
    section: Key


def read_text(location: str) -> str:
    """The text of a configuration, local or at a URI.

    Raises:
        ConfigError: it cannot be read.
    """
    from faithad import storage  # with pyarrow, which nothing else here needs

    try:
        return storage.read_text(location)
    except FileNotFoundError:
        raise ConfigError(f"There is no configuration {location!r}. Check the path.") from None
    except (OSError, StudyError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read the configuration {location!r}: {error}") from error


def read_values(text: str) -> tuple[Any, list[str]]:
    """What a YAML text says, and a line for each key that stands twice in it.

    Raises:
        ConfigError: it is no YAML.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, []
        return loader.construct_document(node), list(_repeated(node, (), set()))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: the 99th of a month
        raise ConfigError(f"not valid YAML: {yaml_problem(error)}") from None
    finally:
        loader.dispose()


def yaml_problem(error: Exception) -> str:
    """What is wrong with a YAML text, and where; not the text itself, which the parser would quote with its secrets."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error)
    mark = error.problem_mark
    place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
    return f"{', '.join(filter(None, (error.context, error.problem)))}{place}"


def change(values: dict[str, Any], override: str) -> None:
    """Set one value as `section.key=value` says; the value is read as YAML, missing sections are made.

    Raises:
        ConfigError: the change has another form, or its way leads through a value.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override!r} is not of the form section.key=value, such as train.epochs=3")
    try:
        value, repeated = read_values(text)
    except ConfigError as error:
        raise ConfigError(f"--set {override!r}: the value is {error}") from error
    if repeated:
        raise ConfigError(f"--set {override!r}: {repeated[0]}")
    *sections, last = key.strip().split(".")
    for section in sections:
        inner = values.get(section)
        if inner is None:
            inner = values[section] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override!r}: {section} is a value, not a section")
        values = inner
    values[last] = value


def validated(
    model: type[Model],
    values: dict[str, Any],
    *,
    name: str,
    repeated: Iterable[str] = (),
    placeholders: Mapping[str, Any],
    ask: Mapping[str, str] | None = None,
) -> Model:
    """Make a model of plain values.

    Args:
        model: what the values must be.
        values: from `read_values`; left as they are.
        name: where they come from, for messages.
        repeated: lines of problems that were found before.
        placeholders: fine values of the required keys, to go on with where the given ones are missing or wrong.
        ask: what to do about a required key that is missing, where there is more to say than to give it a value.

    Raises:
        ConfigError: there are problems; one line each, under its key.
    """
    lines = list(repeated)
    values = copy.deepcopy(values)
    removed: set[Key] = set()
    while True:
        try:
            made = model.model_validate(values)
            break
        except ValidationError as error:
            found = [problem for details in _first(error) for problem in _problems(details, model, values, ask or {})]
        lines += [problem.line for problem in found if not any(_touches(key, removed) for key in problem.keys)]
        # A section whose keys are all gone and that is still wrong goes as a whole.
        fresh = {key for problem in found for key in problem.keys if key not in removed}
        fresh = fresh or {problem.section for problem in found if problem.section not in removed}
        fresh.discard(())
        if not fresh:
            break
        for key in fresh:
            _remove(values, key, placeholders)
        removed |= fresh
    if lines:
        raise ConfigError(
            "\n".join([f"{name} has {count(len(lines), 'problem')}:", *(f"  {line}" for line in dict.fromkeys(lines))])
        )
    return made


def _first(error: ValidationError) -> Iterator[ErrorDetails]:
    """Pydantic's errors, except that a list is too short of which some elements are wrong: it does not count these."""
    in_lists = {details["loc"][:length] for details in error.errors() for length in range(len(details["loc"]))}
    return (details for details in error.errors() if details["type"] != "too_short" or details["loc"] not in in_lists)


def in_words(details: ErrorDetails, limits: Mapping[str, float]) -> str:
    """One of pydantic's errors in our words.

    Args:
        details: the error.
        limits: all bounds of the value, by pydantic's names; it tells only the one that was crossed.
    """
    crossed = {name: bound for name, bound in details.get("ctx", {}).items() if name in _BOUNDS}
    if crossed:
        bounds = {**crossed, **limits}
        return f"must be {' and '.join(f'{_BOUNDS[name]} {bounds[name]:g}' for name in _BOUNDS if name in bounds)}"
    told = details["msg"].removeprefix("Value error, ").replace("Input should be", "must be", 1)
    return _WORDS.get(details["type"], told)


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
    """The problems in one of pydantic's errors, with the keys that take part in them."""
    place = tuple(str(part) for part in details["loc"])
    # A list is taken out as a whole, so its elements are no keys.
    in_list = [position for position, part in enumerate(details["loc"]) if isinstance(part, int)]
    key = place[: in_list[0]] if in_list and details["type"] != "invalid_key" else place
    label = ".".join(place) or "(whole file)"
    cause = details.get("ctx", {}).get("error")
    if isinstance(cause, Problems):
        for names, message in cause.found:
            keys = tuple((*place, *name.split(".")) for name in names)
            yield _Problem(f"{'.'.join(keys[0])}: {message}", keys, place)
    elif details["type"] == "extra_forbidden":
        fields = list(_model_at(model, place[:-1]).model_fields)
        close = difflib.get_close_matches(place[-1], fields, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(fields)}"
        # What was meant is missing, as far as later checks are concerned, unless it is there as well.
        meant = [(*place[:-1], *close)] if close and close[0] not in _section_of(values, key) else []
        yield _Problem(f"{label}: unknown key; {hint}", (key, *meant), place[:-1])
    elif details["type"] == "too_short":
        yield _Problem(
            f"{label}: give {details['ctx']['min_length']} or more, found {details['input']!r}", (key,), key[:-1]
        )
    elif details["type"] == "missing":
        yield _Problem(f"{label}: missing, {ask.get(label, 'give it a value')}", (key,), place[:-1])
    else:
        found = details["input"]
        ending = "" if isinstance(found, dict | BaseModel) else f", found {found!r}"
        limits = _limits(_model_at(model, key[:-1]).model_fields.get(key[-1])) if key else {}
        yield _Problem(f"{label}: {in_words(details, limits)}{ending}", (key,), key[:-1])


def _touches(key: Key, removed: set[Key]) -> bool:
    """Whether a key, a section above it or a part of it was taken out."""
    return any(key[: len(gone)] == gone or gone[: len(key)] == key for gone in removed)


def _remove(values: dict[str, Any], key: Key, placeholders: Mapping[str, Any]) -> None:
    section = _section_of(values, key)
    for same in [other for other in section if str(other) == key[-1]]:
        del section[same]
    if len(key) == 1 and key[0] in placeholders:
        values[key[0]] = copy.deepcopy(placeholders[key[0]])


def _section_of(values: dict[str, Any], key: Key) -> dict[Any, Any]:
    """The mapping that holds a key, an empty one where there is none."""
    inner: Any = values
    for part in key[:-1]:
        inner = inner.get(part) if isinstance(inner, dict) else None
    return inner if isinstance(inner, dict) else {}


def _model_at(model: type[BaseModel], place: Key) -> type[BaseModel]:
    """The model of a section, or of an element of a list or a table of sections."""
    for part in place:
        if part not in model.model_fields:  # the element's number or name
            continue
        annotation = model.model_fields[part].annotation
        for candidate in (annotation, *getattr(annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
    return model


def _repeated(node: yaml.Node, place: Key, seen: set[int]) -> Iterator[str]:
    """A line for each key that stands twice in one mapping; the parser would silently keep the last one."""
    if id(node) in seen:  # an alias may point to a node that it lies in
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, element in enumerate(node.value):
            yield from _repeated(element, (*place, str(number)), seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                yield f"{'.'.join((*place, name))}: stands twice, in lines {lines[name]} and {line}; keep one"
            lines.setdefault(name, line)
        for key, value in node.value:
            yield from _repeated(value, (*place, str(key.value)), seen)
