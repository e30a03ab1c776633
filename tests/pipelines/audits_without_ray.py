"""A whole audit of recordings, or a training on normal ones, in this process: a loop does the work of Ray's tasks."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from faithad.audit import sounds
from faithad.clips.manifest import Recording
from faithad.pipelines import audit_index, cutting, features
from faithad.pipelines.audit import passes, run, worker
from faithad.pipelines.headers import read_header
from faithad.pipelines.training import calibrate, normals


@contextlib.contextmanager
def without_ray() -> Iterator[None]:
    """Everything of `run_audit` but Ray is as always, the files included; sounds are short, which take most time."""
    with pytest.MonkeyPatch.context() as patch:
        plain = SimpleNamespace(get=lambda value: value, put=lambda value: value)
        for module in (passes, worker):
            patch.setattr(module, "ray", plain)
        for module in (normals, calibrate):
            patch.setattr(module, "ray", SimpleNamespace(get=list, put=lambda value: value, remote=_Remote))
            for name in ("wait_for_machines", "require_visible"):
                patch.setattr(module, name, lambda *_, **__: None)
        for module in (normals, calibrate, features):
            patch.setattr(module, "ray_session", contextlib.nullcontext)
        patch.setattr(features, "dataset", _Dataset)
        patch.setattr(features, "consume", _consume)
        patch.setattr(passes, "ray_session", contextlib.nullcontext)
        patch.setattr(passes, "_chain", _chain)
        patch.setattr(passes, "consume", _consume)
        patch.setattr(run, "_join_ray", lambda *_: None)
        for module in (cutting, audit_index):
            patch.setattr(module, "read_headers", _read_headers)
        patch.setattr(sounds, "LONGEST_S", 2.0)
        yield


class _Remote:
    """A task of Ray that is done at once. Its result can be sent to another process, as Ray sends it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def remote(self, *arguments: Any, **options: Any) -> Any:
        return pickle.loads(pickle.dumps(self._function(*arguments, **options)))

    def options(self, **_: Any) -> _Remote:
        return self


class _Dataset:
    """A data set of Ray whose rows are mapped one after the other."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self._rows = rows

    def map(self, function: Callable[..., Any], *, fn_kwargs: dict[str, Any], num_cpus: float) -> Iterator[Any]:
        return (function(row, **fn_kwargs) for row in self._rows)


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
