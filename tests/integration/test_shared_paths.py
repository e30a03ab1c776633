"""What a command refuses because some machine of its cluster does not see it; on machines that are not all alike."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.clusters import machines
from tests.integration.s3_server import BUCKET, s3_server

pytestmark = pytest.mark.slow

# Joins the cluster as a command does, and says of each pair of reads and writes what is wrong with it, and how long it
# took to find that out.
_ASK = """
import json, sys, time
from faithad.errors import StudyError
from faithad.pipelines.cluster.session import ray_session
from faithad.pipelines.cluster.shared_paths import require_visible

with ray_session():
    for name, (reads, writes) in json.loads(sys.argv[1]).items():
        started, problem = time.monotonic(), ""
        try:
            require_visible(reads, writes)
        except StudyError as error:
            problem = str(error)
        print(json.dumps([name, problem, time.monotonic() - started]))
"""


class Asked(NamedTuple):
    """What came of each case: its problem (none: empty), and its seconds."""

    shared: Path
    strange: str
    problems: dict[str, str]
    took_s: dict[str, float]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """On a head and two machines. On the last one `~` is another folder, and the key to the object store is wrong."""
    top = tmp_path_factory.mktemp("top")
    shared, home, local = top / "shared", top / "shared" / "home", top / "local"
    for folder in (shared / "sounds", home, top / "elsewhere", local):
        folder.mkdir(parents=True)
    (shared / "sounds" / "a.wav").write_bytes(b"RIFF")
    fine = ([str(shared / "sounds"), str(shared / "sounds" / "a.wav")], [str(shared / "new" / "root")])
    cases: dict[str, tuple[list[str], list[str]]] = {
        "fine": fine,
        "again": fine,
        "absent here as well": ([str(shared / "absent")], [str(shared)]),
        "not said to be shared": ([str(shared)], [str(local)]),
        "a link out of the shared folder": ([str(shared / "link")], [str(shared)]),
        "another folder there": ([], ["~/study"]),
        "object store, read": ([f"s3://{BUCKET}/sounds"], []),
        "object store, written": ([], [f"s3://{BUCKET}/study"]),
    }
    (shared / "link").symlink_to(local)
    with (
        s3_server(top / "s3.log") as server,
        machines(shared, HOME=str(home), **server.environment) as cluster,
    ):
        server.upload(shared / "sounds", "sounds")
        cluster.add(num_cpus=1)
        other: dict[str, Any] = {"HOME": str(top / "elsewhere"), "AWS_SECRET_ACCESS_KEY": "lost"}
        strange = cluster.add(num_cpus=1, env_vars=other).node_id
        command = [sys.executable, "-c", _ASK, json.dumps(cases)]
        answer = subprocess.run(
            command, env=cluster.environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr
        assert list(server.objects("")) == ["sounds/a.wav"], "no probe is left"
    told = [json.loads(line) for line in answer.stdout.splitlines() if line.startswith("[")]
    problems, took_s = ({each[0]: each[place] for each in told} for place in (1, 2))
    return Asked(shared, strange, problems, took_s)


@pytest.mark.parametrize("case", ["fine", "again", "absent here as well"])
def test_what_all_machines_see_passes(asked: Asked, case: str) -> None:
    assert not asked.problems[case]
    assert list((asked.shared / "new" / "root").iterdir()) == [], "no probe is left"


def test_the_same_is_asked_once(asked: Asked) -> None:
    assert asked.took_s["again"] < 0.1


@pytest.mark.parametrize("case", ["not said to be shared", "a link out of the shared folder"])
def test_a_local_path_is_refused(asked: Asked, case: str) -> None:
    path = asked.shared / "link" if "link" in case else asked.shared.parent / "local"
    assert asked.problems[case].startswith(f"{path} is a path of this machine, but the cluster has 3 machines")
    assert f"FAITHAD_SHARED is '{asked.shared}'" in asked.problems[case]
    assert "--shared FOLDER" in asked.problems[case]


@pytest.mark.parametrize(
    ("case", "place", "why"),
    [
        ("another folder there", "~/study/.faithad-", "is not there"),
        ("object store, read", f"s3://{BUCKET}/sounds", "ACCESS_DENIED"),
        ("object store, written", f"s3://{BUCKET}/study/.faithad-", "ACCESS_DENIED"),
    ],
)
def test_the_machine_that_does_not_see_it_is_named(asked: Asked, case: str, place: str, why: str) -> None:
    heading, *lines, advice = asked.problems[case].splitlines()
    assert heading == "Not every machine of the cluster sees what is to be read and written:"
    assert len(lines) == 1, lines
    assert f"(node {asked.strange[:8]}): " in lines[0]
    assert place in lines[0]
    assert why in lines[0]
    assert "credentials" in advice
