"""The table of data layouts: how the files of a data set lie in folders, and what their places and names say.

A new layout is its module beside this one and a row of `LAYOUTS`. The table is without torch, numpy and pyarrow,
because configurations are checked against it; a layout's module is imported when its files are looked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, NamedTuple

from faithad.vocabulary import AUDIO_SUFFIXES, SPECTROGRAM_SUFFIX

if TYPE_CHECKING:
    from faithad.clips.ledger import LedgerRow
    from faithad.clips.manifest import ClipRow, Recording


class DataFolders(NamedTuple):
    """Where a study's data lie.

    Attributes:
        root: `data.root`, a local path or a URI.
        named: (split, location) of the folders in `data.train`, `data.test` and `data.recordings`; for the last of
            these the split is None, because a table or the clock gives it.
        training_folders: `data.training_folders`.
    """

    root: str
    named: tuple[tuple[str | None, str], ...] = ()
    training_folders: tuple[str, ...] | None = None

    @property
    def locations(self) -> list[str]:
        """All folders that are read: the named ones, or the root where none is named."""
        return [location for _, location in self.named] or [self.root]


class LayoutFiles(NamedTuple):
    """What a layout finds.

    Attributes:
        recordings: files to cut into clips once their headers are read.
        clips: files that are one clip each.
        ledger: a row for each file that is neither, with the reason.
    """

    recordings: list[Recording]
    clips: list[ClipRow]
    ledger: list[LedgerRow]


class Layout(NamedTuple):
    """One data layout.

    Attributes:
        location: `module:function`; the function takes `DataFolders` and returns `LayoutFiles`.
        suffixes: which files the index depends on: it is made anew when one of them changes.
        keys: those keys of a study's section `data` that only some layouts read, and this one does.
        contents: what the layout looks for below `data.root`, for messages; empty if the folders are named.
        clip_s: length of a clip in seconds, if the files are clips already.
    """

    location: str
    suffixes: tuple[str, ...] = AUDIO_SUFFIXES
    keys: frozenset[str] = frozenset()
    contents: str = ""
    clip_s: float | None = None

    def find(self, folders: DataFolders) -> LayoutFiles:
        """The recordings and clips in some folders.

        Raises:
            RecordingError: the folders cannot be used.
        """
        module, _, name = self.location.partition(":")
        files: LayoutFiles = getattr(importlib.import_module(module), name)(folders)
        return files


LAYOUTS = {
    "audio": Layout(
        "faithad.clips.layouts.audio:find_audio",
        keys=frozenset({"synthetic", "train", "test", "recordings", "split.by"}),
    ),
    "planer": Layout(
        "faithad.clips.layouts.planer:find_planer",
        suffixes=(SPECTROGRAM_SUFFIX,),
        keys=frozenset({"training_folders"}),
        contents="training/ and evaluation/",
        clip_s=10.0,
    ),
    "dcase": Layout("faithad.clips.layouts.dcase:find_dcase", contents="<machine>/train/ and <machine>/test/"),
}
