"""Configurations: every file that we ship, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from faithad.config import Study, load_study, parse_study
from faithad.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))
SMALLEST = "{name: s, root: runs/s, data: {train: [a], test: [b]}}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_each_shipped_configuration_is_valid_and_opens_with_its_command(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# ")
    assert f"configs/{path.name}" in text
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
        "audit",
        "attribution.methods.0",
    }
    assert "  seedz: unknown key; did you mean 'seeds'?" in lines
    assert any("train.epochs" in line and "found 0" in line for line in lines)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.split.by=csv", "split.by 'csv' needs the folders in recordings"),
        ("data={train: [a], test: [b], split: {csv: x.csv}}", "split.csv is needed with split.by 'csv'"),
        ("data={recordings: [a], split: {by: time}}", "split.train_until is needed"),
        ("data={layout: planer, train: [a]}", "finds training/ and evaluation/ below data.root by itself"),
        ("data.training_folders=[2x6]", "training_folders belongs to layout 'planer'"),
        ("train={batch_size: 32, workers: 5}", "must be a multiple of workers"),
        ("train.patch=3", "train.patch (3) must divide features.n_mels (80)"),
        ("features={hop_samples: 2000}", "hop_samples (2000) may not exceed n_fft (1000)"),
        ("seeds=[1, 1]", "seeds must name one or more different values"),
        ("models=[]", "models must name one or more different values"),
        ("data.clip_s=0.1", "fewer than 16 frames"),
        ("train.mask_ratio=1.0", "train.mask_ratio"),
        ("train=3", "train: "),
    ],
)
def test_impossible_combinations_are_refused(change: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_study(SMALLEST, name="x.yaml", overrides=[change])
    assert message in str(caught.value)


@pytest.mark.parametrize("change", ["train.epochs", "=3", "name.first=3", "train.epochs=["])
def test_a_change_of_another_form_is_named(change: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        parse_study(SMALLEST, name="x.yaml", overrides=[change])


def test_changes_reach_sections_that_the_file_leaves_out() -> None:
    study = parse_study(SMALLEST, name="x.yaml", overrides=["train.epochs=3", "models=[ae]"])
    assert (study.train.epochs, study.models) == (3, ("ae",))


@pytest.mark.parametrize("text", ["[1, 2]", "just words", "a: [", ""])
def test_what_is_no_configuration_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"x\.yaml"):
        parse_study(text, name="x.yaml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        load_study(str(tmp_path / "absent.yaml"))


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
