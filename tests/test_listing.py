"""Listings of folders."""

from __future__ import annotations

from pathlib import Path

from faithad import listing, storage


def test_files_are_listed_sorted_without_hidden_ones_and_whatever_their_case(tmp_path: Path) -> None:
    for name in ("b.WAV", "a.wav", ".hidden.wav", ".cache/c.wav", "deep/er/ü <d>.wav", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1234")
    found = listing.list_files(str(tmp_path), suffixes=[".wav"])
    assert [relative for relative, _ in found] == ["a.wav", "b.WAV", "deep/er/ü <d>.wav"]
    assert all(storage.read_bytes(location) == b"1234" for _, location in found)
    assert listing.sizes(str(tmp_path), suffixes=[".wav"])[0] == ("a.wav", 4)


def test_a_single_file_is_listed_where_its_suffix_fits(tmp_path: Path) -> None:
    path = tmp_path / "one.WAV"
    path.write_bytes(b"1234")
    assert listing.sizes(str(path), suffixes=[".wav"]) == [("one.WAV", 4)]
    assert listing.list_files(str(path), suffixes=[".flac", ".wav"]) == [("one.WAV", str(path))]
    assert listing.list_files(str(path), suffixes=[".flac"]) == []
    assert listing.list_files(str(tmp_path / "absent.wav"), suffixes=[".wav"]) == []
