"""Recordings with faults in an audit and in a study, without Ray: what is said, stored, heard, shown and refused."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import faithad
from faithad import parquet, schemas
from faithad.audit.exports import export_clips
from faithad.clips.health_table import health_table
from faithad.config.audit import AuditRun, load_audit_run
from faithad.config.study import Study
from faithad.errors import ConfigError, RecordingError
from faithad.features import Normalization
from faithad.model.alarm import AlarmThreshold
from faithad.model.checkpoint import TrainedModel, save_model
from faithad.model.skip_cae_transformer import SkipCAETransformer
from faithad.pipelines import cutting, headers, index
from faithad.pipelines.audit.run import run_audit
from faithad.report.audit_page import render_audit_report
from faithad.runs import layout
from faithad.runs.fingerprints import same_bytes
from faithad.settings import FeatureSettings
from tests.pipelines.audits_without_ray import without_ray

pytestmark = pytest.mark.long

RATE_HZ = 8_000
FEATURES = FeatureSettings(sample_rate_hz=RATE_HZ, n_fft=1000, hop_samples=1000, n_mels=16)


def noise(seed: int, seconds: float = 20.0, rate_hz: int = RATE_HZ) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * rate_hz)).clip(-0.9, 0.9)


def write(path: Path, *channels: np.ndarray, rate_hz: int = RATE_HZ) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.stack(channels, axis=1), rate_hz)


@pytest.fixture(scope="module")
def week(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model whose alarm is always raised, and recordings of every kind that is told."""
    folder = tmp_path_factory.mktemp("week")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SkipCAETransformer(16, 80)
    trained = TrainedModel(
        network=network, normalization=Normalization.identity(16), features=FEATURES, name="mae", seed=0,
        alarm=AlarmThreshold("quantile", "mean", 0.05, 2.0, 18.0, 20), best_epoch=1, config_hash="0" * 12,
    )  # fmt: skip
    save_model(trained, str(folder / "model"))
    write(folder / "mill" / "20240506_070000.wav", noise(0), noise(0))
    write(folder / "mill" / "20240506_080000.wav", noise(1), 0 * noise(1))
    write(folder / "mill" / "20240506_090000.wav", noise(2), -noise(2))
    write(folder / "mill" / "20240506_100000.wav", 20 * noise(3).clip(-0.1, 0.1), noise(4))
    write(folder / "mill" / "20240506_110000.wav", noise(5, rate_hz=4_000), rate_hz=4_000)
    shutil.copy(folder / "mill" / "20240506_070000.wav", folder / "mill" / "20240506_120000.wav")
    with without_ray():
        yield folder


def audit(folder: Path, name: str, *overrides: str, channel: str | None = None) -> AuditRun:
    settings = ("audit.explain=none", "audit.maps=0", "report.sound=none", *overrides)
    run = load_audit_run(
        None, model=str(folder / "model"), recordings=[str(folder / "mill")], out=str(folder / name), channel=channel,
        overrides=settings,
    )  # fmt: skip
    run_audit(run)
    return run


FAULTS = (
    "5 of 6 recordings have faults: channel 2 is dead (mill/20240506_080000.wav); channel 2 is inverted "
    "(mill/20240506_090000.wav); channel 1 is clipped (mill/20240506_100000.wav); sample rate too low "
    "(mill/20240506_110000.wav); duplicate (mill/20240506_120000.wav)"
)
HEARD = (
    "Of 3 recordings one channel is heard, not the mean of all: channel 1 (mill/20240506_080000.wav, "
    "mill/20240506_090000.wav); channel 2 (mill/20240506_100000.wav)"
)


