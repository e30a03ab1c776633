"""What `faithad submit` finds out before it needs a cluster, and what it makes of a cluster's answers."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray
import typer
from packaging.specifiers import SpecifierSet
from ray._private.runtime_env.packaging import create_package

import faithad
from faithad import cli
from faithad.errors import ConfigError, StudyError
from faithad.pipelines.submit import server as submit_server
from faithad.pipelines.submit.check import JOBS, MARK, options
from faithad.pipelines.submit.package import LIMIT_BYTES, files_of, inside, require_small
from faithad.pipelines.submit.run import judge, submit_job

PROJECT = Path(__file__).parents[2]
COMMANDS = {"full_study": "study"}  # the others are called as their jobs
# What must not travel: results, recordings, environments, caches, secrets.
LITTER = [
    "runs/demo/manifest.parquet",
    "mill/train/2019-12-04.wav",
    "mill/test/LOUD.WAV",
    "mill/study/models/mae-0/model.safetensors",
    "week/a.flac",
    "planer/training/2x3/0.pt",
    ".venv/lib/python3.11/site-packages/torch/lib.so",
    ".git/objects/pack/pack-1.pack",
    ".hypothesis/examples/1",
    ".mypy_cache/3.11/faithad.json",
    "faithad/__pycache__/cli.cpython-311.pyc",
    "faithad.egg-info/PKG-INFO",
    "auth_token",
    ".env",
]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the checkout in which somebody has worked, with 1 MB in everything that must not travel."""
    folder = tmp_path / "checkout"
    mess = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", "*_cache", ".hypothesis", "*.egg-info")
    shutil.copytree(PROJECT, folder, ignore=mess)
    for name in LITTER:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"0" * 1_000_000)
    return folder


def packed(folder: Path, archive: Path, *, heeds_gitignore: bool) -> dict[str, int]:
    """The package that Ray's client makes of a folder: the files in it."""
    excludes = ray._private.ray_constants.get_runtime_env_default_excludes()
    create_package(
        str(folder), archive, include_gitignore=heeds_gitignore, excludes=excludes, logger=logging.Logger("")
    )
    with zipfile.ZipFile(archive) as package:
        return {one.filename: one.file_size for one in package.infolist() if not one.is_dir()}


