"""Configurations: every file that we ship, and what a wrong one is told."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from faithad.config.audit import is_study, load_audit_run
from faithad.config.sections import Attribution
from faithad.config.study import Study, load_study, parse_study
from faithad.errors import ConfigError
from faithad.model.table import MODELS, ModelRow
from faithad.scoring.choices import Score
from faithad.settings import JudgingSettings

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))
SMALLEST = "{name: s, root: runs/s, data: {train: [a], test: [b]}}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_each_shipped_configuration_is_valid_and_opens_with_its_command(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# ")
    assert f"configs/{path.name}" in text
    if not is_study(str(path)):
        assert load_audit_run(str(path)).recordings
        return
    study = load_study(str(path))
    assert parse_study(study.to_yaml(), name="resolved") == study


def test_the_paper_is_complete() -> None:
    study = load_study(str(CONFIGS[0].parent / "paper.yaml"))
    assert study.train.epochs == 500
    assert study.runs == [(model, seed) for model in ("ae", "mae") for seed in range(5)]
    assert study.audit.percentiles == tuple(range(90, 100))
    assert (study.n_frames("ae"), study.n_frames("mae")) == (401, 400)
    assert (study.train.mask_ratio, study.train.patch) == (0.30, 4)
    assert study.features.normalization == "none"
    assert len(study.attribution.methods) == 6


def test_all_problems_are_told_at_once_each_with_its_key() -> None:
    text = """
