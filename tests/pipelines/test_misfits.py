"""An audit of recordings that do not fit the model, among others that do: real sound, real files, real models."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from scipy import signal
from torch import Tensor

import faithad
from faithad.audit.misfits import STAGE
from faithad.config.audit import load_audit_run, load_written_audit
from faithad.config.sections import Report
from faithad.demo.mill import synthesize
from faithad.evaluation.alarms import fit_alarm
from faithad.features import Normalization, log_mel
from faithad.model.checkpoint import TrainedModel, save_model
from faithad.model.linear import FramePCA, fit_linear
from faithad.model.training_sound import TrainingSound, mean_spectrum
from faithad.pipelines.audit.run import run_audit
from faithad.settings import FeatureSettings
from tests import field_sounds
from tests.pipelines.audits_without_ray import without_ray

pytestmark = pytest.mark.long

FEATURES = FeatureSettings()
RATE_HZ = FEATURES.sample_rate_hz
SETTINGS = ("attribution.methods=[error_map]", "events.method=error_map", "audit.maps=4", "audit.percentiles=[95]")


def fitted(train: Tensor, validation: Tensor, folder: Path) -> str:
    """A linear model with an alarm, as a training saves it, from log-mels (n, F, T)."""
    normalization = Normalization.fit([train])
    network = FramePCA(FEATURES.n_mels, 400).eval()
    fit_linear(network, [normalization.apply(train)[..., :400]], n_clips=len(train), seed=0)
    x = normalization.apply(validation)[..., :400]
    with torch.inference_mode():
        scores = (network(x) - x).square().mean(dim=(1, 2)).numpy()
    alarm = fit_alarm(scores, rule="gamma", pooling="mean", false_alarm_rate=0.01, clip_s=FEATURES.clip_s)
    sound = TrainingSound.fit(mean_spectrum(train, FEATURES), mean_spectrum(validation, FEATURES))
    save_model(TrainedModel(network, normalization, FEATURES, "frame_pca", 0, alarm, 0, "0" * 12, sound), str(folder))
    return str(folder)


def log_mels(sound: np.ndarray) -> Tensor:
    n = FEATURES.clip_samples
    return log_mel(torch.from_numpy(sound[: len(sound) // n * n].reshape(-1, n).astype(np.float32)), FEATURES)


def read(path: Path) -> np.ndarray:
    sound: np.ndarray = soundfile.read(path)[0]
    return sound


def dull(sound: np.ndarray) -> np.ndarray:
    """The colour of another microphone, behind a cover."""
    filtered: np.ndarray = signal.lfilter(*signal.butter(2, 1_500, fs=RATE_HZ), sound)
    return filtered


def whining(sound: np.ndarray) -> np.ndarray:
    """A fault of the machine that lasts from the first to the last second: a tone with its harmonics, loud."""
    seconds = np.arange(len(sound)) / RATE_HZ
    return sound + np.sqrt((sound**2).mean()) * sum(np.sin(2 * np.pi * 310 * k * seconds) for k in range(1, 6))


def hiss(sound: np.ndarray) -> np.ndarray:
    """The wrong channel: nothing is plugged in."""
    return np.random.default_rng(0).normal(scale=1e-4, size=len(sound))


UNLIKE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ZOOM0001.wav": lambda sound: sound * 10 ** (-12 / 20),
    "ZOOM0002.wav": lambda sound: np.clip(sound * 10 ** (12 / 20), -1, 1),
    "ZOOM0003.wav": dull,
    "ZOOM0004.wav": hiss,
}
LIKE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ZOOM0005.wav": lambda sound: sound,
    "ZOOM0006.wav": whining,
    "ZOOM0007.wav": lambda sound: whining(sound)[: 30 * RATE_HZ],
}


@pytest.fixture(scope="module")
def mill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mill")
    synthesize(folder, train_recordings=6, test_recordings=1, seed=5)
    return folder


@pytest.fixture(scope="module")
def audited(mill: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """An audit's folder and its last line: copies of one normal recording, changed in as many ways."""
    folder = tmp_path_factory.mktemp("audit")
    recordings = [read(path) for path in sorted((mill / "train").glob("*.wav"))]
    model = fitted(
        torch.cat([log_mels(sound) for sound in recordings[:4]]),
        torch.cat([log_mels(sound) for sound in recordings[4:5]]),
        folder / "model",
    )
    (folder / "week").mkdir()
    for name, change in (UNLIKE | LIKE).items():
        soundfile.write(folder / "week" / name, change(recordings[5]), RATE_HZ, subtype="FLOAT")
    with without_ray():
        run = load_audit_run(
            None, model=model, recordings=[str(folder / "week")], out=str(folder / "out"), overrides=list(SETTINGS)
        )
        yield run.out, run_audit(run).line


