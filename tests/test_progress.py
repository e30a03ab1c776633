"""What a log shows of long work."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from faithad import progress as module
from faithad.progress import progress, side_by_side


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


def test_pieces_side_by_side_name_themselves_in_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with side_by_side() as show:
        first, second = show("train ae-0", 4), show("train mae-0", 4)
        for done in (1, 2):
            now[0] += 6.0
            first.update(done)
            second.update(done, "loss 0.5")
        first.close()
        module.console.print("train ae-0: best epoch 2")
    assert capsys.readouterr().out.splitlines() == [
        "train ae-0: 1 of 4 (6 s)",
        "train mae-0: 1 of 4 loss 0.5 (6 s)",
        "train ae-0: 2 of 4 (12 s)",
        "train mae-0: 2 of 4 loss 0.5 (12 s)",
        "train ae-0: best epoch 2",
    ]


def test_on_a_terminal_each_piece_has_a_bar_and_lines_stand_above_them(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100, highlight=False)
    monkeypatch.setattr(module, "console", terminal)
    with side_by_side() as show:
        first, second = show("train ae-0", 4), show("train mae-0", 8)
        first.update(1, "loss 0.25")
        second.update(2, "loss 0.5")
        first.close()
        terminal.print("train ae-0: best epoch 2")
    assert "train ae-0: best epoch 2\n" in screen.getvalue()
    frames = [frame for frame in screen.getvalue().split("\x1b[2K") if "train" in frame]  # cut where a line is erased
    assert any("train ae-0" in frame and "train mae-0" in frame for frame in frames)
    assert "train ae-0" not in frames[-1], "a finished piece takes its bar away"
    assert all(text in frames[-1] for text in ("train mae-0", "2/8", "loss 0.5"))
