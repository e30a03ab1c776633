"""Finding recordings and published spectrograms, on disk and in an object store."""

from __future__ import annotations

import os
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from faithad import listing, s3_keys, storage
from faithad.clips.annotations import read_annotations
from faithad.clips.inputs import find_left_out, find_recordings
from faithad.clips.layouts import DataFolders
from faithad.clips.layouts.planer import find_planer
from faithad.clips.manifest import attach_annotations, cut_recording, manifest_table
from faithad.clips.recordings import probe_recording, read_clip
from faithad.clips.spectrograms import read_spectrogram
from faithad.errors import RecordingError, StorageError
from faithad.runs.fingerprints import folder_fingerprints


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


# --- recordings -------------------------------------------------------------------------------------------------------


def test_folders_with_their_splits(tmp_path: Path) -> None:
    touch(tmp_path, "train/b.wav", "train/deep/a.FLAC", "train/notes.txt", "train/.hidden.wav", "test/c.wav")
    found = find_recordings([("train", f"{tmp_path}/train/"), ("test", f"{tmp_path}/test")])
    assert [(r.path, r.uri, r.split, r.label) for r in found] == [
        ("test/c.wav", f"{tmp_path}/test/c.wav", "test", None),
        ("train/b.wav", f"{tmp_path}/train/b.wav", "train", None),
        ("train/deep/a.FLAC", f"{tmp_path}/train/deep/a.FLAC", "train", None),
    ]


def test_the_name_does_not_depend_on_how_a_folder_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "train/a.wav")
    monkeypatch.chdir(tmp_path / "train")
    locations = [f"{tmp_path}/train", f"{tmp_path}/train//", ".", "../train", "./", f"{tmp_path}/train/a.wav"]
    for location in locations:
        (found,) = find_recordings([(None, location)])
        assert (found.path, found.uri) == ("train/a.wav", f"{tmp_path}/train/a.wav")


def test_a_single_file(tmp_path: Path) -> None:
    touch(tmp_path, "day/a.wav", "day/b.wav", "day/notes.txt")
    (found,) = find_recordings([("test", f"{tmp_path}/day/b.wav")])
    assert found.path == "day/b.wav"
    with pytest.raises(RecordingError, match="holds no recordings"):
        find_recordings([("test", f"{tmp_path}/day/notes.txt")])


def test_all_problems_at_once(tmp_path: Path) -> None:
    touch(tmp_path, "one/x/a.wav", "two/x/a.wav", "three/notes.txt")
    (tmp_path / "empty").mkdir()
    names = ["one/x", "two/x", "three", "empty", "none", "one"]
    with pytest.raises(RecordingError) as caught:
        find_recordings([("test", f"{tmp_path}/{name}") for name in names])
    text = str(caught.value)
    assert f"{tmp_path}/none does not exist" in text
    assert f"{tmp_path}/empty holds no recordings: no file whose name ends in .wav or .flac" in text
    assert f"{tmp_path}/three holds no recordings" in text
    assert f"{tmp_path}/one/x/a.wav and {tmp_path}/two/x/a.wav would both be called 'x/a.wav'" in text
    assert f"{tmp_path}/one/x/a.wav is named twice" in text


def test_a_location_that_is_given_twice_is_told_once(tmp_path: Path) -> None:
    touch(tmp_path, "week/a.wav", "week/b.wav", "other/a.wav")
    with pytest.raises(RecordingError) as caught:
        find_recordings([(None, f"{tmp_path}/week"), (None, f"{tmp_path}/other"), (None, f"{tmp_path}/week/")])
    assert str(caught.value).splitlines()[1:] == [f"  {tmp_path}/week/ is given twice: give it once."]