def test_gain_microphone_and_channel_are_one_verdict_each(audited: tuple[str, str]) -> None:
    out, line = audited
    ledger = faithad.read_table(out, "ledger")
    verdicts = ledger[ledger["stage"] == STAGE]
    assert set(verdicts["recording"]) == {f"week/{name}" for name in UNLIKE}
    assert set(verdicts["status"]) == {"skipped"}
    assert (verdicts.groupby("recording")["reason"].nunique() == 1).all()
    directions = verdicts.groupby("recording")["reason"].first()
    assert "quieter" in directions["week/ZOOM0001.wav"]
    assert "louder" in directions["week/ZOOM0002.wav"]
    sentence = (
        "week/ZOOM0001.wav, week/ZOOM0002.wav, week/ZOOM0003.wav and 1 more do not sound like what the model was "
        "trained on: check microphone, channel and gain; not searched for events."
    )
    assert sentence in line
    assert "15 of 39 clips audited, 24 not searched (see " in line
    page = (Path(out) / "report.html").read_text()
    assert sentence in page
    assert page.count(" dB fit): check microphone") == len(UNLIKE), "one row for each, not one a clip"


def test_such_recordings_are_no_events_and_take_no_pictures(audited: tuple[str, str]) -> None:
    out, _ = audited
    scores = faithad.read_table(out, "scores").merge(faithad.read_table(out, "manifest"), on="clip_id")
    alarms = scores[scores["alarm"]]
    assert {f"week/{name}" for name in UNLIKE} < set(alarms["recording"]), "else the test shows nothing"
    for table in ("attributions", "spectrograms"):
        explained = scores[scores["clip_id"].isin(faithad.read_table(out, table)["clip_id"])]
        assert set(explained["recording"]) <= {f"week/{name}" for name in LIKE}, table


def test_a_fault_of_the_machine_is_an_event_however_long_it_lasts(audited: tuple[str, str]) -> None:
    events = faithad.events(audited[0])
    lengths_s = events.groupby("recording")["duration_s"].sum()
    assert lengths_s["week/ZOOM0006.wav"] == 60.0
    assert lengths_s["week/ZOOM0007.wav"] == 30.0, "three clips, all of them anomalous"
    assert not set(events["recording"]) & {f"week/{name}" for name in UNLIKE}


def test_every_event_has_its_sound_and_its_picture(audited: tuple[str, str]) -> None:
    """The four maps that are kept go to different events before any has two."""
    out, _ = audited
    events, pictured = faithad.events(out), set(faithad.read_table(out, "spectrograms")["clip_id"])
    n_pictured = events["clip_ids"].map(lambda clip_ids: len(pictured.intersection(clip_ids)))
    assert n_pictured.max() - n_pictured.min() <= 1
    assert n_pictured.sum() == 4
    sounds = faithad.read_table(out, "sounds").set_index("event_id")
    assert set(sounds.index) == set(events["event_id"])
    assert sounds["opus"].notna().all()
    points = faithad.read_table(out, "operating_points")
    assert (points["n_events"] == len(events)).any()
    assert f"This page holds the sound of {len(events)} events" in (Path(out) / "report.html").read_text()


def test_sound_can_be_left_out(audited: tuple[str, str]) -> None:
    out = shutil.copytree(audited[0], Path(audited[0]).with_name("silent"))
    run = load_written_audit(str(out / "audit.yaml"))
    with without_ray():
        run_audit(run.model_copy(update={"out": str(out), "report": Report(sound="none")}))
    assert not len(faithad.read_table(str(out), "sounds"))
    page = (out / "report.html").read_text()
    assert "This page holds no sound." in page
    assert "<audio" not in page


@field_sounds.needs_field_sounds
def test_of_a_model_that_knows_many_levels_only_a_channel_without_sound_does_not_fit(tmp_path: Path) -> None:
    """Rain, sea, helicopters and fire differ by more than 12 dB, and their alarms do not change with the gain."""
    train = field_sounds.read_split("train")
    is_last = np.array([name >= "train_020" for name in train.recordings])
    model = fitted(train.log_mels[~is_last], train.log_mels[is_last], tmp_path / "model")
    paths = sorted((field_sounds.FOLDER / "test").glob("*.flac"))[:8]
    sound = np.concatenate([read(path) for path in paths])
    (tmp_path / "week").mkdir()
    for name, change in (UNLIKE | {"full_of_events.wav": lambda sound: sound}).items():
        soundfile.write(tmp_path / "week" / name, change(sound), RATE_HZ, subtype="FLOAT")
    with without_ray():
        run = load_audit_run(
            None, model=model, recordings=[str(tmp_path / "week")], out=str(tmp_path / "out"),
            overrides=["audit.explain=none"],
        )  # fmt: skip
        line = run_audit(run).line
    assert "week/ZOOM0004.wav does not sound like what the model was trained on" in line
    assert line.count("ZOOM") == 1
    scores = faithad.read_table(run.out, "scores").merge(faithad.read_table(run.out, "manifest"), on="clip_id")
    alarms = scores.groupby("recording")["alarm"].sum()
    assert abs(alarms["week/ZOOM0001.wav"] - alarms["week/full_of_events.wav"]) <= 1
