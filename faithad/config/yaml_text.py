"""The keys and values of a YAML text, whoever wrote it: a configuration is small, and a large one is refused at once.

A few aliases of aliases can stand for billions of values, and a long text takes minutes to parse. So both the bytes of
a file and the number of its values are limited; an alias counts as all values that it repeats.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from faithad.errors import ConfigError, StudyError
from faithad.vocabulary import count

_MOST_BYTES = 1_000_000
# Keys and values, which YAML calls nodes.
_MOST_NODES = 10_000
# Python itself refuses to write whole numbers of more than 4,300 digits.
_MOST_DIGITS = 100
_MOST_REPEATED = 10


def read_text(location: str) -> str:
    """The text of a configuration, local or at a URI.

    Raises:
        ConfigError: it cannot be read, is too large, or is no text.
    """
    from faithad import storage  # imports pyarrow, which nothing else here needs

    try:
        with storage.open_input(location) as file:
            content = bytes(file.read(_MOST_BYTES + 1))
    except FileNotFoundError:
        raise ConfigError(f"There is no configuration {location!r}. Check the path.") from None
    except (OSError, StudyError) as error:
        raise ConfigError(f"Cannot read the configuration {location!r}: {error}") from error
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{location} is above {_MOST_BYTES:,} bytes, which is too large for a configuration.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{location} is no text in UTF-8 ({error}). Save it as UTF-8.") from error


def read_mapping(text: str, *, name: str, hint: str = "") -> tuple[dict[str, Any], list[str]]:
    """The keys and values of a YAML text, and a line for each key that it repeats.

    Raises:
        ConfigError: the text is not valid YAML, no mapping, or too large.
    """
    values, repeated = read_yaml(text, name=name)
    if not isinstance(values, dict):
        kind = "nothing: it is empty" if values is None else type(values).__name__
        raise ConfigError(f"{name} must hold keys and values{hint}, found {kind}")
    return values, repeated


def read_yaml(text: str, *, name: str) -> tuple[Any, list[str]]:
    """As `read_mapping`, of any value."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, []
        _require_small(node)
        repeated = list(_repeated(node, (), set()))
        if len(repeated) > _MOST_REPEATED:
            more = count(len(repeated) - _MOST_REPEATED, "more repeated key")
            repeated = [*repeated[:_MOST_REPEATED], f"and {more}"]
        return loader.construct_document(node), repeated
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: the 99th of a month
        raise ConfigError(f"{name} is not valid YAML: {_yaml_problem(error)}") from None
    except _TooLarge as error:
        raise ConfigError(f"{name} {error}") from None
    finally:
        loader.dispose()


class _TooLarge(Exception):
    """The text, read as YAML, is no configuration."""

    def __init__(self) -> None:
        super().__init__(
            f"holds more than {_MOST_NODES:,} keys and values, with aliases counted as what they stand for: too many "
            "for a configuration."
        )


class _Loader(yaml.SafeLoader):
    """Stops reading at the first node that is one too many."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._n_nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._n_nodes += 1
        if self._n_nodes > _MOST_NODES:
            raise _TooLarge
        return super().compose_node(parent, index)


def _require_small(node: yaml.Node) -> None:
    sizes: dict[int, int | None] = {}  # by the node's id; None while its children are counted

    def size(node: yaml.Node) -> int:
        if id(node) in sizes:
            known = sizes[id(node)]
            if known is None:
                raise ValueError("an alias stands for a value that contains it")
            return known
        sizes[id(node)] = None
        total = 1
        if isinstance(node, yaml.SequenceNode):
            total += sum(size(element) for element in node.value)
        elif isinstance(node, yaml.MappingNode):
            total += sum(size(key) + size(value) for key, value in node.value)
        elif node.tag == "tag:yaml.org,2002:int" and len(node.value) > _MOST_DIGITS:
            raise ValueError(f"line {node.start_mark.line + 1} holds a number of {len(node.value):,} digits")
        sizes[id(node)] = total
        return total

    if size(node) > _MOST_NODES:
        raise _TooLarge


def _yaml_problem(error: Exception) -> str:
    """The message and the place of a YAML error, without the text around it, which may contain secrets."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error)
    mark = error.problem_mark
    place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
    return f"{', '.join(filter(None, (error.context, error.problem)))}{place}"


def _repeated(node: yaml.Node, place: tuple[str, ...], seen: set[int]) -> Iterator[str]:
    """A line for each key that a mapping repeats; the parser would silently keep the last one."""
    if id(node) in seen:
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
                yield f"{'.'.join((*place, name))}: is there twice, in lines {lines[name]} and {line}; keep one"
            lines.setdefault(name, line)
        for key, value in node.value:
            yield from _repeated(value, (*place, str(key.value)), seen)
