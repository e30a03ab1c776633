"""Layout `planer`: the published wood planer data (Deschênes et al., arXiv 2501.04819), one `.pt` file per clip.

    <root>/training/<board>/                  train
    <root>/evaluation/normal/                 test, normal
    <root>/evaluation/anomalies/<type>/       test, anomalous

A file's name gives its recording and its window: `MPD_19-12-04_0848_00006_3.pt` is the third 10 s of a recording. The
recording's name has no folders (`MPD_19-12-04_0848_00006.wav`), because its clips may lie in several folders.
"""

from __future__ import annotations

import re

from faithad import listing, storage
from faithad.clips.inputs import UNREADABLE, absolute
from faithad.clips.layouts import DataFolders, LayoutFiles
from faithad.clips.ledger import ledger_row
from faithad.clips.manifest import ClipRow
from faithad.errors import RecordingError
from faithad.vocabulary import SPECTROGRAM_SUFFIX

_TRAINING, _NORMAL, _ANOMALIES = _FOLDERS = "training/", "evaluation/normal/", "evaluation/anomalies/"
# The number of a window has no leading zeros; the number at the end of a recording's name has.
_CLIP_NAME = re.compile(r"(?P<stem>.+)_(?P<window>[1-9]\d{0,3})\.pt", re.IGNORECASE)
_WINDOW_S = 10.0


def find_planer(folders: DataFolders) -> LayoutFiles:
    """The clips below the root, from all folders of `training` or only from `training_folders`.

    Raises:
        RecordingError: one of the three folders is missing or empty.
    """
    root, chosen = folders.root, folders.training_folders
    try:
        files = listing.list_files(absolute(root), suffixes=[SPECTROGRAM_SUFFIX], leave_out_unreadable=True)
        unreadable = [entry.path for entry in listing.walk(absolute(root)) if entry.kind == "unreadable"]
    except OSError as error:
        wrong = str(error).rstrip(".")
        raise RecordingError(f"{root} cannot be listed: {wrong}. Give the data set's top folder.") from error
    if missing := [folder for folder in _FOLDERS if not any(path.startswith(folder) for path, _ in files)]:
        raise RecordingError(
            f"{root} has no {SPECTROGRAM_SUFFIX} files in {', '.join(missing)}: the published layout has all of "
            f"{', '.join(_FOLDERS)}. Is this the data set's top folder, and was all of it downloaded?"
        )
    clips: list[ClipRow] = []
    ledger = [ledger_row(path, "failed", UNREADABLE) for path in unreadable]
    for path, uri in files:
        name = _CLIP_NAME.fullmatch(storage.name_of(path))
        below = path.split("/")[1:-1]  # ["2x6"], ["normal"] or ["anomalies", "board_stuck"], as published
        split = "train" if path.startswith(_TRAINING) else "test"
        anomaly_type = below[1] if path.startswith(_ANOMALIES) and len(below) > 1 else None
        recording = f"{name['stem']}.wav" if name else path
        onset_s = (int(name["window"]) - 1) * _WINDOW_S if name else 0.0
        if not path.startswith(_FOLDERS):
            ledger.append(ledger_row(path, "skipped", f"lies in none of {', '.join(_FOLDERS)}"))
        elif split == "train" and chosen is not None and not set(below[:1]) & set(chosen):
            allowed = ", ".join(sorted(chosen))
            ledger.append(ledger_row(path, "skipped", f"lies in none of the chosen training folders {allowed}"))
        elif path.startswith(_ANOMALIES) and anomaly_type is None:
            # By its recording and window, so that its row in the annotation table is no row of an unknown clip.
            reason = f"{path} lies one folder too high, in {_ANOMALIES} itself: its folder must name the anomaly"
            ledger.append(ledger_row(recording, "failed", reason, onset_s=onset_s, duration_s=_WINDOW_S))
        elif name is None:
            reason = "its name does not end in the number of its window, such as _1.pt for the recording's first 10 s"
            ledger.append(ledger_row(path, "failed", reason))
        else:
            label = int(anomaly_type is not None)
            clips.append(ClipRow(recording, uri, onset_s, _WINDOW_S, split, label, anomaly_type))
    return LayoutFiles([], clips, ledger)
