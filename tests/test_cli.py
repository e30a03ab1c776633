"""The command line without a process of its own: what it refuses, and what it says to do next."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

import pytest
from typer.testing import CliRunner

from faithad import cli

STUDY = "{name: c, root: r, data: {root: mill, train: [a], test: [b]}}"


@pytest.fixture
def config(tmp_path: Path) -> str:
    location = tmp_path / "my study.yaml"
    location.write_text(STUDY)
    return str(location)


def usage_error(*arguments: str) -> str:
    """What is said, without the frame that it stands in."""
    answer = CliRunner().invoke(cli.app, arguments)
    assert answer.exit_code == 2, answer.output
    return " ".join(answer.output.replace("│", " ").split())


@pytest.mark.parametrize("option", ["--set=nonsense=3", "--redo"])
def test_an_evaluation_of_one_audit_takes_no_settings(option: str) -> None:
    said = usage_error("evaluate", "--audit", "a", "--annotations", "l", option)
    assert f"{option.partition('=')[0]}: it has no meaning with --audit" in said


def test_a_study_retries_no_clips(config: str) -> None:
    said = usage_error("audit", "--config", config, "--retry-failed")
    assert "--retry-failed: it has no meaning with a study" in said


def test_options_in_place_of_a_jobs_name() -> None:
    said = usage_error("submit", "--address", "http://127.0.0.1:9", "--config", "configs/demo.yaml")
    assert "The job's name is missing before '--config'; jobs are full_study, train, search, audit" in said


@pytest.mark.parametrize(
    ("command", "following"), [("index", "train"), ("train", "audit"), ("audit", "evaluate"), ("evaluate", "report")]
)
def test_the_next_command_has_the_same_settings(
    config: str, command: str, following: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_stage", lambda name, config, overrides, redo: cli._load(config, overrides))
    settings = ["--set", "root=/tmp/my idx", "--set", "seeds=[0, 1]"]
    answer = CliRunner().invoke(cli.app, [command, "--config", config, *settings])
    assert answer.exit_code == 0, answer.output
    assert shlex.split(answer.output.partition("Next: ")[2]) == ["faithad", following, "--config", config, *settings]


def test_sigterm_unwinds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def work() -> NoReturn:
        with tempfile.TemporaryDirectory(dir=tmp_path):
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("it goes on")

    monkeypatch.setattr(cli, "app", work)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (ended.value.code, capsys.readouterr().err) == (143, "Terminated.\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("said", "starts_at"), [(None, "/home/miller/faithad"), ("/mnt/mill", "/mnt/mill")])
def test_where_a_jobs_relative_paths_start(monkeypatch: pytest.MonkeyPatch, said: str | None, starts_at: str) -> None:
    monkeypatch.setenv("HOME", "/home/miller")
    monkeypatch.setenv("FAITHAD_HOME", said or "")
    if said is None:
        monkeypatch.delenv("FAITHAD_HOME")
    monkeypatch.setattr(sys, "argv", ["jobs/audit.py", "--out", "week"])
    begun: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(cli, "main", lambda: begun.append((os.environ["FAITHAD_HOME"], sys.argv[1:])))
    cli.job("audit")
    assert begun == [(starts_at, ["audit", "--out", "week"])]
