"""The demo mill of a study, on an object store."""

from __future__ import annotations

import json
from typing import Any

import pytest

from faithad import listing, storage
from faithad.config.data import Data
from faithad.demo.making import make_mill
from faithad.errors import StudyError
from faithad.pipelines import cutting, headers
from faithad.pipelines.index import find_clips

SMALL = {"train_recordings": 2, "test_recordings": 3}


def demo(root: str, **synthetic: Any) -> Data:
    return Data(root=root, synthetic=SMALL | synthetic, train=("train",), test=("test",), annotations="annotations.csv")


def make(data: Data) -> None:
    assert data.synthetic is not None
    make_mill(data.root, **data.synthetic.model_dump(), workers=2)


@pytest.fixture(autouse=True)
def headers_read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Ray, which would read them in other processes."""
    monkeypatch.setattr(cutting, "read_headers", lambda recordings, **_: map(headers.read_header, recordings))


def test_a_demo_mill_is_made_on_an_object_store_once(object_store: str) -> None:
    data = demo(f"{object_store}/Säge 7")
    make(data)
    rows, ledger, _ = find_clips(data, marks="")
    assert len(rows) == 6 * 5
    assert not ledger
    assert any(row.intervals for row in rows)

    # As if killed in the midst: what is missing is written again, and the mark last.
    storage.delete(f"{data.root}/annotations.csv")
    storage.delete(f"{data.root}/mill.json")
    make(data)
    assert len(find_clips(data, marks="")[0]) == len(rows)

    # Whole as it is, it is looked at no further.
    storage.delete(f"{data.root}/annotations.csv")
    make(data)
    assert not storage.exists(f"{data.root}/annotations.csv")


def test_other_recordings_are_left_alone(object_store: str) -> None:
    data = demo(f"{object_store}/others")
    storage.write_text(f"{data.root}/train/mine.wav", "a year's work")
    with pytest.raises(
        StudyError, match=r"holds 1 recording of other settings or another source, such as train/mine\.wav"
    ):
        make(data)
    assert [name for name, _ in listing.list_files(data.root, suffixes=[""])] == ["train/mine.wav"]


@pytest.mark.parametrize("name", ["annotations.csv", "notes.txt", "train/notes.txt"])
def test_other_files_are_left_alone(object_store: str, name: str) -> None:
    data = demo(f"{object_store}/files {name.replace('/', ' ')}")
    storage.write_text(f"{data.root}/{name}", "a year's work")
    with pytest.raises(StudyError, match=rf"holds {name} and no mill\.json of a demo mill: its content may be"):
        make(data)
    assert [found for found, _ in listing.list_files(data.root, suffixes=[""])] == [name]
    assert storage.read_text(f"{data.root}/{name}") == "a year's work"


@pytest.mark.parametrize("content", ["[]", "{", '{"made_by": "me"}'])
def test_a_foreign_mark_is_named(object_store: str, content: str) -> None:
    data = demo(f"{object_store}/mark {len(content)}")
    storage.write_text(f"{data.root}/mill.json", content)
    with pytest.raises(StudyError, match=r"mill\.json is not the mark of a demo mill"):
        make(data)
    assert storage.read_text(f"{data.root}/mill.json") == content


def test_a_mill_of_other_settings_is_no_whole_mill_until_all_is_copied(
    object_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = f"{object_store}/again"
    before, now = demo(root, seed=0), demo(root, seed=1)
    make(before)
    first = storage.read_text(f"{root}/annotations.csv")
    write = storage.write_bytes

    def killed(location: str, content: bytes, **options: bool) -> None:
        if location.startswith(root) and "/test/" in location:
            raise KeyboardInterrupt
        write(location, content, **options)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            make(now)
    assert json.loads(storage.read_text(f"{root}/mill.json")) == {"made_by": "faithad synth"}
    make(before)
    assert storage.read_text(f"{root}/annotations.csv") == first
    assert json.loads(storage.read_text(f"{root}/mill.json"))["seed"] == 0
