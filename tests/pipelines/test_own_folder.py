"""The temporary folder of a Ray of our own, and what happens if Ray does not come up in it. Ray itself never runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray._private import parameter

from faithad.errors import ConfigError, StudyError
from faithad.pipelines.cluster import own_folder as module
from faithad.pipelines.cluster import session
from faithad.pipelines.cluster.own_folder import ends_when_full, own_folder
from faithad.pipelines.cluster.session import ray_session

LONG = "a-folder-of-a-job-of-slurm-whose-name-is-long"
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a path that is short enough, which RAY_TMPDIR names; TMPDIR is not set."""
    folder = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    for name in ("RAY_TMPDIR", "TMPDIR", "RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("kind", ["long", "missing", "a file"])
def test_a_folder_that_is_not_fit_is_passed_over_or_named(
    place: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """TMPDIR is a general setting and RAY_TMPDIR one of Ray's."""
    unfit = Path("/tmp", LONG if kind == "long" else "no")
    if kind == "long":
        unfit.mkdir(exist_ok=True)
    elif kind == "a file":
        unfit = place / "file"
        unfit.touch()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(unfit))
    folder = own_folder()
    assert Path(folder).parent == Path("/tmp")
    shutil.rmtree(folder)
    monkeypatch.setenv("RAY_TMPDIR", str(unfit))
    told = "more than 2[4-9] bytes" if kind == "long" else "does not exist"
    with pytest.raises(ConfigError, match=rf"RAY_TMPDIR is '{unfit}', which (has )?{told}.*Name another folder"):
        own_folder()
    if kind == "long":
        unfit.rmdir()


def test_a_socket_fits_below_the_longest_folder() -> None:
    below = module._BELOW.format(pid=os.getpid())
    assert len(f"/{'t' * (module._MOST_BYTES - len(below) - 1)}{below}") == 107


def test_where_no_folder_is_fit_all_are_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setenv("TMPDIR", "/no")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ConfigError, match=r"/no does not exist, /tmp may not be written, /var/tmp .*in RAY_TMPDIR"):
        own_folder()


def test_it_is_for_its_user_alone_and_says_whose_it_is(place: Path) -> None:
    folder = Path(own_folder())
    assert folder.parent == place
    assert folder.stat().st_mode & 0o777 == 0o700
    assert json.loads((folder / "owner.json").read_text())["pid"] == os.getpid()


def test_a_full_disk_is_one_sentence(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 40_000))
    with pytest.raises(
        StudyError, match=rf"^{place}, the temporary folder for Ray, has 0 MB of free space; 100 MB are"
    ):
        own_folder()
    assert list(place.iterdir()) == []


def test_a_disk_that_stays_full_ends_what_runs_and_one_that_was_full_for_a_moment_does_not(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(module, "_PATIENCE_S", 0.2)
    folder, looks = own_folder(), iter([0, 0, 0, 10**9] * 10 + [10**9] * 1_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 0, next(looks)))
    with ends_when_full(folder):
        time.sleep(1)
    with pytest.raises(ZeroDivisionError), ends_when_full(folder):
        1 / 0  # noqa: B018
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 0))
    started = time.monotonic()
    with (
        pytest.raises(StudyError, match=rf"^The disk of {place}, .* is full\. Make room, or name"),
        ends_when_full(folder),
    ):
        time.sleep(60)
    assert time.monotonic() - started < 30


def test_the_folder_of_a_killed_run_goes_and_all_others_stay(place: Path) -> None:
    code = "from faithad.pipelines.cluster.own_folder import own_folder as f; print(f(), flush=True); input()"
    runs = [subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) for _ in range(2)]
    killed, alive = (Path(run.stdout.readline().strip()) for run in runs if run.stdout)
    assert (killed.parent, alive.parent) == (place, place)
    (killed / "ray").mkdir()
    runs[0].kill()
    runs[0].communicate()
    others = {
        "ray-nobody": None,
        "ray-elsewhere": {"pid": 1, "born": "0", "machine": "another boot"},
        "ray-damaged": "{",
        "other-abc": json.loads((killed / "owner.json").read_text()),
    }
    for name, owner in others.items():
        (place / name).mkdir()
        if owner is not None:
            (place / name / "owner.json").write_text(owner if isinstance(owner, str) else json.dumps(owner))
    (place / "target").mkdir()
    shutil.copy(killed / "owner.json", place / "target")
    (place / "ray-link").symlink_to(place / "target")
    mine = Path(own_folder())
    runs[1].communicate("\n")
    assert {path.name for path in place.iterdir()} == {*others, "target", "ray-link", alive.name, mine.name}
    assert (place / "target" / "owner.json").exists()


def test_the_folder_of_another_user_stays(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Path(own_folder())
    owner = json.loads((mine / "owner.json").read_text()) | {"born": "another time"}
    (mine / "owner.json").write_text(json.dumps(owner))
    monkeypatch.setattr(os, "getuid", lambda: mine.stat().st_uid + 1)
    module.remove_left_over(str(place))
    assert mine.exists()
    user = mine.stat().st_uid
    monkeypatch.setattr(os, "getuid", lambda: user)
    module.remove_left_over(str(place))
    assert not mine.exists()


# --- a Ray that does not come up --------------------------------------------------------------------------------------


def start(monkeypatch: pytest.MonkeyPatch, init: object) -> str:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "init", init)
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(StudyError) as caught, ray_session():
        pass
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    return str(caught.value)


def test_a_start_that_takes_too_long_ends_with_what_it_has_started(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def init(*, _temp_dir: str, **_: object) -> None:
        for word in (_temp_dir, "/elsewhere"):
            code = "import time; time.sleep(60)"
            started.append(subprocess.Popen([sys.executable, "-c", code, word]))
        time.sleep(30)

    monkeypatch.setattr(session, "_START_S", 2.0)
    begun = time.monotonic()
    said = start(monkeypatch, init)
    assert time.monotonic() - begun < 15
    assert said.startswith("Ray could not be started: it was not ready within 2 s. Its logs are in ")
    ours, other = started
    assert ours.wait(10) == -signal.SIGKILL
    assert other.poll() is None
    other.kill()
    other.wait(10)


def test_what_ray_says_is_the_reason(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise RuntimeError("Traceback\n  File\nThe GCS did not start.\n")

    assert start(monkeypatch, init).startswith("Ray could not be started: The GCS did not start. Its logs are in ")


def test_a_disk_that_fills_while_ray_starts_is_the_reason(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 4_000))
        raise OSError(28, "No space left on device")

    assert start(monkeypatch, init).endswith("is full. Make room.")


def test_no_agent_takes_the_port_of_a_head(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ports = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "init", lambda **_: ports.append(parameter.RayParams().dashboard_agent_listen_port))
    monkeypatch.setattr(session, "_hear_warning_unseen", lambda: None)  # which needs a Ray
    with ray_session():
        pass
    assert ports == [0]
    assert parameter.RayParams().dashboard_agent_listen_port == 52365
    assert list(place.iterdir()) == []
