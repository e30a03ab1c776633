"""The command line as a person meets it: real processes, their output and exit status."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import yaml
from typer.testing import CliRunner

from faithad import parquet
from faithad.cli import app
from faithad.config.study import Study, load_study
from faithad.pipelines.study import STAGES

FAITHAD = Path(sys.executable).parent / "faithad"


def run(*arguments: str | Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run([FAITHAD, *arguments], capture_output=True, text=True, timeout=timeout, check=False)


def test_help_answers_in_under_a_second() -> None:
    took = []
    for _ in range(3):
        started = time.monotonic()
        answer = run("--help")
        took.append(time.monotonic() - started)
    assert answer.returncode == 0
    for command in ("synth", *STAGES, "study"):
        assert command in answer.stdout
    assert min(took) < 1.0


def test_synth_says_what_it_wrote_and_writes_a_configuration_that_is_ready(tmp_path: Path) -> None:
    mill = tmp_path / "my mill: #1"
    answer = run("synth", "--out", mill, "--hours", "0.1", "--seed", "1")
    assert answer.returncode == 0, answer.stderr
    assert len(list(mill.rglob("*.wav"))) == 6
    last = answer.stdout.strip().splitlines()[-1]
    assert "4 training and 2 test recordings" in last
    command = last.partition("Next: ")[2]
    assert shlex.split(command) == ["faithad", "study", "--config", str(mill / "study.yaml")]

    assert f"\n#   {command}\n" in (mill / "study.yaml").read_text()
    study = load_study(str(mill / "study.yaml"))
    assert study.root == str(mill / "study")
    assert [study.data.locate(path) for path in (*study.data.train, *study.data.test)] == [
        str(mill / "train"),
        str(mill / "test"),
    ]
    assert study.data.annotations is not None
    assert Path(study.data.locate(study.data.annotations)).exists()
    assert study.data.synthetic is None
    assert (study.features.normalization, study.data.split.validation_unit) == ("training", "recording")

    # What the user has changed there stays, and does not keep a mill from being made to its end.
    (mill / "study.yaml").write_text("name: changed")
    next(mill.rglob("*.wav")).unlink()
    assert run("synth", "--out", mill, "--hours", "0.1", "--seed", "1").returncode == 0
    assert len(list(mill.rglob("*.wav"))) == 6
    assert (mill / "study.yaml").read_text() == "name: changed"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "{full}"], "StudyError: {full} is not empty"),
        (["--out", "s3://bucket/mill"], "give a local folder"),
    ],
)
def test_synth_where_it_cannot_be(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "annotations.csv").write_text("a year's work")
    answer = run("synth", *(argument.format(full=tmp_path) for argument in arguments))
    assert answer.returncode == 1
    assert message.format(full=tmp_path) in answer.stderr
    assert "Traceback" not in answer.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["annotations.csv"]


def test_a_wrong_configuration_ends_with_its_problems_and_no_traceback(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("{name: c, root: r, data: {train: [a], test: [b]}, trian: {}}")
    answer = run("study", "--config", config, "--set", "train.epochs=0")
    assert answer.returncode == 1
    assert answer.stderr.splitlines() == [
        f"ConfigError: {config} has 2 problems:",
        "  train.epochs: must be at least 1, found 0",
        "  trian: unknown key; did you mean 'train'?",
    ]


def test_a_study_goes_on_after_a_kill_and_then_has_nothing_to_do(finished: Study, tmp_path: Path) -> None:
    """Killed with SIGKILL while it trains; the next run keeps what was done and ends; a third one ends at once."""
    values = yaml.safe_load(finished.to_yaml()) | {"root": str(tmp_path / "study"), "models": ["ae"]}
    values["train"]["epochs"] = 12
    values["attribution"]["methods"] = ["error_map", "saliency"]
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(values))
    stages = tmp_path / "study" / "stages"
    epochs = tmp_path / "study" / "models" / "ae-0" / "epochs.parquet"

    with subprocess.Popen(
        [FAITHAD, "study", "--config", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 180
        while process.poll() is None and time.monotonic() < deadline:
            # pyarrow's `read_table` opens a path twice, and may find two files that were written after each other.
            if epochs.exists() and len(trained := parquet.read_table(str(epochs)).to_pylist()) >= 3:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert len(trained) >= 3
    assert (stages / "features.json").exists()
    assert not (stages / "train-ae-0.json").exists()
    before = (stages / "features.json").stat().st_mtime_ns

    again = run("study", "--config", config)
    assert again.returncode == 0, again.stderr
    assert (stages / "features.json").stat().st_mtime_ns == before
    assert again.stdout.strip().splitlines()[-1].startswith("16 clips done. Tables: ")
    # The first epochs were not trained again: not even the time that they took has changed.
    resumed = parquet.read_table(str(epochs)).to_pylist()
    assert len(resumed) == 12
    assert resumed[:2] == trained[:2]

    third = CliRunner().invoke(app, ["study", "--config", str(config)])
    assert third.exit_code == 0
    assert "All stages were done already." in third.stdout
    assert json.loads((stages / "report.json").read_text())


def test_a_stage_out_of_turn_says_which_one_is_missing(finished: Study, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(finished.to_yaml())
    answer = run("audit", "--config", config, "--set", f"root={tmp_path / 'nothing'}")
    assert answer.returncode == 1
    assert answer.stderr.strip().endswith("Run `faithad index` with the same configuration first.")


def test_each_stage_says_what_it_wrote(finished: Study, tmp_path: Path) -> None:
    """Without processes of their own: there is nothing left to do."""
    config = tmp_path / "c.yaml"
    config.write_text(finished.to_yaml())
    for stage in STAGES:
        answer = CliRunner().invoke(app, [stage, "--config", str(config)])
        assert answer.exit_code == 0, answer.output
        assert finished.root in answer.stdout.strip().splitlines()[-1]
    assert os.path.exists(os.path.join(finished.root, "report.html"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_study_that_is_told_to_end_leaves_nothing_but_its_results(
    finished: Study, tmp_path: Path, number: int, status: int
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(yaml.safe_load(finished.to_yaml()) | {"root": str(tmp_path / "study")}))
    # Sockets live below this folder, and their paths may not be long.
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as temporary:
        environment = os.environ | {"RAY_TMPDIR": temporary, "TMPDIR": temporary}
        command = [FAITHAD, "study", "--config", config]
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + 120
            while not (tmp_path / "study" / "stages" / "features.json").exists():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            family = psutil.Process(process.pid).children(recursive=True)
            assert family, "Ray runs"
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
        assert process.returncode == status, said
        assert "Traceback" not in said
        _, alive = psutil.wait_procs(family, timeout=30)
        assert not alive
        assert not list(Path(temporary).glob("ray-*"))
