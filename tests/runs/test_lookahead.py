"""Many files read at a time: results in order, errors where they belong, and a read that never returns."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from faithad.runs.lookahead import in_time, side_by_side

# Opening a pipe without a writer blocks for ever, as a read from a network drive that has died does. The patched check
# lets the pipe pass for a file.
_AUDIT = """
import os, sys
from faithad import storage
from faithad.cli.endings import ending
from faithad.runs import lookahead
from faithad.runs.fingerprints import fingerprints

storage.is_file = os.path.isfile = lambda location: True
lookahead.PATIENCE_S = 0.5
with ending("audit"):
    fingerprints([(f"week/{name}", f"{sys.argv[1]}/{name}") for name in ("a.wav", "silent.wav", "z.wav")])
"""


@pytest.mark.parametrize("at_once", [1, 2, 7])
def test_results_come_in_the_order_of_the_items(at_once: int) -> None:
    def do(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    assert list(side_by_side(do, range(20), at_once=at_once)) == [item * item for item in range(20)]


def test_what_takes_too_long_is_given_up_and_the_rest_is_done() -> None:
    ends = threading.Event()

    def do(item: int) -> int:
        if item in (1, 2):
            ends.wait()
        if item == 4:
            raise ValueError("mine")
        return item * item

    results = in_time(do, range(5), limit_s=0.2)
    assert [next(results) for _ in range(4)] == [0, None, None, 9]
    with pytest.raises(ValueError, match="mine"):
        next(results)
    ends.set()


def test_threads_work_no_further_ahead_than_they_are_many() -> None:
    begun: list[int] = []

    def do(item: int) -> int:
        begun.append(item)
        return item

    results = side_by_side(do, range(50), at_once=3)
    assert next(results) == 0
    time.sleep(0.05)
    assert len(begun) <= 3
    results.close()
    time.sleep(0.05)
    assert len(begun) <= 3, "what nobody asks for any more is not begun"


@pytest.mark.parametrize("error", [ValueError("damaged"), TimeoutError("the store is slow")])
def test_an_error_is_raised_where_its_result_is_asked_for(error: Exception) -> None:
    def do(item: int) -> int:
        if item == 2:
            raise error
        return item

    results = side_by_side(do, range(5), at_once=4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(type(error)) as raised:
        next(results)
    assert raised.value is error


def test_no_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    assert len(list(side_by_side(str, range(30), at_once=5))) == 30
    until = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() <= before


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_a_read_that_never_returns_is_named_and_the_first_signal_ends_the_run(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    for name in ("a.wav", "z.wav"):
        (tmp_path / name).write_bytes(b"RIFF")
    os.mkfifo(tmp_path / "silent.wav")
    with subprocess.Popen(
        [sys.executable, "-u", "-c", _AUDIT, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        begun = time.monotonic()
        process.send_signal(number)
        try:
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert line.startswith(f"Waiting for {tmp_path}/silent.wav, which has not answered for ")
    assert time.monotonic() - begun < 10
    assert process.returncode == status