@pytest.mark.parametrize("heeds_gitignore", [True, False])
def test_a_checkout_travels_small_and_as_listed(
    checkout: Path, tmp_path: Path, heeds_gitignore: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0" if heeds_gitignore else "1")
    archive = tmp_path / "package.zip"
    in_package = packed(checkout, archive, heeds_gitignore=heeds_gitignore)
    assert not set(LITTER) & set(in_package)
    assert {"jobs/full_study.py", "configs/demo.yaml", "faithad/report/page.css.j2"} <= set(in_package)
    assert files_of(str(checkout)) == in_package
    assert archive.stat().st_size < 3_000_000
    estimate = require_small(in_package, str(checkout))
    assert archive.stat().st_size <= estimate <= archive.stat().st_size + 100 * len(in_package)


def test_a_large_folder_is_refused_by_its_largest_parts(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    for n in range(30):
        (tmp_path / "notes" / f"{n}.txt").write_bytes(b"0" * 100_000)
    with (tmp_path / "video.mp4").open("wb") as video:
        video.truncate(LIMIT_BYTES)
    (tmp_path / "small.txt").write_text("small")
    with pytest.raises(StudyError, match=r"102\.9 MiB in 32 files") as refused:
        require_small(files_of(str(tmp_path)), str(tmp_path))
    assert "The largest: video.mp4 (100.0 MiB), notes/ (2.9 MiB), small.txt (0.0 MiB)." in str(refused.value)
    (tmp_path / ".rayignore").write_text("*.mp4\n")
    assert require_small(files_of(str(tmp_path)), str(tmp_path)) < 4_000_000


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.yaml", "there is no such file in"),
        ("../checkout/configs/demo.yaml", "it lies outside"),
        ("runs/demo/manifest.parquet", r"a \.rayignore or \.gitignore leaves it out"),
    ],
)
def test_files_that_do_not_travel(checkout: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        inside(name, files_of(str(checkout)), str(checkout), what="--config")
    assert inside("./configs/../configs/demo.yaml", {"configs/demo.yaml": 1}, str(checkout), what="--config") == (
        "configs/demo.yaml"
    )


@pytest.fixture
def answering() -> Iterator[Callable[[str], str]]:
    """Makes a server that says it is a job server with some version of Ray, and takes nothing; its address."""
    servers: list[HTTPServer] = []

    def serve(version: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps({"version": "4", "ray_version": version}).encode())

            def log_message(self, *_: Any) -> None:
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return f"127.0.0.1:{servers[-1].server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_server_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind a tunnel whose far end is gone: it takes whatever comes, and answers nothing."""
    monkeypatch.setattr(submit_server, "_REPLY_S", 0.2)
    monkeypatch.setattr(submit_server, "_SILENCE_S", 0.2)
    monkeypatch.setattr(submit_server, "_PATIENCE_S", 1.0)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    answered = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if answered.is_set():
                ended.wait(30)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"version": "4", "ray_version": ray.__version__}).encode())

        def log_message(self, *_: Any) -> None:
            pass

    ended = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        client = submit_server.connect(f"127.0.0.1:{server.server_port}", ray_versions=SpecifierSet(""))
        answered.set()
        with pytest.raises(StudyError, match=r"could not be reached for .* s\. raysubmit_x goes on"):
            submit_server.Log(client, "raysubmit_x").follow()
    finally:
        ended.set()
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study"], r"There is no job 'study'\. Jobs are full_study, train, search, audit"),
        (["mine.py"], r"Script 'mine\.py': there is no such file"),
        (["train"], r"train needs a study: --config"),
        (["jobs/train.py"], r"train needs a study: --config"),
        (
            ["full_study", "--confg", "configs/demo.yaml"],
            r"full_study takes no '--confg'; did you mean '--config'\? Allowed: --config, -c, --set, --redo\.",
        ),
        (["jobs/train.py", "--st=train.epochs=1"], r"train takes no '--st'; did you mean '--set'\?"),
        (["train", "-c", "configs/demo.yaml", "--redoo"], r"train takes no '--redoo'; did you mean '--redo'\?"),
        (["train", "-c=configs/demo.yaml"], r"'-c=configs/demo\.yaml' is read as the file .*write -c FILE"),
        (["audit", "-c", "configs/demo.yaml", "--retry-failed"], r"--retry-failed has no meaning with a study"),
        (["search", "-c", "configs/demo.yaml", "--model", "mae"], r"search takes no '--model'; .*llowed: --config, -c"),
        (
            ["audit", "-c", "configs/audit.yaml", "more.wav"],
            r"audit takes no 'more\.wav'; allowed: --config, -c, --set",
        ),
        (["search", "--config"], r"--config/-c: expected one argument"),
        (["search", "--config", "absent.yaml"], r"--config 'absent\.yaml': there is no such file"),
        (
            ["full_study", "-c", "configs/demo.yaml", "--set", "train.epochs=0"],
            r"demo\.yaml has 1 problem:\n  train\.ep",
        ),
        (["audit", "--config", "configs/audit.yaml", "--set", "audit.maps=x"], r"audit\.yaml has 1 problem"),
        (["audit", "--config", "configs/demo.yaml", "--set=audit.maps=x"], r"demo\.yaml has 1 problem"),
        (["audit", "--model", "m", "--out", "o"], r"recordings: missing"),
    ],
)
def test_what_is_wrong_with_a_job_is_said_before_anything_is_uploaded(
    answering: Callable[[str], str], arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    job, *rest = arguments
    with pytest.raises(ConfigError, match=message):
        submit_job(job, address=answering(ray.__version__), arguments=rest, working_dir=str(PROJECT))


def test_the_jobs_take_the_options_of_their_commands() -> None:
    commands: Any = typer.main.get_command(cli.app)
    for job in JOBS:
        of_command = {name for option in commands.commands[COMMANDS.get(job, job)].params for name in option.opts}
        assert {name for action in options(job)._actions for name in action.option_strings} == of_command


def test_the_options_of_a_script_of_the_users_own_are_its_own(
    answering: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("")
    monkeypatch.setattr("faithad.pipelines.submit.run._ask_cluster", lambda *_: [{"problem": "asked"}])
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    with pytest.raises(StudyError, match="asked"):
        submit_job(
            "mine.py", address=answering(ray.__version__), arguments=["--confg", "--set"], working_dir=str(tmp_path)
        )


def test_a_cluster_of_another_ray(answering: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://{answering('2.9.3')}")
    with pytest.raises(StudyError, match=r"runs Ray 2\.9\.3, and faithad needs ray~=2\.60\.0"):
        submit_job("train", address=None, arguments=[], working_dir=str(PROJECT))


@pytest.mark.parametrize("address", ["ray://head:10001", "auto://", "http://"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ConfigError, match="is not the address of a job server"):
        submit_job("train", address=address, arguments=[], working_dir=str(PROJECT))


@pytest.mark.parametrize(
    "arguments", [["--out", "s3://AKIA:hush@bucket/week"], ["--set=recordings=[a, s3://b/c?secret_key=hush]"]]
)
def test_a_secret_does_not_get_into_the_jobs_record(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match="holds a secret, which would stand in the job's record") as refused:
        submit_job("audit", address=None, arguments=arguments, working_dir=str(PROJECT))
    assert "hush" not in str(refused.value)


def test_a_shared_folder_has_one_path_on_all_machines() -> None:
    with pytest.raises(ConfigError, match="--shared 'runs' is no whole path"):
        submit_job("train", address=None, arguments=[], shared=["/mnt/data", "runs"])


def test_the_check_says_what_it_runs_on(tmp_path: Path) -> None:
    """Without Ray in its Python it ends there; the package is that of the current folder."""
    shutil.copytree(PROJECT / "faithad", tmp_path / "faithad", ignore=shutil.ignore_patterns("__pycache__"))
    request = {"distributions": ["packaging", "no-such-distribution"], "job": "train", "arguments": []}
    answer = subprocess.run(
        [sys.executable, "-m", "faithad.pipelines.submit.check", json.dumps(request)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 1, answer.stderr
    (line,) = answer.stdout.splitlines()
    said = json.loads(line.removeprefix(MARK))["versions"]
    assert said["travels"] is True
    assert said["distributions"]["packaging"] is not None
    assert said["distributions"]["no-such-distribution"] is None
    assert said["executable"] == sys.executable


NEEDS = {"ray": SpecifierSet("~=2.60.0"), "torch": SpecifierSet("~=2.11.0"), "python": SpecifierSet(">=3.11")}


def machine(*names: str, torch: str | None = "2.11.0+cu130", **changes: Any) -> dict[str, Any]:
    found = {
        "python": "3.12.1",
        "executable": "/opt/bin/python",
        "faithad": faithad.__version__,
        "travels": True,
        "baked": None,
    }
    return {"machines": list(names), "versions": found | {"distributions": {"ray": "2.60.1", "torch": torch}} | changes}


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ([machine("the head", torch=None)], ["the head (/opt/bin/python): torch is missing"]),
        ([machine("the head", python="3.10.4")], ["the head (/opt/bin/python): python is 3.10.4, and must be >=3.11"]),
        (
            [machine("the head"), machine("a", "b", torch="2.9.1"), {"problem": "StudyError: unseen"}],
            ["a, b (/opt/bin/python): torch is 2.9.1, and must be ~=2.11.0"],
        ),
        (
            [machine("the head", travels=False), machine("a", travels=False, faithad="0.2.0")],
            ["a (/opt/bin/python): faithad is 0.2.0, and on the head " + faithad.__version__],
        ),
        ([machine("the head"), {"problem": "StudyError: unseen"}], ["StudyError: unseen"]),
        ([{"problem": "it has no faithad"}], ["it has no faithad"]),
    ],
)
def test_a_cluster_that_cannot_run_the_job(answers: list[dict[str, Any]], told: list[str]) -> None:
    with pytest.raises(StudyError) as refused:
        judge(answers, NEEDS, at="http://head:8265")
    first, *lines = str(refused.value).splitlines()
    assert "http://head:8265 cannot run this job; nothing was started" in first
    assert [line.strip() for line in lines] == told


def test_a_cluster_that_can() -> None:
    said = judge([machine("the head", baked="0.0.9"), machine("a", "b")], NEEDS, at="http://head:8265")
    assert "3 of its machines at http://head:8265 answered: ray 2.60.1, torch 2.11.0+cu130, python 3.12.1 (" in said
    travels = f"faithad: {faithad.__version__} travels with the job and is used, before 0.0.9, which is installed"
    assert travels in said
    # One that is installed has seen to its own versions.
    installed = judge([machine("the head", travels=False, faithad="0.0.9", torch="3.0.0")], NEEDS, at="")
    assert f"faithad: 0.0.9 is installed on the cluster ({faithad.__version__} here); none travels" in installed
