"""What a data layout is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

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
    named: tuple[tuple[str | None, str], ...]
    training_folders: tuple[str, ...] | None

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
    """A data layout.

    Attributes:
        suffixes: which files the index reads; it is made anew when one of them changes.
        find: finds the clips and recordings. Raises `RecordingError` where the folders cannot be used.
        keys: the keys of a study's section `data` that only some layouts read, and this one does.
        contents: what the layout finds below `data.root` by itself, for messages; empty where the folders are named.
        clip_s: length of a clip in seconds where the files are clips already.
    """

    suffixes: tuple[str, ...]
    find: Callable[[DataFolders], LayoutFiles]
    keys: frozenset[str] = frozenset()
    contents: str = ""
    clip_s: float | None = None
