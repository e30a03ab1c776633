"""One driver at a time in a folder: who is refused, and whose death is noticed, with real processes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from faithad import listing, storage
from faithad.audit import reference
from faithad.audit.exports import export_events
from faithad.audit.inputs import relocated
from faithad.audit.ledger import remove_failed_shards
from faithad.audit.reference import evaluate_audit
from faithad.audit.steps import SCORE
from faithad.clips.manifest import Recording
from faithad.config.study import load_study
from faithad.errors import StudyError
from faithad.pipelines.audit.conclusions import withdraw_conclusions
from faithad.pipelines.study import STAGES
from faithad.report import study_page
from faithad.runs import layout, lock
from faithad.runs.lock import alone_in, require_still_alone
from faithad.runs.stages import ResumableStage

# Another driver; with a machine of its own where one is named.
OTHER = """
import sys, time
from faithad.runs import lock
lock._RENEWAL_S = 0.1
if len(sys.argv) > 2:
    lock.machine = lambda: sys.argv[2]
with lock.alone_in(sys.argv[1]):
    print("in", flush=True)
    time.sleep(600)
"""


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


def overtaken(root: str, work: Callable[[], object], *, is_done: bool = True) -> None:
    """Work in a folder while another driver, which came in the same moment, works there or is done already."""
    with alone_in(root):
        if is_done:
            storage.delete(mark(root))
        else:
            take_over(root)
        work()


def take_over(root: str) -> None:
    """Put the mark of another driver in the place of ours."""
    other = json.loads(storage.read_text(mark(root))) | {"run": "another"}
    storage.write_text(mark(root), json.dumps(other))


def steps() -> None:
    for _ in range(2_000):
        require_still_alone()
        time.sleep(0.01)


@pytest.mark.parametrize("is_done", [False, True], ids=["at work", "done"])
def test_a_driver_that_was_overtaken_stops_at_its_next_step(root: str, is_done: bool) -> None:
    started = time.monotonic()
    with pytest.raises(StudyError, match=f"Another run has taken over {root}"):
        overtaken(root, steps, is_done=is_done)
    assert time.monotonic() - started < 10
    assert storage.exists(mark(root)) is not is_done
    assert is_done or json.loads(storage.read_text(mark(root)))["run"] == "another"


@pytest.mark.parametrize("write", ["begin", "finish"])
def test_a_driver_that_was_overtaken_marks_no_stage(root: str, write: str) -> None:
    stage = ResumableStage(root, "index", {}, ("manifest.parquet",), result="manifest.parquet")

    def work() -> None:
        time.sleep(0.5)
        stage.begin(redo=False) if write == "begin" else stage.finish()

    with pytest.raises(StudyError, match="Another run has taken over"):
        overtaken(root, work)
    assert [name for name, _ in listing.list_files(root, suffixes=[""])] == []


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but for the drivers' marks."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "driver.json")
    return {str(path): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    "write",
    [
        lambda root: ResumableStage(root, "score", {}, (SCORE.ledger, layout.MANIFEST), result=SCORE.ledger).reset(),
        lambda root: remove_failed_shards(root, SCORE),
        lambda root: relocated(root, [Recording("week/loud.wav", "/elsewhere/loud.wav", "test")]),
        withdraw_conclusions,
    ],
    ids=["reset", "retry", "moved recordings", "withdraw"],
)
def test_a_driver_that_was_overtaken_changes_no_table(released_audit: Path, write: Callable[[str], object]) -> None:
    before = contents(released_audit)

    def work() -> None:
        time.sleep(0.5)
        write(str(released_audit))

    with pytest.raises(StudyError, match="Another run has taken over"):
        overtaken(str(released_audit), work, is_done=False)
    assert contents(released_audit) == before


@pytest.mark.long
def test_a_command_that_was_overtaken_leaves_the_other_ones_page(
    released_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(released_study, tmp_path / "study")
    study = load_study(str(root / layout.STUDY), overrides=[f"root={root}"])
    STAGES["evaluate"](study)  # 0.1.0 had fewer summaries
    render = study_page.render_report

    def render_late(root: str) -> None:
        take_over(root)
        storage.write_text(storage.join(root, layout.REPORT), "the page of the other driver")
        time.sleep(2)  # a busy machine notices it late
        render(root)

    monkeypatch.setattr(study_page, "render_report", render_late)
    with pytest.raises(StudyError, match="Another run has taken over"):
        STAGES["report"](study)
    assert (root / layout.REPORT).read_text() == "the page of the other driver"
    assert not (root / layout.STAGES / "report.json").exists()
    assert json.loads(storage.read_text(mark(str(root))))["run"] == "another"


def test_an_evaluation_that_was_overtaken_leaves_the_other_ones_tables(
    released_audit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_events(str(released_audit), str(tmp_path / "labels"), format="csv")
    table = released_audit / layout.summary("f_score")
    summarize = reference.summarize

    def summarize_late(name: str, *arguments: Any) -> Any:
        if name == "f_score":
            take_over(str(released_audit))
            table.write_text("the table of the other driver")
            time.sleep(0.5)
        return summarize(name, *arguments)

    monkeypatch.setattr(reference, "summarize", summarize_late)
    with pytest.raises(StudyError, match="Another run has taken over"):
        evaluate_audit(str(released_audit), str(tmp_path / "labels"))
    assert table.read_text() == "the table of the other driver"
    assert not (released_audit / layout.summary("faithfulness")).exists()


def test_an_error_that_the_other_driver_caused_is_told_as_that(root: str) -> None:
    def work() -> None:
        time.sleep(0.5)
        raise FileNotFoundError("a table that the other driver has removed")

    with pytest.raises(StudyError, match="Another run has taken over"):
        overtaken(root, work)


def test_a_driver_checks_the_folders_of_its_own_thread(tmp_path: Path) -> None:
    ended: list[str] = []

    def other_thread() -> None:
        require_still_alone()
        ended.append("well")

    def work() -> None:
        time.sleep(0.5)
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()

    with pytest.raises(StudyError, match="Another run has taken over"):
        overtaken(str(tmp_path), work)
    assert ended == ["well"]


# Writes numbers into a file, one step after the other.
STEPS = OTHER.replace(
    "    time.sleep(600)",
    """
    for n in range(10_000):
        lock.require_still_alone()
        open(sys.argv[1] + "/table", "w").write(str(n))
        print("written", flush=True)
        time.sleep(2)
