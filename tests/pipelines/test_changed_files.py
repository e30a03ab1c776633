"""A study whose files change before any model has learned from them; without Ray."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
import yaml

from faithad import storage
from faithad.config.study import Study, parse_study
from faithad.errors import StudyError
from faithad.pipelines import index
from faithad.pipelines.index import build_index, index_stage
from faithad.runs import layout

FILES = [
    "training/2x6/MPD_19-11-29_0700_00001_1.pt",
    "training/2x6/MPD_19-11-29_0701_00002_1.pt",
    "evaluation/normal/MPD_19-12-04_0848_00006_3.pt",
    "evaluation/anomalies/stuck/MPD_19-12-04_0848_00006_1.pt",
]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """An indexed study of published clips, one of which is damaged, with features of the others."""
    for name in FILES:
        file = tmp_path / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(torch.zeros(80, 401), file)
    (tmp_path / "data" / FILES[0]).write_bytes(b"broken")
    data = {"root": str(tmp_path / "data"), "layout": "planer", "split": {"validation_unit": "recording"}}
    values = {"name": "small", "root": str(tmp_path / "study"), "data": data}
    monkeypatch.setattr(index, "ray_session", contextlib.nullcontext)
    monkeypatch.setattr(index, "require_study_visible", lambda study: None)
    study = parse_study(yaml.safe_dump(values), name="small")
    build_index(study, index_stage(study), redo=False)
    storage.write_text(storage.join(study.root, layout.features("train"), layout.shard(0)), "of the files as they were")
    return study


def test_files_that_were_mended_are_read_again(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    assert index_stage(study).is_done()
    torch.save(torch.ones(80, 401), f"{study.data.root}/{FILES[0]}")
    build_index(study, index_stage(study), redo=False)
    assert index_stage(study).is_done()
    assert "no model has learned from them yet: all are read again" in capsys.readouterr().out
    assert not storage.exists(storage.join(study.root, layout.FEATURES))


@pytest.mark.parametrize("place", [layout.model("mae", 0), layout.audit("mae", 0), layout.trial("r0.3-p4-s0")])
def test_once_a_model_learned_from_them_they_are_not(study: Study, place: str) -> None:
    storage.write_text(storage.join(study.root, place, "something"), "")
    torch.save(torch.ones(80, 401), f"{study.data.root}/{FILES[0]}")
    with pytest.raises(
        StudyError, match=r"files that changed: data/training/2x6/MPD_19-11-29_0700_00001_1\.pt(.|\n)*--redo"
    ):
        build_index(study, index_stage(study), redo=False)
    assert storage.exists(storage.join(study.root, layout.FEATURES))


def test_other_settings_are_refused_even_then(study: Study) -> None:
    split = study.data.split.model_copy(update={"seed": 5})
    other = study.model_copy(update={"data": study.data.model_copy(update={"split": split})})
    torch.save(torch.ones(80, 401), f"{study.data.root}/{FILES[0]}")
    with pytest.raises(StudyError, match=r"data\.split\.seed: 0 then, 5 now"):
        build_index(other, index_stage(other), redo=False)
