"""What `faithad submit` finds out before it needs a cluster, and what it makes of a cluster's answers."""

from __future__ import annotations

import functools
import json
import logging
import os
import re
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
from ray._private import ray_constants
from ray._private.runtime_env.packaging import create_package
from typer.testing import CliRunner

from faithad import cli
from faithad.errors import ConfigError, StudyError
from faithad.pipelines.submit import follow as submit_follow
from faithad.pipelines.submit.check import SUBMITTED, misfits
from faithad.pipelines.submit.run import LIMIT_BYTES, entry_point_of, files_of, inside, submit_job

PROJECT = Path(__file__).parents[2]
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
    mess = shutil.ignore_patterns(".git", ".venv", "__pycache__", "*_cache", ".hypothesis", "*.egg-info")
    shutil.copytree(PROJECT, folder, ignore=mess)
    shutil.rmtree(folder / "runs", ignore_errors=True)
    for name in LITTER:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"0" * 1_000_000)
    return folder


def packed(folder: Path, archive: Path) -> dict[str, int]:
    """The package that Ray's client makes of a folder: the files in it."""
    excludes = ray_constants.get_runtime_env_default_excludes()
    create_package(str(folder), archive, include_gitignore=True, excludes=excludes, logger=logging.Logger(""))
    with zipfile.ZipFile(archive) as package:
        return {entry.filename: entry.file_size for entry in package.infolist() if not entry.is_dir()}


def test_a_checkout_travels_small_and_with_the_files_that_ray_would_pack(checkout: Path, tmp_path: Path) -> None:
    files = files_of(str(checkout))
    assert not set(LITTER) & set(files)
    needed = {"jobs/full_study.py", "configs/demo.yaml", "faithad/report/page.css.j2", "faithad/runs/layout.py"}
    assert needed <= set(files)
    archive = tmp_path / "of_ray.zip"
    assert files == packed(checkout, archive)
    assert archive.stat().st_size < 3_000_000


IGNORED = """
# A comment, and an empty line.

*.log
!keep.log
/top
deep/*.bin
any/**/end
folder/
[a-c]?.txt
"""


