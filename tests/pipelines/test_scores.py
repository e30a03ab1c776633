"""The study's score of a trained model, fitted to features that a test has written: no Ray."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from faithad import parquet
from faithad.audit.chosen_score import with_score
from faithad.audit.model import prepare_audit
from faithad.audit.raised_alarm import raised_alarm
from faithad.audit.shard import audit_clips
from faithad.config.audit import AuditRun
from faithad.config.sections import Alarm, Attribution, Audit
from faithad.config.study import Study, parse_study
from faithad.errors import CheckpointError, ConfigError, StudyError
from faithad.model.checkpoint import TrainedModel, load_model, save_model
from faithad.model.table import build_network
from faithad.pipelines.audit.models import audit_models, audit_stage
from faithad.pipelines.features import fit_normalization
from faithad.pipelines.training import scores, trained
from faithad.pipelines.training.run import train_stage
from faithad.pipelines.training.task import TrainingTask
from faithad.runs import layout
from faithad.runs.stages import ResumableStage
from faithad.schemas import MANIFEST
from faithad.scoring.choices import Score, robust
from faithad.scoring.residuals import inpainting_groups
from faithad.scoring.trained_ensemble import load_any

pytestmark = pytest.mark.long

F, T, N, HELD_BACK, SHORT = 16, 101, 24, 9, 61
SCORES = ("score", "worst_second_score", "paper_score")


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def study_of(root: Path, **changes: Any) -> Study:
    settings = {
        "models": "[mae, frame_pca]",
        "seeds": "[0]",
        "features": "{n_fft: 4000, hop_samples: 2000, n_mels: 16, normalization: training, reference: clip}",
        "data": "{layout: planer, root: x}",
    } | changes
    text = "\n".join([f"name: tiny\nroot: {root}", *(f"{key}: {value}" for key, value in settings.items())])
    return parse_study(text, name="study.yaml")


@pytest.fixture(scope="module")
def clips() -> dict[str, tuple[str, Tensor, int]]:
    """Normal clips by their names: recording, log-mel and the frames that hold sound. Two splits share a recording."""
    generator = torch.Generator().manual_seed(0)
    sounds = 5.0 * torch.randn(N + HELD_BACK, F, T + 4, generator=generator).unfold(2, 5, 1).mean(dim=-1) - 60.0
    found = {}
    for number, sound in enumerate(sounds):
        split = "train" if number < N else "validation"
        recording = f"recording {max(0, number - 2) // 4}"
        found[f"{split}-{number:02d}"] = (recording, sound, SHORT if number in (3, N + 1) else T)
    return found


@pytest.fixture(scope="module")
def root(clips: dict[str, tuple[str, Tensor, int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose two models are trained with the paper's score; the MAE's weights are chance."""
    folder = tmp_path_factory.mktemp("study")
    rows = [
        {"clip_id": name, "recording": recording, "uri": name, "onset_s": 0.0, "split": name.split("-")[0],
         "duration_s": 10.0 if n == T else (n - 1) / 10, "annotated": False}
        for name, (recording, _, n) in clips.items()
    ]  # fmt: skip
    parquet.write_table(pa.Table.from_pylist(rows, schema=MANIFEST), str(folder / layout.MANIFEST), schema=MANIFEST)
    for split in ("train", "validation"):
        names = [name for name in clips if name.startswith(split)]
        for k in range(0, len(names), 7):
            flat = torch.stack([clips[name][1] for name in names[k : k + 7]]).reshape(-1).numpy()
            table = pa.table(
                {"clip_id": names[k : k + 7], "log_mel": pa.FixedSizeListArray.from_arrays(pa.array(flat), F * T)}
            )
            parquet.write_table(table, str(folder / layout.features(split) / layout.shard(k // 7)), schema=table.schema)
    study = study_of(folder)
    normalization = fit_normalization(study)
    for model in study.models:
        task = TrainingTask(study, model, 0, normalization, threads=1, state="", fingerprint="f")
        if model == "frame_pca":
            trained.save_fitted(task)
            continue
        torch.manual_seed(0)
        network = build_network(model, F, study.n_frames(model)).eval()
        parts = partial(trained.read_clips, task, "validation")
        values = trained._scores(network, task, parts, torch.device("cpu"))
        trained._save(network, task, *values, best_epoch=1)
    return folder


def read(root: Path, model: str) -> tuple[TrainedModel, dict[str, list[Any]]]:
    table = parquet.read_table(str(root / layout.validation_scores(model, 0)))
    return load_model(str(root / layout.model(model, 0))), table.to_pydict()


def slow_raw(model: TrainedModel, score: Score, x: Tensor, clip_id: str, n: int, weights: list[float] | None) -> float:
    """The score before calibration of one clip, from its definition."""
    frames = []
    with torch.inference_mode():
        if score.residual == "inpainting":
            error = torch.zeros_like(x)
            for group in inpainting_groups(x, clip_id):
                rebuilt = model.network(torch.where(group, 0.0, x)[None])[0]
                error = torch.where(group, (rebuilt - x) ** 2, error)
        else:
            error = model.network.context_error(x[None])[0]  # type: ignore[operator]
    for t in range(n):
        frames.append(sum(float(error[f, t]) / (weights[f] if weights else 1.0) for f in range(len(x))) / len(x))
    width = round(0.25 * 10)
    starts = list(range(0, n, width))
    if n - starts[-1] < width and len(starts) > 1:
        starts.pop()
    ends = [*starts[1:], n]
    return max(sum(frames[a:b]) / (b - a) for a, b in zip(starts, ends, strict=True))


@pytest.mark.parametrize("model", ["mae", "frame_pca"])
def test_the_robust_score_is_fitted_to_the_training_normals(
    root: Path, clips: dict[str, tuple[str, Tensor, int]], model: str
) -> None:
    study, score = study_of(root, score="robust"), robust(model)
    before, paper = read(root, model)
    assert not scores.has_score(study, model, 0)
    assert scores.fit_score(study, model, 0) == f"robust, fitted to {N} normal clips"
    assert scores.has_score(study, model, 0)
    found, validation = read(root, model)
    assert found.score is not None
    assert found.score.choices == asdict(score)

    x = {name: found.prepare(sound[None])[0] for name, (_, sound, _) in clips.items()}
    heard = {name: min(n, found.n_frames) for name, (*_, n) in clips.items()}
    train = [name for name in clips if name.startswith("train")]
    weights: list[float] | None = None
    if score.weighting == "band":
        total, count = torch.zeros(F, dtype=torch.float64), 0
        for name in train:
            groups = inpainting_groups(x[name], name)
            with torch.inference_mode():
                errors = [(found.network(x[name].masked_fill(g, 0.0)[None])[0] - x[name]) ** 2 * g for g in groups]
            total += sum(errors)[:, : heard[name]].double().sum(dim=1)  # type: ignore[index]
            count += heard[name]
        weights = (total / count).tolist()
        assert found.score.weights is not None
        assert found.score.weights.tolist() == pytest.approx(weights, rel=1e-5)
    raw = {name: slow_raw(found, score, x[name], name, heard[name], weights) for name in clips}
    places = {name: x[name][:, : heard[name]].double().mean(dim=1) for name in clips}
    expected = []
    for name in clips:
        if name.startswith("train"):
            continue
        others = [other for other in train if clips[other][0] != clips[name][0]]
        nearest = sorted(others, key=lambda other: float((places[other] - places[name]).square().sum()))[:15]
        expected.append(math.log(raw[name]) - sum(math.log(raw[other]) for other in nearest) / len(nearest))
    assert validation["score"] == pytest.approx(expected, abs=1e-4)
    assert (validation["paper_score"], validation["worst_second_score"]) == (
        paper["score"],
        paper["worst_second_score"],
    )
    assert found.alarm is not None
    assert found.alarm.pooling == "fitted"
    assert found.alarm.threshold in validation["score"]

    # Back to the paper's: the model and the table are what they were.
    assert scores.fit_score(study_of(root), model, 0) == "paper"
    assert scores.has_score(study_of(root), model, 0)
    again, table = read(root, model)
    assert (again.score, again.alarm, table) == (None, before.alarm, paper)


def test_what_a_kill_leaves_half_done_is_fitted_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of(root, score="robust")
    _, paper = read(root, "frame_pca")
    with monkeypatch.context() as patch:
        patch.setattr(scores, "save_model", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            scores.fit_score(study, "frame_pca", 0)
    assert not scores.has_score(study, "frame_pca", 0)
    assert not scores.has_score(study_of(root), "frame_pca", 0)
    scores.fit_score(study, "frame_pca", 0)
    assert read(root, "frame_pca")[1]["paper_score"] == paper["score"]
    whole = (root / layout.model("frame_pca", 0) / "model.safetensors").read_bytes()
    scores.fit_score(study, "frame_pca", 0)
    assert (root / layout.model("frame_pca", 0) / "model.safetensors").read_bytes() == whole
    scores.fit_score(study_of(root), "frame_pca", 0)
    assert read(root, "frame_pca")[1] == paper


def test_an_audit_computes_the_stored_score_or_the_papers(
    root: Path, clips: dict[str, tuple[str, Tensor, int]]
) -> None:
    folder = str(root / layout.model("mae", 0))
    scores.fit_score(study_of(root, score="robust"), "mae", 0)
    stored, (fitted, validation) = load_any(folder), read(root, "mae")
    held_back = [name for name in clips if name.startswith("validation")]
    rows = [
        {"clip_id": name, "recording": "r", "onset_s": 0.0, "duration_s": 10.0 if n == T else (n - 1) / 10,
         "intervals": None, "annotated": False, "keep_maps": False}
        for name, (_, _, n) in clips.items() if name in held_back
    ]  # fmt: skip
    log_mels = torch.stack([clips[name][1] for name in held_back])
    run = AuditRun(model=folder, recordings=("r",), out="o")

    def audited(run: AuditRun, **options: Any) -> list[dict[str, Any]]:
        trained = with_score(run, load_any(folder))
        trained.alarm = raised_alarm(run, trained)
        device = torch.device("cpu")
        model = prepare_audit(trained, attribution=Attribution(), audit=Audit(), device=device, **options)
        return audit_clips(model, rows, log_mels, explain=False)["scores"]

    def strip(found: list[dict[str, Any]], *names: str) -> list[list[Any]]:
        return [[row[name] for row in found] for name in names]

    assert isinstance(stored, TrainedModel)
    as_stored, beside = audited(run), audited(run, beside_paper=True)
    score, second, paper = strip(as_stored, *SCORES)
    # Those of the validation table leave out the clips of their own recording: the first two have some.
    assert score[2:] == pytest.approx(validation["score"][2:], abs=1e-6)
    assert score[:2] != pytest.approx(validation["score"][:2], abs=1e-6)
    assert (second, paper) == ([None] * HELD_BACK, [None] * HELD_BACK)
    assert strip(as_stored, "raised_by") == [[None] * HELD_BACK]
    assert strip(beside, "score") == [score]
    assert strip(beside, "paper_score")[0] == pytest.approx(validation["paper_score"], rel=1e-5)
    assert fitted.alarm is not None
    assert strip(as_stored, "alarm")[0] == [value > fitted.alarm.threshold for value in score]

    as_paper = audited(run.model_copy(update={"score": "paper"}))
    assert strip(as_paper, "score")[0] == pytest.approx(validation["paper_score"], rel=1e-5)
    assert strip(as_paper, "worst_second_score")[0] == pytest.approx(validation["worst_second_score"], rel=1e-5)
    scores.fit_score(study_of(root), "mae", 0)
    np.testing.assert_equal(audited(run), as_paper)  # to the bit, threshold included
    with pytest.raises(ConfigError, match=r"asks for the score 'robust', and the model in .* has 'paper'"):
        audited(run.model_copy(update={"score": "robust"}))


def test_an_alarm_of_an_audits_own_is_of_the_score_that_it_computes(root: Path) -> None:
    folder = str(root / layout.model("frame_pca", 0))
    scores.fit_score(study_of(root, score="robust"), "frame_pca", 0)
    model, validation = read(root, "frame_pca")
    run = AuditRun(model=folder, recordings=("r",), out="o", alarm=Alarm(false_alarm_rate=0.2))
    of_score, of_paper = (raised_alarm(run, replace(model, score=score)) for score in (model.score, None))
    assert (of_score.pooling, of_paper.pooling) == ("fitted", "mean")
    assert of_score.threshold in validation["score"]
    assert of_paper.threshold in validation["paper_score"]
    seconds = run.model_copy(update={"alarm": Alarm(pooling="worst_second")})
    assert raised_alarm(seconds, replace(model, score=None)).threshold in validation["worst_second_score"]
    with pytest.raises(StudyError, match="gives one score for a whole clip"):
        raised_alarm(seconds, model)
    scores.fit_score(study_of(root), "frame_pca", 0)


def test_marks_name_the_score_and_not_the_papers(root: Path) -> None:
    paper, other = study_of(root), study_of(root, score="robust")
    features = ResumableStage(str(root), "features", {}, (), result="")
    of_train = [{run: train_stage(study, *run, features) for run in study.runs} for study in (paper, other)]
    assert [stage.settings for stage in of_train[0].values()] == [stage.settings for stage in of_train[1].values()]
    first, second = (
        audit_stage(study, "mae", 0, stages, "digest").settings
        for study, stages in zip((paper, other), of_train, strict=True)
    )
    assert second == first | {f"score.{key}": value for key, value in asdict(robust("mae")).items()}
    (root / layout.STUDY).write_text("")
    audits = {run: audit_stage(other, *run, of_train[1], "digest") for run in other.runs}
    manifest = parquet.read_table(str(root / layout.MANIFEST))
    test = manifest.set_column(
        manifest.column_names.index("split"), "split", pa.array(["test"] * manifest.num_rows, pa.string())
    )
    with pytest.raises(StudyError, match=r"mae-0 .* does not have the study's score, robust. Run `faithad train`"):
        audit_models(other, test, audits, of_train[1], redo=False, conclusions=())


def test_what_a_damaged_score_says(root: Path, tmp_path: Path) -> None:
    scores.fit_score(study_of(root, score="robust"), "mae", 0)
    model, _ = read(root, "mae")
    score = model.score
    assert score is not None
    assert score.normals is not None
    assert score.weights is not None
    many = tuple(part.repeat(300, *[1] * (part.ndim - 1)) for part in score.normals)
    damage = {
        "instead of": replace(score, weights=None),
        "at most|1 to 5,000 are allowed": replace(score, normals=many),
        "no finite or no allowed": replace(score, weights=score.weights.float()),
        "There is no residual": replace(score, choices={**score.choices, "residual": "gone"}),
        "is for frame_pca": replace(score, choices={**score.choices, "residual": "context"}),
    }
    for words, damaged in damage.items():
        save_model(replace(model, score=damaged), str(tmp_path))
        with pytest.raises(CheckpointError, match=words):
            load_any(str(tmp_path))
    assert model.alarm is not None
    save_model(replace(model, alarm=replace(model.alarm, pooling="mean")), str(tmp_path))
    with pytest.raises(CheckpointError, match=r"alarm.pooling \('mean'; allowed: fitted\)"):
        load_any(str(tmp_path))
    scores.fit_score(study_of(root), "mae", 0)


def test_too_few_recordings_are_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = scores.split_clips(study_of(root), load_model(f"{root}/models/mae-0"), "train")
    monkeypatch.setattr(scores, "split_clips", lambda *_: {name: ("one", n) for name, (_, n) in rows.items()})
    with pytest.raises(StudyError, match="come from one recording"):
        scores.fit_score(study_of(root, score="robust"), "mae", 0)
    assert np.isfinite(read(root, "mae")[1]["score"]).all()
