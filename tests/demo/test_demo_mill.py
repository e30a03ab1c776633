"""The demo mill of a study, on an object store."""

from __future__ import annotations

from typing import Any

import pytest

from faithad import storage
from faithad.config.study import Data
from faithad.errors import StudyError
from faithad.pipelines.index import find_clips, synthesize_demo

SMALL = {"train_recordings": 2, "test_recordings": 3}


def demo(root: str, **synthetic: Any) -> Data:
    return Data(root=root, synthetic=SMALL | synthetic, train=("train",), test=("test",), annotations="annotations.csv")


def test_a_demo_mill_is_made_on_an_object_store_once(object_store: str) -> None:
    data = demo(f"{object_store}/Säge 7")
    synthesize_demo(data)
    rows, ledger = find_clips(data)
    assert len(rows) == 6 * 5
    assert not ledger
    assert any(row.intervals for row in rows)

    # As if killed in the midst: what is missing is written again, and the mark last.
    storage.delete(f"{data.root}/annotations.csv")
    storage.delete(f"{data.root}/mill.json")
    synthesize_demo(data)
    assert len(find_clips(data)[0]) == len(rows)

    # Whole as it is, it is looked at no further.
    storage.delete(f"{data.root}/annotations.csv")
    synthesize_demo(data)
    assert not storage.exists(f"{data.root}/annotations.csv")


def test_other_recordings_are_left_alone(object_store: str) -> None:
    data = demo(f"{object_store}/others")
    storage.write_text(f"{data.root}/train/mine.wav", "a year's work")
    with pytest.raises(StudyError, match=r"holds train/mine\.wav, which is not part of this demo mill"):
        synthesize_demo(data)
    assert [name for name, _ in storage.list_files(data.root, suffixes=[""])] == ["train/mine.wav"]
