"""What is said while a task that reads headers does not answer; the tasks themselves are in tests/integration."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from faithad.pipelines import headers


@pytest.mark.parametrize("answers", [True, False])
def test_a_task_that_does_not_answer_is_named(
    answers: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wait(tasks: list[Any], *, timeout: float) -> tuple[list[Any], list[Any]]:
        assert timeout == headers.PATIENCE_S
        return (tasks, []) if answers else ([], tasks)

    monkeypatch.setattr(headers, "ray", SimpleNamespace(wait=wait, get=lambda task: [task]))
    assert headers._headers_of("/week/a.wav or one of the 3 recordings after it", "task") == ["task"]
    said = "Waiting for /week/a.wav or one of the 3 recordings after it, which has not answered for 60 s"
    assert (said in capsys.readouterr().out) != answers
