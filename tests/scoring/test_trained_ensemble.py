"""An ensemble on disk: what is read is what was written, and nothing else is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from faithad.errors import CheckpointError
from faithad.model.checkpoint import digest_of
from faithad.model.header import KEY
from faithad.scoring import trained_ensemble
from faithad.scoring.trained_ensemble import FILE_NAME, TrainedEnsemble, describe, load_any, save_ensemble
from tests.scoring.ensembles import small_ensemble, sound


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedEnsemble, Path]:
    folder = tmp_path_factory.mktemp("saved") / "model"
    ensemble = small_ensemble()
    save_ensemble(ensemble, str(folder))
    return ensemble, folder


@pytest.fixture
def copy(saved: tuple[TrainedEnsemble, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved[1], tmp_path / "copy"))


def rewrite(folder: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> None:
    """Change header and tensors as somebody would who can make a digest."""
    content = (folder / FILE_NAME).read_bytes()
    tensors = safetensors.torch.load(content)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][KEY])
    change(header, tensors)
    header["digest"] = digest_of(tensors, header)
    (folder / FILE_NAME).write_bytes(safetensors.torch.save(tensors, {KEY: json.dumps(header)}))


def test_what_is_read_is_what_was_written(saved: tuple[TrainedEnsemble, Path], tmp_path: Path) -> None:
    ensemble, folder = saved
    read = load_any(str(folder))
    assert isinstance(read, TrainedEnsemble)
    assert describe(read) == describe(ensemble)
    assert read.state is not None
    assert ensemble.state is not None
    assert read.state.against_past == ensemble.state.against_past
    assert torch.equal(read.state.spectra, ensemble.state.spectra)
    x, ids = ensemble.prepare(sound(5, 1)), list("abcde")
    assert torch.equal(read.ensemble.standardised(x, ids), ensemble.ensemble.standardised(x, ids))
    save_ensemble(read, str(tmp_path))
    for file in sorted(path.relative_to(folder) for path in folder.rglob("*.safetensors")):
        assert (tmp_path / file).read_bytes() == (folder / file).read_bytes()


@pytest.mark.parametrize("place", [0.2, 0.5, 0.999])
def test_a_flipped_bit_is_noticed(copy: Path, place: float) -> None:
    content = bytearray((copy / FILE_NAME).read_bytes())
    content[int(place * len(content))] ^= 1
    (copy / FILE_NAME).write_bytes(content)
    with pytest.raises(CheckpointError):
        load_any(str(copy))


def test_a_member_of_another_training_is_refused(copy: Path) -> None:
    member = load_any(str(copy / "frame_pca"))
    member.seed = 1
    trained_ensemble.checkpoint.save_model(member, str(copy / "frame_pca"))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"frame_pca/model.safetensors is not the model that .* was made with"):
        load_any(str(copy))


def test_a_member_that_is_missing_is_named(copy: Path) -> None:
    shutil.rmtree(copy / "frame_ridge")
    with pytest.raises(CheckpointError, match=r"no trained model at .*frame_ridge"):
        load_any(str(copy))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header, _: header["members"][0].update(name="../frame_pca"), "no model that reconstructs"),
        (lambda header, _: header["members"][1].update(name="frame_pca"), "they must differ"),
        (lambda header, _: header["members"][0]["score"].update(pooling="best"), "no pooling 'best'"),
        (lambda header, _: header["members"][0]["score"].update(calibration="none"), "calibration 'local'"),
        (lambda header, _: header["alarm"].update(pooling="mean"), "must be 'ensemble'"),
        (lambda header, _: header["alarm"].update(window_thresholds=[1.0]), "window_thresholds .* one for each member"),
        (lambda header, _: header["state"].update(share=1.0), "state.share"),
        (lambda header, _: header["state"]["against_past"].update(threshold_db=0.0), "state.against_past.threshold_db"),
        (lambda header, _: header.pop("state"), "state.spectra is .* instead of unknown"),
        (lambda _, tensors: tensors.pop("state.spectra"), "state.spectra is missing"),
        (lambda _, tensors: tensors.update({"state.spectra": torch.zeros(5_001, 16)}), r"\(5001, 16\) instead of"),
        (lambda _, tensors: tensors["state.spectra"].fill_(torch.inf), "state.spectra holds values"),
        (lambda header, _: header.update(format=2), "has the format 2"),
        (lambda header, _: header.update(more=1), "more"),
        (lambda _, tensors: tensors["means"].fill_(torch.nan), "means holds values"),
        (lambda _, tensors: tensors["deviations"].zero_(), "deviations holds values"),
        (lambda _, tensors: tensors.pop("recordings"), "recordings is missing"),
        (lambda _, tensors: tensors.update(places=tensors["places"][:5].clone()), "instead of"),
        (lambda _, tensors: tensors.update(places=torch.zeros(5_001, 16)), "5,001 normal clips; 1 to 5,000"),
    ],
)
def test_what_contradicts_itself_is_refused(copy: Path, change: Any, message: str) -> None:
    rewrite(copy, change)
    with pytest.raises(CheckpointError, match=message):
        load_any(str(copy))
