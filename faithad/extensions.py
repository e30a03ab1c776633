"""Tables of named things (attribution methods, models) that installed packages can add rows to. Without torch.

A package adds a row with an entry point of the table's group, in its `pyproject.toml`:

    [project.entry-points."faithad.methods"]
    my_method = "my_package.explain:MY_METHOD"

The name is the row's name, and the object is the row itself. Names are read without importing the package; it is
imported when its row is first used. Importing runs the package's code, as installing any package lets it do.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint
from typing import Protocol, TypeVar

from faithad.errors import ConfigError

METHODS_GROUP = "faithad.methods"
MODELS_GROUP = "faithad.models"


class NamedRow(Protocol):
    """A row of a table."""

    @property
    def name(self) -> str: ...


TableRow = TypeVar("TableRow", bound=NamedRow)


class ExtensibleTable(Mapping[str, TableRow]):
    """Rows by name: faithad's own first, then those of installed packages in the order of their names.

    Args:
        kind: what a row is, for messages.
        group: the entry points whose names count as rows.
        row_type: what such an entry point must load to.
        rows: faithad's own.

    Raises:
        ConfigError: by a look at the packages' rows, if two rows have the same name or a package's name is malformed;
            by access to a package's row, if the package cannot be imported or its object is no such row. The message
            names the package.
    """

    def __init__(self, kind: str, group: str, row_type: type[TableRow], rows: Iterable[TableRow]) -> None:
        self.kind, self.group, self.row_type = kind, group, row_type
        self.built_in = {row.name: row for row in rows}

    def __getitem__(self, name: str) -> TableRow:
        entry_points = self._entry_points()
        if name in self.built_in:
            return self.built_in[name]
        return self._load(entry_points[name])

    def __iter__(self) -> Iterator[str]:
        yield from [*self.built_in, *self._entry_points()]

    def __len__(self) -> int:
        return len(self.built_in) + len(self._entry_points())

    def __contains__(self, name: object) -> bool:
        return name in self.built_in or name in self._entry_points()

    def _entry_points(self) -> dict[str, EntryPoint]:
        entry_points: dict[str, EntryPoint] = {}
        for entry_point in _installed(self.group, tuple(sys.path)):
            name, package = entry_point.name, _package(entry_point)
            if re.fullmatch(r"[a-z][a-z0-9_]*", name) is None:
                raise ConfigError(
                    f"The package {package} names a {self.kind} {name!r}; allowed are small letters, digits and '_', "
                    "a letter first."
                )
            if name in self.built_in or name in entry_points:
                other = "faithad" if name in self.built_in else f"the package {_package(entry_points[name])}"
                raise ConfigError(
                    f"The package {package} names a {self.kind} {name!r}, and so does {other}. Names must be unique: "
                    "uninstall the package, or have its entry point renamed."
                )
            entry_points[name] = entry_point
        return entry_points

    def _load(self, entry_point: EntryPoint) -> TableRow:
        where = f"The {self.kind} {entry_point.name!r} of the package {_package(entry_point)} ({entry_point.value})"
        try:
            row = entry_point.load()
        except Exception as error:  # whatever the package's own code raises
            raise ConfigError(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
        if not isinstance(row, self.row_type):
            raise ConfigError(f"{where} must be a {self.row_type.__name__}, found {type(row).__name__}.")
        if row.name != entry_point.name:
            raise ConfigError(f"{where} calls itself {row.name!r}; its entry point must have the same name.")
        return row


def extension_distributions() -> list[str]:
    """The names of the installed packages that add methods or models, sorted.

    Their code takes part in a study, so all machines need the same versions of them.
    """
    entry_points = [each for group in (METHODS_GROUP, MODELS_GROUP) for each in _installed(group, tuple(sys.path))]
    return sorted({entry_point.dist.name for entry_point in entry_points if entry_point.dist is not None})


@functools.lru_cache(maxsize=8)
def _installed(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """The group's entry points on `sys.path`; scanning it takes some 50 ms."""
    entry_points = importlib.metadata.entry_points(group=group)
    return tuple(sorted(entry_points, key=lambda entry_point: (entry_point.name, _package(entry_point))))


def _package(entry_point: EntryPoint) -> str:
    return "of unknown name" if entry_point.dist is None else f"{entry_point.dist.name} {entry_point.dist.version}"
