"""Trainings that a disk does not hold are refused before they start."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import yaml

from faithad.config.study import parse_study
from faithad.errors import StudyError
from faithad.pipelines.training.disk import require_disk, weights_bytes

Usage = namedtuple("Usage", "total used free")
GIB = 1 << 30


def test_a_disk_without_room_is_told_with_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(tmp_path / "new")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(99 * GIB, 80 * GIB, 19 * GIB))
    # Models of 1, 1 and 2 GiB; the states of the largest two, of eight times their weights.
    require_disk(root, [GIB // 2] * 3, at_once=2, keeps_states=False)
    with pytest.raises(
        StudyError, match=r"3 trainings \(2 at once\) take 28\.00 GiB, and the disk of .* has 19\.00 GiB free"
    ):
        require_disk(root, [GIB, GIB, 2 * GIB], at_once=2, keeps_states=False)
    # Two states of four times their weights that are written at the moment, beside the last ones of all.
    with pytest.raises(StudyError, match=r"take 32\.00 GiB"):
        require_disk(root, [GIB, GIB, 2 * GIB], at_once=2, keeps_states=True)
    require_disk("s3://bucket/study", [99 * GIB], at_once=1, keeps_states=True)
    require_disk(root, [], at_once=2, keeps_states=True)


def test_weights_are_those_of_the_network(tmp_path: Path) -> None:
    values = {"name": "mill", "root": str(tmp_path), "data": {"layout": "planer", "root": "x"}}
    study = parse_study(yaml.safe_dump(values), name="mill")
    assert weights_bytes(study, "mae") == pytest.approx(4 * 7_233_831, rel=0.001)
    assert weights_bytes(study, "frame_pca") == 0
