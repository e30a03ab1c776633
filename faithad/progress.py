"""Show the progress of work: a bar on a terminal, occasional lines in a log.

In a log, such as that of a job, a line is printed at the end and about every tenth of the work, but not too often.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from faithad.errors import shown


class _Plain(Console):
    """A console that prints the names of files as text: without markup, emoji codes or codes of a terminal."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(shown(item, keep="\n") if isinstance(item, str) else item for item in objects), **options)


console = _Plain(highlight=False, markup=False, emoji=False, soft_wrap=True)


class Ticker:
    """Shows how many units of one piece of work are finished."""

    def __init__(self, title: str, total: int, bar: Progress | None) -> None:
        self._title = title
        self._total = total
        self._bar = bar
        self._task = bar.add_task(title, total=total, note="") if bar else None
        self._started = self._printed_at = time.monotonic()
        self._done = self._printed_done = 0
        self._note = ""

    def update(self, done: int, note: str = "") -> None:
        """Show that `done` of the total are finished, followed by a note."""
        self._done, self._note = done, note
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, note=note)
            return
        tenth_more = done - self._printed_done >= max(1, self._total // 10)
        quiet_s = time.monotonic() - self._printed_at
        if done < self._total and done != self._printed_done and ((tenth_more and quiet_s > 5) or quiet_s > 30):
            self._print()

    def close(self) -> None:
        """Remove the bar, or print a last line in the log if the work took longer than a second."""
        if self._bar is not None and self._task is not None:
            self._bar.remove_task(self._task)
        if self._done != self._printed_done and time.monotonic() - self._started > 1:
            self._print()

    def _print(self) -> None:
        duration_s = time.monotonic() - self._started
        note = f" {self._note}" if self._note else ""
        console.print(f"{self._title}: {self._done} of {self._total}{note} ({duration_s:.0f} s)")
        self._printed_at, self._printed_done = time.monotonic(), self._done


@contextmanager
def progress(title: str, total: int) -> Iterator[Ticker]:
    """Show the progress of `total` units of work while the block runs."""
    with side_by_side() as show:
        ticker = show(title, total)
        yield ticker
        ticker.close()


@contextmanager
def side_by_side() -> Iterator[Callable[[str, int], Ticker]]:
    """Show several pieces of work while the block runs, on a terminal with a bar for each.

    Yields:
        A function from the title and the total of one piece to its ticker. Close each ticker when its work is finished.
    """
    if not console.is_terminal:
        yield lambda title, total: Ticker(title, total, None)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield lambda title, total: Ticker(title, total, bar)
