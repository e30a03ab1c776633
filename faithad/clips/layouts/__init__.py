"""The table of data layouts: how the files of a data set are arranged, and what their folders and names mean.

To add a layout, add a module beside this one and a row to `LAYOUTS`. This module does not import torch, numpy or
pyarrow, because configurations are checked against the table; the module of a layout is imported when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, NamedTuple

from faithad.vocabulary import AUDIO_SUFFIXES, SPECTROGRAM_SUFFIX

if TYPE_CHECKING:
    from faithad.clips.ledger import LedgerRow
    from faithad.clips.manifest import ClipRow, Recording


class DataFolders(NamedTuple):
    """The folders of a study's data.

    Attributes:
        root: `data.root`, a local path or a URI.
        named: (split, location) of the folders in `data.train`, `data.test` and `data.recordings`; the split is None
            for the last of these, because a table or the time gives it.
        training_folders: `data.training_folders`.
    """

    root: str
    named: tuple[tuple[str | None, str], ...] = ()
    training_folders: tuple[str, ...] | None = None

    @property
    def locations(self) -> list[str]:
        """All folders that are read: the named ones, or else the root."""
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
        suffixes: of the files on which the index depends: if one of them changes, the index is made again.
        keys: keys of a study's section `data` that this layout reads, but not every layout.
        contents: what the layout reads below `data.root`, for messages; empty if the study names folders.
        clip_s: seconds of a clip, if each file is a clip.
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
        keys=frozenset({"synthetic", "train", "test", "recordings", "split.by", "channel", "add_normals"}),
    ),
    "planer": Layout(
        "faithad.clips.layouts.planer:find_planer",
        suffixes=(SPECTROGRAM_SUFFIX,),
        keys=frozenset({"training_folders"}),
        contents="training/ and evaluation/",
        clip_s=10.0,
    ),
    "dcase": Layout(
        "faithad.clips.layouts.dcase:find_dcase",
        keys=frozenset({"channel", "add_normals"}),
        contents="<machine>/train/ and <machine>/test/",
    ),
}
