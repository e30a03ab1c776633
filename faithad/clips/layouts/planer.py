"""Layout `planer`: the published wood planer data (Deschênes et al., arXiv 2501.04819), one `.pt` file per clip.

    <root>/training/<board>/                  train
    <root>/evaluation/normal/                 test, normal
    <root>/evaluation/anomalies/<type>/       test, anomalous

A file's name gives its recording and its window: `MPD_19-12-04_0848_00006_3.pt` is the third 10 s of a recording. The
recording is called by its bare name (`MPD_19-12-04_0848_00006.wav`), because its clips may lie in several folders.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from faithad.clips.layouts.layout import DataFolders, Layout, LayoutFiles
from faithad.errors import RecordingError
from faithad.vocabulary import SPECTROGRAM_SUFFIX

if TYPE_CHECKING:
    from faithad.clips.ledger import LedgerRow
    from faithad.clips.manifest import ClipRow

_TRAINING, _NORMAL, _ANOMALIES = _FOLDERS = "training/", "evaluation/normal/", "evaluation/anomalies/"
# A window's number has no leading zeros; the recording's own number, at the end of a recording's name, has.
_CLIP_NAME = re.compile(r"(?P<stem>.+)_(?P<window>[1-9]\d{0,3})\.pt", re.IGNORECASE)
_WINDOW_S = 10.0


def find_spectrograms(
    root: str, *, training_folders: Collection[str] | None = None
) -> tuple[list[ClipRow], list[LedgerRow]]:
    """The clips of a data set in this layout.

    Args:
        root: the folder that holds `training` and `evaluation`, local or remote.
        training_folders: which folders of `training` to take, all by default; files in others are skipped.

    Returns:
        The clips, and a ledger row for each file that is none: its name cannot be understood, or it lies elsewhere.

    Raises:
        RecordingError: one of the three folders is missing or empty.
    """
    from faithad import storage
    from faithad.clips.inputs import absolute
    from faithad.clips.ledger import ledger_row
    from faithad.clips.manifest import ClipRow

    try:
        files = storage.list_files(absolute(root), suffixes=[SPECTROGRAM_SUFFIX])
    except OSError as error:
        wrong = str(error).rstrip(".")
        raise RecordingError(f"{root} cannot be listed: {wrong}. Give the data set's top folder.") from error
    if missing := [folder for folder in _FOLDERS if not any(path.startswith(folder) for path, _ in files)]:
        raise RecordingError(
            f"{root} has no {SPECTROGRAM_SUFFIX} files in {', '.join(missing)}: the published layout has all of "
            f"{', '.join(_FOLDERS)}. Is this the data set's top folder, and was all of it downloaded?"
        )
    clips: list[ClipRow] = []
    ledger: list[LedgerRow] = []
    for path, uri in files:
        name = _CLIP_NAME.fullmatch(storage.name_of(path))
        below = path.split("/")[1:-1]  # ["2x6"], ["normal"] or ["anomalies", "board_stuck"], as published
        split = "train" if path.startswith(_TRAINING) else "test"
        anomaly_type = below[1] if path.startswith(_ANOMALIES) and len(below) > 1 else None
        if not path.startswith(_FOLDERS):
            ledger.append(ledger_row(path, "skipped", f"lies in none of {', '.join(_FOLDERS)}"))
        elif split == "train" and training_folders is not None and not set(below[:1]) & set(training_folders):
            allowed = ", ".join(sorted(training_folders))
            ledger.append(ledger_row(path, "skipped", f"lies in none of the chosen training folders {allowed}"))
        elif path.startswith(_ANOMALIES) and anomaly_type is None:
            ledger.append(ledger_row(path, "failed", f"lies in {_ANOMALIES} itself: its folder must name the anomaly"))
        elif name is None:
            reason = "its name does not end in the number of its window, such as _1.pt for the recording's first 10 s"
            ledger.append(ledger_row(path, "failed", reason))
        else:
            recording, onset_s = f"{name['stem']}.wav", (int(name["window"]) - 1) * _WINDOW_S
            label = int(anomaly_type is not None)
            clips.append(ClipRow(recording, uri, onset_s, _WINDOW_S, split, label, anomaly_type))
    return clips, ledger


def _find(folders: DataFolders) -> LayoutFiles:
    clips, ledger = find_spectrograms(folders.root, training_folders=folders.training_folders)
    return LayoutFiles([], clips, ledger)


PLANER = Layout(
    suffixes=(SPECTROGRAM_SUFFIX,),
    find=_find,
    keys=frozenset({"training_folders"}),
    contents="training/ and evaluation/",
    clip_s=_WINDOW_S,
)
