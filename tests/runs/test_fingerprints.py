"""Fingerprints: what they notice, and that they stay the same wherever a file lies."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faithad.errors import StorageError
from faithad.runs.fingerprints import UNREADABLE, contents, fingerprint, fingerprints, folder_fingerprints

PART = 1 << 16


@settings(max_examples=50, deadline=None, derandomize=True)
@given(size=st.integers(1, 3 * PART), where=st.floats(0, 1, exclude_max=True))
def test_any_changed_byte_of_a_file_of_three_parts_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, size: int, where: float
) -> None:
    file = tmp_path_factory.mktemp("f") / "a.wav"
    content = bytearray(size)
    file.write_bytes(content)
    before = fingerprint(str(file))
    content[int(where * size)] ^= 1
    file.write_bytes(content)
    assert before.bytes == size
    assert fingerprint(str(file)) != before


@pytest.mark.parametrize("place", [0, 5_000_000, 9_999_999])
def test_start_middle_and_end_of_a_long_file_are_looked_at(tmp_path: Path, place: int) -> None:
    file = tmp_path / "long.wav"
    with file.open("wb") as f:
        f.truncate(10_000_000)
    before = fingerprint(str(file))
    with file.open("r+b") as f:
        f.seek(place)
        f.write(b"x")
    assert fingerprint(str(file)) != before


def test_a_file_may_move_and_be_touched(tmp_path: Path) -> None:
    old, new = tmp_path / "old.wav", tmp_path / "new.wav"
    old.write_bytes(b"sound" * 1000)
    before = fingerprint(str(old))
    old.rename(new)
    os.utime(new, (0, 0))
    assert fingerprint(str(new)) == before


def test_what_cannot_be_read_has_a_fingerprint_of_its_own(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")  # nobody writes into it: to open it would wait for ever
    for name in ("pipe.wav", "absent.wav"):
        assert fingerprint(str(tmp_path / name)) == (None, UNREADABLE)


def test_a_folder_that_vanished_gives_no_fingerprints(tmp_path: Path) -> None:
    places = [tmp_path / "week" / "monday" / name for name in ("a.wav", "b.wav")]
    places[0].parent.mkdir(parents=True)
    for place in places:
        place.write_bytes(b"sound")
    files = [(str(place.relative_to(tmp_path)), str(place)) for place in places]
    places[0].unlink()
    assert [each.bytes for each in fingerprints(files)] == [None, 5]
    shutil.rmtree(tmp_path / "week")
    with pytest.raises(StorageError, match=r"out of reach\. Location '.*/week' is gone, or holds nothing"):
        fingerprints(files)


def test_a_folder_whose_name_is_no_text_costs_its_own_files(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path / "week")
    os.makedirs(folder + b"/\xdcber")
    for name in (b"/a.wav", b"/\xdcber/b.wav"):
        Path(os.fsdecode(folder + name)).write_bytes(b"sound")
    found = folder_fingerprints([str(tmp_path / "week")], suffixes=[".wav"])
    assert sorted(digest == UNREADABLE for digest in found.values()) == [False, True]


def test_folders_are_told_by_the_names_below_them(tmp_path: Path) -> None:
    for name in ("mill/a.wav", "mill/b/c.FLAC", "mill/notes.txt", "one.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(name)
    places = [str(tmp_path / "mill"), str(tmp_path / "one.wav"), str(tmp_path / "absent")]
    found = folder_fingerprints(places, suffixes=[".wav", ".flac"])
    assert list(found) == ["mill/a.wav", "mill/b/c.FLAC", "one.wav"]
    assert found["one.wav"] == fingerprint(str(tmp_path / "one.wav")).digest
    assert list(contents(str(tmp_path / "mill"))) == ["notes.txt"]
