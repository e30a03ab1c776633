"""Data layouts: what the places and names of files say, and that a new layout is one row."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from faithad.clips.inputs import find_recordings
from faithad.clips.layouts import LAYOUTS, DataFolders, Layout, LayoutFiles
from faithad.config.study import parse_study
from faithad.errors import ConfigError, RecordingError

FILES = {
    "fan/train/section_00_source_train_normal_0001_m-n_W.wav": ("train", 0, "fan", "00", "source"),
    "fan/train/section_00_target_train_normal_0002.wav": ("train", 0, "fan", "00", "target"),
    "fan/test/section_00_source_test_normal_0000_m-n_W.wav": ("test", 0, "fan", "00", "source"),
    "ToyCar/test/section_02_target_test_anomaly_0003.WAV": ("test", 1, "ToyCar", "02", "target"),
}
OTHERS = {
    "fan/test/section_01_0042.wav": "skipped",  # of the evaluation data: its label is not in its name
    "fan/supplemental/section_00_source_supplemental_normal_0001.wav": "skipped",
    "fan/train/section_00_source_test_normal_0001.wav": "skipped",
    "fan/train/section_00_source_train_anomaly_0001.wav": "failed",
    "fan/train/notes.mp3": "skipped",
}


def find_flat(folders: DataFolders) -> LayoutFiles:
    """A layout of these tests: everything below the root is for training."""
    return LayoutFiles(find_recordings([("train", folders.root)]), [], [])


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def test_the_names_of_dcase_files_are_understood(tmp_path: Path) -> None:
    touch(tmp_path, *FILES, *OTHERS)
    recordings, clips, ledger = LAYOUTS["dcase"].find(DataFolders(str(tmp_path)))
    assert clips == []
    assert {
        recording.path.removeprefix(f"{tmp_path.name}/"): (
            recording.split,
            recording.label,
            recording.machine,
            recording.section,
            recording.domain,
        )
        for recording in recordings
    } == FILES
    assert {row["recording"].removeprefix(f"{tmp_path.name}/"): row["status"] for row in ledger} == OTHERS
    assert all(row["reason"] for row in ledger)


def test_the_case_of_dcase_names_does_not_matter(tmp_path: Path) -> None:
    touch(
        tmp_path, "fan/Test/Section_00_Target_Test_Anomaly_0001.WAV", "fan/TRAIN/section_00_source_train_Anomaly_1.wav"
    )
    (recording,), _, (row,) = LAYOUTS["dcase"].find(DataFolders(str(tmp_path)))
    assert (recording.split, recording.label, recording.domain, recording.section) == ("test", 1, "target", "00")
    assert (row["status"], row["reason"]) == ("failed", "is an anomaly in train, whose clips must be normal")


def test_the_folder_of_one_machine_may_be_the_root(tmp_path: Path) -> None:
    touch(tmp_path / "fan", *(name.removeprefix("fan/") for name in FILES if name.startswith("fan/")))
    recordings, _, ledger = LAYOUTS["dcase"].find(DataFolders(str(tmp_path / "fan")))
    assert [recording.machine for recording in recordings] == ["fan"] * 3
    assert ledger == []


def test_a_dcase_root_without_recordings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="does not exist"):
        LAYOUTS["dcase"].find(DataFolders(str(tmp_path / "nowhere")))
    with pytest.raises(RecordingError, match="holds no recordings"):
        LAYOUTS["dcase"].find(DataFolders(str(tmp_path)))


def test_a_new_layout_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.wav")
    study = {"name": "x", "root": "x", "data": {"root": str(tmp_path), "layout": "flat"}}
    with pytest.raises(ConfigError, match=r"data\.layout: must be 'audio', 'planer' or 'dcase', found 'flat'"):
        parse_study(yaml.safe_dump(study), name="x.yaml")
    monkeypatch.setitem(LAYOUTS, "flat", Layout(f"{__name__}:find_flat", contents="WAV files", clip_s=5.0))
    study["data"] |= {"clip_s": 5.0}  # type: ignore[operator]
    data = parse_study(yaml.safe_dump(study), name="x.yaml").data
    (recording,) = LAYOUTS[data.layout].find(data.folders).recordings
    assert recording.split == "train"
    study["data"] |= {"clip_s": 10.0, "train": ["a"], "split": {"by": "time", "train_until": "2019-12-04T09:00"}}  # type: ignore[operator]
    with pytest.raises(ConfigError) as caught:
        parse_study(yaml.safe_dump(study), name="x.yaml")
    assert "data.clip_s: layout 'flat' holds clips of 5 s: leave clip_s out" in str(caught.value)
    assert "data.train: layout 'flat' finds WAV files below data.root by itself: leave train, split.by out" in str(
        caught.value
    )
