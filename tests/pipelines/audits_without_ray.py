"""A whole audit of recordings in this process: the work of Ray's tasks and actors is done in a loop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from faithad.clips.manifest import Recording
from faithad.pipelines import index
from faithad.pipelines.audit import passes, run, worker
from faithad.pipelines.headers import read_header


@contextlib.contextmanager
def without_ray() -> Iterator[None]:
    """Everything of `run_audit` but Ray is as always, the files included."""
    with pytest.MonkeyPatch.context() as patch:
        plain = SimpleNamespace(get=lambda value: value, put=lambda value: value)
        for module in (passes, worker):
            patch.setattr(module, "ray", plain)
        patch.setattr(passes, "ray_session", contextlib.nullcontext)
        patch.setattr(passes, "_chain", _chain)
        patch.setattr(passes, "consume", _consume)
        patch.setattr(run, "_join_ray", lambda *_: None)
        patch.setattr(index, "read_headers", _read_headers)
        yield


def _chain(
    rows: Sequence[dict[str, Any]], sharded: Any, attribution: Any, audit: Any, features: Any, run: str
) -> Iterator[dict[str, Any]]:
    auditor = worker.Auditor(sharded, attribution, audit, features, threads=1, run=run)
    for row in rows:
        yield auditor(worker.read_shard(row, passes=sharded, features=features, run=run))


def _consume(results: Iterable[dict[str, Any]], *, title: str, tally: Any) -> None:
    for row in results:
        tally.add(row)


def _read_headers(recordings: Sequence[Recording], *, marks: str) -> Iterator[Any]:
    return map(read_header, recordings)
