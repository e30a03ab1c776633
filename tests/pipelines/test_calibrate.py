"""`faithad calibrate`, whole but for Ray: the alarm of a model fitted to other normal sound."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch

import faithad
from faithad import parquet, schemas
from faithad.audit.review import review_audit
from faithad.config.audit import load_audit_run
from faithad.config.normals import load_calibration_run, load_normals_run
from faithad.errors import ConfigError, StudyError
from faithad.features import Normalization
from faithad.model.alarm import AlarmThreshold
from faithad.model.checkpoint import TrainedModel, save_model
from faithad.model.classical import fit_classical
from faithad.model.fitted_score import FittedScore
from faithad.model.table import build_network
from faithad.pipelines.audit.run import run_audit
from faithad.pipelines.training.calibrate import calibrate_model
from faithad.pipelines.training.normals import train_on_normals
from faithad.runs import layout
from faithad.runs.tables import read_manifest
from faithad.scoring.calibration import NormalScores
from faithad.scoring.choices import Score, robust
from faithad.scoring.trained_ensemble import TrainedEnsemble, load_any
from faithad.settings import FeatureSettings
from faithad.vocabulary import FITTED, count
from tests.pipelines.audits_without_ray import without_ray
from tests.pipelines.test_normals import RATE_HZ, SETTINGS, hum

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True, scope="module")
def threads_as_before() -> Iterator[None]:
    """A training sets the threads of its process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of a machine before and after it got another hiss, a click in the last of them, and a model of it."""
    folder = tmp_path_factory.mktemp("calibrate")
    for name in ("before", "after", "new"):
        (folder / name).mkdir()
    for number in range(6):
        soundfile.write(folder / "before" / f"{number}.wav", hum(10, number), RATE_HZ)
        soundfile.write(folder / "after" / f"{number}.wav", changed(10, 10 + number), RATE_HZ)
    sound = changed(8, 100)
    sound[round(4.5 * RATE_HZ) : round(4.6 * RATE_HZ)] += np.random.default_rng(0).normal(size=round(0.1 * RATE_HZ))
    soundfile.write(folder / "new" / "click.wav", sound, RATE_HZ)
    soundfile.write(folder / "new" / "quiet.wav", changed(40, 101), RATE_HZ)
    with without_ray():
        train_on_normals(load_normals_run([str(folder / "before")], str(folder / "model"), overrides=SETTINGS))
        calibrate(folder, "model", "after", "calibrated")
    return folder


def changed(seconds: float, seed: int) -> np.ndarray:
    """The hum with bursts of noise three times a second, which the model has never heard."""
    sound, generator = hum(seconds, seed), np.random.default_rng(1000 + seed)
    bursts = np.sin(2 * np.pi * 3 * np.arange(len(sound)) / RATE_HZ) > 0.7
    return sound + 0.1 * bursts * generator.normal(size=len(sound))


def calibrate(folder: Path, model: str, normals: str, to: str, per_hour: float | None = None) -> str:
    run = load_calibration_run(
        [str(folder / model)], [str(folder / normals)], str(folder / to), false_alarms_per_hour=per_hour
    )
    return calibrate_model(run)


def alarms(folder: Path, model: str) -> tuple[int, int]:
    """How many clips of the new recordings alarm: of those without the click, and of the one with it."""
    loaded = faithad.load_model(folder / model)
    of_click, quiet = (
        faithad.score(
            loaded,
            faithad.log_mel(folder / "new" / name, loaded.features),
            reference=faithad.recording_spectrum(folder / "new" / name, loaded.features),
        )["alarm"].tolist()
        for name in ("click.wav", "quiet.wav")
    )
    return sum(quiet) + sum(of_click) - of_click[2], int(of_click[2])


def test_an_ensemble_is_calibrated_to_changed_sound(work: Path) -> None:
    assert alarms(work, "model")[0] >= 20, "the model takes the changed sound for abnormal"
    normal, click = alarms(work, "calibrated")
    assert normal <= 3
    assert click == 1


def test_networks_stay_and_what_is_fitted_to_normals_changes(work: Path) -> None:
    before, after = (load_any(str(work / name)) for name in ("model", "calibrated"))
    assert isinstance(before, TrainedEnsemble)
    assert isinstance(after, TrainedEnsemble)
    assert after.parent is not None
    assert after.parent.folder == str(work / "model")
    assert before.parent is None
    for name, member in before.members.items():
        new = after.members[name]
        for key, tensor in member.network.state_dict().items():
            assert torch.equal(tensor, new.network.state_dict()[key])
        assert torch.equal(member.normalization.mean, new.normalization.mean)
        detectors = [model.ensemble.members[name] for model in (before, after)]
        assert detectors[0].normals is not None
        assert detectors[1].normals is not None
        assert not torch.equal(detectors[0].normals.scores, detectors[1].normals.scores)
    assert before.alarm is not None
    assert after.alarm is not None
    assert after.alarm.n_validation == 30
    assert [length_s for length_s, _ in after.alarm.by_length] == [1.0]
    for field in ("threshold", "by_length", "window_thresholds", "tail"):
        assert getattr(after.alarm, field) != getattr(before.alarm, field), field
    card = json.loads((work / "calibrated" / layout.MODEL).read_text())
    assert card["parent"] == {"folder": str(work / "model"), "sha256": after.parent.sha256}


def test_calibrating_to_the_training_normals_gives_the_model_back(work: Path) -> None:
    with without_ray():
        calibrate(work, "model", "before", "same")
    before, after = (load_any(str(work / name)) for name in ("model", "same"))
    assert after.alarm == before.alarm
    assert alarms(work, "same") == alarms(work, "model")


@pytest.fixture(scope="module")
def audited(work: Path) -> Path:
    """An audit of the new recordings with the calibrated model."""
    run = load_audit_run(
        None,
        model=str(work / "calibrated"),
        recordings=[str(work / "new")],
        out=str(work / "out"),
        overrides=["audit.explain=none", "report.sound=none"],
    )
    with without_ray():
        run_audit(run)
    return work / "out"


def test_the_clips_of_an_audit_that_did_not_alarm_are_normal(
    work: Path, audited: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    normal, click = alarms(work, "calibrated")
    with without_ray():
        said = calibrate(work, "calibrated", "out", "again", per_hour=100)
    quiet, left_out = 24 - normal - click, normal + click
    assert f"{quiet} clips fitted, {left_out} clip" in said
    assert f"calibrate: {left_out} clip" in capsys.readouterr().out
    ledger = parquet.read_table(str(work / "again" / layout.LEDGER)).to_pylist()
    assert sorted(row["status"] for row in ledger) == ["done"] * quiet + ["skipped"] * left_out
    model = load_any(str(work / "again"))
    assert model.alarm is not None
    assert model.alarm.n_validation == quiet
    assert model.alarm.false_alarm_rate == pytest.approx(1 / (quiet + 1))
    assert model.parent is not None
    assert model.parent.folder == str(work / "calibrated")


def test_clips_whose_events_were_rejected_are_normal(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An audit that alarms often: all of its events are rejected but that of the click."""
    reviewed = str(tmp_path / "reviewed")
    places = {"model": str(work / "calibrated"), "recordings": [str(work / "new")], "out": reviewed}
    with without_ray():
        run_audit(load_audit_run(None, **places, overrides=["audit.explain=none", "alarm.false_alarm_rate=0.3"]))
    events = faithad.events(reviewed)
    is_click = [
        any(
            part["recording"].endswith("click.wav") and part["onset_s"] < 4.6 and part["offset_s"] > 4.5 for part in own
        )
        for own in events["parts"]
    ]
    assert sum(is_click) == 1
    verdicts = zip(events["event_id"], is_click, strict=True)
    decisions = [{"event_id": id_, "verdict": "confirm" if click else "reject"} for id_, click in verdicts]
    (tmp_path / "decisions.json").write_text(json.dumps({"format": 1, "decisions": decisions}))
    review_audit(reviewed, str(tmp_path / "decisions.json"))
    clips = {clip_id for own in events["clip_ids"] for clip_id in own}
    confirmed = {clip_id for own in events.loc[is_click, "clip_ids"] for clip_id in own}
    n_rejected, n_normal = len(clips - confirmed), 24 - len(confirmed)
    assert n_rejected > 1
    with without_ray():
        run = load_calibration_run([str(work / "calibrated")], [reviewed], str(tmp_path / "model"))
        assert f"{n_normal} clips fitted, {count(len(confirmed), 'clip')} left out" in calibrate_model(run)
        said = " ".join(capsys.readouterr().out.split())
        assert f"{n_rejected} clips that alarmed are among the normal ones, as a reviewer rejected them" in said
        # A training learns from them beside its own recordings.
        to = [str(work / "after")], str(tmp_path / "trained")
        run = load_normals_run(*to, add_normals=[reviewed], overrides=SETTINGS)
        for _ in range(2):
            assert f"{30 + n_rejected} clips fitted" in train_on_normals(run)
        with pytest.raises(StudyError, match=r"rejected clips: .* then"):
            train_on_normals(load_normals_run(*to, overrides=SETTINGS))
    trained = read_manifest(str(tmp_path / "trained")).to_pylist()
    assert {row["clip_id"] for row in trained if row["recording"].startswith("new/")} == clips - confirmed
    assert {row["split"] for row in trained} == {"train"}