""",
)


def test_a_driver_that_was_suspended_writes_nothing_after_another_has_taken_over(tmp_path: Path) -> None:
    root = str(tmp_path / "out")
    table = Path(root, "table")
    with subprocess.Popen(
        [sys.executable, "-c", STEPS, root, "moon 1 2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as suspended:
        try:
            assert suspended.stdout is not None
            assert suspended.stdout.readline() == "in\n"
            assert suspended.stdout.readline() == "written\n"  # it sleeps now
            suspended.send_signal(signal.SIGSTOP)
            with alone_in(root):
                table.write_text("ours")
            suspended.send_signal(signal.SIGCONT)
            _, said = suspended.communicate(timeout=20)
        finally:
            suspended.kill()
    assert f"StudyError: Another run has taken over {root} meanwhile; this one stopped." in said
    assert table.read_text() == "ours"
    assert not storage.exists(mark(root))


def test_a_store_that_is_away_for_a_moment_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(tmp_path / "out")
    with alone_in(root):
        with monkeypatch.context() as outage:
            outage.setattr(storage, "exists", away)
            time.sleep(0.5)  # longer than two renewals
            require_still_alone()
        require_still_alone()
    assert not storage.exists(mark(root))


def away(_: str) -> bool:
    raise StudyError("no answer")


def in_an_outage(outage: pytest.MonkeyPatch, work: Callable[[], object]) -> None:
    """Work after the storage has been away for longer than others wait for a sign of life."""
    outage.setattr(storage, "exists", away)
    time.sleep(1.2)
    work()


def test_a_driver_that_cannot_look_for_long_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others take it for dead by then. Its mark may be another's meanwhile, so that it stays."""
    root = str(tmp_path / "out")
    patience_s(monkeypatch, 0.5)
    said = r"could not be read for \d+ s, so another run may"
    with monkeypatch.context() as outage, pytest.raises(StudyError, match=said), alone_in(root):
        in_an_outage(outage, require_still_alone)
    assert storage.exists(mark(root))


def test_an_error_of_a_store_that_is_away_is_told_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patience_s(monkeypatch, 0.5)
    with monkeypatch.context() as outage, pytest.raises(StudyError, match="no answer"), alone_in(str(tmp_path)):
        in_an_outage(outage, lambda: storage.exists("a table"))


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
