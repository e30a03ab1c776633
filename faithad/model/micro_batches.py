"""Any number of like items, evaluated in micro-batches that fit the device's memory.

On a CPU the micro-batches run side by side, one thread each: operations on small tensors gain little from several
threads, and all of these wait when another process takes a core from one. So the result of a micro-batch does not
depend on the number of threads. On a GPU they run one after the other.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch
from torch import Tensor

from faithad.threads import single_threaded

Item = TypeVar("Item")
Result = TypeVar("Result")


class MicroBatches(Generic[Item, Result]):
    """Evaluates groups of items in micro-batches.

    A group is cut into as few parts of near-equal size as `limit` allows; nothing else decides how it is cut. If a GPU
    runs out of memory, the limit is halved for good, with a warning, and the part is evaluated again.

    Args:
        evaluate: computes the result of one part. Several threads call it at once, and PyTorch's modes (grad,
            inference, autocast) belong to each thread.
        limit: the most items in one call.
        device: where `evaluate` computes; on a CPU there are as many threads as PyTorch is set to.
    """

    def __init__(self, evaluate: Callable[[Sequence[Item]], Result], *, limit: int, device: torch.device) -> None:
        self.evaluate, self.limit = evaluate, limit
        self.n_threads = torch.get_num_threads() if device.type == "cpu" else 1

    def results(self, groups: Iterable[Sequence[Item]]) -> Iterator[tuple[Sequence[Item], Result]]:
        """Each part and its result, in order; no more parts than threads are computed ahead of the caller."""
        parts = (part for group in groups for part in even_parts(group, self.limit))
        if self.n_threads == 1:
            for part in parts:
                yield from self._evaluate(part)
            return
        with (
            single_threaded(),
            ThreadPoolExecutor(self.n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        ):
            ahead: collections.deque[Future[list[tuple[Sequence[Item], Result]]]] = collections.deque()
            try:
                for part in parts:
                    ahead.append(pool.submit(self._evaluate, part))
                    if len(ahead) > self.n_threads:
                        yield from ahead.popleft().result()
                while ahead:
                    yield from ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def _evaluate(self, part: Sequence[Item]) -> list[tuple[Sequence[Item], Result]]:
        if len(part) <= self.limit:
            # The retry happens outside the except block: inside it, the traceback would keep the failed tensors alive.
            with contextlib.suppress(torch.cuda.OutOfMemoryError) if len(part) > 1 else contextlib.nullcontext():
                return [(part, self.evaluate(part))]
            self._halve(len(part))
        return [pair for smaller in even_parts(part, self.limit) for pair in self._evaluate(smaller)]

    def _halve(self, size: int) -> None:
        self.limit = min(self.limit, math.ceil(size / 2))
        warnings.warn(
            f"The GPU's memory does not hold {size} spectrograms at once; going on with {self.limit}. A smaller "
            "micro-batch in the configuration avoids the failed attempt.",
            RuntimeWarning,
            stacklevel=2,
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def forwards_at_once(wanted: int | None, device: torch.device) -> int:
    """Spectrograms in one forward pass: as wanted, or a number that suits the device. A GPU needs many."""
    return wanted or (16 if device.type == "cpu" else 256)


def sent(values: Tensor, device: torch.device) -> Tensor:
    """The values on the device, copied from pinned memory, so that a GPU's host need not wait for the copy."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def even_parts(items: Sequence[Item], limit: int) -> list[Sequence[Item]]:
    """As few slices as possible of at most `limit` items, whose sizes differ by one at the most."""
    n_parts = math.ceil(len(items) / limit)
    edges = [len(items) * part // n_parts for part in range(n_parts + 1)] if n_parts else [0]
    return [items[start:stop] for start, stop in itertools.pairwise(edges)]
