"""A whole study from the command line on a Ray of its own, watched from outside: who can reach it while it runs, and
what it leaves behind.

In its environment are secrets, and everywhere below its root lie pickles that nobody should touch.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from faithad.demo.mill import synthesize
from tests.security.traps import Trap

pytestmark = [pytest.mark.ray, pytest.mark.long]

FAITHAD = Path(sys.executable).parent / "faithad"
SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAWITNESSWITNESS01",
    "AWS_SECRET_ACCESS_KEY": "witness/of+the/secret+key",
    "AWS_SESSION_TOKEN": "witness-of-the-session",
}
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
STUDY: dict[str, Any] = {
    "name": "guarded",
    "models": ["ae"],
    "seeds": [0],
    "features": {"n_fft": 4000, "hop_samples": 2000, "n_mels": 16},
    "train": {"epochs": 1, "batch_size": 4},
    "attribution": {"methods": ["saliency"]},
    "audit": {"maps": 1},
}
# Ray turns 127.0.0.1 into the network card's address, where nothing listens, unless it believes to be on its own.
ATTACH = """
import sys, ray
from ray._private import ray_constants
ray_constants.ENABLE_RAY_CLUSTER = False
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="error")
print("attached to", len(ray.nodes()), "node")
"""


# As Python does that cleans up after an interrupt.
LATE_CALL = """
import faithad.pipelines.headers, ray
try:
    ray.put(1)
except Exception as error:
    print(error)
