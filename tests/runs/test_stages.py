"""The marks of finished stages: what is done, what may go on, what must not be mixed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from faithad import parquet, schemas, storage
from faithad.config.study import Study, parse_study
from faithad.errors import StudyError
from faithad.pipelines.index import index_stage
from faithad.runs import layout
from faithad.runs.fingerprints import UNREADABLE
from faithad.runs.stages import FILE_KEY, ResumableStage, flatten

RESULT = "models/ae-0/weights"


def stage(root: Path, **settings: object) -> ResumableStage:
    return ResumableStage(str(root), "train-ae-0", {"epochs": 3, "clips": (1, 2), **settings}, ("models/ae-0",), RESULT)


def write_result(root: Path) -> None:
    storage.write_text(str(root / RESULT), "precious")


def test_a_stage_runs_until_it_is_finished_and_not_again(tmp_path: Path) -> None:
    assert stage(tmp_path).begin(redo=False)
    write_result(tmp_path)
    assert not stage(tmp_path).is_done()
    assert stage(tmp_path).begin(redo=False), "an interrupted run goes on"
    stage(tmp_path).finish()
    assert stage(tmp_path).is_done()
    assert not stage(tmp_path).begin(redo=False)
    assert not stage(tmp_path, epochs=4).is_done()


def test_a_stage_whose_result_is_gone_runs_again(tmp_path: Path) -> None:
    stage(tmp_path).begin(redo=False)
    write_result(tmp_path)
    stage(tmp_path).finish()
    (tmp_path / RESULT).unlink()
    assert not stage(tmp_path).is_done()
    assert stage(tmp_path).begin(redo=False)


@pytest.mark.parametrize("finished", [True, False])
def test_results_of_other_settings_are_kept_and_named(tmp_path: Path, finished: bool) -> None:
    stage(tmp_path, patch=4).begin(redo=False)
    write_result(tmp_path)
    if finished:
        stage(tmp_path, patch=4).finish()
    other = stage(tmp_path, epochs=5)
    with pytest.raises(StudyError) as caught:
        other.begin(redo=False)
    assert "  epochs: 3 then, 5 now\n  patch: 4 then, None now\n" in str(caught.value)
    assert (tmp_path / RESULT).exists()

    assert other.begin(redo=True)
    assert not (tmp_path / "models" / "ae-0").exists()
    write_result(tmp_path)
    other.finish()
    assert other.is_done()


@pytest.mark.parametrize(
    ("name", "advice"),
    [("train-ae-0", "another root (--set root=...)"), ("audit-ae-0", "another root (--set root=...)"),
     ("score", "another folder (--out)"), ("explain", "another folder (--out)")],
)  # fmt: skip
def test_the_way_out_of_other_settings_is_one_that_the_command_has(tmp_path: Path, name: str, advice: str) -> None:
    first = replace(stage(tmp_path), name=name)
    first.begin(redo=False)
    write_result(tmp_path)
    with pytest.raises(StudyError) as caught:
        replace(stage(tmp_path, epochs=5), name=name).begin(redo=False)
    assert f"\nGive {advice}, or --redo " in str(caught.value)


def test_a_stage_that_failed_before_it_wrote_anything_is_in_nobodys_way(tmp_path: Path) -> None:
    assert stage(tmp_path).begin(redo=False)
    assert stage(tmp_path, epochs=9).begin(redo=False)


@pytest.mark.parametrize("finished", [True, False])
def test_a_redo_that_was_killed_half_way_leaves_nothing_to_be_used(
    tmp_path: Path, finished: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = stage(tmp_path)
    old.begin(redo=False)
    write_result(tmp_path)
    storage.write_text(str(tmp_path / "models" / "ae-0" / "more"), "old")
    if finished:
        old.finish()

    def killed(location: str) -> None:
        if location.endswith("models/ae-0"):
            raise KeyboardInterrupt
        delete(location)

    delete = storage.delete
    monkeypatch.setattr(storage, "delete", killed)
    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path, epochs=9).begin(redo=True)
    monkeypatch.undo()

    assert not old.is_done()
    assert old.begin(redo=False)
    assert not (tmp_path / "models" / "ae-0").exists(), "the removal is carried to its end"


def test_files_that_came_went_or_changed_are_named(tmp_path: Path) -> None:
    before = {"files.a.wav": "1", "files.b.wav": "2"} | {f"files.old {k:02}.wav": "3" for k in range(12)}
    stage(tmp_path, **before).begin(redo=False)
    write_result(tmp_path)
    with pytest.raises(StudyError) as caught:
        stage(tmp_path, **{"files.a.wav": "1", "files.b.wav": "4", "files.c.wav": "5"}).begin(redo=False)
    told = str(caught.value)
    assert "  files that came: c.wav\n" in told
    assert "  files that changed: b.wav\n" in told
    assert "  files that went: old 00.wav, old 01.wav, " in told
    assert "old 09.wav and 2 more\n" in told
    assert "a.wav: " not in told


def test_files_that_went_may_come_back(tmp_path: Path) -> None:
    before = {f"{FILE_KEY}mill/{name}.wav": "1" for name in "ab"}
    stage(tmp_path, epochs=1, **before).begin(redo=False)
    write_result(tmp_path)
    one_less = {key: value for key, value in before.items() if "a.wav" in key}
    with pytest.raises(StudyError) as error:
        stage(tmp_path, epochs=1, **one_less).begin(redo=False)
    assert "that were made of other files:\n  files that went: mill/b.wav\nPut back what went, and" in str(error.value)
    for epochs, files in ((2, one_less), (1, one_less | {f"{FILE_KEY}mill/c.wav": "1"}), (2, before)):
        with pytest.raises(StudyError) as error:
            stage(tmp_path, epochs=epochs, **files).begin(redo=False)
        assert "Put back" not in str(error.value)
        assert ("with other settings" in str(error.value)) == (epochs == 2)


@pytest.mark.parametrize("finished", [True, False])
def test_a_file_that_cannot_be_read_for_a_moment_is_no_change(tmp_path: Path, finished: bool) -> None:
    first = stage(tmp_path, **{"files.a.wav": "1", "files.b.wav": UNREADABLE, "files.c.wav": "3"})
    first.begin(redo=False)
    write_result(tmp_path)
    if finished:
        first.finish()
    # Now a is away, b is back, and c has been replaced.
    now = stage(tmp_path, **{"files.a.wav": UNREADABLE, "files.b.wav": "2", "files.c.wav": "3"})
    assert now.with_known_files() == first
    assert now.with_known_files().is_done() is finished
    assert now.with_known_files(afresh=True).settings["files.b.wav"] == "2"
    with pytest.raises(StudyError, match=r"files that changed: b\.wav\n"):
        now.with_known_files(afresh=True).begin(redo=False)
    other = stage(tmp_path, **{"files.a.wav": UNREADABLE, "files.b.wav": UNREADABLE, "files.c.wav": "4"})
    with pytest.raises(StudyError, match=r"files that changed: c\.wav\n"):
        other.with_known_files().begin(redo=False)


def test_where_no_mark_is_a_file_that_cannot_be_read_is_just_that(tmp_path: Path) -> None:
    new = stage(tmp_path, **{"files.a.wav": UNREADABLE})
    assert new.with_known_files() == new


def test_a_finished_stage_may_be_gone_on_with(tmp_path: Path) -> None:
    stage(tmp_path).begin(redo=False)
    write_result(tmp_path)
    stage(tmp_path).finish()
    assert stage(tmp_path).begin(redo=False, again=True)
    assert (tmp_path / RESULT).exists()
    assert not stage(tmp_path).is_done(), "until it has finished again"


def test_fingerprints_change_with_any_setting_and_with_nothing_else(tmp_path: Path) -> None:
    assert stage(tmp_path).fingerprint == stage(tmp_path / "elsewhere").fingerprint
    assert stage(tmp_path).fingerprint != stage(tmp_path, epochs=4).fingerprint
    assert len(stage(tmp_path).fingerprint) == 12


def test_settings_are_flattened_with_their_section() -> None:
    assert flatten("train", {"epochs": 3, "split": {"by": "csv"}}) == {"train.epochs": 3, "train.split.by": "csv"}


@pytest.mark.parametrize("is_whole", [True, False], ids=["manifest", "no manifest"])
def test_an_index_is_not_done_without_its_manifest(tmp_path: Path, is_whole: bool) -> None:
    indexing = index_stage(study(tmp_path))
    indexing.begin(redo=False)
    for table in (layout.MANIFEST, layout.INDEX_LEDGER):
        parquet.write_table(schemas.LEDGER.empty_table(), str(tmp_path / "out" / table), schema=schemas.LEDGER)
    indexing.finish()
    if not is_whole:
        (tmp_path / "out" / layout.MANIFEST).unlink()
    assert indexing.begin(redo=False) is not is_whole


def test_a_killed_index_is_in_nobodys_way_and_condemns_no_file_that_was_replaced(tmp_path: Path) -> None:
    assert index_stage(study(tmp_path)).begin(redo=False)
    storage.write_text(str(tmp_path / "out" / layout.HEADER_ATTEMPTS / "0.json"), "{}")
    assert index_stage(study(tmp_path)).begin(redo=False)
    assert (tmp_path / "out" / layout.HEADER_ATTEMPTS).exists(), "the same files: the next run counts their deaths"
    (tmp_path / "data" / "a.wav").write_text("another recording")
    assert index_stage(study(tmp_path)).begin(redo=False)
    assert not (tmp_path / "out" / layout.HEADER_ATTEMPTS).exists()


def study(folder: Path) -> Study:
    """A study of one file, which no test opens."""
    (folder / "data").mkdir(exist_ok=True)
    if not (folder / "data" / "a.wav").exists():
        (folder / "data" / "a.wav").write_text("a recording")
    data = f"{{root: {folder}, train: [data], test: [data]}}"
    return parse_study(f"{{name: s, root: {folder}/out, data: {data}}}", name="x.yaml")
