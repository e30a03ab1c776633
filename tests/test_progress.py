"""What a log shows of long work."""

from __future__ import annotations

import pytest

from faithad import progress as module
from faithad.progress import progress


def test_a_log_gets_the_end_and_now_and_then_a_tenth(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with progress("audit", 100) as ticker:
        for done in range(101):
            now[0] += 1.0
            ticker.update(done, "2 failed" if done > 50 else "")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "audit: 10 of 100 (11 s)"
    assert lines[-1] == "audit: 100 of 100 2 failed (101 s)"
    assert len(lines) == 10


def test_what_is_over_in_a_moment_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("index", 3) as ticker:
        for done in (1, 2, 3):
            ticker.update(done)
    assert capsys.readouterr().out == ""
