"""Layout `audio`: recordings in named folders and below. Which folder a recording lies in may give its split."""

from __future__ import annotations

from faithad.clips.layouts.layout import DataFolders, Layout, LayoutFiles
from faithad.vocabulary import AUDIO_SUFFIXES


def find_audio(folders: DataFolders) -> LayoutFiles:
    """The recordings in the named folders.

    Raises:
        RecordingError: as `inputs.find_recordings`.
    """
    from faithad.clips.inputs import find_left_out, find_recordings

    return LayoutFiles(find_recordings(folders.named), [], find_left_out(folders.locations))


AUDIO = Layout(
    suffixes=AUDIO_SUFFIXES,
    find=find_audio,
    keys=frozenset({"synthetic", "train", "test", "recordings", "split.by"}),
)
