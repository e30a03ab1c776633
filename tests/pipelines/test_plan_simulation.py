"""The simulated pass: its limits in closed form, and a slow simulation from the description alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faithad.pipelines.plan.simulation import Crew, Shard, bounds, simulate

FEW = Crew(actors=1, readers=1, cores=64, dispatch_s=0, start_s=3)

crews = st.builds(
    Crew,
    actors=st.integers(1, 5),
    readers=st.integers(1, 4),
    cores=st.integers(1, 8),
    dispatch_s=st.sampled_from([0, 2, 4]),
    start_s=st.integers(0, 7),
    threads=st.integers(1, 3),
)
passes = st.lists(st.builds(Shard, st.integers(0, 6), st.integers(0, 9)), min_size=1, max_size=12)


@dataclass
class Task:
    """Something that computes, in the slow simulation."""

    what: str
    shard: int
    left: Fraction
    threads: int = 1


def simulate_slowly(shards: list[Shard], crew: Crew) -> Fraction:
    """Step by step: all that computes comes a step nearer to its end, by the time until the next one ends."""
    now = Fraction(0)
    tasks = [Task("start", -1, Fraction(crew.start_s)) for _ in range(crew.actors)]
    unread, read, waiting = list(range(len(shards))), list[int](), list[int]()

    def count(what: str) -> int:
        return sum(task.what == what for task in tasks)

    while True:
        there = crew.actors - count("start")
        if not count("to actor") + count("to reader"):
            with_actors = len(waiting) + count("audit")
            reading = count("read")
            if read and with_actors < 2 * there:
                tasks.append(Task("to actor", read.pop(0), Fraction(crew.dispatch_s) / 2))
            elif unread and reading < crew.readers and reading + len(read) < crew.readers + 2 * crew.actors:
                tasks.append(Task("to reader", unread.pop(0), Fraction(crew.dispatch_s) / 2))
        if not tasks:
            return now
        speed = min(Fraction(1), Fraction(crew.cores) / sum(task.threads for task in tasks))
        ended = min(tasks, key=lambda task: task.left)  # the first of equals
        step = ended.left
        now += step / speed
        for task in tasks:
            task.left -= step
        tasks.remove(ended)
        if ended.what == "to reader":
            tasks.append(Task("read", ended.shard, Fraction(shards[ended.shard].read_s)))
        elif ended.what == "to actor":
            waiting.append(ended.shard)
        elif ended.what == "read":
            read.append(ended.shard)
        there = crew.actors - count("start")
        while waiting and count("audit") < there:
            shard = waiting.pop(0)
            tasks.append(Task("audit", shard, Fraction(shards[shard].audit_s), crew.threads))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(passes, crews)
def test_a_slow_simulation_comes_to_the_same(shards: list[Shard], crew: Crew) -> None:
    assert simulate(shards, crew) == pytest.approx(float(simulate_slowly(shards, crew)), rel=1e-9)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(passes, crews)
def test_no_part_is_faster_than_it_would_be_alone(shards: list[Shard], crew: Crew) -> None:
    took = simulate(shards, crew)
    for name, least in bounds(shards, crew).items():
        assert took >= least * (1 - 1e-9), name
    assert simulate(shards, crew) == took


def test_one_actor_does_one_shard_after_the_other() -> None:
    assert simulate([Shard(1, 5)] * 40, FEW) == 3 + 40 * 5
    assert simulate([Shard(4, 5)] * 40, FEW) == 4 + 40 * 5
    assert simulate([Shard(7, 5)] * 40, FEW) == 40 * 7 + 5


def test_with_workers_without_end_the_driver_is_what_takes_time() -> None:
    shards = [Shard(0.5, 30)] * 10_000
    many = Crew(actors=10_000, readers=10_000, cores=1e9, dispatch_s=0.02, start_s=3)
    assert 10_000 * 0.02 + 30 <= simulate(shards, many) <= 3 + 0.5 + 10_000 * 0.02 + 30.5
    assert max(bounds(shards, many).items(), key=lambda item: item[1])[0].startswith("the driver")


def test_without_a_driver_workers_without_end_take_as_long_as_one_shard() -> None:
    assert simulate([Shard(2, 30)] * 100, Crew(100, 100, 1e9, 0, 0)) == 32


def test_the_last_shards_leave_actors_idle() -> None:
    crew = replace(FEW, actors=4, readers=8, start_s=0)
    assert simulate([Shard(0, 10)] * 8, crew) == 20
    assert simulate([Shard(0, 10)] * 9, crew) == 30


def test_cores_that_are_shared_are_slower_for_all() -> None:
    """Two actors and what they read fill one core: nobody gains, nothing is lost."""
    crew = Crew(actors=2, readers=2, cores=1, dispatch_s=0.2, start_s=3)
    assert simulate([Shard(1, 5)] * 20, crew) == pytest.approx(20 * 6.2 + 2 * 3)


def test_a_slow_reader_is_what_many_actors_wait_for() -> None:
    shards, crew = [Shard(3, 1)] * 50, replace(FEW, actors=16)
    assert simulate(shards, crew) == 50 * 3 + 1
    assert max(bounds(shards, crew).items(), key=lambda item: item[1])[0] == "the readers"


def test_nothing_to_do_takes_no_time() -> None:
    assert simulate([], FEW) == 0
    assert bounds([], FEW) == {}
