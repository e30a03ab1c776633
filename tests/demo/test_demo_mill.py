"""The demo mill of a study, on an object store."""

from __future__ import annotations

from typing import Any

import pytest

from faithad import storage
from faithad.config.data import Data
from faithad.demo.making import make_mill
from faithad.errors import StudyError
from faithad.pipelines import headers, index
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
    monkeypatch.setattr(index, "read_headers", lambda recordings, **_: map(headers.read_header, recordings))


def test_a_demo_mill_is_made_on_an_object_store_once(object_store: str) -> None:
    data = demo(f"{object_store}/Säge 7")
    make(data)
    rows, ledger = find_clips(data, marks="")
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
    assert [name for name, _ in storage.list_files(data.root, suffixes=[""])] == ["train/mine.wav"]