print("started" if ray.is_initialized() else "none")
"""


def test_no_call_starts_a_ray_by_itself() -> None:
    run = subprocess.run([sys.executable, "-c", LATE_CALL], capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout.splitlines()[-1] == "none", run.stdout


@dataclass
class Watched:
    """What was seen of a run.

    Attributes:
        root: of the study.
        temporary: the folder below which Ray keeps its own.
        status: exit status.
        said: both outputs.
        token: what Ray's processes were told to ask for.
        listening: (process, address, port) of all sockets that anybody could connect to.
        names: what each process called itself, as Ray's workers do after their task.
        commands: the words of their command lines, which every user may read.
        folders: name and mode of what lay in `temporary` meanwhile.
        logs: a copy of Ray's session, without sockets.
        strangers: what became of those who tried to attach, by what they had: output and status.
    """

    root: Path
    temporary: Path
    logs: Path
    status: int = -1
    said: str = ""
    token: str = ""
    listening: set[tuple[int, str, int]] = field(default_factory=set)
    names: defaultdict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    commands: set[str] = field(default_factory=set)
    folders: dict[str, int] = field(default_factory=dict)
    strangers: dict[str, tuple[str, int]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Trap:
    return Trap(tmp_path_factory.mktemp("trap"))


@pytest.fixture(scope="module")
def watched(planted: Trap, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with study_watched(planted, tmp_path_factory.mktemp("watched"), workers=1) as seen:
        yield seen


@contextlib.contextmanager
def study_watched(trap: Trap, folder: Path, *, workers: int) -> Iterator[Watched]:
    """Run the study to its end; `workers` share its training."""
    mill = folder / "mill"
    synthesize(mill, train_recordings=2, test_recordings=1, seed=3, start=datetime(2019, 12, 4, 8, 48), recording_s=20)
    data = {"root": str(mill), "train": ["train"], "test": ["test"], "split": {"validation_fraction": 0.5}}
    sections = {"root": str(folder / "root"), "data": data, "train": {**STUDY["train"], "workers": workers}}
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY | sections))
    plant(trap, folder / "root", mill)
    # Sockets live below this folder, and their paths may not be long.
    temporary = Path(tempfile.mkdtemp(prefix="w-", dir="/tmp"))
    seen = Watched(folder / "root", temporary, folder / "logs")
    try:
        run(seen, [str(FAITHAD), "study", "--config", str(folder / "study.yaml")], folder / "said")
        yield seen
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def plant(trap: Trap, root: Path, mill: Path) -> None:
    """Pickles under the names that Ray Tune, Ray Train, PyTorch and NumPy would look for."""
    places = {
        root: ("tuner.pkl", "trainer.pkl", "error.pkl", "searcher-state-2026.pkl", "model.pt", ".metadata.pkl"),
        root / "search": ("tuner.pkl", "searcher-state-2026.pkl", "search_gen_state-1.json", "scheduler-state-1.pkl"),
        root / "search/trials/r0.3-p4-s0": ("state.pt", "params.pkl", "error.pkl"),
        root / "training/ae-0": ("trainer.pkl", "state.pt", ".is_checkpoint", "dict_checkpoint.pkl"),
        root / "models/ae-0": ("model.pt", "model.pkl", "pytorch_model.bin"),
        root / "features/train": ("part-00000.npy", "part-00000.pkl"),
        mill / "train": ("sound.pt", "sound.npy", "sound.pkl"),
    }
    for folder, names in places.items():
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            content = trap.array if name.endswith(".npy") else trap.saved if name.endswith(".pt") else trap.pickled
            (folder / name).write_bytes(content)


def run(seen: Watched, command: list[str], said: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    environment |= SECRETS | {"RAY_TMPDIR": str(seen.temporary), "OMP_NUM_THREADS": "1"}
    with open(said, "w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    over = threading.Event()
    watcher = threading.Thread(target=watch, args=(seen, psutil.Process(process.pid), over))
    watcher.start()
    try:
        seen.status = process.wait(timeout=300)
    finally:
        process.kill()
        process.wait()
        over.set()
        watcher.join()
    seen.said = said.read_text()


def watch(seen: Watched, process: psutil.Process, over: threading.Event) -> None:
    while not over.wait(0.3):
        with contextlib.suppress(psutil.NoSuchProcess):
            for one in [process, *process.children(recursive=True)]:
                look_at(seen, one)
        with contextlib.suppress(OSError):  # what is just going away
            seen.folders |= {one.name: one.stat().st_mode & 0o777 for one in seen.temporary.iterdir()}
            for logs in seen.temporary.glob("*/ray/session_2*/logs"):
                shutil.copytree(logs, seen.logs, dirs_exist_ok=True)


def look_at(seen: Watched, one: psutil.Process) -> None:
    found = [socket for socket in one.net_connections(kind="inet") if socket.status == psutil.CONN_LISTEN]
    seen.listening |= {(one.pid, socket.laddr.ip, socket.laddr.port) for socket in found}
    seen.names[one.pid].add(one.name().partition(".")[0])
    seen.commands |= set(one.cmdline())
    if not seen.strangers and one.name() == "raylet" and one.environ().get("RAY_AUTH_TOKEN"):
        seen.token = one.environ()["RAY_AUTH_TOKEN"]
        try_to_attach(seen, one.cmdline())


def try_to_attach(seen: Watched, raylet: list[str]) -> None:
    """As three others on this machine: without a token, with a wrong one, and with the right one."""
    (address,) = (one.partition("=")[2] for one in raylet if one.startswith("--gcs-address="))
    settings = {"none": {"RAY_AUTH_MODE": "disabled"}}
    for name, token in (("wrong", "0" * 64), ("right", seen.token)):
        settings[name] = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    strangers = {}
    for name, setting in settings.items():
        environment = plain | setting | {"RAY_NUM_REDIS_GET_RETRIES": "1"}
        strangers[name] = subprocess.Popen(
            [sys.executable, "-c", ATTACH, address],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    for name, stranger in strangers.items():
        seen.strangers[name] = (stranger.communicate(timeout=60)[0], stranger.returncode)


def test_it_ends_well(watched: Watched) -> None:
    assert watched.status == 0, watched.said
    assert watched.said.splitlines()[-1].startswith("6 clips done. Tables: ")


def test_ray_writes_nothing_to_the_terminal_but_to_its_logs(watched: Watched) -> None:
    """Its C++ side writes `[2026-11-29 17:00:00,000 E 1 1] core_worker.cc:1: …`; one comes with each audit."""
    from_ray = r"^.*\[[\d:, -]+ [IWECF] \d+ \d+\].*$"
    assert not re.findall(from_ray, watched.said, re.MULTILINE)
    (raylet,) = watched.logs.rglob("raylet.out")
    assert re.search(from_ray, raylet.read_text(), re.MULTILINE)


def test_it_listens_on_loopback_alone(watched: Watched) -> None:
    """What several workers of one training do is watched by tests/chaos/listening.py: they start slowly."""
    named = {name for pid, _, _ in watched.listening for name in watched.names[pid]}
    assert named >= {"gcs_server", "raylet"}
    assert {address for _, address, _ in watched.listening} <= LOOPBACK


def test_nobody_attaches_without_its_token(watched: Watched) -> None:
    assert len(watched.token) == 64
    for name in ("none", "wrong"):
        said, status = watched.strangers[name]
        assert status != 0
        assert "InvalidAuthToken" in said
        assert "attached" not in said
    assert watched.strangers["right"] == ("attached to 1 node\n", 0)


def test_its_folder_is_for_its_user_alone_and_goes_with_it(watched: Watched) -> None:
    assert list(watched.folders.values()) == [0o700]
    assert list(watched.temporary.iterdir()) == []


def test_secrets_of_the_environment_reach_no_file_and_no_command_line(watched: Watched) -> None:
    logs = [file for file in watched.logs.rglob("*") if file.is_file()]
    assert {"raylet.out", "gcs_server.out"} <= {file.name for file in logs}
    tables = [file for file in watched.root.rglob("*") if file.is_file()]
    assert {"manifest.parquet", "study.yaml", "report.html", "ledger.parquet"} <= {file.name for file in tables}
    for secret in (*SECRETS.values(), watched.token):
        assert secret not in watched.said
        assert not [word for word in watched.commands if secret in word]
        assert [file.name for file in [*logs, *tables] if secret.encode() in readable(file)] == []


def readable(file: Path) -> bytes:
    """The file's bytes; of a table its values, which are compressed there."""
    if file.suffix != ".parquet":
        return file.read_bytes()
    return repr(pq.read_table(file).to_pylist()).encode() + repr(pq.read_schema(file)).encode()


def test_no_pickle_below_its_root_was_opened(watched: Watched, planted: Trap) -> None:
    assert watched.status == 0
    assert (watched.root / "search" / "tuner.pkl").exists()
    assert not planted.sprung
