"""The marks of finished stages: what is done, what may go on, what must not be mixed."""

from __future__ import annotations

from pathlib import Path

import pytest

from faithad import storage
from faithad.errors import StudyError
from faithad.pipelines.stages import Stage, flatten


def stage(root: Path, **settings: object) -> Stage:
    return Stage(str(root), "train-ae-0", {"epochs": 3, "clips": (1, 2), **settings}, ("models/ae-0",))


def test_a_stage_runs_until_it_is_finished_and_not_again(tmp_path: Path) -> None:
    assert stage(tmp_path).begin(redo=False)
    assert not stage(tmp_path).is_done()
    assert stage(tmp_path).begin(redo=False), "an interrupted run goes on"
    stage(tmp_path).finish()
    assert stage(tmp_path).is_done()
    assert not stage(tmp_path).begin(redo=False)
    assert not stage(tmp_path, epochs=4).is_done()


@pytest.mark.parametrize("finished", [True, False])
def test_results_of_other_settings_are_kept_and_named(tmp_path: Path, finished: bool) -> None:
    stage(tmp_path, patch=4).begin(redo=False)
    storage.write_text(str(tmp_path / "models" / "ae-0" / "weights"), "precious")
    if finished:
        stage(tmp_path, patch=4).finish()
    other = stage(tmp_path, epochs=5)
    with pytest.raises(StudyError) as caught:
        other.begin(redo=False)
    assert "  epochs: 3 then, 5 now\n  patch: 4 then, None now\n" in str(caught.value)
    assert (tmp_path / "models" / "ae-0" / "weights").exists()

    assert other.begin(redo=True)
    assert not (tmp_path / "models" / "ae-0").exists()
    other.finish()
    assert other.is_done()


def test_a_redo_that_was_killed_half_way_is_never_taken_as_done(tmp_path: Path) -> None:
    """Marks go after results: whatever is left of the old results still stands under the old settings' mark."""
    old = stage(tmp_path)
    old.begin(redo=False)
    storage.write_text(str(tmp_path / "models" / "ae-0" / "weights"), "old")
    old.finish()
    storage.delete(str(tmp_path / "models" / "ae-0"))  # killed here, before the marks are gone
    new = stage(tmp_path, epochs=9)
    assert not new.is_done()
    with pytest.raises(StudyError, match="epochs"):
        new.begin(redo=False)


def test_fingerprints_change_with_any_setting_and_with_nothing_else(tmp_path: Path) -> None:
    assert stage(tmp_path).fingerprint == stage(tmp_path / "elsewhere").fingerprint
    assert stage(tmp_path).fingerprint != stage(tmp_path, epochs=4).fingerprint
    assert len(stage(tmp_path).fingerprint) == 12


def test_settings_are_flattened_with_their_section() -> None:
    assert flatten("train", {"epochs": 3, "split": {"by": "csv"}}) == {"train.epochs": 3, "train.split.by": "csv"}
