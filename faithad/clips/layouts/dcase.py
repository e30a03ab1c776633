"""Layout `dcase`: the development folders of DCASE Task 2 (unsupervised anomalous sound detection), 2022 to 2025.

    <root>/<machine>/train/section_00_source_train_normal_0001_<attributes>.wav
    <root>/<machine>/test/section_00_target_test_anomaly_0003_<attributes>.wav

A file's folder gives its split and its machine; its name gives the section, the domain and the label. Other files get a
ledger row: those of the evaluation data, whose labels are published separately, and those in `supplemental`.

Source: Dohi et al., "Description and Discussion on DCASE 2022 Challenge Task 2", arXiv 2206.05876.
"""

from __future__ import annotations

import re
from dataclasses import replace

from faithad.clips.inputs import find_left_out, find_recordings
from faithad.clips.layouts import DataFolders, LayoutFiles
from faithad.clips.ledger import ledger_row
from faithad.clips.manifest import Recording

_PATH = re.compile(
    r"(?:.*/)?(?P<machine>[^/]+)/(?P<split>train|test)/section_(?P<section>\d+)_(?P<domain>source|target)_(?P=split)"
    r"_(?P<label>normal|anomaly)_\d+(?:_[^/]*)?\.wav",
    re.IGNORECASE,
)
_EXPECTED = "<machine>/{train,test}/section_00_source_train_normal_0001_<attributes>.wav"


def find_dcase(folders: DataFolders) -> LayoutFiles:
    """The recordings in `<root>/<machine>/{train,test}`, with machine, section, domain, split and label.

    Raises:
        RecordingError: the root does not exist, or holds no recordings.
    """
    recordings: list[Recording] = []
    ledger = find_left_out([folders.root])
    for recording in find_recordings([(None, folders.root)]):
        match = _PATH.fullmatch(recording.path)
        if match is None:
            ledger.append(ledger_row(recording.path, "skipped", f"its path does not end in {_EXPECTED}"))
            continue
        split, label, domain = (match[name].lower() for name in ("split", "label", "domain"))
        if split == "train" and label == "anomaly":
            ledger.append(ledger_row(recording.path, "failed", "is an anomaly in train, whose clips must be normal"))
        else:
            recordings.append(
                replace(
                    recording,
                    split=split,
                    label=int(label == "anomaly"),
                    machine=match["machine"],
                    section=match["section"],
                    domain=domain,
                )
            )
    return LayoutFiles(recordings, [], ledger)
