"""What cannot be got at: a file of its own fault, or all of them because their disk or store is away."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import re
import shutil
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from faithad import listing, parquet, storage
from faithad.clips import access
from faithad.clips.access import read_or_reason
from faithad.clips.recordings import read_clip
from faithad.errors import RecordingError, StorageError
from faithad.runs.fingerprints import UNREADABLE, fingerprint, fingerprints
from tests.clips.faulty_store import FaultyStore, faulty_store

RATE_HZ = 20_000


def noise(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * RATE_HZ))


def write(path: Path, samples: np.ndarray) -> str:
    soundfile.write(path, samples, RATE_HZ)
    return str(path)


def read(uri: str, onset_s: float) -> np.ndarray:
    return read_clip(uri, onset_s=onset_s, duration_s=1.0, clip_s=1.0, sample_rate_hz=RATE_HZ)


def clip_or_reason(uri: str, name: str = "week/a.wav", onset_s: float = 0.0) -> np.ndarray | str:
    return read_or_reason(name, uri, lambda: read(uri, onset_s))


def test_a_missing_file_is_its_own_fault_as_long_as_its_folder_holds_something(tmp_path: Path) -> None:
    (tmp_path / "week" / "monday").mkdir(parents=True)
    uri = write(tmp_path / "week" / "monday" / "a.wav", noise(1.0))
    name = "week/monday/a.wav"
    assert isinstance(clip_or_reason(uri, name), np.ndarray)
    assert "does not exist" in clip_or_reason(str(tmp_path / "week" / "monday" / "b.wav"), "week/monday/b.wav")
    shutil.rmtree(tmp_path / "week" / "monday")
    (tmp_path / "week" / "tuesday").mkdir()
    assert "does not exist" in clip_or_reason(uri, name)


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("left", ["nothing", "an empty mount point", "a file"])
def test_a_folder_that_vanished_is_no_fault_of_its_files(tmp_path: Path, left: str, scheme: str) -> None:
    folder = tmp_path / "week"
    if left == "an empty mount point":
        folder.mkdir()
    elif left == "a file":
        folder.touch()
    with pytest.raises(StorageError) as caught:
        clip_or_reason(f"{scheme}{folder}/monday/a.wav", "week/monday/a.wav")
    assert str(caught.value) == (
        f"The recordings are out of reach. Location '{scheme}{folder}' is gone, or holds nothing any more. No clip "
        "counts as failed for this reason. Repeat the command when they can be read again: it continues where it "
        "stopped."
    )


@pytest.mark.parametrize("left", ["nothing", "an empty mount point"])
def test_a_disk_below_the_folder_that_vanished_is_no_fault_of_its_files(tmp_path: Path, left: str) -> None:
    """Each disk has its mount point below the folder: what is left of one that is away is empty."""
    for disk in ("one", "two"):
        (tmp_path / "media" / disk / "week").mkdir(parents=True)
        write(tmp_path / "media" / disk / "week" / "a.wav", noise(1.0))
    uri, name = str(tmp_path / "media" / "two" / "week" / "a.wav"), "media/two/week/a.wav"
    shutil.rmtree(tmp_path / "media" / "two")
    if left == "nothing":
        assert "does not exist" in clip_or_reason(uri, name)
        return
    (tmp_path / "media" / "two").mkdir()
    with pytest.raises(StorageError, match=r"Location '.*/media/two' is gone, or holds nothing any more\."):
        clip_or_reason(uri, name)


@pytest.mark.parametrize("folder", ["training/2x6", "evaluation/anomalies/stuck"])
def test_published_spectrograms_are_looked_for_up_to_their_data_set(tmp_path: Path, folder: str) -> None:
    """They have bare names. A class whose last file is gone from a store leaves no folder."""
    uri = str(tmp_path / "planer" / folder / "a_6.pt")
    (tmp_path / "planer" / "training").mkdir(parents=True)
    (tmp_path / "planer" / "evaluation" / "normal").mkdir(parents=True)
    (tmp_path / "planer" / "training" / "other.pt").touch()
    access.require_reach("a.wav", uri)
    shutil.rmtree(tmp_path / "planer")
    with pytest.raises(StorageError, match="out of reach"):
        access.require_reach("a.wav", uri)


def test_a_network_drive_that_forgets_a_file_for_a_moment_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, opened = write(tmp_path / "a.wav", noise(1.0)), storage.open_input
    errors = iter([OSError(116, "Stale file handle")])

    def stale(location: str) -> object:
        for error in errors:
            raise error
        return opened(location)

    monkeypatch.setattr(storage, "open_input", stale)
    assert isinstance(clip_or_reason(uri), np.ndarray)


def test_a_single_file_may_lie_in_a_folder_that_may_not_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbid(_: str) -> None:
        raise PermissionError(13, "Permission denied")

    uri = str(tmp_path / "b.wav")
    write(tmp_path / "a.wav", noise(1.0))
    monkeypatch.setattr(os, "scandir", forbid)
    assert "does not exist" in clip_or_reason(uri, "b.wav")
    assert "does not exist" in clip_or_reason(f"file://{uri}/", "b.wav")
    with pytest.raises(StorageError, match="is gone"):
        clip_or_reason(uri, f"{tmp_path.name}/week/b.wav")


def test_a_disk_that_fails_is_told_from_a_file_that_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = write(tmp_path / "a.wav", noise(1.0))

    def fail(*_: object) -> None:
        raise OSError(107, "Transport endpoint is not connected")

    monkeypatch.setattr(storage, "open_input", fail)
    assert "a.wav cannot be read: Transport endpoint is not connected." in clip_or_reason(uri)
    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(StorageError, match=rf"'{tmp_path}' cannot be listed: Transport endpoint is not connected\."):
        clip_or_reason(uri)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_an_error_while_the_decoder_reads_is_not_taken_for_the_end_of_the_file(tmp_path: Path, suffix: str) -> None:
    """It passes through a callback of the decoder, which only knows bytes."""
    uri = write(tmp_path / f"a{suffix}", noise(30.0))
    opened = pa.OSFile(uri)

    class Failing:
        seek, tell, size = opened.seek, opened.tell, opened.size

        @staticmethod
        def readinto(buffer: memoryview) -> int:
            if opened.tell() > 500_000:
                raise OSError(5, "Input/output error")
            return int(opened.readinto(buffer))

    with opened, pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "open_input", lambda _: contextlib.nullcontext(Failing))
        with pytest.raises(RecordingError, match=r"cannot be read: Input/output error"):
            read(uri, onset_s=25.0)
        opened.seek(0)
        assert read(uri, onset_s=1.0).any()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """`s3://mill/week/a.wav` and a neighbour, in a store that fails as it is told."""
    monkeypatch.setattr(access, "_PAUSES_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(storage, "_PAUSES_S", (0.0,) * 5)
    content = Path(write(tmp_path / "a.wav", noise(30.0))).read_bytes()
    with faulty_store({"week/a.wav": content, "week/b.wav": content}) as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        yield store


def test_a_key_that_is_missing_is_its_own_fault(store: FaultyStore) -> None:
    assert isinstance(clip_or_reason("s3://mill/week/a.wav"), np.ndarray)
    del store.objects["week/a.wav"]
    before = len(store.asked)
    assert "does not exist" in clip_or_reason("s3://mill/week/a.wav")
    assert len(store.asked) - before < 6, "there is nothing to try again"


def test_a_key_that_is_forbidden_is_its_own_fault(store: FaultyStore) -> None:
    store.fails = lambda request: 403 if "a.wav" in request else None
    assert "ACCESS_DENIED" in clip_or_reason("s3://mill/week/a.wav")
    assert isinstance(clip_or_reason("s3://mill/week/b.wav"), np.ndarray)


def test_a_store_that_refuses_a_fifth_of_all_requests_at_random_loses_nothing(store: FaultyStore) -> None:
    draw = random.Random(7)
    store.fails = lambda _: 403 if draw.random() < 0.2 else None
    for onset_s in range(25):
        assert isinstance(clip_or_reason("s3://mill/week/a.wav", onset_s=onset_s), np.ndarray)
    assert len(fingerprints([("week/a.wav", "s3://mill/week/a.wav"), ("week/b.wav", "s3://mill/week/b.wav")])) == 2
    assert [path for path, _ in listing.list_files("s3://mill/week", suffixes=[".wav"])] == ["a.wav", "b.wav"]


def test_a_store_that_sends_half_an_object_at_random_gives_the_whole_sound(store: FaultyStore) -> None:
    """With a length that matches the half, so that no client notices."""
    whole = [clip_or_reason("s3://mill/week/a.wav", onset_s=onset_s) for onset_s in range(25)]
    truth = fingerprint("s3://mill/week/a.wav")
    draw = random.Random(7)
    store.halves = lambda request: request.startswith("GET /mill/week/") and draw.random() < 0.2
    for onset_s in range(25):
        np.testing.assert_array_equal(clip_or_reason("s3://mill/week/a.wav", onset_s=onset_s), whole[onset_s])
    assert [fingerprint("s3://mill/week/a.wav") for _ in range(20)] == [truth] * 20
    assert {storage.read_bytes("s3://mill/week/a.wav") for _ in range(20)} == {store.objects["week/a.wav"]}
    assert store.n_halved > 10


def test_a_store_that_always_sends_half_gives_no_sound_no_fingerprint_and_no_mark(store: FaultyStore) -> None:
    store.halves = lambda request: request.startswith("GET /mill/week/a.wav")
    assert re.search(r"cannot be read: .*fewer than .* bytes came", str(clip_or_reason("s3://mill/week/a.wav")))
    assert fingerprint("s3://mill/week/a.wav").digest == UNREADABLE
    with pytest.raises(StorageError, match="bytes came"):
        storage.read_bytes("s3://mill/week/a.wav")


def test_a_table_is_read_whole_from_a_store_that_sends_halves(store: FaultyStore) -> None:
    table = pa.table({"n": list(range(10_000))})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    store.objects["week/table.parquet"] = sink.getvalue().to_pybytes()
    draw = random.Random(7)
    store.halves = lambda request: request.startswith("GET /mill/week/") and draw.random() < 0.2
    for _ in range(10):
        assert parquet.read_table("s3://mill/week/table.parquet").equals(table)
    assert store.n_halved > 2


def test_arrows_threads_never_hold_the_last_reference_to_a_file(store: FaultyStore) -> None:
    """They drop it some time after the table was read: a process that ended meanwhile aborted."""
    with storage.open_input("s3://mill/week/a.wav") as file:
        kept = weakref.ref(file)
    del file
    gc.collect()
    assert kept() is not None


@pytest.mark.parametrize("status", [400, 403])
def test_credentials_that_expired_are_no_fault_of_the_files(store: FaultyStore, status: int) -> None:
    store.fails = lambda _: status
    with pytest.raises(StorageError, match=r"^The recordings are out of reach\. Location 's3://mill/week' cannot be "):
        clip_or_reason("s3://mill/week/a.wav")


def test_a_store_that_lost_its_bucket_is_no_fault_of_the_files(store: FaultyStore) -> None:
    store.objects.clear()
    with pytest.raises(StorageError, match=r"Location 's3://mill/week' is gone, or holds nothing any more\."):
        clip_or_reason("s3://mill/week/a.wav")


def test_a_store_that_is_busy_for_a_moment_is_asked_again(store: FaultyStore) -> None:
    busy = iter([503, 503, None])
    store.fails = lambda request: next(busy, None) if request.startswith("GET /mill/week/a.wav") else None
    assert isinstance(clip_or_reason("s3://mill/week/a.wav", onset_s=25.0), np.ndarray)


def test_a_folder_that_is_silent_is_not_waited_for(store: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "_LOOK_S", 0.1)
    is_over = threading.Event()
    store.fails = lambda request: 403 if "a.wav" in request or is_over.wait(5.0) else None
    with pytest.raises(StorageError, match=r"Location 's3://mill/week' does not answer\."):
        clip_or_reason("s3://mill/week/a.wav")
    is_over.set()


def test_a_store_that_goes_away_within_a_file_is_no_fault_of_the_file(store: FaultyStore) -> None:
    """The header is read, and then nothing is answered any more."""
    store.fails = lambda _: 403 if sum("GET /mill/week/a.wav" in request for request in store.asked) > 1 else None
    with pytest.raises(StorageError, match="out of reach"):
        clip_or_reason("s3://mill/week/a.wav", onset_s=25.0)
