from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence

import pytest
import torch

from faithad.model.micro_batches import MicroBatches, even_parts, forwards_at_once

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 3])
def n_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_a_gpu_gets_many_at_once_unless_the_configuration_says_how_many() -> None:
    assert [forwards_at_once(None, torch.device(kind)) for kind in ("cpu", "cuda")] == [16, 256]
    assert [forwards_at_once(3, torch.device(kind)) for kind in ("cpu", "cuda")] == [3, 3]


def test_parts_are_few_and_even() -> None:
    for n in range(40):
        for limit in range(1, 12):
            parts = even_parts(range(n), limit)
            assert [item for part in parts for item in part] == list(range(n))
            assert len(parts) == -(-n // limit)
            sizes = {len(part) for part in parts}
            assert not sizes or (max(sizes) <= limit and max(sizes) - min(sizes) <= 1)


def test_results_come_in_order_and_groups_stay_apart(n_threads: int) -> None:
    batches = MicroBatches[int, int](sum, limit=4, device=CPU)
    groups = [range(10), range(0), range(10, 12)]
    found = [(list(part), total) for part, total in batches.results(groups)]
    assert [part for part, _ in found] == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9], [10, 11]]
    assert all(total == sum(part) for part, total in found)
    assert torch.get_num_threads() == n_threads


def test_each_part_has_one_thread_and_no_more_are_ahead_than_there_are_threads(n_threads: int) -> None:
    lock, counts = threading.Lock(), {"started": 0, "taken": 0, "ahead": 0}

    def evaluate(part: Sequence[int]) -> int:
        with lock:
            counts["started"] += 1
            counts["ahead"] = max(counts["ahead"], counts["started"] - counts["taken"])
        return torch.get_num_threads()

    for _, threads in MicroBatches(evaluate, limit=1, device=CPU).results([range(30)]):
        assert threads == 1
        with lock:
            counts["taken"] += 1
    assert counts["ahead"] <= n_threads + 1
    assert torch.get_num_threads() == n_threads


def test_a_failed_part_is_an_error_and_the_threads_are_put_back(n_threads: int) -> None:
    def evaluate(part: Sequence[int]) -> float:
        return 1 / (part[0] - 3)

    with pytest.raises(ZeroDivisionError):
        list(MicroBatches(evaluate, limit=1, device=CPU).results([range(30)]))
    assert torch.get_num_threads() == n_threads


def test_a_caller_that_stops_early_leaves_nothing_behind(n_threads: int) -> None:
    results = MicroBatches[int, int](sum, limit=1, device=CPU).results([range(30)])
    next(results)
    results.close()
    assert torch.get_num_threads() == n_threads


def test_memory_that_does_not_suffice_halves_the_limit_for_good() -> None:
    tried: list[int] = []

    def evaluate(part: Sequence[int]) -> int:
        tried.append(len(part))
        if len(part) > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return sum(part)

    batches = MicroBatches(evaluate, limit=10, device=torch.device("cuda"))
    with pytest.warns(RuntimeWarning, match=r"does not hold \d+ spectrograms at once; going on with") as caught:
        found = list(batches.results([range(10), range(10, 19)]))
    assert [item for part, _ in found for item in part] == list(range(19))
    assert all(total == sum(part) for part, total in found)
    assert tried[:2] == [10, 5]
    assert max(tried[2:]) <= 3
    assert batches.limit == 3
    assert len(caught) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(batches.results([range(10)]))


def test_memory_that_does_not_suffice_for_one_is_an_error() -> None:
    def evaluate(part: Sequence[int]) -> int:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.cuda.OutOfMemoryError), pytest.warns(RuntimeWarning):
        list(MicroBatches(evaluate, limit=2, device=torch.device("cuda")).results([range(2)]))
