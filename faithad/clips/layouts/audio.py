"""Layout `audio`: recordings in the folders that a study names, and in their subfolders."""

from __future__ import annotations

from faithad.clips.inputs import find_left_out, find_recordings
from faithad.clips.layouts import DataFolders, LayoutFiles


def find_audio(folders: DataFolders) -> LayoutFiles:
    """The recordings in the named folders.

    Raises:
        RecordingError: see `find_recordings`.
    """
    return LayoutFiles(find_recordings(folders.named), [], find_left_out(folders.locations))
