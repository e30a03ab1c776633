"""What people really hand in: broken files among good ones, real sound, the published layout."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from faithad import parquet, storage
from faithad.config.study import Study
from faithad.errors import AnnotationError, RecordingError
from faithad.pipelines.study import STAGES, n_failed, run_study

pytestmark = pytest.mark.usefixtures("local_ray")
QUICK: dict[str, Any] = {
    "models": ["ae"],
    "train": {"epochs": 1},
    "attribution": {"methods": ["error_map", "saliency"]},
    "audit": {"maps": 1},
}


def table(study: Study, *parts: str) -> pd.DataFrame:
    return parquet.read_table(storage.join(study.root, *parts)).to_pandas()


def write_sound(path: Path, samples: np.ndarray, subtype: str = "PCM_16") -> None:
    soundfile.write(path, samples, 20_000, subtype=subtype)


@pytest.mark.long
def test_broken_files_stand_in_the_ledger_and_harm_nobody(
    mill: Path, finished: Study, small_study: Callable[..., Study], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(mill, data)
    test, train = data / "test", data / "train"
    noise = np.random.default_rng(0).normal(0, 0.1, 200_000)
    (test / "empty.wav").write_bytes(b"")
    (test / "letter.wav").write_text("Dear mill, the recorder is broken. " * 100)
    write_sound(test / "no samples.wav", np.zeros(0))
    write_sound(test / "short.wav", noise[:30_000])
    write_sound(test / "whole.wav", noise)
    (test / "truncated.wav").write_bytes((test / "whole.wav").read_bytes()[:100_000])
    write_sound(test / "silent.wav", np.zeros(200_000))
    gap = noise.copy()
    gap[1_000] = np.nan
    write_sound(test / "not a number.wav", gap, "FLOAT")
    gap[1_000] = np.inf
    write_sound(train / "infinite <script>.wav", gap, "FLOAT")

    study = small_study(**QUICK, data=finished.data.model_dump(mode="json") | {"root": str(data)})
    line = run_study(study)

    ledger = table(study, "summary", "ledger.parquet").set_index("recording")
    failed = ledger[ledger["status"] == "failed"]["reason"]
    assert set(failed.index) == {
        "test/empty.wav",
        "test/letter.wav",
        "test/no samples.wav",
        "test/truncated.wav",
        "test/not a number.wav",
        "train/infinite <script>.wav",
    }
    assert "0 bytes" in failed["test/empty.wav"]
    for name in ("test/not a number.wav", "train/infinite <script>.wav"):
        assert "NaN" in failed[name]
    assert ledger.loc["test/short.wav", "status"] == "skipped"
    assert "shorter than a clip" in ledger.loc["test/short.wav", "reason"]
    # What there is of the truncated recording is shorter than a clip.
    assert "18 clips done, 2 skipped, 6 failed (see " in line
    assert n_failed(study) == 6, "the exit status of the command is 3"

    # Silence is scored, and the good clips exactly as without their neighbours.
    manifest = table(study, "manifest.parquet").set_index("clip_id")
    scores = table(study, "audit", "ae-0", "scores").set_index("clip_id")["score"]
    assert np.isfinite(scores[manifest.index[manifest["recording"] == "test/silent.wav"]]).all()
    page = storage.read_text(storage.join(study.root, "report.html"))
    assert "<script>.wav" not in page
    assert "infinite &lt;script&gt;.wav" in page


def test_a_study_of_broken_files_alone_ends_with_their_reasons(
    small_study: Callable[..., Study], tmp_path: Path
) -> None:
    for folder in ("train", "test"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.wav").write_text("no sound at all, just words")
    study = small_study(data={"root": str(tmp_path), "train": ["train"], "test": ["test"]})
    with pytest.raises(RecordingError, match=r"no train clip(.|\n)*train/a\.wav: "):
        run_study(study)


def test_annotations_of_clips_that_are_not_there_stop_the_index(
    mill: Path, finished: Study, small_study: Callable[..., Study], tmp_path: Path
) -> None:
    table = (mill / "annotations.csv").read_text().replace("MPD_19", "MPD_18", 1)
    (tmp_path / "wrong.csv").write_text(table)
    data = finished.data.model_dump(mode="json") | {"annotations": str(tmp_path / "wrong.csv")}
    with pytest.raises(AnnotationError, match="MPD_18"):
        STAGES["index"](small_study(data=data))


@pytest.mark.long
def test_real_recordings_of_another_rate_with_a_remainder(shared_data: Path, small_study: Callable[..., Study]) -> None:
    folder = shared_data / "real_sounds"
    data = {
        "root": str(folder),
        "train": ["train"],
        "test": ["test"],
        "annotations": "annotations.csv",
        "remainder": "overlap",
        "split": {"validation_unit": "recording"},
    }
    study = small_study(**QUICK, data=data)
    run_study(study)
    manifest = table(study, "manifest.parquet")
    for name, clips in manifest.groupby("recording"):
        length_s = soundfile.info(folder / str(name)).duration
        ends = clips["onset_s"] + clips["duration_s"]
        assert ends.max() == pytest.approx(length_s, abs=1e-3)
        assert len(clips) == np.ceil(length_s / 10 - 1e-6)
    annotated = manifest[manifest["annotated"]]
    assert sorted(set(annotated["anomaly_type"])) == ["bark", "rooster", "sneeze"]
    scores = table(study, "audit", "ae-0", "scores")
    assert len(scores) == (manifest["split"] == "test").sum()
    assert set(table(study, "summary", "f_score.parquet")["anomaly_type"]) == {"all", "bark", "rooster", "sneeze"}


@pytest.mark.long
def test_the_published_layout_of_spectrograms(
    shared_data: Path, small_study: Callable[..., Study], tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)

    def write(folder: str, name: str, content: object | None = None) -> None:
        path = tmp_path / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(torch.randn(80, 401, generator=generator) * 8 - 10 if content is None else content, path)

    for number in range(12):
        write(f"training/{'2x4' if number % 2 else '2x6'}", f"MPD_19-11-01_08{number:02}_{number:05}_1.pt")
    write("training/machine_start_stop", "MPD_19-11-01_0900_00100_1.pt")
    for window in range(1, 4):
        write("evaluation/normal", f"MPD_19-12-04_0848_00006_{window + 2}.pt")
    write("evaluation/anomalies/Uneven_thick_wood", "MPD_19-12-04_0848_00006_1.pt")
    write("evaluation/anomalies/Uneven_thick_wood", "MPD_19-12-04_0848_00006_2.pt")
    write("evaluation/normal", "MPD_19-12-04_0849_00007_1.pt", torch.zeros(80, 400))
    write("evaluation/normal", "MPD_19-12-04_0849_00007_2.pt", [1, 2])
    write("evaluation/normal", "MPD_19-12-04_0849_00007_3.pt", Path("/tmp"))
    published = (shared_data / "planer_annotations.csv").read_text().splitlines(keepends=True)
    # The header, which has a line break in it, and the two clips of this recording.
    (tmp_path / "annotations.csv").write_text("".join(published[:4]))

    study = small_study(
        models=["mae"],
        train={"epochs": 1},
        attribution={"methods": ["error_map"]},
        features={},
        data={
            "root": str(tmp_path),
            "layout": "planer",
            "training_folders": ["2x4", "2x6"],
            "annotations": "annotations.csv",
        },
    )
    run_study(study)
    manifest = table(study, "manifest.parquet")
    assert manifest.groupby("split").size().to_dict() == {"test": 8, "train": 11, "validation": 1}
    first = manifest[manifest["label"] == 1].iloc[0]
    assert (first["recording"], first["onset_s"]) == ("MPD_19-12-04_0848_00006.wav", 0.0)
    assert [dict(interval) for interval in first["intervals"]] == [{"onset_s": 1.0, "offset_s": 2.0}]
    ledger = table(study, "summary", "ledger.parquet")
    failed = ledger[ledger["status"] == "failed"].sort_values("onset_s")["reason"].tolist()
    assert len(failed) == 3
    assert "(80, 400)" in failed[0]
    assert "list" in failed[1]
    assert "Path" in failed[2]
    assert (ledger["status"] == "skipped").sum() == 1