def single(folder: Path, name: str, alarm: AlarmThreshold, score: Score | None = None) -> None:
    """A model of a study, as it is saved, whose network has learned nothing."""
    features = FeatureSettings(sample_rate_hz=4000, n_fft=200, hop_samples=100, n_mels=16, clip_s=2.0)
    torch.manual_seed(0)
    if name == "one_class_svm":
        network: torch.nn.Module = fit_classical(name, torch.randn(30, 16, features.n_frames), seed=0)
    else:
        network = build_network(name, 16, 80).eval()
    fitted = None
    if score is not None:
        normals = (torch.randn(20, dtype=torch.float64), torch.randn(20, 16), torch.arange(20) // 4)
        fitted = FittedScore(asdict(score), torch.ones(16, dtype=torch.float64), normals)
    model = TrainedModel(network, Normalization.identity(16), features, name, 3, alarm, 7, "study", score=fitted)
    save_model(model, str(folder / name))


@pytest.mark.parametrize(
    ("name", "rule", "pooling", "score"),
    [
        ("skip_cae", "quantile", "worst_second", None),
        ("one_class_svm", "quantile", "mean", None),
        ("ae", "conformal", FITTED, robust("ae")),
    ],
)
def test_a_single_model_of_a_study_is_calibrated(
    work: Path, name: str, rule: str, pooling: str, score: Score | None
) -> None:
    single(work, name, AlarmThreshold(rule, pooling, 0.1, -1e9, 180.0, 12), score)
    with without_ray():
        calibrate(work, name, "after", f"{name}-calibrated")
    model = load_any(str(work / f"{name}-calibrated"))
    assert isinstance(model, TrainedModel)
    assert model.alarm is not None
    assert (model.alarm.rule, model.alarm.pooling, model.alarm.n_validation) == (rule, pooling, 30)
    assert (model.seed, model.best_epoch, model.config_hash) == (3, 7, "study")
    assert model.parent is not None
    assert model.parent.folder == str(work / name)
    assert model.sound is not None
    # Each clip is scored as an audit scores it; a calibrated score is compared with other recordings.
    if score is None:
        files = sorted((work / "after").iterdir())
        tables = [faithad.score(model, faithad.log_mel(file, model.features)) for file in files]
        column = "worst_second_score" if pooling == "worst_second" else "score"
        scores = sorted(value for table in tables for value in table[column])
    else:
        assert model.score is not None
        assert model.score.choices == asdict(score)
        assert model.score.normals is not None
        scores = sorted(NormalScores(*model.score.normals).of_themselves().tolist())
    np.testing.assert_allclose(model.alarm.threshold, scores[26 if rule == "quantile" else 27], rtol=1e-5)
    n_windows = 0 if name == "one_class_svm" else 1 if score is None else 2
    assert len(model.alarm.window_thresholds) == n_windows
    table = parquet.read_table(str(work / f"{name}-calibrated" / layout.VALIDATION_SCORES))
    assert table["paper_score"].null_count == (30 if score is None else 0)


def test_models_become_the_members_of_one(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The two linear models, and a network of the same features that takes one frame fewer."""
    linear = load_any(str(work / "model"))
    torch.manual_seed(0)
    network, alarm = build_network("mae", 16, 80).eval(), AlarmThreshold("quantile", "mean", 0.1, 1.0, 180.0, 12)
    mae = TrainedModel(network, linear.normalization, linear.features, "mae", 3, alarm, 7, "study")
    save_model(mae, str(work / "mae"))
    folders = [str(work / name) for name in ("model", "mae")]

    def join(to: str, *overrides: str, of: Sequence[str] = folders) -> TrainedEnsemble:
        with without_ray():
            calibrate_model(load_calibration_run(of, [str(work / "after")], str(work / to), overrides=overrides))
        joined = load_any(str(work / to))
        assert isinstance(joined, TrainedEnsemble)
        return joined

    joined = join("joined", "rescore_share=0.2")
    assert "rescore: mae scores only the clips" in " ".join(capsys.readouterr().out.split())
    assert [(name, member.n_frames) for name, member in joined.members.items()] == [
        ("frame_pca", 80), ("frame_ridge", 80), ("mae", 80)
    ]  # fmt: skip
    assert joined.ensemble.members["mae"].score == robust("mae")
    parents = [member.parent.folder for member in joined.members.values() if member.parent is not None]
    assert parents == [folders[0], folders[0], folders[1]]
    rescoring = joined.ensemble.rescoring
    assert rescoring is not None
    assert (rescoring.share, rescoring.members) == (0.2, ("mae",))
    assert joined.alarm is not None
    assert linear.alarm is not None
    assert joined.alarm.false_alarm_rate == linear.alarm.false_alarm_rate == pytest.approx(1 / 31)
    assert joined.alarm.threshold >= rescoring.lowest
    assert alarms(work, "joined")[1] == 1
    places = {"model": str(work / "joined"), "recordings": [str(work / "new")], "out": str(work / "by-joined")}
    settings = ["audit.explain=none", "report.sound=none"]
    with without_ray():
        run_audit(load_audit_run(None, **places, overrides=settings))
        too_many = load_audit_run(
            None, **places, overrides=[*settings, "alarm={rule: conformal, false_alarm_rate: 0.3}"]
        )
        with pytest.raises(StudyError, match=r"0\.3 is above the model's rescore_share"):
            run_audit(too_many)
    points = faithad.read_table(work / "by-joined", "operating_points")
    assert points["threshold"].min() >= rescoring.lowest
    assert len(points) > 1
    again = join("again-joined", of=[str(work / "joined")])
    assert again.ensemble.rescoring == rescoring
    assert join("all-members", "rescore_share=1").ensemble.rescoring is None
    with pytest.raises(ConfigError, match="Two models are called 'frame_pca'"):
        join("twice", of=[folders[0], folders[0]])
    with pytest.raises(ConfigError, match="'mae' is one model"), without_ray():
        calibrate_model(
            load_calibration_run(
                [folders[1]], [str(work / "after")], str(work / "one"), overrides=["rescore_share=0.1"]
            )
        )
    save_model(replace(mae, normalization=Normalization.identity(16)), str(work / "other-mae"))
    with pytest.raises(ConfigError, match="frame_pca and mae take in different features"):
        join("unlike", of=[folders[0], str(work / "other-mae")])


def test_windows_of_members_that_pool_otherwise_have_their_own_threshold(work: Path) -> None:
    """Not that of the score of the whole clip, which most windows of normal clips exceed."""
    alarm = AlarmThreshold("quantile", FITTED, 0.1, 1.0, 180.0, 12)
    single(work, "cae", alarm, replace(robust("cae"), pooling="mean"))
    single(work, "skip_cae", alarm, robust("skip_cae"))
    folders, to = [str(work / name) for name in ("cae", "skip_cae")], str(work / "means")
    with without_ray():
        calibrate_model(load_calibration_run(folders, [str(work / "after")], to))
    joined = load_any(to)
    assert isinstance(joined, TrainedEnsemble)
    detector = joined.ensemble.members["cae"]
    assert detector.score.pooling == "mean"
    assert detector.normals is not None
    expected = []
    for file, recording in zip(sorted((work / "after").iterdir()), detector.normals.recordings.unique(), strict=True):
        for log_mel in faithad.log_mel(file, joined.features):
            x = torch.as_tensor(log_mel)[None, :, :80]
            errors = detector.cells(x, ["any"])[0].detach().double().mean(dim=0)
            windows = errors.reshape(8, 10).mean(dim=1)  # a quarter of a second is 10 frames
            own = recording[None]
            expected.append(detector.normals.calibrated(windows[:, None], x.double().mean(dim=2), own).max())
    stored = np.array(parquet.read_table(f"{to}/{layout.VALIDATION_SCORES}")["worst_windows"].to_pylist())
    np.testing.assert_allclose(sorted(stored[:, 0]), sorted(expected), rtol=1e-5)
    scores = [NormalScores(*each.stored().normals).of_themselves() for each in joined.ensemble.members.values()]
    np.testing.assert_allclose(stored[:, 1], scores[1], rtol=1e-12)
    assert joined.alarm is not None
    assert joined.alarm.window_thresholds[0] > float(scores[0].max())


def test_the_same_command_does_nothing_and_a_killed_one_goes_on(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = work / "calibrated" / "ensemble.safetensors"
    whole = file.read_bytes()
    assert "30 clips fitted" in calibrate(work, "model", "after", "calibrated")
    assert "already" in capsys.readouterr().out
    file.unlink()
    with without_ray():
        calibrate(work, "model", "after", "calibrated")
    assert file.read_bytes() == whole


def test_what_cannot_be_is_refused(work: Path, audited: Path) -> None:
    with without_ray():
        with pytest.raises(ConfigError, match=r"holds a model or other results already.*Give a new folder \(--to\)"):
            calibrate(work, "model", "after", "model")
        with pytest.raises(ConfigError, match="holds a model or other results already"):
            calibrate(work, "calibrated", "after", "model")
        with pytest.raises(StudyError, match="holds results of stage 'calibrate'"):
            calibrate(work, "model", "before", "calibrated")
        (work / "few").mkdir()
        soundfile.write(work / "few" / "a.wav", hum(10, 1), RATE_HZ)
        with pytest.raises(StudyError, match="5 normal clips, and 20 are needed"):
            calibrate(work, "model", "few", "of-few")
        manifest = read_manifest(str(shutil.copytree(audited, work / "labelled")))
        ones = pa.array([1] * manifest.num_rows, pa.int8())
        manifest = manifest.set_column(manifest.column_names.index("label"), schemas.MANIFEST.field("label"), ones)
        parquet.write_table(manifest, str(work / "labelled" / layout.MANIFEST), schema=schemas.MANIFEST)
        with pytest.raises(StudyError, match=r"Every clip of the audit in .* alarmed, .* or is labelled"):
            calibrate(work, "model", "labelled", "of-alarms")
        card = work / "labelled" / layout.MODEL
        card.write_text(card.read_text().replace('"n_mels": 16', '"n_mels": 20'))
        with pytest.raises(StudyError, match="n_mels is 20 there and 16 here"):
            calibrate(work, "model", "labelled", "of-other")
        both = load_calibration_run([str(work / "model")], [str(audited), str(work / "after")], str(work / "both"))
        with pytest.raises(ConfigError, match="Give the results of one audit alone"):
            calibrate_model(both)
