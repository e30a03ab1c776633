"""How many threads PyTorch computes with. Some results change with it in their last digits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Let this thread compute without helpers; afterwards PyTorch has its threads back."""
    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(n_threads)
