"""The head of a cluster is lost with all that runs on it, twice in one study: the job goes on elsewhere, from storage.

    .venv/bin/python -m pytest tests/chaos/head_lost.py -s

Part of `make chaos`. Recordings and root lie in an object store. Each head is a real one, with a job server of its own,
and the study is submitted to it as a job; then every process of it is killed at once, the driver's too. Nothing is left
to the next head but what the store holds.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import psutil
import pyarrow.fs as pafs
import pytest
import yaml
from moto.server import ThreadedMotoServer

from faithad import parquet, storage
from faithad.demo.mill import synthesize
from faithad.errors import FaithadError
from tests.tables import differences

PROJECT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
HEAD_S, STUDY_S = 120.0, 400.0
EPOCHS = 16

STUDY = {
    "name": "lost",
    "models": ["ae", "mae"],
    "seeds": [0],
    "features": {"n_fft": 4000, "hop_samples": 2000, "n_mels": 16, "normalization": "training"},
    "train": {"epochs": EPOCHS, "trainings_at_once": 1, "cpus_per_worker": 1},
    "attribution": {"smooth_grad_samples": 3, "integrated_gradients_steps": 4, "gradient_shap_samples": 3},
    "audit": {"maps": 2, "clips_per_shard": 1, "actors": 1},
}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket on a local server that speaks S3, with a mill in it."""
    mill = tmp_path_factory.mktemp("mill")
    start = datetime(2019, 12, 4, 8, 48)
    synthesize(mill, train_recordings=4, test_recordings=8, seed=3, start=start, recording_s=60.0)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as environment:
        endpoint = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
        environment.setenv("AWS_ENDPOINT_URL", endpoint)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            environment.setenv(name, "test")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/lost", method="PUT")).close()
        for file in mill.rglob("*"):
            if file.is_file():
                storage.write_bytes(f"s3://lost/mill/{file.relative_to(mill).as_posix()}", file.read_bytes())
        yield "s3://lost"
    server.stop()


