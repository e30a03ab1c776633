"""A study's section `data`: where its clips come from, and who trains and who tests."""

from __future__ import annotations

import os
from datetime import date, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from faithad import locations
from faithad.clips.layouts import LAYOUTS, DataFolders
from faithad.config.base import Channel, Fraction, Section, Seed, refuse
from faithad.config.file import KeyProblem


def _wall_clock(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            value = None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime):
        raise ValueError("must be a date and a time such as 2019-12-01T06:00 or 2019-12-01T06:00+01:00")
    return value


WallClock = Annotated[datetime, BeforeValidator(_wall_clock)]


class Synthetic(Section):
    """The demo mill, made at `data.root` before the study where it does not exist yet. `disturbed_fraction` is that of
    its test recordings.
    """

    train_recordings: int = Field(24, ge=2)
    test_recordings: int = Field(12, ge=2)
    seed: Seed = 0
    disturbed_fraction: float = Field(0.4, ge=0.25, le=1)


class Split(Section):
    """Who trains and who tests. `folder`: as `data.train` and `data.test` say. `csv`: a table with the columns
    recording and split. `time`: recordings that start before `train_until` train, later ones test. Without an offset
    from UTC, `train_until` is a time of the recorders' own clock.
    """

    by: Literal["folder", "csv", "time"] = "folder"
    csv: str | None = None
    train_until: WallClock | None = None
    validation_fraction: Fraction = 0.1
    validation_unit: Literal["clip", "recording"] = "clip"
    seed: Seed = 0


def _layout(name: str) -> str:
    if name not in LAYOUTS:
        *others, last = map(repr, LAYOUTS)
        raise ValueError(f"must be {', '.join(others)} or {last}")
    return name


class Data(Section):
    """Where the clips come from. `layout` says how the files lie: `audio`, recordings in the folders that `train`,
    `test` and `recordings` name; `planer`, the published `.pt` spectrograms below `root`, of whose training folders
    only `training_folders` are taken, where given; `dcase`, the development folders of DCASE Task 2 below `root`.
    `channel` says which channel of a recording is heard, see `clips.channels.heard_channels`. `add_normals`: reviewed
    audits, whose rejected events are normal sound and train; their paths start where that of the study's root does.
    """

    layout: Annotated[str, AfterValidator(_layout)] = "audio"
    root: str = "."
    synthetic: Synthetic | None = None
    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    recordings: tuple[str, ...] = ()
    training_folders: tuple[str, ...] | None = None
    add_normals: tuple[str, ...] = ()
    annotations: str | None = None
    clip_s: float = Field(10.0, gt=0, le=600)
    remainder: Literal["drop", "pad", "overlap"] = "drop"
    channel: Channel = "auto"
    split: Split = Split()

    def locate(self, path: str) -> str:
        """A path of this section, starting from `root` on unless it is absolute or a URI."""
        path = path if "://" in path else os.path.expanduser(path)
        return path if "://" in path or path.startswith("/") else locations.join(self.root, path)

    @property
    def folders(self) -> DataFolders:
        """The folders that the layout reads."""
        named = (("train", self.train), ("test", self.test), (None, self.recordings))
        located = tuple((split, self.locate(folder)) for split, folders in named for folder in folders)
        return DataFolders(self.root, located, self.training_folders)

    @model_validator(mode="after")
    def _keys_fit_the_layout(self) -> Data:
        layout = LAYOUTS[self.layout]
        by_folder = self.split.by == "folder"
        by_layout = ("synthetic", "train", "test", "recordings", "training_folders", "add_normals")
        given = [key for key in by_layout if getattr(self, key)]
        given += [] if by_folder else ["split.by"]
        given += [] if self.channel == "auto" else ["channel"]
        misplaced = [key for key in given if key not in layout.keys]
        problems: list[KeyProblem] = []
        if misplaced and layout.contents:
            reason = (
                f"layout '{self.layout}' finds {layout.contents} below data.root by itself: leave "
                f"{', '.join(misplaced)} out"
            )
            problems.append(((*misplaced, "layout"), reason))
        elif misplaced:
            names = " or ".join(repr(name) for name, other in LAYOUTS.items() if misplaced[0] in other.keys)
            problems.append(((*misplaced, "layout"), f"{', '.join(misplaced)} belongs to layout {names}: leave it out"))
        if layout.clip_s not in (None, self.clip_s):
            reason = f"layout '{self.layout}' holds clips of {layout.clip_s:g} s: leave clip_s out"
            problems.append((("clip_s", "layout"), reason))
        if "train" in layout.keys:
            problems += self._folder_problems(by_folder)
        if self.remainder == "overlap" and self.split.validation_unit == "clip" and layout.clip_s is None:
            reason = (
                "'overlap' lets clips of one recording share sound, so that a model would be validated with what it "
                "was trained on: set data.split.validation_unit to recording"
            )
            problems.append((("remainder", "split.validation_unit", "layout"), reason))
        if self.channel == "each" and self.split.validation_unit == "clip":
            reason = (
                "'each' makes clips of the same sound, one for each channel, so that a model would be validated with "
                "what it was trained on: set data.split.validation_unit to recording"
            )
            problems.append((("channel", "split.validation_unit"), reason))
        for key, by in (("csv", "csv"), ("train_until", "time")):
            if (self.split.by == by) != (getattr(self.split, key) is not None):
                problems.append(((f"split.{key}", "split.by"), f"is needed with split.by '{by}', and only there"))
        return refuse(self, problems)

    def _folder_problems(self, by_folder: bool) -> list[KeyProblem]:
        """The folders that the split needs, or does not want."""
        misplaced = [key for key in ("train", "test") if bool(getattr(self, key)) != by_folder]
        misplaced += ["recordings"] if bool(self.recordings) == by_folder else []
        if not misplaced:
            return []
        needed = "train and in test, and no recordings" if by_folder else "recordings, and neither train nor test"
        keys = (*misplaced, "train", "test", "recordings", "layout", "split.by")
        return [(keys, f"split.by '{self.split.by}' needs the folders in {needed}")]
