"""Locations, whole writes, tables."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from faithad import storage
from faithad.errors import StudyError

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


def test_files_are_listed_sorted_without_hidden_ones_and_whatever_their_case(tmp_path: Path) -> None:
    for name in ("b.WAV", "a.wav", ".hidden.wav", ".cache/c.wav", "deep/er/ü <d>.wav", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1234")
    found = storage.list_files(str(tmp_path), suffixes=[".wav"])
    assert [relative for relative, _ in found] == ["a.wav", "b.WAV", "deep/er/ü <d>.wav"]
    assert all(storage.read_bytes(location) == b"1234" for _, location in found)
    assert storage.sizes(str(tmp_path), suffixes=[".wav"])[0] == ("a.wav", 4)


def test_uris_are_joined_before_their_options() -> None:
    assert storage.join("s3://bucket/a/", "b", "c.txt") == "s3://bucket/a/b/c.txt"
    assert storage.join("s3://bucket/a?region=x", "b") == "s3://bucket/a/b?region=x"
    assert storage.join("/a?b", "c") == "/a?b/c"
    assert storage.name_of("s3://bucket/a%20b.wav?region=x") == "a b.wav"


def test_tables_of_a_folder_are_read_as_one(tmp_path: Path) -> None:
    for number in (1, 0):
        table = pa.table({"extra": ["x"], "n": [number]})
        storage.write_table(table, str(tmp_path / f"part-{number}.parquet"), schema=SCHEMA)
    assert storage.read_table(str(tmp_path)).to_pydict() == {"n": [0, 1]}
    assert storage.read_table(str(tmp_path / "part-1.parquet")).schema == SCHEMA


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"no table at .*absent"):
        storage.read_table(str(tmp_path / "absent"))


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
