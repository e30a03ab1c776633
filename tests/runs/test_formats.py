"""Which FORMAT a root says that its tables have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import faithad
from faithad import schemas
from faithad.audit.exports import export_events
from faithad.errors import StudyError
from faithad.runs.formats import mark_format, replace_damaged, require_readable
from faithad.runs.stages import ResumableStage


def test_a_root_that_says_nothing_is_of_the_first_release(tmp_path: Path) -> None:
    assert require_readable(str(tmp_path)) == 1


def test_a_stage_that_begins_says_todays(tmp_path: Path) -> None:
    ResumableStage(str(tmp_path), "index", {}, (), result="manifest.parquet").begin(redo=False)
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
    stage = ResumableStage(str(tmp_path), "index", {}, (), result="manifest.parquet")
    for use in (stage.is_done, lambda: stage.begin(redo=True)):
        with pytest.raises(StudyError, match=r"newer faithad, 9\.0: their tables have FORMAT 99"):
            use()
    assert [file.name for file in tmp_path.iterdir()] == ["format.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"form', '{"format": "x", "faithad": "1"}', '{"format": null}'])
def test_a_damaged_one_is_named_and_replaced(tmp_path: Path, text: str) -> None:
    location = tmp_path / "format.json"
    location.write_text(text)
    with pytest.raises(StudyError, match=f"Delete {location}, and run the same command again"):
        require_readable(str(tmp_path))
    replace_damaged(str(tmp_path))
    assert require_readable(str(tmp_path)) == schemas.FORMAT


def test_a_sound_one_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "format.json").write_text('{"format": 99, "faithad": "9.0"}')
    replace_damaged(str(tmp_path))
    assert (tmp_path / "format.json").read_text() == '{"format": 99, "faithad": "9.0"}'


@pytest.mark.parametrize("text", ["", "{"])
def test_a_stage_begins_in_spite_of_a_damaged_one(tmp_path: Path, text: str) -> None:
    stage = ResumableStage(str(tmp_path), "index", {}, (), result="manifest.parquet")
    assert stage.begin(redo=False)
    (tmp_path / "format.json").write_text(text)
    assert stage.begin(redo=False)
    assert require_readable(str(tmp_path)) == schemas.FORMAT


def test_a_file_in_place_of_a_root_holds_no_tables(tmp_path: Path) -> None:
    file = tmp_path / "events.csv"
    file.write_text("onset")
    assert require_readable(str(file)) == 1
    with pytest.raises(StudyError, match=f"There is no audit in {file}"):
        export_events(str(file), str(tmp_path / "labels"), format="csv")
