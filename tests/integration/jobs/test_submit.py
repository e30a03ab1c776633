"""`faithad submit` against a real head: what is refused before anything runs, what runs, and how its log comes back."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import faithad
from faithad.config.study import Study
from tests.integration.jobs.conftest import BIN, PROJECT, Head, ray_node
from tests.integration.jobs.relay import Relay


@pytest.fixture
def jobs_alone(tmp_path: Path, finished: Study) -> Path:
    """A working directory without the package: the jobs, and the configuration of a study that is done."""
    folder = tmp_path / "work"
    shutil.copytree(PROJECT / "jobs", folder / "jobs")
    (folder / "study.yaml").write_text(finished.to_yaml())
    return folder


@pytest.mark.parametrize(
    ("variables", "address", "message"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, None, "asks for a token, and none was sent. Set RAY_AUTH_MODE=token."),
        ({"RAY_AUTH_TOKEN": "0" * 64}, None, "does not accept this token"),
        # --address wins over the variable, unlike Ray's own.
        ({}, "http://127.0.0.1:9", "There is no job server of Ray at http://127.0.0.1:9: Failed to connect to Ray"),
    ],
)
def test_a_cluster_out_of_reach(head: Head, variables: dict[str, str], address: str | None, message: str) -> None:
    arguments = ["full_study", "--config", "configs/demo.yaml", *(["--address", address] if address else [])]
    answer = head.submit(*arguments, **variables)
    assert answer.returncode == 1
    (told,) = answer.stderr.splitlines()
    assert told.startswith("StudyError: ")
    assert message in told
    assert Path(head.environment["RAY_AUTH_TOKEN_PATH"]).read_text() not in answer.stdout + answer.stderr
    assert not answer.stdout


@pytest.mark.slow
def test_a_failed_study_on_the_package_that_travels(head: Head, baked: str, tmp_path: Path) -> None:
    data = f"{{root: {tmp_path}, train: [nowhere], test: [nowhere]}}"
    arguments = ["--config", "configs/demo.yaml", "--set", f"data={data}", "--set", f"root={tmp_path / 'study'}"]
    answer = head.submit("full_study", *arguments)
    assert answer.returncode == 1
    assert f"faithad: {faithad.__version__} travels with the job and is used\n" in answer.stdout, baked
    told = answer.stdout.splitlines()
    position = told.index("RecordingError: The recordings cannot be listed:")
    assert "nowhere does not exist" in told[position + 1]
    assert not any(line.startswith("Traceback") for line in told)
    assert re.fullmatch(r"full_study-demo-\w+ ended with exit status 1\.\n", answer.stderr)


def test_no_package_anywhere(head: Head, jobs_alone: Path) -> None:
    answer = head.submit("full_study", "--config", "study.yaml", folder=jobs_alone)
    assert answer.returncode == 1
    assert "The cluster has no faithad, or one without `submit`, and none travels with the job" in answer.stderr
    assert "jobs/full_study.py, line" not in answer.stdout.replace('"', ""), "the job was started"


@pytest.mark.slow
def test_the_installed_package_audits_and_the_exit_status_is_the_jobs(
    head: Head, baked: str, jobs_alone: Path, finished: Study, mill: Path
) -> None:
    recordings, out = jobs_alone.parent / "week", jobs_alone.parent / "out"
    recordings.mkdir()
    shutil.copy(next((mill / "test").glob("*.wav")), recordings)
    (recordings / "broken.wav").write_text("Dear mill, the recorder is broken. " * 100)
    arguments = ["--model", f"{finished.root}/models/mae-0", "--recordings", str(recordings), "--out", str(out)]
    small = ["--set", "audit.explain=none", "--set", "audit.actors=1", "--set", "audit.readers=1"]
    answer = head.submit("audit", *arguments, *small, folder=jobs_alone)
    assert answer.returncode == 3, answer.stdout + answer.stderr
    assert f"faithad: {baked} is installed on the cluster ({faithad.__version__} here)" in answer.stdout
    assert re.search(r"2 of 2 clips audited.*1 recording unreadable", answer.stdout), answer.stdout
    assert (out / "events.parquet").exists()
    assert "ended with exit status 3" in answer.stderr


def test_a_job_that_ends_well(head: Head, baked: str, tmp_path: Path) -> None:
    (tmp_path / "tell.py").write_text("import faithad, sys; print(faithad.__version__, *sys.argv[1:])")
    answer = head.submit("tell.py", "--config", "of its own", folder=tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert f"\n{baked} --config of its own\n" in answer.stdout
    assert answer.stderr == ""


@pytest.mark.slow
def test_a_log_survives_a_dropped_connection_and_the_job_survives_ctrl_c(
    head: Head, baked: str, tmp_path: Path
) -> None:
    (tmp_path / "count.py").write_text("import time\nfor n in range(10_000): print('line', n); time.sleep(0.2)\n")
    lines: list[str] = []
    with Relay(int(head.url.rpartition(":")[2])) as relay:
        command = [BIN / "faithad", "submit", "count.py", "--address", f"127.0.0.1:{relay.port}"]
        client = subprocess.Popen(
            command, cwd=tmp_path, env=head.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert client.stdout is not None
        while "line 4" not in lines:
            lines.append(next_line(client))
        relay.drop(outage_s=2.0)
        while "line 20" not in lines:
            lines.append(next_line(client))
        client.send_signal(signal.SIGINT)
        rest, told = client.communicate(timeout=20)
    lines += rest.splitlines()
    counted = [line for line in lines if line.startswith("line ")]
    assert relay.n_dropped > 0
    assert counted == [f"line {n}" for n in range(len(counted))]
    assert client.returncode == 130

    said = re.search(r"([\w-]+) goes on\. Follow it: (.+?)   Stop it: (.+)", told)
    assert said is not None, told
    relayed, direct = f"http://127.0.0.1:{relay.port}", head.url
    follow, stop = (said[n].replace(relayed, direct) for n in (2, 3))
    path = f"PATH={BIN}:$PATH "
    assert head.run("bash", "-c", f"{path} {stop}").returncode == 0
    again = head.run("bash", "-c", f"{path} {follow}")
    assert f"line {len(counted)}\n" in again.stdout, "the job did not go on after Ctrl-C"
    assert f"Job '{said[1]}' was stopped" in again.stdout + again.stderr


@pytest.mark.slow
def test_storage_that_only_one_machine_is_said_to_see(head: Head, finished: Study, tmp_path: Path) -> None:
    anew = ["--config", f"{finished.root}/study.yaml", "--set", f"root={finished.root}/anew"]
    with second_node(head, tmp_path):
        answer = head.submit("full_study", "--shared", finished.root, *anew)
    assert answer.returncode == 1
    assert "cluster: 2 of its machines answered" in answer.stdout
    told = "but the cluster has 2 machines, which may not see it (FAITHAD_SHARED is "
    assert re.search(
        rf"StudyError: {finished.data.root}\S* is a path of this machine, {re.escape(told)}", answer.stdout
    )
    assert finished.root in answer.stdout
    assert "index: " not in answer.stdout, "the study has begun"


@contextlib.contextmanager
def second_node(head: Head, folder: Path) -> Iterator[None]:
    arguments = [f"--address=127.0.0.1:{head.port}", "--num-cpus=1", "--object-store-memory=100000000"]
    log = folder / "node.log"
    with ray_node(head.python, arguments, head.environment, log) as process:
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield


def next_line(client: subprocess.Popen[str]) -> str:
    assert client.stdout is not None
    line = client.stdout.readline()
    assert line, client.communicate()[1]
    return line.rstrip("\n")