def test_faults_are_told_at_the_index_and_in_the_report(week: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = audit(week, "out")
    said = " ".join(capsys.readouterr().out.split())
    assert f"index: 12 clips of 6 recordings health: {FAULTS} channels: {HEARD}" in said
    page = Path(render_audit_report(run.out)).read_text()
    assert page.count(FAULTS) == 2, "in the summary, and in the section"
    assert page.count(HEARD) == 1
    table = faithad.read_table(run.out, "health").set_index("recording")
    assert table["heard"].tolist() == ["mean", "1", "1", "2", "1", "mean"]
    assert table["level_dbfs"].iloc[1][1] is None or np.isnan(table["level_dbfs"].iloc[1][1])
    assert table["problems"].iloc[5].tolist() == ["duplicate (of mill/20240506_070000.wav)"]
    assert table["correlation"].iloc[2].tolist() == pytest.approx([1, -1])


def test_what_was_heard_is_in_the_manifest_and_stays(week: Path) -> None:
    """A resume reads the same channel, whatever its setting would choose now; export-clips as well."""
    run = audit(week, "stays")
    manifest = faithad.read_table(run.out, "manifest").drop_duplicates("recording")
    channels = [None if np.isnan(channel) else channel for channel in manifest["channel"]]
    assert channels == [None, 1, 1, 2, None, None]
    scores = faithad.read_table(run.out, "scores").set_index("clip_id")["score"]
    for table in (layout.SCORES, "ledger", "stages"):
        shutil.rmtree(Path(run.out) / table)
    run_audit(run)
    assert faithad.read_table(run.out, "scores").set_index("clip_id")["score"].equals(scores)
    export_clips(run.out, str(week / "cuts"), margin_s=0)
    cuts = sorted((week / "cuts").glob("*.wav"))
    assert [soundfile.info(cut).channels for cut in cuts] == [2, 1, 1, 1, 1, 2]
    samples, _ = soundfile.read(cuts[3])
    np.testing.assert_allclose(samples, noise(4), atol=2**-15)


def test_channels_one_by_one(week: Path) -> None:
    run = audit(week, "each", channel="each")
    manifest = faithad.read_table(run.out, "manifest")
    assert len(manifest) == 22
    assert manifest["clip_id"].is_unique
    assert manifest["recorder"].nunique() == 3
    events = faithad.events(run.out)
    assert events["recording"].str.contains("(channel 2)", regex=False).sum() == 5
    export_clips(run.out, str(week / "cuts of each"), margin_s=0)
    cuts = {cut.name for cut in (week / "cuts of each").glob("*20240506_080000*.wav")}
    assert len(cuts) == 2
    assert sum("_channel1_" in cut for cut in cuts) == 1
    moved = run.model_copy(update={"recordings": (str(week / "elsewhere" / "mill"),)})
    shutil.copytree(week / "mill", week / "elsewhere" / "mill")
    run_audit(moved)
    uris = faithad.read_table(run.out, "manifest")["uri"]
    assert uris.str.startswith(str(week / "elsewhere")).all()


def test_scores_of_mono_and_of_two_equal_channels_are_equal(week: Path, tmp_path: Path) -> None:
    shutil.copytree(week / "model", tmp_path / "model")
    write(tmp_path / "mill" / "20240506_070000.wav", noise(0))
    mono = faithad.read_table(audit(tmp_path, "mono").out, "scores")["score"].tolist()
    stereo = faithad.read_table(audit(week, "again").out, "scores")["score"].tolist()
    assert mono == stereo[:2] == stereo[-2:]


@pytest.mark.parametrize("channel", ["0", "-1", "second", "1.5"])
def test_an_impossible_channel_is_refused(channel: str) -> None:
    with pytest.raises(ConfigError, match="must be the number of a channel, from 1, or one of auto, first, loudest"):
        load_audit_run(None, model="m", recordings=["r"], out="o", channel=channel)


def study(folder: Path, **data: object) -> Study:
    split = {"validation_unit": "recording", "validation_fraction": 0.5}
    section = {"root": str(folder), "train": ["train"], "test": ["test"], "split": split} | data
    return Study.model_validate({"name": "x", "root": str(folder / "root"), "data": section})


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cutting, "read_headers", lambda recordings, **_: map(headers.read_header, recordings))
    monkeypatch.setattr(index, "ray_session", contextlib.nullcontext)
    monkeypatch.setattr(index, "require_study_visible", lambda study: None)
    for k, split in enumerate(("train", "train", "test")):
        write(tmp_path / split / f"{k}.wav", noise(k, 10.0, 20_000), rate_hz=20_000)
    return tmp_path


def index_of(study: Study) -> None:
    index.build_index(study, index.index_stage(study), redo=False)


def test_a_study_that_is_tested_with_what_it_learns_from_is_refused(folders: Path) -> None:
    shutil.copy(folders / "train" / "1.wav", folders / "test" / "copy.wav")
    with pytest.raises(RecordingError, match=r"byte by byte: train/1\.wav \(.*\) and test/copy\.wav \(test\)\. Remove"):
        index_of(study(folders))
    assert not (folders / "root" / layout.MANIFEST).exists()
    (folders / "test" / "copy.wav").unlink()
    shutil.copy(folders / "test" / "2.wav", folders / "test" / "copy.wav")
    index_of(study(folders))
    table = parquet.read_table(str(folders / "root" / layout.HEALTH))
    assert table.schema.equals(schemas.HEALTH)
    assert table["problems"].to_pylist() == [[], ["duplicate (of test/2.wav)"], [], []]


def test_the_default_changes_no_mark_of_an_index(folders: Path) -> None:
    """An index of release 0.1.0, which knew no channels, is done: its manifest is as good."""
    assert "data.channel" not in index.index_stage(study(folders)).settings
    assert index.index_stage(study(folders, channel="mean")).settings["data.channel"] == "mean"


def test_channels_one_by_one_are_held_out_by_recording(folders: Path) -> None:
    with pytest.raises(ValueError, match=r"set data\.split\.validation_unit to recording"):
        study(folders, channel="each", split={"validation_unit": "clip"})


def test_files_of_one_fingerprint_are_compared_as_a_whole(tmp_path: Path) -> None:
    files = {}
    for name, content in {"a": b"x" * 9, "b": b"x" * 9, "c": b"x" * 8 + b"y", "d": b"z"}.items():
        (tmp_path / name).write_bytes(content)
        files[name] = str(tmp_path / name)
    assert same_bytes(files, dict.fromkeys("abc", "alike") | {"d": "other"}) == [["a", "b"]]
    assert same_bytes(files, dict.fromkeys("abcd", "unreadable")) == []
    (tmp_path / "b").unlink()
    assert same_bytes(files, dict.fromkeys("abc", "alike")) == []


def test_a_table_without_recordings_says_nothing() -> None:
    assert health_table([], model_rate_hz=8_000).num_rows == 0
