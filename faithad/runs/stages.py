"""Which stages of a study or an audit are done, and with which settings.

A finished stage leaves a mark, `stages/<stage>.json` below the root: the settings that its results depend on, as flat
keys. A stage whose mark has the same settings is not run again. Results of other settings are never mixed with new
ones: the run stops and names each setting that differs, until the user gives `--redo`. Where the results are gone, the
stage runs again whatever its mark says. It also runs again where a table, or its mark, was damaged, as by a power cut.

The settings include the files that a stage reads, one key `files.<name>` for each, so that a message can name a file
that came, went or changed. A file that cannot be read at the moment has not changed, see
`ResumableStage.with_known_files`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from faithad import parquet, storage
from faithad.errors import DamagedError, StudyError
from faithad.progress import console
from faithad.runs import layout
from faithad.runs.fingerprints import UNREADABLE
from faithad.runs.formats import is_damaged, mark_format, replace_damaged, require_readable
from faithad.runs.lock import require_still_alone
from faithad.runs.marks import read_mark
from faithad.vocabulary import listed

Settings = Mapping[str, Any]

# The keys of files that a stage reads begin with it; their values are fingerprints.
FILE_KEY = "files."

# Those of label files, in an audit of recordings.
LABELS_KEY = f"{FILE_KEY}annotations "

# Where the stages of an audit of recordings, of a training on normals and of a calibration write to; all others belong
# to a study.
_FOLDER_OPTIONS = {"score": "--out", "explain": "--out", "events": "--out", "normals": "--to", "calibrate": "--to"}

# In a mark, in place of settings: results are being removed, and those that are still there must not be used.
_REMOVING = {"removing": True}


@dataclass(frozen=True)
class ResumableStage:
    """One stage of a study or of an audit of recordings.

    Attributes:
        root: of the study, or the folder that the audit writes to.
        name: such as `index` or `train-mae-0`.
        settings: everything that its results depend on, flat and ready for JSON.
        outputs: what it writes, relative to the root; `redo` removes them.
        result: the last of what it writes, relative to the root; without it the stage is not done.
        needs: files among its outputs without which it is not done either, and which must be whole.
        may_differ: which settings may differ from a mark's without the results being in the way: whoever begins the
            stage compares what these settings describe, and keeps the results that are still valid.
        hint: what the refusal adds, a line of its own.
    """

    root: str
    name: str
    settings: Settings
    outputs: tuple[str, ...]
    result: str
    needs: tuple[str, ...] = ()
    may_differ: Callable[[str], bool] = lambda key: False
    hint: str = ""

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits that change with any setting."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def _location(self) -> str:
        return storage.join(self.root, layout.STAGES, f"{self.name}.json")

    @property
    def _begun_location(self) -> str:
        return storage.join(self.root, layout.STAGES, f"{self.name}.begun.json")

    def with_known_files(self, *, afresh: bool = False) -> ResumableStage:
        """The stage, with the fingerprint in its mark for each file that cannot be read now.

        A disk or a network that is away changes no file. A file that could not be read when the mark was made was left
        out then; it keeps the mark's fingerprint too, although it can be read now.

        Args:
            afresh: whether a file of the second kind counts as changed after all.
        """
        before = self.settings_before() or {}
        known = {
            key: before[key]
            for key, value in self.settings.items()
            if key.startswith(FILE_KEY) and key in before
            if value == UNREADABLE or (before[key] == UNREADABLE and not afresh)
        }
        return replace(self, settings={**self.settings, **known})

    def settings_before(self) -> Settings | None:
        """The settings of the last run, finished or not; None if there was none, or its results are being removed."""
        before = read_mark(self._begun_location) or read_mark(self._location)
        return None if before == _REMOVING else before

    def differing(self, before: Settings) -> set[str]:
        """The keys whose values are not these, without those that may differ."""
        settings, now = self._compared(before), self._compared(self._comparable)
        return {key for key in set(settings) | set(now) if settings.get(key) != now.get(key)}

    def is_done(self) -> bool:
        """Whether the stage ended well with exactly these settings, and its results are still there and whole.

        Of results that are written shard by shard only the folder is looked at, see `shards.check_shard`.

        Raises:
            StudyError: a newer faithad worked in this root.
        """
        if is_damaged(self.root):
            return False
        require_readable(self.root)
        return (
            read_mark(self._location) == self._comparable
            and storage.exists(storage.join(self.root, self.result))
            and all(is_whole(storage.join(self.root, file)) for file in self.needs)
        )

    def begin(self, *, redo: bool, again: bool = False) -> bool:
        """Whether the stage has to run. It goes on from what an interrupted run of the same settings has left.

        Args:
            redo: remove results of other settings.
            again: go on with results of these settings even though the stage is done.

        Raises:
            StudyError: results of other settings are in the way and `redo` was not given, a newer faithad worked in
                this root, or another driver has taken it over.
        """
        require_still_alone()
        replace_damaged(self.root)
        if self.is_done() and not again:
            return False
        if read_mark(self._begun_location) == _REMOVING:
            self.reset()
        for location in (self._location, self._begun_location):
            before = read_mark(location)
            if before is None or self._compared(before) == self._compared(self._comparable):
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
        option = _FOLDER_OPTIONS.get(self.name)
        elsewhere = "another root (--set root=...)" if option is None else f"another folder ({option})"
        return StudyError(
            f"{self.root} holds results of stage {self.name!r} that were made {_differ_in(before, now)}:\n"
            f"{differences(before, now)}\n{self.hint}"
            f"{_put_back(before, now)}Give {elsewhere}, or --redo to remove those results and run the stage again."
        )

    def finish(self) -> None:
        """Mark the stage as done.

        Raises:
            StudyError: another driver has taken over the root.
        """
        require_still_alone()
        storage.write_text(self._location, json.dumps(self.settings, indent=1))
        storage.delete(self._begun_location)

    def withdraw(self) -> None:
        """Have a finished stage run again, because something that it is made of is about to change.

        Raises:
            StudyError: another driver has taken over the root.
        """
        require_still_alone()
        storage.delete(self._location)

    def reset(self) -> None:
        """Remove what the stage wrote. If this is killed in between, the next run first removes the rest.

        Raises:
            StudyError: another driver has taken over the root.
        """
        require_still_alone()
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
        """The settings as they come back from a mark."""
        settings: dict[str, Any] = json.loads(json.dumps(self.settings))
        return settings

    def _compared(self, settings: Settings) -> dict[str, Any]:
        return {key: value for key, value in settings.items() if not self.may_differ(key)}

    def _is_in_the_way(self) -> bool:
        return any(storage.exists(storage.join(self.root, output)) for output in self._results)

    @property
    def _results(self) -> list[str]:
        """The outputs without the marks of attempts, which a killed run leaves and a finished one does not."""
        return [output for output in self.outputs if output not in (layout.HEADER_ATTEMPTS, layout.ATTEMPTS)]


def is_finished(root: str, name: str) -> bool:
    """Whether a stage ended well, with whatever settings."""
    return read_mark(storage.join(root, layout.STAGES, f"{name}.json")) is not None


def is_whole(location: str) -> bool:
    """Whether a file is there and to its end, as far as it says so itself: a table, JSON or a page."""
    if location.endswith(".parquet"):
        try:
            parquet.read_rows(location)
        except (FileNotFoundError, DamagedError):
            return False
        return True
    if location.endswith(".json"):
        return read_mark(location) is not None
    return storage.exists(location) and storage.read_bytes(location).rstrip().endswith(b"</html>")


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


def _differ_in(before: Settings, now: Settings) -> str:
    differ = {key for key in set(before) | set(now) if before.get(key) != now.get(key)}
    return "of other files" if all(key.startswith(FILE_KEY) for key in differ) else "with other settings"


def _put_back(before: Settings, now: Settings) -> str:
    """The advice for the case that files are missing and nothing else differs."""
    gone = {key for key in before if key not in now}
    rest = {key for key in now if before.get(key) != now[key]}
    alone = gone and not rest and all(key.startswith(FILE_KEY) for key in gone)
    return "Put back what went, and the same command goes on. Or: " if alone else ""


def differences(before: Settings, now: Settings) -> str:
    """A line for each setting that differs, and one each for files that came, went and changed."""
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
    lines += [f"  files that {kind}: {listed(names)}" for kind, names in files.items() if names]
    return "\n".join(lines)
