"""The index of a study, by real Ray tasks on real files."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from faithad.config.study import Study
from faithad.pipelines import headers
from faithad.pipelines.index import find_clips
from faithad.pipelines.study import STAGES
from tests.deadly_clips import DEADLY_TO_OPEN, opening_kills
from tests.integration.audits import table

pytestmark = pytest.mark.usefixtures("local_ray")
RATE_HZ = 16_000


@pytest.mark.long
def test_a_file_that_kills_its_decoder_costs_one_row_of_the_ledger(
    mill: Path, small_study: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    shutil.copytree(mill, data)
    shutil.copy(next((data / "train").glob("*.wav")), data / "train" / DEADLY_TO_OPEN)
    values = {"root": str(data), "train": ["train"], "test": ["test"], "annotations": "annotations.csv"}
    study = small_study(data=values)
    with monkeypatch.context() as patch:
        patch.setattr(headers, "_read_some", opening_kills)
        planned = find_clips(study.data, marks=str(tmp_path / "marks")).clips
        STAGES["index"](study)
    (lost,) = table(study.root, "index_ledger.parquet").to_dict("records")
    assert (lost["recording"], lost["status"]) == (f"train/{DEADLY_TO_OPEN}", "failed")
    assert lost["reason"].startswith("Opening this recording ended its process 2 times")
    manifest = table(study.root, "manifest.parquet")
    assert [row.clip_id for row in planned] == manifest["clip_id"].to_list()
    calm = small_study(root=str(tmp_path / "calm"), data=values | {"root": str(mill)})
    STAGES["index"](calm)
    columns = ["clip_id", "split", "label", "annotated"]
    assert manifest[columns].equals(table(calm.root, "manifest.parquet")[columns])
    for root in (study.root, calm.root):
        assert sorted(path.name for path in Path(root).iterdir()) == [
            "format.json",
            "health.parquet",
            "index_ledger.parquet",
            "manifest.parquet",
            "stages",
        ]


def test_dcase_folders(small_study: Callable[..., Study], tmp_path: Path) -> None:
    generator = np.random.default_rng(0)

    def write(machine: str, split: str, name: str, seconds: float = 10.0) -> None:
        folder = tmp_path / "dcase" / machine / split
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, generator.normal(0, 0.1, round(seconds * RATE_HZ)), RATE_HZ)

    for machine in ("fan", "valve"):
        for number in range(5):
            domain = "target" if number == 4 else "source"
            write(machine, "train", f"section_00_{domain}_train_normal_{number:04}_vel_{number}.wav")
        for number, label in enumerate(("normal", "anomaly")):
            write(machine, "test", f"section_01_target_test_{label}_{number:04}.wav", seconds=12.0)
    write("valve", "test", "section_01_0007.wav")
    write("valve", "test", "section_01_source_test_normal_0009.wav", seconds=3.0)

    data = {"root": str(tmp_path / "dcase"), "layout": "dcase"}
    study = small_study(data=data)
    STAGES["index"](study)
    manifest = table(study.root, "manifest.parquet")
    assert Counter(zip(manifest["machine"], manifest["split"] == "test", manifest["label"], strict=True)) == {
        ("fan", False, 0): 5,
        ("fan", True, 0): 1,
        ("fan", True, 1): 1,
        ("valve", False, 0): 5,
        ("valve", True, 0): 1,
        ("valve", True, 1): 1,
    }
    assert (manifest["split"] == "validation").sum() == 1
    assert manifest["anomaly_type"].isna().all()
    anomaly = manifest[(manifest["label"] == 1) & (manifest["machine"] == "fan")].iloc[0]
    assert anomaly["recording"] == "dcase/fan/test/section_01_target_test_anomaly_0001.wav"
    assert (anomaly["section"], anomaly["domain"]) == ("01", "target")
    train = manifest[(manifest["split"] != "test") & (manifest["machine"] == "valve")]
    assert train["section"].tolist() == ["00"] * 5
    assert train["domain"].tolist() == ["source"] * 4 + ["target"]
    ledger = table(study.root, "index_ledger.parquet").groupby("recording")["reason"].first().to_dict()
    assert set(ledger) == {
        "dcase/fan/test/section_01_target_test_anomaly_0001.wav",
        "dcase/fan/test/section_01_target_test_normal_0000.wav",
        "dcase/valve/test/section_01_0007.wav",
        "dcase/valve/test/section_01_source_test_normal_0009.wav",
        "dcase/valve/test/section_01_target_test_anomaly_0001.wav",
        "dcase/valve/test/section_01_target_test_normal_0000.wav",
    }
    assert ledger["dcase/valve/test/section_01_0007.wav"].startswith("its path does not end in ")
    STAGES["train"](small_study(data=data, models=["ae"], train={"epochs": 1}))
