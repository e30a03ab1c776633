"""The configuration of an audit: from a file, from the command line, from both."""

from __future__ import annotations

from pathlib import Path

import pytest

from faithad.config.audit import is_study, load_audit_run
from faithad.errors import ConfigError

FILE = "{model: m, recordings: [a, s3://b/c], out: o, audit: {explain: 'top:5'}, alarm: {rule: gamma}}"


def test_the_command_line_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAITHAD_HOME", "/home/mill")
    (tmp_path / "audit.yaml").write_text(FILE)
    run = load_audit_run(str(tmp_path / "audit.yaml"), model="/other", overrides=["audit.maps=3"])
    assert (run.model, run.out) == ("/other", "/home/mill/o")
    assert run.recordings == ("/home/mill/a", "s3://b/c")
    assert (run.audit.explain, run.audit.maps, run.audit.clips_per_shard) == ("top:5", 3, 64)
    assert run.alarm is not None
    assert (run.alarm.rule, run.alarm.pooling) == ("gamma", "mean")

    (tmp_path / "again.yaml").write_text(run.to_yaml())
    assert load_audit_run(str(tmp_path / "again.yaml")) == run


def test_no_file_is_needed() -> None:
    run = load_audit_run(None, model="/m", recordings=["/a"], out="s3://b/o")
    assert (run.out, run.alarm, run.audit.explain, run.remainder) == ("s3://b/o", None, "alarms", "overlap")


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "audit.yaml").write_text(
        "{model: m, audit: {explain: some}, events: {method: occlusion}, annotation: x}"
    )
    with pytest.raises(ConfigError) as caught:
        load_audit_run(str(tmp_path / "audit.yaml"))
    told = str(caught.value)
    assert "has 5 problems" in told
    assert "recordings: missing, give it a value, or --recordings FOLDER" in told
    assert "audit.explain: allowed: all, alarms, none, or top:N" in told
    assert "did you mean 'annotations'?" in told
    assert "events.method: occlusion is not among attribution.methods" in told


def test_without_a_file_the_options_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        load_audit_run(None)
    assert str(caught.value).splitlines()[1:] == [
        "  model: missing, give --model FOLDER",
        "  recordings: missing, give --recordings FOLDER",
        "  out: missing, give --out FOLDER",
    ]


def test_an_event_is_told_by_an_explanation_that_is_made() -> None:
    with pytest.raises(ConfigError, match=r"events.percentile: 95 is not among audit.percentiles \[90"):
        load_audit_run(None, model="m", recordings=["a"], out="o", overrides=["audit.percentiles=[90]"])
    overrides = ["audit.percentiles=[90]", "audit.explain=none"]
    assert load_audit_run(None, model="m", recordings=["a"], out="o", overrides=overrides)


@pytest.mark.parametrize(
    ("text", "study"),
    [(FILE, False), ("{model: m}", False), ("{name: n, data: {}}", True), ("{}", True), ("{trian: {}}", True)],
)
def test_a_study_is_told_from_an_audit(tmp_path: Path, text: str, study: bool) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert is_study(str(tmp_path / "c.yaml")) is study


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"There is no configuration .*absent"):
        is_study(str(tmp_path / "absent.yaml"))
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(ConfigError, match=r"must hold keys and values \(model: \.\.\., recordings: .*\), found list"):
        load_audit_run(str(tmp_path / "list.yaml"))
