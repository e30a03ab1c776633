"""The clips of a shard, without Ray: what becomes of those that cannot be read."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from faithad import storage
from faithad.clips import access, sound_files
from faithad.clips.manifest import ClipRow, Recording, manifest_table
from faithad.errors import StorageError
from faithad.pipelines import headers
from faithad.pipelines.shards import log_mels
from faithad.pipelines.shards.log_mels import add_log_mels, with_looks
from faithad.runs.fingerprints import Fingerprint, Look, look
from faithad.settings import FeatureSettings
from tests.clips.faulty_store import FaultyStore, faulty_store

RATE_HZ = 8_000
FEATURES = FeatureSettings(sample_rate_hz=RATE_HZ, n_fft=400, hop_samples=200, n_mels=16, clip_s=1.0)
KEYS = [f"week/{name}.wav" for name in "abcdef"]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """Six recordings of three clips each."""
    monkeypatch.setattr(access, "_PAUSES_S", (0.0,))
    monkeypatch.setattr(storage, "_PAUSES_S", ())  # requests are counted
    sound = io.BytesIO()
    soundfile.write(sound, np.random.default_rng(0).uniform(-0.5, 0.5, 3 * RATE_HZ), RATE_HZ, format="WAV")
    with faulty_store(dict.fromkeys(KEYS, sound.getvalue())) as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        yield store


def read(mark: Path) -> tuple[pa.Table, dict[str, int]]:
    """The clips that could be read, and how many could not, by their recordings."""
    rows = [ClipRow(key, f"s3://mill/{key}", float(onset_s), 1.0, "test") for key in KEYS for onset_s in range(3)]
    clips, failed = add_log_mels(manifest_table(rows), FEATURES, mark=str(mark), run="r")
    names = [row["recording"] for row in failed]
    return clips, {name: names.count(name) for name in names}


def test_what_is_wrong_with_files_costs_their_clips_alone(store: FaultyStore, tmp_path: Path) -> None:
    del store.objects[KEYS[0]]
    store.objects[KEYS[1]] = store.objects[KEYS[1]][: 2 * RATE_HZ * 2]
    store.objects[KEYS[2]] = b"Dear mill, the recorder is broken."
    store.fails = lambda request: 403 if KEYS[3] in request else None
    clips, failed = read(tmp_path / "mark.json")
    assert failed == {KEYS[0]: 3, KEYS[1]: 2, KEYS[2]: 3, KEYS[3]: 3}
    assert clips.num_rows == 18 - 11


def test_a_store_that_cannot_be_reached_fails_no_clip(store: FaultyStore, tmp_path: Path) -> None:
    store.fails = lambda _: 403 if len(store.asked) > 20 else None
    with pytest.raises(
        StorageError, match=r"Location 's3://mill/week' cannot be reached .* it continues where it stopped"
    ):
        read(tmp_path / "mark.json")
    assert not (tmp_path / "mark.json").exists(), "no death is to be counted"
    assert len(store.asked) < 60, "all others are not waited for"
    store.fails = lambda _: None
    assert read(tmp_path / "mark.json")[0].num_rows == 18


def test_a_store_that_cannot_be_reached_fails_no_recording(store: FaultyStore, tmp_path: Path) -> None:
    found = [Recording(key, f"s3://mill/{key}", "test") for key in KEYS]
    del store.objects[KEYS[0]]
    read_some = headers._read_some(found, str(tmp_path / "mark.json"), "r")
    assert [isinstance(header, str) for header in read_some] == [True, False, False, False, False, False]
    store.fails = lambda _: 403
    with pytest.raises(StorageError, match="'s3://mill/week' cannot be reached"):
        headers._read_some(found, str(tmp_path / "mark.json"), "r")


def test_a_file_that_does_not_answer_costs_its_clips_alone_and_is_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening a pipe without a writer blocks, as a file does whose network drive has died; its clips stand between."""
    sound, pipe = tmp_path / "a.wav", tmp_path / "b.wav"
    soundfile.write(sound, np.random.default_rng(0).uniform(-0.5, 0.5, 3 * RATE_HZ), RATE_HZ)
    os.mkfifo(pipe)
    looks = {sound.name: look(str(sound)), pipe.name: Look(Fingerprint(48_044, "0" * 16), 1)}
    monkeypatch.setattr(log_mels, "_PATIENCE_S", 0.5)
    monkeypatch.setattr(os.path, "isfile", lambda path: True)  # the pipe passes for a file
    monkeypatch.setattr(storage, "is_file", lambda location: True)
    monkeypatch.setattr(sound_files, "_refuse_no_file", lambda uri: None)
    rows = [ClipRow(file.name, str(file), float(k), 1.0, "test") for k in range(3) for file in (sound, pipe)]
    clips = with_looks(manifest_table(rows), looks)
    started = time.monotonic()
    try:
        done, failed = add_log_mels(clips, FEATURES, mark=str(tmp_path / "mark.json"), run="this")
    finally:
        pipe.open("wb").close()  # its thread ends
    assert time.monotonic() - started < 2 * 0.5
    assert done["recording"].to_pylist() == ["a.wav"] * 3
    assert [(row["recording"], row["status"]) for row in failed] == [("b.wav", "failed")] * 3
    assert {row["reason"].partition(" has not answered for ")[0] for row in failed} == {str(pipe)}