name: "a b"
root: r
seedz: [1]
models: [vae]
data: {train: [a], test: [b], clip_s: ten}
train: {epochs: 0, patience: 2.5}
audit: {percentiles: [99, 90]}
attribution: {methods: [gradcam]}
"""
    with pytest.raises(ConfigError) as caught:
        parse_study(text, name="x.yaml")
    lines = str(caught.value).splitlines()
    assert lines[0] == "x.yaml has 8 problems:"
    assert {line.split(":")[0].strip() for line in lines[1:]} == {
        "name",
        "seedz",
        "models.0",
        "data.clip_s",
        "train.epochs",
        "train.patience",
        "audit.percentiles",
        "attribution.methods.0",
    }
    assert "  seedz: unknown key; did you mean 'seeds'?" in lines
    assert any("train.epochs" in line and "found 0" in line for line in lines)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.split.by=csv", "split.by 'csv' needs the folders in recordings"),
        ("data={train: [a], test: [b], split: {csv: x.csv}}", "data.split.csv: is needed with split.by 'csv'"),
        ("data={recordings: [a], split: {by: time}}", "data.split.train_until: is needed"),
        ("data={layout: planer, train: [a]}", "finds training/ and evaluation/ below data.root by itself"),
        ("data={layout: planer, synthetic: {}}", "data.synthetic: "),
        ("data.training_folders=[2x6]", "training_folders belongs to layout 'planer'"),
        ("train={batch_size: 32, workers: 5}", "must be a multiple of workers"),
        ("train.patch=3", "train.patch: 3 must divide features.n_mels (80)"),
        ("features={hop_samples: 2000}", "features.hop_samples: 2000 may not exceed n_fft (1000)"),
        ("features={sample_rate_hz: 1000, hop_samples: 1001, n_fft: 2000}", "features.hop_samples: 1001 samples are "),
        ("seeds=[1, 1]", "seeds: must be one or more different values"),
        ("seeds=[-1]", "seeds.0: "),
        ("track=[tensorboard, comet]", "track.1: "),
        ("track=[mlflow, mlflow]", "track: must be one or more different values"),
        ("data.split.seed=-1", "data.split.seed: "),
        ("models=[]", "models: must be one or more different values"),
        ("data.remainder=overlap", "data.remainder: 'overlap' lets clips of one recording share sound"),
        ("data.clip_s=0.1", "fewer than 16 frames"),
        ("data={train: [a], test: [b], clip_s: 0.02}", "data.clip_s: is 0.02 s, 400 samples; "),
        ("train={patch: 80, mask_ratio: 0.1}", "train.mask_ratio: is 0.1: of 5 patches that hides none"),
        ("train={patch: 40, mask_ratio: 0.04}", "train.mask_ratio: is 0.04: of 20 patches that hides none"),
        ("train.mask_ratio=1.0", "train.mask_ratio"),
        ("train=3", "train: "),
        ("attribution.compile=default", "attribution.compile: 'default' is for GPUs: set audit.gpus_per_actor"),
        ("attribution.engine=captum", "attribution: engine 'captum' is gone; leave the key out"),
        ("events.merge_gap_s=3", "events: unknown key; "),
        ("attribution.compile=reduce-overhead", "attribution.compile: "),
        ("score={residual: inpainting}", "score: residual 'inpainting' is for mae, and not for ae"),
        ("score={residual: context}", "score: residual 'context' is for frame_pca, and not for ae"),
        ("score={weighting: loud}", "score: There is no weighting 'loud'; allowed: none, band"),
        ("score={weights: band}", "score: 'weights' is no part of a score; allowed: residual, weighting, pooling, cal"),
    ],
)
def test_impossible_combinations_are_refused(change: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_study(SMALLEST, name="x.yaml", overrides=[change])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.epochs=twelve", "train.epochs: must be a whole number, found 'twelve'"),
        ("train.patience=2.5", "train.patience: must be a whole number, found 2.5"),
        ("train.learning_rate=fast", "train.learning_rate: must be a number, found 'fast'"),
        ("train.learning_rate=0", "train.learning_rate: must be above 0, found 0"),
        ("data.clip_s=.inf", "data.clip_s: must be a finite number, found inf"),
        ("train.mask_ratio=75", "train.mask_ratio: must be above 0 and below 1, found 75"),
        ("search.mask_ratios=[0.3, 75]", "search.mask_ratios.1: must be above 0 and below 1, found 75"),
        ("search.patches=[0]", "search.patches.0: must be at least 1, found 0"),
        ("data.clip_s=700", "data.clip_s: must be above 0 and at most 600, found 700"),
        ("audit.actors=0", "audit.actors: must be at least 1, found 0"),
        ("data.layout=planner", "data.layout: must be 'audio', 'planer' or 'dcase', found 'planner'"),
        (
            "alarm={false_alarm_rate: 0.1, false_alarms_per_hour: 2}",
            "alarm.false_alarms_per_hour: false_alarm_rate says the same of all clips: leave one of the two out",
        ),
        ("alarm.state_share=0.5", "alarm.state_share: the alarm for what lasts compares minutes with a recorder's own"),
        ("alarm.false_alarms_per_hour=360", "alarm.false_alarms_per_hour: 360 is as many as an hour has clips of 10 s"),
        (
            "audit.explain=some",
            "audit.explain: allowed: all, annotated, alarms, none, or top:N with N at least 1, found 'some'",
        ),
        (
            "score=best",
            "score: allowed: paper, robust, or a choice of residual, weighting, pooling, calibration, found",
        ),
        ("models=[vae]", "models.0: allowed: ae, mae, dense_ae, "),
        ("attribution.methods=[lime]", "attribution.methods.0: allowed: error_map, saliency, "),
        ("models=ae", "models: must be a list, such as [a, b], found 'ae'"),
        ("name=3", "name: must be text: write a number in quotes, found 3"),
        ("train=3", "train: must be a section, with keys and values of its own, found 3"),
    ],
)
def test_a_wrong_value_is_told_what_is_allowed(change: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_study(SMALLEST, name="x.yaml", overrides=[change])
    assert f"  {message}" in str(caught.value)


def test_a_score_is_named_or_made_of_its_parts() -> None:
    robust = parse_study(SMALLEST, name="x.yaml", overrides=["score=robust", "models=[ae, mae, one_class_svm]"])
    scores = {model: robust.score_of(model) for model in robust.models}
    assert [score.residual if score else None for score in scores.values()] == ["reconstruction", "inpainting", None]
    own = parse_study(SMALLEST, name="x.yaml", overrides=["score={pooling: top_share, weighting: band}"])
    assert own.score_of("ae") == own.score_of("mae") == Score("reconstruction", "band", "top_share", "none")
    for study in (robust, own):
        assert parse_study(study.to_yaml(), name="x.yaml") == study
    for score in ("score=paper", "score={}", "score={pooling: mean}"):
        assert parse_study(SMALLEST, name="x.yaml", overrides=[score]).score_of("mae") is None
    with pytest.raises(ConfigError) as caught:
        parse_study(SMALLEST, name="x.yaml", overrides=["score=robust", "alarm={rule: gamma, pooling: worst_second}"])
    assert "alarm.pooling: 'worst_second' is for score 'paper'" in str(caught.value)
    assert "alarm.rule: 'gamma' is for scores above 0" in str(caught.value)


def test_the_mae_needs_sixteen_frames_that_its_patches_divide() -> None:
    small = ["features.n_mels=35", "features.hop_samples=1000", "train.patch=7", "train.mask_ratio=0.5"]
    assert parse_study(SMALLEST, name="x.yaml", overrides=[*small, "data.clip_s=1.05"]).n_frames("mae") == 21
    with pytest.raises(ConfigError, match=r"data\.clip_s: .* 14 frames .* \(7\)"):
        parse_study(SMALLEST, name="x.yaml", overrides=[*small, "data.clip_s=0.95"])
    alone = parse_study(SMALLEST, name="x.yaml", overrides=[*small, "data.clip_s=0.95", "models=[ae]"])
    assert alone.n_frames("ae") == 20
    assert parse_study(SMALLEST, name="x.yaml", overrides=["train.patch=3", "models=[ae]"]).train.patch == 3


def test_every_network_needs_sixteen_frames_that_its_multiple_divides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS.built_in, "u_net", ModelRow("u_net", "U-Net", "x:y", frames_multiple=30))
    monkeypatch.setitem(MODELS.built_in, "m_net", ModelRow("m_net", "M-Net", "x:y", masked=True, frames_multiple=27))
    monkeypatch.setitem(
        MODELS.built_in, "fitted", ModelRow("fitted", "Fitted", "x:y", fitted=True, reconstructs=False, seedless=True)
    )
    changes = ["models=[ae, mae, u_net, m_net, fitted]", "data.clip_s=1.3", "features.hop_samples=1000"]
    with pytest.raises(ConfigError) as caught:
        parse_study(SMALLEST, name="x.yaml", overrides=changes)
    lines = str(caught.value).splitlines()
    assert lines == [
        "x.yaml has 2 problems:",
        "  data.clip_s: the U-Net sees 0 frames of a clip, a multiple of 30, and needs 16: raise it",
        "  data.clip_s: the M-Net sees 0 frames of a clip, a multiple of train.patch (4) and 27, and needs 16: "
        "raise it, or lower train.patch",
    ]
    parse_study(SMALLEST, name="x.yaml", overrides=["models=[ae, mae, fitted]", *changes[1:]])


def test_a_reference_that_no_model_takes_is_refused() -> None:
    changes = ["features.reference=clip", "models=[ae, one_class_svm]"]
    with pytest.raises(
        ConfigError, match=r"features\.reference: 'clip' is for frame_pca, frame_ridge, and models lists"
    ):
        parse_study(SMALLEST, name="x.yaml", overrides=changes)
    study = parse_study(SMALLEST, name="x.yaml", overrides=[changes[0], "models=[ae, frame_ridge]"])
    assert study.feature_settings == parse_study(SMALLEST, name="x.yaml").feature_settings


def test_every_model_may_be_in_a_study() -> None:
    names = list(MODELS)
    assert {"ae", "mae", "dense_ae", "cae", "skip_cae", "one_class_svm", "isolation_forest"} <= set(names)
    assert parse_study(SMALLEST, name="x.yaml").models == ("ae", "mae")
    change = f"models=[{', '.join(reversed(names))}]"
    study = parse_study(SMALLEST, name="x.yaml", overrides=[change, "seeds=[3, 5]"])
    assert {name: study.n_frames(name) for name in names} == {name: 401 - (name == "mae") for name in names}
    assert [run for run in study.runs if run[0] == "cae"] == [("cae", 3), ("cae", 5)]
    assert [run for run in study.runs if run[0] == "isolation_forest"] == [
        ("isolation_forest", 3),
        ("isolation_forest", 5),
    ]
    assert [run for run in study.runs if run[0] == "one_class_svm"] == [("one_class_svm", 3)]


def test_masking_concerns_the_mae_alone() -> None:
    changes = ["models=[one_class_svm, isolation_forest, dense_ae]", "train={patch: 77, mask_ratio: 0.001}"]
    parse_study(SMALLEST, name="x.yaml", overrides=changes)
    with pytest.raises(ConfigError, match=r"train\.patch: 77 must divide"):
        parse_study(SMALLEST, name="x.yaml", overrides=[*changes[1:], "models=[cae, mae]"])


@pytest.mark.parametrize(
    "change",
    [
        "train.epochs=true",
        "train.learning_rate=yes",
        "seeds=[true]",
        "data.clip_s=.nan",
        "data.clip_s=.inf",
        "train.learning_rate=.inf",
        "train.weight_decay=.inf",
        "attribution.gradient_shap_sigma=.nan",
        "audit.percentiles=[.nan]",
        "train.gpus_per_worker=.inf",
    ],
)
def test_what_is_no_finite_number_is_none(change: str) -> None:
    key = change.partition("=")[0]
    with pytest.raises(ConfigError) as caught:
        parse_study(SMALLEST, name="x.yaml", overrides=[change])
    first, problem = str(caught.value).splitlines()
    assert first == "x.yaml has 1 problem:"
    assert problem.startswith(f"  {key}")


BY_TIME = "{name: s, root: r, data: {recordings: [a], split: {by: time, train_until: %s}}}"


@pytest.mark.parametrize("value", ["2019-12-01T06:00", "2019-12-01 06:00:00", "'2019-12-01 06:00'"])
def test_a_wall_clock(value: str) -> None:
    study = parse_study(BY_TIME % value, name="x.yaml")
    assert study.data.split.train_until == datetime(2019, 12, 1, 6)
    assert parse_study(study.to_yaml(), name="resolved") == study
    assert parse_study(BY_TIME % "2019-12-01", name="x").data.split.train_until == datetime(2019, 12, 1)


@pytest.mark.parametrize("value", ["2019-12-01T06:00:00+01:00", "'2019-12-01T06:00+01:00'", "2019-12-01T05:00:00Z"])
def test_a_wall_clock_with_an_offset_from_utc(value: str) -> None:
    study = parse_study(BY_TIME % value, name="x.yaml")
    assert study.data.split.train_until == datetime(2019, 12, 1, 5, tzinfo=UTC)
    assert parse_study(study.to_yaml(), name="resolved") == study


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("1575158400", "a date and a time such as 2019-12-01T06:00"),
        ("'1575158400'", "a date and a time such as 2019-12-01T06:00"),
        ("December", "a date and a time such as 2019-12-01T06:00"),
        ("true", "data.split.train_until"),
    ],
)
def test_what_is_no_wall_clock_is_refused(value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"has 1 problem:\n  data\.split\.train_until: ") as caught:
        parse_study(BY_TIME % value, name="x.yaml")
    assert message in str(caught.value)


def test_a_key_that_stands_twice_is_a_problem_among_the_others() -> None:
    text = """name: s