def test_of_recordings_named_twice_three_are_told(tmp_path: Path) -> None:
    touch(tmp_path, *(f"year/week/{number}.wav" for number in range(5)))
    with pytest.raises(RecordingError) as caught:
        find_recordings([(None, f"{tmp_path}/year"), (None, f"{tmp_path}/year/week")])
    _, *examples = str(caught.value).splitlines()
    assert [line.split()[0] for line in examples] == [f"{tmp_path}/year/week/{number}.wav" for number in range(3)]
    assert examples[-1].endswith(" and 2 more")


def test_of_recordings_of_one_name_three_pairs_are_told(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{year}/week/{number}.wav" for number in range(4) for year in ("one", "two")))
    with pytest.raises(RecordingError) as caught:
        find_recordings([(None, f"{tmp_path}/one/week"), (None, f"{tmp_path}/two/week")])
    _, *examples = str(caught.value).splitlines()
    assert len(examples) == 3
    assert examples[-1].endswith(" and 1 more")


def test_no_folder_at_all() -> None:
    with pytest.raises(RecordingError, match="No folder is given"):
        find_recordings([])


def test_real_sounds_from_files_to_the_manifest(shared_data: Path) -> None:
    root = shared_data / "real_sounds"
    rows, ledger = [], []
    for recording in find_recordings([("train", f"{root}/train"), ("test", f"{root}/test")]):
        clips, left = cut_recording(recording, probe_recording(recording.uri), clip_s=10.0, remainder="drop")
        rows += clips
        ledger += left
    annotations = read_annotations(f"{root}/annotations.csv")
    table = manifest_table(attach_annotations(rows, annotations, ledger=ledger))
    assert Counter(zip(table["split"].to_pylist(), table["label"].to_pylist(), strict=True)) == {
        ("train", 0): 14,
        ("test", 0): 1,
        ("test", 1): 3,
    }
    assert [row["duration_s"] for row in ledger] == [5.0, 5.0]


# --- the published layout ---------------------------------------------------------------------------------------------


@pytest.fixture
def planer(tmp_path: Path) -> Path:
    for path in (
        "training/2x6/MPD_19-11-29_0700_00001_1.pt",
        "training/2x6/MPD_19-11-29_0700_00001_2.pt",
        "training/machine_start_stop/MPD_19-11-29_0701_00002_6.pt",
        "evaluation/normal/MPD_19-12-04_0848_00006_3.pt",
        "evaluation/anomalies/Uneven_thick_wood/MPD_19-12-04_0848_00006_1.pt",
        "evaluation/anomalies/board_stuck/MPD_19-12-04_1123_00161_4.pt",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        torch.save(torch.zeros(80, 401), tmp_path / path)
    return tmp_path


def test_published_layout(planer: Path) -> None:
    _, rows, ledger = find_planer(DataFolders(str(planer)))
    assert ledger == []
    assert sorted((r.recording, r.onset_s, r.duration_s, r.split, r.label, r.anomaly_type) for r in rows) == [
        ("MPD_19-11-29_0700_00001.wav", 0.0, 10.0, "train", 0, None),
        ("MPD_19-11-29_0700_00001.wav", 10.0, 10.0, "train", 0, None),
        ("MPD_19-11-29_0701_00002.wav", 50.0, 10.0, "train", 0, None),
        ("MPD_19-12-04_0848_00006.wav", 0.0, 10.0, "test", 1, "Uneven_thick_wood"),
        ("MPD_19-12-04_0848_00006.wav", 20.0, 10.0, "test", 0, None),
        ("MPD_19-12-04_1123_00161.wav", 30.0, 10.0, "test", 1, "board_stuck"),
    ]
    assert all(read_spectrogram(row.uri, shape=(80, 401)).shape == (80, 401) for row in rows)
    assert manifest_table(rows)["recorded_at"].null_count == 0


def test_published_annotations_meet_published_clips(planer: Path, shared_data: Path) -> None:
    annotations = read_annotations(str(shared_data / "planer_annotations.csv"))
    for annotation in annotations:
        name = f"{annotation.recording.removesuffix('.wav')}_{annotation.window}.pt"
        touch(planer, f"evaluation/anomalies/{annotation.anomaly_type}/{name}")
    _, rows, _ = find_planer(DataFolders(str(planer)))
    table = manifest_table(attach_annotations(rows, annotations))
    assert table.num_rows == 105 + 4
    assert sum(table["annotated"].to_pylist()) == 46
    assert sum(len(intervals) for intervals in table["intervals"].to_pylist()) == 64
    assert sum(table["label"].to_pylist()) == 105


def test_chosen_training_folders(planer: Path) -> None:
    _, rows, ledger = find_planer(DataFolders(str(planer), training_folders=("2x6",)))
    assert sum(row.split == "train" for row in rows) == 2
    (row,) = ledger
    assert (row["status"], row["recording"]) == ("skipped", "training/machine_start_stop/MPD_19-11-29_0701_00002_6.pt")


def test_files_out_of_place_are_in_the_ledger(planer: Path) -> None:
    touch(
        planer,
        "evaluation/normal/noise.pt",
        "evaluation/normal/MPD_19-12-04_0848_00006.pt",
        "evaluation/normal/MPD_19-12-04_0848_00006_0.pt",
        "evaluation/anomalies/MPD_19-12-04_0848_00006_2.pt",
        "checkpoints/model_1.pt",
        "readme.txt",
    )
    _, rows, ledger = find_planer(DataFolders(str(planer)))
    assert len(rows) == 6
    assert [(row["recording"], row["status"]) for row in ledger] == [
        ("checkpoints/model_1.pt", "skipped"),
        ("MPD_19-12-04_0848_00006.wav", "failed"),
        ("evaluation/normal/MPD_19-12-04_0848_00006.pt", "failed"),
        ("evaluation/normal/MPD_19-12-04_0848_00006_0.pt", "failed"),
        ("evaluation/normal/noise.pt", "failed"),
    ]
    assert all(row["reason"] and row["stage"] == "index" for row in ledger)


def test_anomalies_one_folder_too_high_are_named_as_that(planer: Path, shared_data: Path) -> None:
    """Each in the ledger by its recording and window, so that its row of the annotation table is no unknown clip."""
    annotations = read_annotations(str(shared_data / "planer_annotations.csv"))
    for annotation in annotations:
        name = f"{annotation.recording.removesuffix('.wav')}_{annotation.window}.pt"
        if annotation.anomaly_type != "board_stuck":
            touch(planer, f"evaluation/anomalies/{name}")
    _, rows, ledger = find_planer(DataFolders(str(planer)))
    high = [annotation for annotation in annotations if annotation.anomaly_type != "board_stuck"]
    assert {(row["recording"], row["onset_s"]) for row in ledger} == {(each.recording, each.onset_s) for each in high}
    assert all("lies one folder too high, in evaluation/anomalies/ itself" in str(row["reason"]) for row in ledger)
    assert len(attach_annotations(rows, high, ledger=ledger)) == 6


def test_a_clip_in_train_and_test_is_refused(planer: Path) -> None:
    touch(planer, "training/2x6/MPD_19-12-04_0848_00006_3.pt")
    _, rows, _ = find_planer(DataFolders(str(planer)))
    with pytest.raises(RecordingError, match=r"MPD_19-12-04_0848_00006\.wav at 20 s"):
        manifest_table(rows)


def test_missing_folders_are_named(planer: Path) -> None:
    (planer / "training").rename(planer / "Training")
    (planer / "evaluation/normal/MPD_19-12-04_0848_00006_3.pt").unlink()
    with pytest.raises(RecordingError, match=r"no \.pt files in training/, evaluation/normal/:"):
        find_planer(DataFolders(str(planer)))
    with pytest.raises(RecordingError, match="training/, evaluation/normal/, evaluation/anomalies/"):
        find_planer(DataFolders(str(planer / "nowhere")))
    touch(planer, "file.pt")
    with pytest.raises(RecordingError, match=r"file\.pt has no \.pt files in training/"):
        find_planer(DataFolders(str(planer / "file.pt")))


# --- an object store --------------------------------------------------------------------------------------------------


def test_recordings_in_an_object_store(object_store: str, tmp_path: Path) -> None:
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 45_000)
    for name in ("a.wav", "b.flac"):
        soundfile.write(tmp_path / name, wave, 20_000)
        storage.write_bytes(f"{object_store}/day/train/{name}", (tmp_path / name).read_bytes())
    storage.write_bytes(f"{object_store}/day/train/empty.wav", b"")
    found = find_recordings([("train", f"{object_store}/day/train")])
    assert [r.path for r in found] == ["train/a.wav", "train/b.flac", "train/empty.wav"]
    assert find_recordings([("train", f"{object_store}/day/train/a.wav")]) == found[:1]
    for recording in found[:2]:
        assert probe_recording(recording.uri).n_samples == 45_000
        clip = read_clip(recording.uri, onset_s=1.0, duration_s=1.0, clip_s=1.0, sample_rate_hz=20_000)
        np.testing.assert_allclose(clip, wave[20_000:40_000], atol=1e-4)
    with pytest.raises(RecordingError, match="is empty"):
        probe_recording(found[2].uri)
    with pytest.raises(RecordingError, match="does not exist"):
        probe_recording(f"{object_store}/day/train/none.wav")
    with pytest.raises(RecordingError, match="s3://mill/night does not exist"):
        find_recordings([("train", f"{object_store}/night")])


def test_a_place_that_cannot_be_reached_is_named_with_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(location: str) -> bool:
        raise StorageError(f"Location {location!r} cannot be reached or read: Could not connect.")

    monkeypatch.setattr(storage, "is_folder", fail)
    with pytest.raises(RecordingError, match=rf"{tmp_path} cannot be listed: .*Could not connect\. Check its"):
        find_recordings([("test", str(tmp_path))])


def test_keys_with_two_slashes_are_read_or_named_with_a_way_out(
    object_store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Arrow opens no key with an empty part; boto3 does. A folder may have an object of its own name."""
    place, wave = f"{object_store}/slashes/week", np.random.default_rng(0).uniform(-0.5, 0.5, 45_000)
    soundfile.write(tmp_path / "sound.wav", wave, 20_000, subtype="FLOAT")
    for key in ("week/a.wav", "week//a.wav", "week/day//sub/c.wav"):
        put(f"slashes/{key}", (tmp_path / "sound.wav").read_bytes())
    for key in ("week", "week/", "week/day"):
        put(f"slashes/{key}", b"")
    recordings = find_recordings([("test", place)])
    assert [(recording.path, recording.uri) for recording in recordings] == [
        ("week//a.wav", f"{place}//a.wav"),
        ("week/a.wav", f"{place}/a.wav"),
        ("week/day//sub/c.wav", f"{place}/day//sub/c.wav"),
    ]
    assert find_left_out([place]) == []
    assert len(folder_fingerprints([place], suffixes=[".wav"])) == 3
    for recording in recordings:
        assert probe_recording(recording.uri).n_samples == 45_000
        clip = read_clip(recording.uri, onset_s=1.0, duration_s=1.0, clip_s=1.0, sample_rate_hz=20_000)
        np.testing.assert_allclose(clip, wave[20_000:40_000], atol=1e-6)
    assert storage.size_and_time(f"{place}//a.wav")[0] == (tmp_path / "sound.wav").stat().st_size
    with pytest.raises(RecordingError, match="does not exist"):
        probe_recording(f"{place}//none.wav")

    monkeypatch.setattr(s3_keys, "can_be_read", lambda location: False)
    assert [recording.path for recording in find_recordings([("test", place)])] == ["week/a.wav"]
    rows = find_left_out([place])
    assert [(row["recording"], row["status"]) for row in rows] == [
        ("week//a.wav", "failed"),
        ("week/day//sub/c.wav", "failed"),
    ]
    assert [row["reason"].rpartition('needs boto3 (pip install "faithad[s3]"). Rename it: ')[2] for row in rows] == [
        "aws s3 mv s3://mill/slashes/week//a.wav s3://mill/slashes/week/_/a.wav",
        "aws s3 mv s3://mill/slashes/week/day//sub/c.wav s3://mill/slashes/week/day/_/sub/c.wav",
    ]
    with pytest.raises(StorageError, match=r"week//a\.wav' has an empty part, which needs boto3"):
        storage.read_bytes(f"{place}//a.wav")
    put("slashes/empty", b"")
    with pytest.raises(RecordingError, match="holds no recordings"):
        find_recordings([("test", f"{object_store}/slashes/empty")])


def put(key: str, content: bytes) -> None:
    url = f"{os.environ['AWS_ENDPOINT_URL']}/mill/{key}"
    headers = {"Content-Type": "application/octet-stream"}  # as a form, the server would try to read it
    urllib.request.urlopen(urllib.request.Request(url, data=content, headers=headers, method="PUT")).close()


# --- folders that are not entered -------------------------------------------------------------------------------------


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A disk with the folders that systems make. `lost+found` may not be listed, and nobody looks into the trash."""
    touch(tmp_path, "a.wav", "lost+found/b.wav", ".Trash-0/c.wav", "deep/.Spotlight-V100/d.wav", "deep/e.wav", ".f.wav")
    listed = os.scandir

    def scandir(folder: str) -> Iterator[os.DirEntry[str]]:
        assert not Path(folder).name.startswith("."), "entered a hidden folder"
        if folder.endswith("lost+found"):
            raise PermissionError(13, "Permission denied", folder)
        return listed(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    return tmp_path


def test_a_folder_that_may_not_be_listed_is_one_row_and_hidden_ones_are_not_entered(guarded: Path) -> None:
    name = guarded.name
    assert [r.path for r in find_recordings([("test", str(guarded))])] == [f"{name}/a.wav", f"{name}/deep/e.wav"]
    assert [
        (row["recording"], row["status"], row["reason"].split(":")[0]) for row in find_left_out([str(guarded)])
    ] == [
        (f"{name}/.Trash-0", "skipped", "is a hidden folder, which is not searched"),
        (f"{name}/.f.wav", "skipped", "is hidden"),
        (f"{name}/deep/.Spotlight-V100", "skipped", "is a hidden folder, which is not searched"),
        (f"{name}/lost+found", "failed", "may not be listed"),
    ]
    assert set(folder_fingerprints([str(guarded)], suffixes=[".wav"])) == {f"{name}/a.wav", f"{name}/deep/e.wav"}


def test_results_in_a_folder_that_may_not_be_listed_are_not_taken_for_none(guarded: Path) -> None:
    with pytest.raises(PermissionError, match=r"lost\+found"):
        listing.list_files(str(guarded), suffixes=[".wav"])


def test_published_spectrograms_that_may_not_be_listed_are_one_row(
    planer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = os.scandir

    def scandir(folder: str) -> Iterator[os.DirEntry[str]]:
        if folder.endswith("machine_start_stop"):
            raise PermissionError(13, "Permission denied", folder)
        return listed(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    _, rows, ledger = find_planer(DataFolders(str(planer)))
    assert len(rows) == 5
    assert [(row["recording"], row["status"]) for row in ledger] == [("training/machine_start_stop", "failed")]


def test_a_folder_of_recordings_that_may_not_be_listed_itself_is_refused(guarded: Path) -> None:
    with pytest.raises(RecordingError, match=r"lost\+found cannot be listed: .*Permission denied"):
        find_recordings([("test", f"{guarded}/lost+found")])
