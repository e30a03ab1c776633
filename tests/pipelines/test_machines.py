"""What a cluster's machines hold, and how long others are waited for."""

from __future__ import annotations

import pytest

from faithad.errors import StudyError
from faithad.pipelines.cluster.machines import Nodes, held, refusal, wait_s

CLUSTER: Nodes = [{"CPU": 4.0}, {"CPU": 4.0}, {"CPU": 2.0, "GPU": 2.0}, {"node:head": 1.0}]


@pytest.mark.parametrize(
    ("each", "times"),
    [
        ({"CPU": 1}, 10),
        ({"CPU": 3}, 2),
        ({"CPU": 0.5}, 20),
        ({"CPU": 1, "GPU": 1}, 2),
        ({"CPU": 0.25, "GPU": 0.4}, 4),
        ({"CPU": 8}, 0),
    ],
)
def test_a_machine_holds_all_of_a_request_or_nothing(each: dict[str, float], times: int) -> None:
    assert held(CLUSTER, each) == times


def test_a_refusal_lists_equal_machines_once() -> None:
    error = refusal(CLUSTER, "An actor asks for 8 CPU", "Ask for less.")
    machines = "2 times 4 CPU, 0 GPU; 2 CPU, 2 GPU; 0 CPU, 0 GPU"
    assert str(error) == f"An actor asks for 8 CPU, the cluster's machines have: {machines}. Ask for less."


@pytest.mark.parametrize(("said", "seconds"), [(None, 900), ("", 900), ("0", 0), ("12.5", 12.5)])
def test_how_long_machines_are_waited_for(said: str | None, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAITHAD_WAIT_S", raising=False)
    if said is not None:
        monkeypatch.setenv("FAITHAD_WAIT_S", said)
    assert wait_s() == seconds


@pytest.mark.parametrize("said", ["soon", "-1", "nan", "inf"])
def test_a_wait_that_is_no_number_of_seconds_is_refused(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAITHAD_WAIT_S", said)
    with pytest.raises(StudyError, match=f"FAITHAD_WAIT_S is '{said}'"):
        wait_s()
