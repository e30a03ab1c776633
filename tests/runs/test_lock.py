"""One driver at a time in a folder: who is refused, and whose death is noticed, with real processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from faithad import storage
from faithad.errors import StudyError
from faithad.runs import lock
from faithad.runs.lock import alone_in

# Another driver; with a machine of its own where one is named.
OTHER = """
import sys, time
from faithad.runs import lock
lock._RENEWAL_S = 0.1
if len(sys.argv) > 2:
    lock._machine = lambda: sys.argv[2]
with lock.alone_in(sys.argv[1]):
    print("in", flush=True)
    time.sleep(600)
"""

# Neither lets an interrupt through: a job of Ray, and a shell's background.
BLOCKED = "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})"
IGNORED = "signal.signal(signal.SIGINT, signal.SIG_IGN)"


@pytest.fixture(params=["here", "store"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder, and one of an object store."""
    if request.param == "here":
        return str(tmp_path / "out")
    return f"{request.getfixturevalue('object_store')}/{tmp_path.name}"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_RENEWAL_S", 0.1)
    patience_s(monkeypatch, 2.0)


def patience_s(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    monkeypatch.setattr(lock, "_DEAD_AFTER_S", value)
    monkeypatch.setattr(lock, "_DEAD_IN_A_STORE_AFTER_S", value)


class Others:
    def __init__(self) -> None:
        self.started: list[subprocess.Popen[str]] = []

    def start(self, root: str, *machine: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", OTHER, root, *machine], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        return process


@pytest.fixture
def others() -> Iterator[Others]:
    found = Others()
    yield found
    for process in found.started:
        process.kill()
        process.communicate()


def mark(root: str) -> str:
    return storage.join(root, "stages", "driver.json")


def test_it_is_left_as_it_was_found(root: str) -> None:
    with alone_in(root):
        assert storage.exists(mark(root))
        with alone_in(root):
            pass
        assert storage.exists(mark(root)), "the inner block is part of the outer one"
    assert not storage.exists(mark(root))
    with pytest.raises(ZeroDivisionError), alone_in(root):
        raise ZeroDivisionError
    assert not storage.exists(mark(root))


def test_a_living_driver_is_named_and_a_dead_one_is_nobody(root: str, others: Others) -> None:
    other = others.start(root)
    with pytest.raises(StudyError, match=rf"Process {other.pid} of .* works in {root} since 20"), alone_in(root):
        pass
    other.send_signal(signal.SIGKILL)  # and nobody asks for it: it is listed as long as we are there
    time.sleep(0.2)
    started = time.monotonic()
    with alone_in(root):
        assert time.monotonic() - started < 1.5, "there is nothing to wait for"


def test_on_another_machine_the_next_renewal_tells(root: str, others: Others, monkeypatch: pytest.MonkeyPatch) -> None:
    other = others.start(root, "moon 1 2")
    with pytest.raises(StudyError, match=f"Process {other.pid} of "), alone_in(root):
        pass
    other.kill()
    other.communicate()
    patience_s(monkeypatch, 0.5)
    started = time.monotonic()
    with alone_in(root):
        assert time.monotonic() - started >= 0.5


def test_who_was_overtaken_stops_and_leaves_the_other_s_mark(root: str) -> None:
    """Suspended for so long that it was taken for dead; or both came in the same moment."""

    def overtaken() -> None:
        with alone_in(root):
            other = json.loads(storage.read_text(mark(root))) | {"run": "another"}
            storage.write_text(mark(root), json.dumps(other))
            time.sleep(30)

    with pytest.raises(StudyError, match="Another run has taken over"):
        overtaken()
    assert json.loads(storage.read_text(mark(root)))["run"] == "another"


def test_who_was_overtaken_stops_although_the_other_is_done_already(root: str) -> None:
    def overtaken() -> None:
        with alone_in(root):
            storage.delete(mark(root))
            time.sleep(30)

    with pytest.raises(StudyError, match="Another run has taken over"):
        overtaken()
    assert not storage.exists(mark(root))


@pytest.mark.parametrize("deafness", [BLOCKED, IGNORED], ids=["blocked", "ignored"])
def test_who_was_overtaken_stops_although_interrupts_do_not_reach_it(deafness: str, tmp_path: Path) -> None:
    """The command sleeps through its own end otherwise, and both would write."""
    root = str(tmp_path / "out")
    code = OTHER.replace("import sys, time", f"import signal, sys, time; {deafness}")
    with subprocess.Popen([sys.executable, "-c", code, root], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"in\n"
        storage.delete(mark(root))
        try:
            _, told = other.communicate(timeout=20)
        finally:
            other.kill()
    assert b"Another run has taken over" in told


def test_a_mark_cut_off_by_a_power_cut_is_none(root: str) -> None:
    for found in ("", "{", "[]", '{"run": 1}'):
        storage.write_text(mark(root), found)
        with alone_in(root):
            pass
        assert not storage.exists(mark(root))


def test_a_driver_of_another_user_may_be_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then its next renewal is waited for, as for one of another machine."""
    root = str(tmp_path / "out")
    hidden = lock._introduction() | {"user": "another", "pid": 2**22 + 1}
    storage.write_text(mark(root), json.dumps(hidden))
    patience_s(monkeypatch, 0.5)
    started = time.monotonic()
    with alone_in(root):
        assert time.monotonic() - started >= 0.5


def test_the_mark_is_renewed(root: str) -> None:
    with alone_in(root):
        before = storage.read_text(mark(root))
        deadline = time.monotonic() + 10
        while storage.read_text(mark(root)) == before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert json.loads(storage.read_text(mark(root)))["renewals"] > 0


def test_where_nobody_can_write_one_may_still_look(tmp_path: Path) -> None:
    (tmp_path / "stages").write_text("a file where a folder should be")
    with alone_in(str(tmp_path)):
        pass
    assert (tmp_path / "stages").is_file()
