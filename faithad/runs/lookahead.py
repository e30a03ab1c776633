"""Wait for many files at a time, or for each of them up to a limit, and get their results in order.

A read from a disk or a network drive that has died may never return, and nothing can end it. So the threads are daemons
and nobody waits for them: an interrupt ends the run at once, whatever they wait for.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import TypeVar

from faithad.progress import console

Item = TypeVar("Item")
Result = TypeVar("Result")

# After this many seconds without an answer, the console names the file.
PATIENCE_S = 60.0


def say_waiting(name: str) -> None:
    """Tell the user which file has not answered for `PATIENCE_S`."""
    console.print(
        f"Waiting for {name}, which has not answered for {PATIENCE_S:.0f} s: is its disk or network drive still there? "
        "Ctrl-C ends the run."
    )


def side_by_side(
    do: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    at_once: int,
    named: Callable[[Item], str] = str,
) -> Iterator[Result]:
    """The result of `do` for each item, in order. Threads work at most `at_once` items ahead of the caller.

    Args:
        do: reads one item.
        items: what is read.
        at_once: how many threads there are at most.
        named: what the console calls an item whose result takes longer than `PATIENCE_S`.
    """
    waiting: SimpleQueue[tuple[Item, Future[Result]] | None] = SimpleQueue()
    ahead: deque[tuple[Item, Future[Result]]] = deque()
    n_threads = 0
    try:
        for item in items:
            ahead.append((item, Future()))
            waiting.put(ahead[-1])
            if n_threads < at_once:
                threading.Thread(target=_work, args=(do, waiting), daemon=True).start()
                n_threads += 1
            if len(ahead) >= at_once:
                yield _result(*ahead.popleft(), named)
        while ahead:
            yield _result(*ahead.popleft(), named)
    finally:
        for _, future in ahead:
            future.cancel()
        for _ in range(n_threads):
            waiting.put(None)


def in_time(do: Callable[[Item], Result], items: Iterable[Item], *, limit_s: float) -> Iterator[Result | None]:
    """The result of `do` for each item, in order; None where it takes longer than `limit_s`, and is given up.

    One thread works, and another one takes its place where it is given up. `do` must do no harm when it ends later.
    """
    waiting: SimpleQueue[tuple[Item, Future[Result]] | None] | None = None
    for item in items:
        if waiting is None:
            waiting = SimpleQueue()
            threading.Thread(target=_work, args=(do, waiting), daemon=True).start()
        future = Future[Result]()
        waiting.put((item, future))
        if wait([future], timeout=limit_s).done:
            yield future.result()
        else:
            waiting.put(None)
            waiting = None
            yield None
    if waiting is not None:
        waiting.put(None)


def _work(do: Callable[[Item], Result], waiting: SimpleQueue[tuple[Item, Future[Result]] | None]) -> None:
    while (taken := waiting.get()) is not None:
        item, future = taken
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(do(item))
        except BaseException as error:  # it is raised where the result is asked for
            future.set_exception(error)


def _result(item: Item, future: Future[Result], named: Callable[[Item], str]) -> Result:
    try:
        return future.result(timeout=PATIENCE_S)
    except TimeoutError:
        if not future.done():  # else it is an error of the work itself
            say_waiting(named(item))
        return future.result()