def test_patterns_leave_out_what_ray_leaves_out(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    names = ["a.log", "keep.log", "x/b.log", "top", "x/top", "deep/1.bin", "x/deep/1.bin", "any/1/2/end", "any/end"]
    names += ["folder/1", "x/folder/1", "a1.txt", "d1.txt", "x/b2.txt", "nested/1", "nested/2", "nested/x/1", "venv/1"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / ".rayignore").write_text(IGNORED)
    (folder / "nested" / ".gitignore").write_text("/1\n")
    expected = {"keep.log", "x/top", "x/deep/1.bin", "d1.txt", "nested/2", "nested/x/1"}
    files = files_of(str(folder))
    assert set(files) == expected | {".rayignore", "nested/.gitignore"}
    assert files == packed(folder, tmp_path / "of_ray.zip")


def test_a_large_folder_is_refused_by_its_largest_parts(tmp_path: Path) -> None:
    assert LIMIT_BYTES == ray_constants.DASHBOARD_CLIENT_MAX_SIZE
    (tmp_path / "notes").mkdir()
    for n in range(30):
        (tmp_path / "notes" / f"{n}.txt").write_bytes(b"0" * 100_000)
    with (tmp_path / "video.mp4").open("wb") as video:
        video.truncate(LIMIT_BYTES)
    (tmp_path / "small.txt").write_text("small")
    with pytest.raises(StudyError, match=r"108 MB in 32 files, and Ray takes less than 105 MB") as refused:
        files_of(str(tmp_path))
    assert "The largest: video.mp4 (105 MB), notes/ (3 MB), small.txt (5 B)." in str(refused.value)
    (tmp_path / ".rayignore").write_text("*.mp4\n")
    assert sum(files_of(str(tmp_path)).values()) < 4_000_000


@pytest.mark.parametrize("name", ["absent.yaml", "../checkout/configs/demo.yaml", "runs/demo/manifest.parquet"])
def test_files_that_do_not_travel(checkout: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"--config '{name}' does not travel with the job"):
        inside(name, files_of(str(checkout)), what="--config")
    assert inside("./configs/../configs/demo.yaml", {"configs/demo.yaml": 1}, what="--config") == "configs/demo.yaml"


@pytest.fixture
def answering() -> Iterator[Callable[..., str]]:
    """Makes a server that says it is a job server with some version of Ray, or something else, and takes nothing; its
    address.
    """
    servers: list[HTTPServer] = []

    def serve(version: str = "", text: str = "") -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write((text or json.dumps({"version": "4", "ray_version": version})).encode())

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
    monkeypatch.setattr(submit_follow, "ask", functools.partial(submit_follow.ask, within_s=0.2))
    monkeypatch.setattr(submit_follow, "_PATIENCE_S", 1.0)
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
        client = submit_follow.connect(f"127.0.0.1:{server.server_port}")
        answered.set()
        with pytest.raises(StudyError, match=r"said nothing of raysubmit_x for .*The job goes on .*Follow it: "):
            submit_follow.follow(client, "raysubmit_x")
    finally:
        ended.set()
        server.shutdown()
        server.server_close()


def said_of(arguments: list[str], *, status: int) -> str:
    """What `faithad submit` says, without the frame that it stands in."""
    answer = CliRunner().invoke(cli.app, ["submit", *arguments])
    if isinstance(answer.exception, ConfigError | StudyError):
        assert status == 1
        return str(answer.exception)
    assert answer.exit_code == status, answer.output
    return " ".join(answer.output.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study"], r"There is no job 'study'\. Jobs are full_study, train, search, audit"),
        (["mine.py"], r"Script 'mine\.py' does not travel"),
        (["train", "-c=configs/demo.yaml"], r"--config '=configs/demo\.yaml' does not travel"),
        (["search", "--config", "absent.yaml"], r"--config 'absent\.yaml' does not travel"),
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
    where = ["--address", answering(ray.__version__), "--working-dir", str(PROJECT)]
    assert re.search(message, said_of([job, *where, *rest], status=1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search"], r"faithad submit search .*Missing option '--config'"),
        (["jobs/search.py"], r"faithad submit search .*Missing option '--config'"),
        (["full_study", "--confg", "configs/demo.yaml"], r"No such option: --confg .*--config"),
        (["jobs/train.py", "--st=train.epochs=1"], r"No such option: --st .*--set"),
        (["train", "-c", "configs/demo.yaml", "--redoo"], r"No such option: --redoo .*--redo"),
        (["search", "-c", "configs/demo.yaml", "--model", "mae"], r"No such option: --model"),
        (["audit", "-c", "configs/audit.yaml", "more.wav"], r"unexpected extra argument\(s\) \(more\.wav\)"),
        (["search", "--config"], r"Option '--config' requires an argument"),
        (["train", "-c", "a.yaml", "--config", "b.yaml"], r"is given twice, and takes one value"),
    ],
)
def test_a_wrong_option_of_a_job_is_named_before_the_cluster_is_asked(arguments: list[str], message: str) -> None:
    assert re.search(message, said_of(arguments, status=2))


def test_the_options_of_a_script_of_the_users_own_are_its_own(
    answering: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    where = ["--address", answering(ray.__version__), "--working-dir", str(tmp_path)]
    # A training on normal recordings has no configuration to look at.
    for given in (["mine.py", "--confg", "--set"], ["train", "--normals", "s3://b/normal", "--to", "s3://b/model"]):
        said = said_of([given[0], *where, *given[1:]], status=1)
        assert "did not take the job" in said, "it was given to the server, which takes nothing"


def test_a_job_starts_from_its_script_or_from_an_installed_faithad(tmp_path: Path) -> None:
    """Where nobody has cloned the repository, only the configuration travels."""
    assert entry_point_of("search", {"jobs/search.py": 1}) == ["python", "jobs/search.py"]
    assert entry_point_of("mine.py", {"mine.py": 1}) == ["python", "mine.py"]
    _, *words = entry_point_of("full_study", {"study.yaml": 1})
    variables = {key: value for key, value in os.environ.items() if key != "FAITHAD_HOME"} | {"HOME": str(tmp_path)}
    (tmp_path / "study.yaml").write_text("name: mill\nroot: results\n")
    command = [sys.executable, *words, "--config", "study.yaml"]
    answer = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert "study.yaml has 1 problem:\n  data: missing" in answer.stderr


@pytest.mark.parametrize("answer", ["<html>Grafana</html>", "{}"])
def test_a_server_that_is_no_job_server(
    answering: Callable[..., str], answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    address = answering(text=answer)
    with pytest.raises(StudyError, match=f"There is no job server of Ray at http://{address}"):
        submit_job("train", [], {}, address=address, working_dir=str(PROJECT))


@pytest.mark.parametrize("address", ["ray://head:10001", "auto://", "http://"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ConfigError, match="is not the address of a job server"):
        submit_job("train", [], {}, address=address, working_dir=str(PROJECT))


@pytest.mark.parametrize(
    "arguments", [["--out", "s3://AKIA:hush@bucket/week"], ["--set=recordings=[a, s3://b/c?secret_key=hush]"]]
)
def test_a_secret_does_not_get_into_the_jobs_record(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match="holds a secret, which would stand in the job's record") as refused:
        submit_job("audit", arguments, {}, address=None, working_dir=str(PROJECT))
    assert "hush" not in str(refused.value)


def test_a_shared_folder_has_one_path_on_all_machines() -> None:
    with pytest.raises(ConfigError, match="--shared 'runs' is no whole path"):
        submit_job("train", [], {}, address=None, shared=["/mnt/data", "runs"])


def test_the_check_says_what_is_missing(tmp_path: Path) -> None:
    """It ends there, without Ray. The package is that of the current folder."""
    shutil.copytree(PROJECT / "faithad", tmp_path / "faithad", ignore=shutil.ignore_patterns("__pycache__"))
    needs = ["packaging>=24", "no-such-distribution>=1", 'no-such-extra; extra == "dev"', "python>=3.11"]
    answer = subprocess.run(
        [sys.executable, "-m", "faithad.pipelines.submit.check"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), SUBMITTED: json.dumps({"needs": needs, "faithad": "0.1.0"})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 1, answer.stderr
    assert answer.stderr == (
        "StudyError: The cluster cannot run this job:\n"
        f"  the head ({sys.executable}): no-such-distribution is missing\n"
    )


def machine(**has: str) -> dict[str, str]:
    """What `versions` says of a machine."""
    usual = {"python": "3.12.1", "ray": "2.60.1", "torch": "2.11.0+cu130", "faithad": "0.1.0"}
    return {"executable": "/opt/bin/python"} | usual | has


WITHOUT_TORCH = {name: version for name, version in machine().items() if name != "torch"}


@pytest.mark.parametrize(
    ("machines", "lines"),
    [
        ({"the head": WITHOUT_TORCH}, ["the head (/opt/bin/python): torch is missing"]),
        ({"the head": machine(python="3.10.4")}, ["the head (/opt/bin/python): python is 3.10.4, and must be >=3.11"]),
        ({"the head": machine(ray="2.9.3")}, ["the head (/opt/bin/python): ray is 2.9.3, and must be ~=2.60.0"]),
        (
            {"the head": machine(), "a": machine(torch="2.9.1"), "b": machine(torch="2.9.1")},
            ["a, b (/opt/bin/python): torch is 2.9.1, and must be ~=2.11.0"],
        ),
        (
            {"the head": machine(), "a": machine(faithad="99.0")},
            ["a (/opt/bin/python): faithad is 99.0, and on the head 0.1.0"],
        ),
        (
            {"the head": machine(lime_for_faithad="1.1"), "a": machine(lime_for_faithad="1.0"), "b": machine()},
            [
                "a (/opt/bin/python): lime_for_faithad is 1.0, and on the head 1.1",
                "b (/opt/bin/python): lime_for_faithad is missing, and on the head 1.1",
            ],
        ),
        (
            {"the head": machine(), "a": machine(lime_for_faithad="1.0")},
            ["a (/opt/bin/python): lime_for_faithad is 1.0, and on the head missing"],
        ),
        ({"the head": machine(), "a": machine(torch="2.11.1")}, []),
    ],
)
def test_machines_that_cannot_run_the_job(machines: dict[str, dict[str, str]], lines: list[str]) -> None:
    assert misfits(machines, {"ray": "~=2.60.0", "torch": "~=2.11.0", "python": ">=3.11"}) == lines