root: r
data: {train: [a], test: [b]}
train:
  epochs: 3
  patience: 0
  epochs: 4
root: q
"""
    with pytest.raises(ConfigError) as caught:
        parse_study(text, name="x.yaml")
    assert str(caught.value).splitlines() == [
        "x.yaml has 3 problems:",
        "  root: is there twice, in lines 2 and 8; keep one",
        "  train.epochs: is there twice, in lines 5 and 7; keep one",
        "  train.patience: must be at least 1, found 0",
    ]
    with pytest.raises(ConfigError, match="epochs: is there twice"):
        parse_study(SMALLEST, name="x.yaml", overrides=["train={epochs: 1, epochs: 2}"])


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        # What a wrong value hides is told beside it: other sections, and values that only together are impossible.
        (
            "{name: s, data: {train: [a], test: [b]}, train: {epochs: 0, patch: 3}}",
            ["root", "train.epochs", "train.patch"],
        ),
        (
            "{name: 'a b', root: r, data: {train: [a], clip_s: ten, remainder: overlap}, seeds: [1, 1]}",
            ["name", "data.clip_s", "data.test", "data.remainder", "seeds"],
        ),
        (
            "{name: s, root: r, data: {train: [a]}, train: {workers: 5, patch: 3}, audit: {percentiles: [2, 1]}}",
            ["data.test", "train.batch_size", "audit.percentiles", "train.patch"],
        ),
        ("{name: s, root: r, data: {train: [a], test: [b]}, train: {patch: 3}, trian: {}}", ["trian", "train.patch"]),
        ("{seeds: [], models: [ae, ae], trian: {}}", ["name", "root", "data", "trian", "seeds", "models"]),
        # What only follows from a wrong value, or from its removal, is not.
        ("{name: s, root: r, data: {trian: [a], test: [b]}}", ["data.trian"]),
        ("{name: s, root: r, data: {train: 3, test: [b]}}", ["data.train"]),
        ("{name: s, root: r, data: {train: [a], test: [b]}, train: {batch_size: x, workers: 5}}", ["train.batch_size"]),
        (
            "{name: s, root: r, data: {train: [a], test: [b]}, train: {patch: x}, features: {n_mels: 90}}",
            ["train.patch"],
        ),
        ("{name: s, root: r, data: {train: [a], test: [b]}, models: [vae], train: {patch: 3}}", ["models.0"]),
        ("{name: s, root: r, data: 3}", ["data"]),
        ("{name: s, root: r, data: {train: [a], test: [b]}, train: 3, audit: [1]}", ["train", "audit"]),
        ("{1: 2, name: s, root: r, data: {train: [a], test: [b]}, train: {patch: 3}}", ["1", "train.patch"]),
        ("{name: s, root: r, data: {recordings: [a], split: {by: tme, train_until: 2019-12-01}}}", ["data.split.by"]),
        ("{name: s, root: r, data: {recordings: [a], split: {by: time}}}", ["data.split.train_until"]),
    ],
)
def test_one_run_tells_all_problems_and_none_that_only_follows(text: str, keys: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_study(text, name="x.yaml")
    told = [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]]
    assert sorted(told) == sorted(keys), str(caught.value)


def test_paths_start_at_the_root_unless_they_say_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    data = parse_study(SMALLEST, name="x.yaml", overrides=["data.root=/data"]).data
    assert [data.locate(path) for path in ("a", "/b", "~/c", "s3://d/e")] == [
        "/data/a",
        "/b",
        str(tmp_path / "c"),
        "s3://d/e",
    ]


@pytest.mark.parametrize("change", ["train.epochs", "=3", "name.first=3", "train.epochs=["])
def test_a_change_of_another_form_is_named(change: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        parse_study(SMALLEST, name="x.yaml", overrides=[change])


def test_changes_reach_sections_that_the_file_leaves_out() -> None:
    study = parse_study(SMALLEST, name="x.yaml", overrides=["train.epochs=3", "models=[ae]"])
    assert (study.train.epochs, study.models) == (3, ("ae",))


@pytest.mark.parametrize("text", ["[1, 2]", "just words", "a: [", "", "a: 2019-99-99", "{[1]: 2}", "&a {b: *a}"])
def test_what_is_no_configuration_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"x\.yaml"):
        parse_study(text, name="x.yaml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_study(str(tmp_path / "absent.yaml"))
    assert str(caught.value) == f"There is no configuration '{tmp_path}/absent.yaml'. Check the path."
    with pytest.raises(ConfigError, match="Cannot read the configuration"):
        load_study(str(tmp_path))


def test_relative_roots_start_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(SMALLEST)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FAITHAD_HOME", raising=False)
    assert load_study("c.yaml").root == str(tmp_path / "runs" / "s")
    monkeypatch.setenv("FAITHAD_HOME", "/elsewhere")
    assert load_study("c.yaml").root == "/elsewhere/runs/s"
    assert load_study("c.yaml", overrides=["root=s3://bucket/s"]).root == "s3://bucket/s"


def test_a_study_is_frozen() -> None:
    study = parse_study(SMALLEST, name="x.yaml")
    with pytest.raises(ValueError, match="frozen"):
        study.name = "other"  # type: ignore[misc]
    assert isinstance(study, Study)


def test_a_study_of_release_0_1_0_names_the_engine_that_is_the_only_one_now() -> None:
    study = parse_study(SMALLEST, name="x.yaml", overrides=["attribution={engine: stream, seed: 3}"])
    assert study.attribution == Attribution(seed=3)
    assert "engine" not in study.to_yaml()


def test_a_protocol_says_how_maps_are_judged_and_on_which_frames() -> None:
    study = parse_study(SMALLEST, name="s", overrides=["models=[ae, mae, one_class_svm]"])
    assert study.judging == JudgingSettings(("paper",), None)
    for protocol, protocols in (("corrected", ("corrected",)), ("both", ("paper", "corrected"))):
        judged = parse_study(SMALLEST, name="s", overrides=[f"protocol={protocol}"])
        assert judged.judging == JudgingSettings(protocols, 400)
    with pytest.raises(ConfigError, match=r"audit\.percentiles.*100 leaves no frame under protocol 'both'"):
        parse_study(SMALLEST, name="s", overrides=["protocol=both", "audit.percentiles=[90, 100]"])
