"""Locations and whole writes."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pyarrow as pa
import pytest

from faithad import listing, parquet, storage
from faithad.errors import StorageError, StudyError

SCHEMA = pa.schema([pa.field("n", pa.int64(), nullable=False)])


def test_a_file_that_failed_half_way_is_never_seen(tmp_path: Path) -> None:
    location = str(tmp_path / "folder" / "file.txt")
    storage.write_text(location, "old")

    def fail_half_way() -> None:
        with storage.open_output(location) as file:
            file.write(b"half of the ne")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_half_way()
    assert storage.read_text(location) == "old"
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["file.txt"]


def test_a_folder_is_filled_by_whatever_lies_in_it(tmp_path: Path, object_store: str) -> None:
    for location in (str(tmp_path / "filled"), f"{object_store}/filled", "s3://nobody"):
        assert not storage.is_filled(location)
    (tmp_path / "filled").mkdir()
    assert not storage.is_filled(str(tmp_path / "filled"))
    for location in (str(tmp_path / "filled"), f"{object_store}/filled"):
        storage.write_text(f"{location}/monday/.hidden", "x")
        assert storage.is_filled(location)
        assert not storage.is_filled(f"{location}/monday/.hidden")


def test_a_location_that_cannot_be_written_is_named_with_its_cause(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for location in (str(tmp_path / "file" / "table"), str(tmp_path / "file" / "a" / "b"), str(tmp_path / "folder")):
        with pytest.raises(StudyError, match=rf"{re.escape(location)}' cannot be written: .*(irectory|exists)"):
            storage.write_text(location, "y")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StudyError, match=r"cannot be written: .*Permission denied"):
        storage.write_text(str(tmp_path / "a"), "y")


@pytest.mark.parametrize("scheme", ["", "s3"])
@pytest.mark.parametrize("error", [OSError("mine"), pa.ArrowInvalid("mine"), KeyboardInterrupt("mine")])
def test_errors_of_the_block_itself_pass_as_they_are(
    scheme: str, error: BaseException, tmp_path: Path, object_store: str
) -> None:
    location = f"{object_store}/a" if scheme else str(tmp_path / "a")

    def fail() -> None:
        with storage.open_output(location) as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error), match="mine") as caught:
        fail()
    assert caught.value is error
    assert not storage.exists(location)


def test_a_missing_bucket_is_named(object_store: str) -> None:
    location = "s3://nobody/study/stages/a.json"
    for write in (
        lambda: storage.write_text(location, "x"),
        lambda: parquet.write_table(pa.table({"n": [1]}), location, schema=SCHEMA),
    ):
        with pytest.raises(StudyError, match=rf"{location}' cannot be written: (.|\n)*bucket"):
            write()
    storage.write_text(f"{object_store}/a/b.json", "x")
    assert listing.sizes(f"{object_store}/a/b.json", suffixes=[".json"]) == [("b.json", 1)]
    assert listing.list_files(f"{object_store}/a/b.json", suffixes=[".json"]) == [
        ("b.json", f"{object_store}/a/b.json")
    ]


def test_uris_are_joined_before_their_options() -> None:
    assert storage.join("s3://bucket/a/", "b", "c.txt") == "s3://bucket/a/b/c.txt"
    assert storage.join("s3://bucket/a?region=x", "b") == "s3://bucket/a/b?region=x"
    assert storage.join("/a?b", "c") == "/a?b/c"
    assert storage.name_of("s3://bucket/a%20b.wav?region=x") == "a b.wav"


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("s3://bucket", "bucket"),
        ("s3://bucket/a/", "bucket/a"),
        ("gs://bucket/a%20b?retry_limit_seconds=1", "bucket/a b"),
        ("gs://bucket/Säge 7/100% [new] #1/é.wav", "bucket/Säge 7/100% [new] #1/é.wav"),
        ("s3://bucket/Säge 7/100% [new] #1/é.wav", "bucket/Säge 7/100% [new] #1/é.wav"),
        ("file:///mnt/mill/a%20b", "/mnt/mill/a b"),
        ("file:///mnt/mill/a b", "/mnt/mill/a b"),
        ("/mnt/mill/100% a%20b#?", "/mnt/mill/100% a%20b#?"),
    ],
)
def test_a_place_is_the_same_however_it_is_written(location: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")  # nobody is to be asked where a bucket lies
    assert storage.locate(location)[1] == path
    assert storage.locate(storage.quoted(location))[1] == path
    assert storage.quoted(storage.quoted(location)) == storage.quoted(location)


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_store_is_connected_to_once_for_each_account(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    account = {"s3": "AWS_ACCESS_KEY_ID", "gs": "GOOGLE_APPLICATION_CREDENTIALS"}[scheme]
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv(account, "one")
    first = storage.locate(f"{scheme}://bucket/a")[0]
    assert storage.locate(f"{scheme}://bucket/b/c")[0] is first
    assert storage.locate(f"{scheme}://other/a")[0] is not first
    monkeypatch.setenv(account, "two")
    assert storage.locate(f"{scheme}://bucket/a")[0] is not first


def test_what_a_store_misses_is_named_but_not_what_it_has(object_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_text(f"{object_store}/there", "x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do not tell")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(StorageError, match=r"^Location 's3://mill/there' cannot be reached or read: ") as caught:
        storage.exists(f"{object_store}/there")
    assert "Could not connect" in str(caught.value)
    assert str(caught.value).endswith("Not set in the environment here: AWS_ACCESS_KEY_ID.")
    assert "do not tell" not in str(caught.value)


def test_a_store_of_google_that_does_not_answer_is_given_up() -> None:
    location = f"gs://anonymous@mill/a?scheme=http&endpoint_override=127.0.0.1:{closed_port()}&retry_limit_seconds=1"
    for use in (storage.exists, storage.read_text):
        with pytest.raises(StorageError, match="cannot be reached or read"):
            use(location)
    with pytest.raises(StudyError, match="cannot be written"):
        storage.write_text(location, "x")


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("location", ["s3://mill//a", "s3://mill/a//b"])
def test_a_folder_without_a_name_is_refused(location: str, object_store: str) -> None:
    with pytest.raises(StudyError, match="Empty path component"):
        storage.exists(location)


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(StudyError, match=r"'ftp://host/x' cannot be opened.*s3://bucket/folder"):
        storage.exists("ftp://host/x")


def test_deleting_takes_files_folders_and_nothing(tmp_path: Path) -> None:
    storage.write_text(str(tmp_path / "a" / "b.txt"), "x")
    storage.delete(str(tmp_path / "a" / "b.txt"))
    assert not storage.exists(str(tmp_path / "a" / "b.txt"))
    storage.delete(str(tmp_path / "a"))
    storage.delete(str(tmp_path / "a"))
    assert not storage.exists(str(tmp_path / "a"))


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("AWS Error UNKNOWN (HTTP status 400) during PutObject operation: Unable to parse ExceptionName: ExpiredToken "
         "Message: The provided token has expired.",
         "The credentials have expired: renew them; the same command goes on."),
        ("AWS Error UNKNOWN (HTTP status 400) during HeadObject operation: No response body.",
         "Have the credentials expired? Then renew them; the same command goes on."),
    ],
)  # fmt: skip
def test_credentials_that_have_expired_are_to_be_renewed(
    said: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Expired:
        def open_output_stream(self, _: str) -> None:
            raise OSError(said)

        open_input_file = get_file_info = open_output_stream

    monkeypatch.setattr(storage, "locate", lambda location: (Expired(), location))
    for use in (lambda: storage.write_text("s3://mill/a", "x"), lambda: storage.read_text("s3://mill/a")):
        with pytest.raises(StudyError) as caught:
            use()
        assert advice in str(caught.value)
        assert "Not set" not in str(caught.value)
    with pytest.raises(StorageError, match="renew them"):
        storage.exists("s3://mill/a")


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, list[str]]] = []

    def fsync(descriptor: int) -> None:
        flushed = os.readlink(f"/proc/self/fd/{descriptor}")
        done.append(("folder" if os.path.isdir(flushed) else Path(flushed).read_text(), os.listdir(tmp_path / "a")))

    monkeypatch.setattr(os, "fsync", fsync)
    storage.write_text(str(tmp_path / "a" / "mark"), "whole")
    (before, names), (after, names_after) = done
    assert (before, after) == ("whole", "folder")
    assert "mark" not in names
    assert names_after == ["mark"]
    done.clear()
    storage.write_text(str(tmp_path / "a" / "later"), "more", flush=False)
    assert not done
    storage.flush_files(str(tmp_path / "a"))
    assert sorted(what for what, _ in done) == ["folder", "more", "whole"]
