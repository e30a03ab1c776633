"""Which stages of a study are done, and with which settings.

A finished stage leaves `stages/<stage>.json` in the study's root: the settings that its result depends on, as flat
keys, its own inputs' fingerprints among them. A stage whose file says the same settings is not run again. One that says
others is never mixed with: the study stops and names each setting that differs, until the user allows `--redo`. Where
the results are gone, the stage runs again whatever its file says.

What a stage reads stands among its settings as well, one key `files.<name>` for each file, so that a file that came,
went or changed is named. That a file cannot be read at this moment is no such change, see `Stage.settled`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from faithad import storage
from faithad.errors import StudyError
from faithad.progress import console
from faithad.runs.fingerprints import UNREADABLE
from faithad.runs.formats import mark_format, require_readable
from faithad.vocabulary import listed

Settings = Mapping[str, Any]

# Begins the key of a setting that stands for a file which the stage reads; its value tells the file's contents.
FILE_KEY = "files."
_NAMED_FILES = 10

# The stages of an audit of recordings, whose root is its `--out`; all others belong to a study.
_OF_AN_AUDIT = ("score", "explain", "events")

# In place of settings: a removal has begun, and nothing that is still there may be used.
_REMOVING = {"removing": True}


@dataclass(frozen=True)
class Stage:
    """One stage of one study.

    Attributes:
        root: the study's root.
        name: such as `index` or `train-mae-0`.
        settings: everything that its result depends on, flat and ready for JSON.
        outputs: what it writes, relative to the root; `redo` removes them.
        result: the last of what it writes, relative to the root; without it the stage is not done.
    """

    root: str
    name: str
    settings: Settings
    outputs: tuple[str, ...]
    result: str

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits that change with any setting."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def _location(self) -> str:
        return storage.join(self.root, "stages", f"{self.name}.json")

    @property
    def _begun_location(self) -> str:
        return storage.join(self.root, "stages", f"{self.name}.begun.json")

    @property
    def _elsewhere(self) -> str:
        """How the user says that the results are to go somewhere else."""
        return "another folder (--out)" if self.name in _OF_AN_AUDIT else "another root (--set root=...)"

    def settled(self, *, afresh: bool = False) -> Stage:
        """The stage without the differences to its mark that come from files which could not be read for a moment.

        A disk or a network that is away changes no file, so one that cannot be read now is taken for what the mark says
        of it. One that could not be read when the mark was made was left out then, and stays so.

        Args:
            afresh: whether a file of the second kind counts as changed after all.
        """
        before = self._read(self._begun_location) or self._read(self._location) or {}
        known = {
            key: before[key]
            for key, found in self.settings.items()
            if key.startswith(FILE_KEY) and key in before
            if found == UNREADABLE or (before[key] == UNREADABLE and not afresh)
        }
        return replace(self, settings={**self.settings, **known})

    def is_done(self) -> bool:
        """Whether the stage ended well with exactly these settings, and its results are still there.

        Raises:
            StudyError: a newer faithad worked in this root.
        """
        require_readable(self.root)
        is_marked = self._read(self._location) == self._comparable
        return is_marked and storage.exists(storage.join(self.root, self.result))

    def begin(self, *, redo: bool, again: bool = False) -> bool:
        """Whether the stage has to run. What an interrupted run of the same settings left is kept for it to go on from.

        Args:
            redo: remove results of other settings.
            again: go on with results of these settings even though the stage is done.

        Raises:
            StudyError: results of other settings are in the way and `redo` was not given, or a newer faithad worked in
                this root.
        """
        if self.is_done() and not again:
            return False
        if self._read(self._begun_location) == _REMOVING:
            self.reset()
        for location in (self._location, self._begun_location):
            before = self._read(location)
            if before is None or before == self._comparable:
                continue
            if not redo and self._is_in_the_way():
                raise self._refusal(before)
            self.reset()
        mark_format(self.root)
        storage.write_text(self._begun_location, json.dumps(self.settings, indent=1))
        storage.delete(self._location)
        return True

    def _refusal(self, before: Settings) -> StudyError:
        now = self._comparable
        return StudyError(
            f"{self.root} holds results of stage {self.name!r} that were made {_how(before, now)}:\n"
            f"{_differences(before, now)}\n"
            f"{_back(before, now)}Give {self._elsewhere}, or --redo to remove those results and run the stage again."
        )

    def finish(self) -> None:
        storage.write_text(self._location, json.dumps(self.settings, indent=1))
        storage.delete(self._begun_location)

    def reset(self) -> None:
        """Remove what the stage wrote. Killed in between, the next run removes the rest before anything else."""
        storage.write_text(self._begun_location, json.dumps(_REMOVING))
        storage.delete(self._location)
        for output in self.outputs:
            location = storage.join(self.root, output)
            if storage.exists(location):
                console.print(f"{self.name}: removing {location}")
                storage.delete(location)
        storage.delete(self._begun_location)

    @property
    def _comparable(self) -> dict[str, Any]:
        """The settings as they come back from a file."""
        settings: dict[str, Any] = json.loads(json.dumps(self.settings))
        return settings

    def _is_in_the_way(self) -> bool:
        return any(storage.exists(storage.join(self.root, output)) for output in self.outputs)

    @staticmethod
    def _read(location: str) -> dict[str, Any] | None:
        if not storage.exists(location):
            return None
        settings: dict[str, Any] = json.loads(storage.read_text(location))
        return settings


def flatten(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings as `section.key` keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{section}.{key}" if section else key
        if isinstance(value, Mapping):
            flat.update(flatten(name, value))
        else:
            flat[name] = value
    return flat


def _how(before: Settings, now: Settings) -> str:
    differ = {key for key in set(before) | set(now) if before.get(key) != now.get(key)}
    return "of other files" if all(key.startswith(FILE_KEY) for key in differ) else "with other settings"


def _back(before: Settings, now: Settings) -> str:
    """What to do where nothing but files went, which is to ask for nothing else."""
    went = {key for key in before if key not in now}
    rest = {key for key in now if before.get(key) != now[key]}
    alone = went and not rest and all(key.startswith(FILE_KEY) for key in went)
    return "Put back what went, and the same command goes on. Or: " if alone else ""


def _differences(before: Settings, now: Settings) -> str:
    """A line for each setting that differs, and one for each thing that happened to files."""
    lines: list[str] = []
    files: dict[str, list[str]] = {"came": [], "went": [], "changed": []}
    for key in sorted(set(before) | set(now)):
        if before.get(key) == now.get(key):
            continue
        if key.startswith(FILE_KEY):
            kind = "came" if key not in before else "went" if key not in now else "changed"
            files[kind].append(key.removeprefix(FILE_KEY))
        else:
            lines.append(f"  {key}: {before.get(key)!r} then, {now.get(key)!r} now")
    for kind, names in files.items():
        lines += [f"  files that {kind}: {listed(names, most=_NAMED_FILES)}"] if names else []
    return "\n".join(lines)
