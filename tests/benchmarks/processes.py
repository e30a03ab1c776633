"""Time and memory of a process and all that descends from it, seen from beside."""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import suppress

import numpy as np
import psutil


class Watch(threading.Thread):
    """Looks at a process and its descendants, until it is told to stop: CPU seconds, and the peaks of their memory.

    Roles: the driver, the readers, the actors, and all that Ray runs beside them.
    """

    def __init__(self, root: psutil.Process, *, memory: bool = False) -> None:
        super().__init__(daemon=True)
        self._root, self._memory, self._done = root, memory, threading.Event()
        self._roles: dict[int, str] = {}
        self._seconds: dict[int, float] = {}
        self._looks: list[tuple[float, Counter[str]]] = []
        self.peak_mib: Counter[str] = Counter()

    def run(self) -> None:
        while not self._done.wait(0.25 if self._memory else 0.1):
            with suppress(psutil.NoSuchProcess):
                family = [self._root, *self._root.children(recursive=True)]
                self._look_at_memory(family) if self._memory else self._look_at_time(family)

    def stop(self) -> None:
        self._done.set()
        self.join()

    def cpu_between(self, first: float, last: float) -> dict[str, float]:
        """CPU seconds of each role between two moments (of `time.time()`)."""
        times = [when for when, _ in self._looks]
        return {
            role: float(np.diff(np.interp([first, last], times, [seconds[role] for _, seconds in self._looks]))[0])
            for role in ("driver", "reader", "actor", "ray")
        }

    def _role(self, process: psutil.Process) -> str:
        """A worker keeps the role in which it was seen last: between two tasks it has another title."""
        title = (process.cmdline() or [""])[0]
        for start, role in (("ray::MapWorker", "actor"), ("ray::Map(", "reader")):
            if title.startswith(start):
                self._roles[process.pid] = role
        return "driver" if process == self._root else self._roles.get(process.pid, "ray")

    def _look_at_time(self, family: list[psutil.Process]) -> None:
        for process in family:
            with suppress(psutil.Error):
                self._role(process)
                times = process.cpu_times()
                self._seconds[process.pid] = times.user + times.system
        seconds: Counter[str] = Counter()
        for pid, each in self._seconds.items():
            seconds["driver" if pid == self._root.pid else self._roles.get(pid, "ray")] += each
        self._looks.append((time.time(), seconds))

    def _look_at_memory(self, family: list[psutil.Process]) -> None:
        now: Counter[str] = Counter()
        for process in family:
            with suppress(psutil.Error, OSError):
                mib, role = process.memory_full_info().pss / 2**20, self._role(process)
                now[role] = max(now[role], mib)
                now["all"] += mib
        self.peak_mib |= now