class Head:
    """A head with a job server, until it is lost."""

    def __init__(self) -> None:
        # Sockets live below this folder, and their paths may not be long.
        self._folder = Path(tempfile.mkdtemp(prefix="head-"))
        token = self._folder / "token"
        token.write_text(secrets.token_hex(32))
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
        # The job's `python` is the head's: the environment that is active where the head is started.
        environment |= {"PATH": f"{BIN}:{environment['PATH']}", "OMP_NUM_THREADS": "1"}
        dashboard = free_port()
        self.environment = environment | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
        command = [BIN / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={free_port()}"]
        command += ["--num-cpus=2", f"--dashboard-port={dashboard}", f"--temp-dir={self._folder}"]
        # Another Ray on this machine holds the agents' usual ports.
        command += [f"--dashboard-agent-listen-port={free_port()}", f"--dashboard-agent-grpc-port={free_port()}"]
        command += ["--object-store-memory=300000000"]
        with open(self._folder / "log", "w") as log:
            self._process = psutil.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + HEAD_S
        while subprocess.run(self._command("-c", "print()"), **self._quietly, check=False).returncode != 0:
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < deadline, (self._folder / "log").read_text()
            time.sleep(0.5)

    def submit(self, config: Path) -> subprocess.Popen[bytes]:
        """The study as a job; what is returned follows it."""
        with open(self._folder / "job", "w") as log:
            command = self._command("jobs/full_study.py", "--config", str(config))
            return subprocess.Popen(command, cwd=PROJECT, env=self.environment, stdout=log, stderr=log)

    def told(self) -> str:
        """What the job has said."""
        return (self._folder / "job").read_text()

    def lose(self) -> list[str]:
        """Kill everything that the head has started, as when its machine goes: what was killed, by its titles."""
        titles: list[str] = []
        family = []
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process.suspend()  # so that it starts and ends nothing meanwhile
            family = [self._process, *self._process.children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                titles.append(" ".join(process.cmdline()))
                process.kill()
        psutil.wait_procs(family, timeout=20)
        shutil.rmtree(self._folder, ignore_errors=True)
        return titles

    @property
    def _quietly(self) -> dict[str, object]:
        return {"cwd": PROJECT / "jobs", "env": self.environment, "capture_output": True, "timeout": HEAD_S}

    @staticmethod
    def _command(*entrypoint: str) -> list[str | Path]:
        return [BIN / "ray", "job", "submit", "--working-dir", ".", "--", "python", *entrypoint]


@contextlib.contextmanager
def new_head() -> Iterator[Head]:
    head = Head()
    try:
        head.wait_until_ready()
        yield head
    finally:
        head.lose()


@pytest.mark.timeout(1200)
def test_a_study_whose_head_is_lost_twice(bucket: str, tmp_path: Path) -> None:
    calm, wild = f"{bucket}/calm", f"{bucket}/wild"
    undisturbed = [BIN / "faithad", "study", "--config", write_config(tmp_path, bucket, calm)]
    subprocess.run(undisturbed, check=True, timeout=STUDY_S, stdout=subprocess.DEVNULL)
    config = write_config(tmp_path, bucket, wild)

    before = run_until(
        config, lambda: storage.exists(f"{wild}/stages/train-ae-0.json") and n_epochs(wild, "mae-0") >= 3
    )
    finished = {name: at for name, at in before.items() if name.startswith(("models/ae-0/", "features/", "manifest"))}
    assert {"models/ae-0/model.safetensors", "manifest.parquet"} < set(finished)
    assert "models/mae-0/model.safetensors" not in before
    trained = parquet.read_table(f"{wild}/models/mae-0/epochs.parquet").num_rows
    assert 3 <= trained < EPOCHS

    between = run_until(config, lambda: n_shards(wild) >= 6)
    shards = {name: at for name, at in between.items() if "/ledger/part-" in name}
    # Of what the table held, the last epoch alone may have been ahead of the state that was saved.
    kept = parquet.read_table(f"{wild}/models/mae-0/epochs.parquet").slice(0, trained - 1)
    assert 6 <= len(shards) < n_shards(calm)

    started = time.monotonic()
    with new_head() as head:
        job = head.submit(config)
        assert job.wait(STUDY_S) == 0, head.told()
        assert "train mae-0" not in head.told(), "the second head had finished it"
    print(f"\n{len(finished)} files before the first loss, {len(shards)} of {n_shards(calm)} shards before the second")
    print(f"{trained} of {EPOCHS} epochs before the first loss; the last head took {time.monotonic() - started:.0f} s")

    after = files(wild)
    assert {name: after.get(name) for name in finished | shards} == finished | shards, "something was made twice"
    assert kept.equals(parquet.read_table(f"{wild}/models/mae-0/epochs.parquet").slice(0, trained - 1))
    assert not (problems := differences(wild, calm)), "\n".join(problems)


def run_until(config: Path, moment: Callable[[], bool]) -> dict[str, object]:
    """Submit the study to a new head and lose that at a certain moment: the files that are there afterwards."""
    with new_head() as head:
        job = head.submit(config)
        try:
            deadline = time.monotonic() + STUDY_S
            while not moment():
                assert job.poll() is None, head.told()
                assert time.monotonic() < deadline, head.told()
                time.sleep(0.05)
            killed = head.lose()
            assert any("jobs/full_study.py" in title for title in killed), "the driver ran elsewhere"
        finally:
            job.kill()
            job.wait()
    return files(str(yaml.safe_load(config.read_text())["root"]))


def write_config(folder: Path, bucket: str, root: str) -> Path:
    data = {"root": f"{bucket}/mill", "train": ["train"], "test": ["test"], "annotations": "annotations.csv"}
    config = folder / f"{storage.name_of(root)}.yaml"
    config.write_text(yaml.safe_dump({**STUDY, "root": root, "data": data}))
    return config


def files(root: str) -> dict[str, object]:
    """All files below a root, and when each was written."""
    file_system, path = storage.locate(root)
    found = file_system.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    return {info.path.removeprefix(f"{path}/"): info.mtime for info in found if info.type == pafs.FileType.File}


def n_epochs(root: str, training: str) -> int:
    with contextlib.suppress(FaithadError):  # it is not there yet, or is just being replaced
        return parquet.read_table(storage.join(root, f"models/{training}/epochs.parquet")).num_rows
    return 0


def n_shards(root: str) -> int:
    return sum("/ledger/part-" in name for name in files(root) if name.startswith("audit/"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
