"""Which stages of a study are done, and with which settings.

A finished stage leaves `stages/<stage>.json` in the study's root: the settings that its result depends on, as flat
keys, its own inputs' fingerprints among them. A stage whose file says the same settings is not run again. One that says
others is never mixed with: the study stops and names each setting that differs, until the user allows `--redo`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from faithad import storage
from faithad.errors import StudyError

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Stage:
    """One stage of one study.

    Attributes:
        root: the study's root.
        name: such as `index` or `train-mae-0`.
        settings: everything that its result depends on, flat and ready for JSON.
        outputs: what it writes, relative to the root; `redo` removes them.
    """

    root: str
    name: str
    settings: Settings
    outputs: tuple[str, ...]

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

    def is_done(self) -> bool:
        """Whether the stage ended well with exactly these settings."""
        if not storage.exists(self._location):
            return False
        return bool(json.loads(storage.read_text(self._location)) == json.loads(json.dumps(self.settings)))

    def begin(self, *, redo: bool) -> bool:
        """Whether the stage has to run. What an interrupted run of the same settings left is kept for it to go on from.

        Raises:
            StudyError: results of other settings are in the way and `redo` was not given.
        """
        for location in (self._location, self._begun_location):
            if not storage.exists(location):
                continue
            before = json.loads(storage.read_text(location))
            if before == json.loads(json.dumps(self.settings)):
                if location == self._location:
                    return False
                continue
            if not redo:
                raise StudyError(
                    f"{self.root} holds results of stage {self.name!r} that were made with other settings:\n"
                    f"{_differences(before, self.settings)}\n"
                    "Give another root (--set root=...), or --redo to remove those results and run the stage again."
                )
            self.reset()
        storage.write_text(self._begun_location, json.dumps(self.settings, indent=1))
        return True

    def finish(self) -> None:
        storage.write_text(self._location, json.dumps(self.settings, indent=1))
        storage.delete(self._begun_location)

    def reset(self) -> None:
        """Remove what the stage wrote; its marks go last, so that a kill in between leaves it unfinished."""
        for output in self.outputs:
            storage.delete(storage.join(self.root, output))
        storage.delete(self._location)
        storage.delete(self._begun_location)


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


def _differences(before: Settings, now: Settings) -> str:
    keys: Iterable[str] = sorted(set(before) | set(now))
    lines = [
        f"  {key}: {before.get(key)!r} then, {now.get(key)!r} now" for key in keys if before.get(key) != now.get(key)
    ]
    return "\n".join(lines)
