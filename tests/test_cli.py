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

import faithad
from faithad import cli
from faithad.cli import steps

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


def ending() -> object:
    """The exit status of `faithad`, run in this process; the handler of signals is put back."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    return ended.value.code


@pytest.mark.parametrize("option", ["--set=nonsense=3", "--redo"])
def test_an_evaluation_of_one_audit_takes_no_settings(option: str) -> None:
    said = usage_error("evaluate", "--audit", "a", "--annotations", "l", option)
    assert f"{option.partition('=')[0]}: it has no meaning with --audit" in said


@pytest.mark.parametrize("option", ["--detection-tolerance", "--ground-truth-tolerance"])
def test_a_study_has_no_events_to_match(config: str, option: str) -> None:
    said = usage_error("evaluate", "--config", config, option, "0.3")
    assert f"{option}: it has no meaning with a study, which has no events" in said


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
    monkeypatch.setattr(steps, "run_stage", lambda name, study, redo: None)
    settings = ["--set", "root=/tmp/my idx", "--set", "seeds=[0, 1]"]
    answer = CliRunner().invoke(cli.app, [command, "--config", config, *settings])
    assert answer.exit_code == 0, answer.output
    assert shlex.split(answer.output.partition("Next: ")[2]) == ["faithad", following, "--config", config, *settings]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["synth", "--out", "x", "--hours", "abc"], "'--hours': must be a number, found 'abc'"),
        (["synth", "--out", "x", "--hours", "0.01"], "'--hours': must be at least 0.05 and at most 1600, found '0.01'"),
        (["synth", "--out", "x", "--seed=-1"], "'--seed': must be at least 0, found '-1'"),
        (["study", "--config", "a", "-c", "b"], "'--config' / '-c': is given twice, and takes one value"),
    ],
)
def test_a_wrong_option_names_its_value(arguments: list[str], message: str) -> None:
    assert message in usage_error(*arguments)


def test_some_options_may_be_given_several_times(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "run_stage", lambda name, study, redo: None)
    options = ["--set", "seeds=[1]", "--set", "root=r", "--redo", "--redo"]
    assert CliRunner().invoke(cli.app, ["index", "--config", config, *options]).exit_code == 0


def test_the_version() -> None:
    answer = CliRunner().invoke(cli.app, ["--version"])
    assert (answer.exit_code, answer.output) == (0, f"faithad {faithad.__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["audit"], ["study"]])
def test_flags_take_no_value(arguments: list[str]) -> None:
    help = CliRunner().invoke(cli.app, [*arguments, "--help"]).output
    assert "--help" in help
    assert "<bool>" not in help


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("study --config c", "Interrupted. The same command goes on where it was.\n"),
        ("report --config c", "Interrupted.\n"),
        ("submit audit", "job-1 goes on.\n"),
    ],
)
def test_an_interrupt_is_told(
    command: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    def left(*_: object, **options: object) -> int:
        print("job-1 goes on.", file=sys.stderr)
        return 130

    monkeypatch.setattr(steps, "load", interrupted)
    monkeypatch.setattr("faithad.pipelines.submit.run.submit_job", left)
    monkeypatch.setattr(sys, "argv", ["faithad", *command.split()])
    assert (ending(), capsys.readouterr().err) == (130, said)


@pytest.mark.parametrize(("command", "advice"), [("audit", " The same command goes on where it was."), ("synth", "")])
def test_sigterm_unwinds(
    command: str, advice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def work() -> NoReturn:
        with tempfile.TemporaryDirectory(dir=tmp_path):
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("it goes on")

    monkeypatch.setattr(cli, "app", work)
    monkeypatch.setattr(sys, "argv", ["faithad", command])
    assert (ending(), capsys.readouterr().err) == (143, f"Terminated.{advice}\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("said", "starts_at"), [(None, "/mnt/miller/faithad"), ("/mnt/mill", "/mnt/mill")])
def test_where_a_jobs_relative_paths_start(monkeypatch: pytest.MonkeyPatch, said: str | None, starts_at: str) -> None:
    monkeypatch.setenv("HOME", "/mnt/miller")
    monkeypatch.setenv("FAITHAD_HOME", said or "")
    if said is None:
        monkeypatch.delenv("FAITHAD_HOME")
    monkeypatch.setattr(sys, "argv", ["jobs/audit.py", "--out", "week"])
    begun: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(cli, "main", lambda: begun.append((os.environ["FAITHAD_HOME"], sys.argv[1:])))
    cli.job("audit")
    assert begun == [(starts_at, ["audit", "--out", "week"])]
