"""Which FORMAT a root says that its tables have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import faithad
from faithad import schemas
from faithad.errors import StudyError
from faithad.runs.formats import mark_format, require_readable
from faithad.runs.stages import Stage


def test_a_root_that_says_nothing_is_of_the_first_release(tmp_path: Path) -> None:
    assert require_readable(str(tmp_path)) == 1


def test_a_stage_that_begins_says_todays(tmp_path: Path) -> None:
    Stage(str(tmp_path), "index", {}, (), result="manifest.parquet").begin(redo=False)
    assert json.loads((tmp_path / "format.json").read_text()) == {
        "format": schemas.FORMAT,
        "faithad": faithad.__version__,
    }
    assert require_readable(str(tmp_path)) == schemas.FORMAT


def test_an_older_one_is_raised_once_tables_are_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark_format(str(tmp_path))
    monkeypatch.setattr(schemas, "FORMAT", schemas.FORMAT + 1)
    assert require_readable(str(tmp_path)) == schemas.FORMAT - 1
    mark_format(str(tmp_path))
    assert require_readable(str(tmp_path)) == schemas.FORMAT


def test_a_newer_one_stops_a_stage_before_it_writes(tmp_path: Path) -> None:
    (tmp_path / "format.json").write_text('{"format": 99, "faithad": "9.0"}')
    stage = Stage(str(tmp_path), "index", {}, (), result="manifest.parquet")
    for use in (stage.is_done, lambda: stage.begin(redo=True)):
        with pytest.raises(StudyError, match=r"newer faithad, 9\.0: their tables have FORMAT 99"):
            use()
    assert [file.name for file in tmp_path.iterdir()] == ["format.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "x", "faithad": "1"}', '{"format": null}'])
def test_a_damaged_one_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "format.json").write_text(text)
    with pytest.raises(StudyError, match=r"format\.json does not say which FORMAT"):
        require_readable(str(tmp_path))
