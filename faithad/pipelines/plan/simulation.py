"""The shards of a pass on their way through a cluster, simulated: no Ray, no chance, seconds of computing for all.

As in the real pass (see `audit.passes`): one driver hands out shards, one after the other. A shard goes to a reader,
and once it is read the driver hands it to the actors, of which each has at most two shards at a time. Readers are as
far ahead as the actors have room. An actor is there when its process has started. All that computes shares the cores
evenly: where more is busy than there are cores, all are slower by the same factor. So one clock does for all of them,
the seconds that each busy one has computed, and nobody's end must be moved when another one comes or goes.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

# Shards that an actor has or waits for, see `audit.passes`.
_PER_ACTOR = 2


class Shard(NamedTuple):
    """What a shard takes of its reader and of its actor, seconds."""

    read_s: float
    audit_s: float


@dataclass(frozen=True)
class Crew:
    """Who works on the shards.

    Attributes:
        actors: how many there are,
        threads: how many cores each of them is busy on,
        start_s: and how long the process of one takes to start.
        readers: how many shards are read at a time.
        cores: of all machines together.
        dispatch_s: what the driver does for a shard: one half before it is read, the other before it goes to an actor.
    """

    actors: int
    readers: int
    cores: float
    dispatch_s: float
    start_s: float = 0.0
    threads: int = 1


class _Busy(NamedTuple):
    """Something that computes: until when by the common clock, and whatever keeps equals in order."""

    until_s: float
    order: int
    what: str
    shard: int
    threads: int


class _Pass:
    """The state of a simulation."""

    def __init__(self, shards: Sequence[Shard], crew: Crew) -> None:
        self.shards, self.crew = shards, crew
        self.now_s = self._computed_s = 0.0
        self._busy: list[_Busy] = []
        self._order = self._threads = 0
        self._unread = deque(range(len(shards)))
        self._read: deque[int] = deque()
        self._waiting: deque[int] = deque()
        self._driver_is_free = True
        self._readers = crew.readers
        self._idle = self._started = 0
        self._read_ahead = self._with_actors = 0

    def run(self) -> float:
        for _ in range(self.crew.actors):
            self._begin("start", -1, self.crew.start_s)
        self._hand_out()
        while self._busy:
            ended = heapq.heappop(self._busy)
            speed = min(1.0, self.crew.cores / self._threads)
            self.now_s += (ended.until_s - self._computed_s) / speed
            self._computed_s = ended.until_s
            self._threads -= ended.threads
            self._end(ended)
            self._hand_out()
        return self.now_s

    def _begin(self, what: str, shard: int, work_s: float, threads: int = 1) -> None:
        self._order += 1
        self._threads += threads
        heapq.heappush(self._busy, _Busy(self._computed_s + work_s, self._order, what, shard, threads))

    def _end(self, ended: _Busy) -> None:
        shard = ended.shard
        if ended.what == "start":
            self._started += 1
            self._idle += 1
        elif ended.what == "to a reader":
            self._driver_is_free = True
            self._begin("read", shard, self.shards[shard].read_s)
        elif ended.what == "read":
            self._readers += 1
            self._read.append(shard)
        elif ended.what == "to an actor":
            self._driver_is_free = True
            self._waiting.append(shard)
        else:
            self._idle += 1
            self._with_actors -= 1
        while self._idle and self._waiting:
            self._idle -= 1
            following = self._waiting.popleft()
            self._begin("audit", following, self.shards[following].audit_s, self.crew.threads)

    def _hand_out(self) -> None:
        """The driver prefers what is nearly done."""
        if not self._driver_is_free:
            return
        if self._read and self._with_actors < _PER_ACTOR * self._started:
            self._with_actors += 1
            self._read_ahead -= 1
            what, shard = "to an actor", self._read.popleft()
        elif self._unread and self._readers and self._read_ahead < self.crew.readers + _PER_ACTOR * self.crew.actors:
            self._readers -= 1
            self._read_ahead += 1
            what, shard = "to a reader", self._unread.popleft()
        else:
            return
        self._driver_is_free = False
        self._begin(what, shard, self.crew.dispatch_s / 2)


def simulate(shards: Sequence[Shard], crew: Crew) -> float:
    """How long a pass takes, seconds, from the moment at which the first process may start."""
    return _Pass(shards, crew).run() if shards else 0.0


def bounds(shards: Sequence[Shard], crew: Crew) -> dict[str, float]:
    """What each part would take if all others cost nothing, seconds: no pass is faster than any of them."""
    if not shards:
        return {}
    read_s, audit_s = sum(shard.read_s for shard in shards), sum(shard.audit_s for shard in shards)
    n, starts_s = len(shards), crew.start_s * max(1.0, crew.actors / crew.cores)
    slower = max(1.0, crew.threads / crew.cores)
    computed_s = n * crew.dispatch_s + read_s + audit_s * crew.threads
    return {
        "the driver, which hands out shards one by one": n * crew.dispatch_s,
        "the readers": read_s / min(crew.readers, crew.cores),
        "the actors": audit_s * slower / crew.actors,
        "the cores": computed_s / crew.cores,
        "the start of processes, and whole shards at the end": starts_s
        + max(shard.audit_s for shard in shards) * slower,
    }
