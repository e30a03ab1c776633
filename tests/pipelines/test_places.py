"""How a cluster is divided among trainings."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from faithad.config.sections import Train
from faithad.errors import StudyError
from faithad.pipelines.cluster.machines import Nodes
from faithad.pipelines.training.places import divide


def node(cpus: float, gpus: float = 0) -> dict[str, float]:
    return {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}


@pytest.mark.parametrize(
    ("nodes", "train", "n_trainings", "each", "at_once"),
    [
        ([node(2)], {}, 2, {"CPU": 1}, 2),
        ([node(4)], {}, 2, {"CPU": 2}, 2),
        ([node(3)], {}, 2, {"CPU": 1}, 2),
        ([node(4)], {}, 10, {"CPU": 1}, 4),
        ([node(8)], {}, 1, {"CPU": 8}, 1),
        ([node(8)], {"trainings_at_once": 1}, 10, {"CPU": 8}, 1),
        ([node(8)], {"trainings_at_once": 2}, 10, {"CPU": 4}, 2),
        ([node(8)], {"cpus_per_worker": 3}, 10, {"CPU": 3}, 2),
        ([node(8)], {"cpus_per_worker": 0.5}, 10, {"CPU": 0.5}, 10),
        ([node(8)], {"workers": 2}, 2, {"CPU": 2}, 2),
        ([node(8)], {"workers": 2, "batch_size": 32}, 1, {"CPU": 4}, 1),
        ([node(3), node(3)], {"workers": 2, "cpus_per_worker": 2}, 5, {"CPU": 2}, 1),
        ([node(16, 1)], {"gpus_per_worker": 0.25}, 10, {"CPU": 4, "GPU": 0.25}, 4),
        ([node(16, 1)], {"gpus_per_worker": 0.1}, 10, {"CPU": 1, "GPU": 0.1}, 10),
        ([node(16, 2)], {"gpus_per_worker": 0.4}, 10, {"CPU": 4, "GPU": 0.4}, 4),
        ([node(2), node(8, 2)], {"gpus_per_worker": 1}, 10, {"CPU": 4, "GPU": 1}, 2),
        ([node(0), node(4)], {}, 2, {"CPU": 2}, 2),
    ],
)
def test_a_cluster_is_divided(
    nodes: Nodes, train: dict[str, object], n_trainings: int, each: dict[str, float], at_once: int
) -> None:
    places = divide(nodes, Train.model_validate(train), n_trainings)
    assert (places.each, places.at_once) == (each, at_once)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    nodes=st.lists(st.builds(node, st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=3),
    workers=st.integers(1, 3),
    cpus=st.none() | st.sampled_from([0.5, 1, 2.5, 4]),
    gpus=st.sampled_from([0, 0, 0.25, 0.4, 0.5, 1, 2]),
    n_trainings=st.integers(1, 12),
)
def test_what_is_promised_fits_worker_by_worker(
    nodes: Nodes, workers: int, cpus: float | None, gpus: float, n_trainings: int
) -> None:
    """Placed one after the other, each on one node and on GPUs of its own share, all workers find room."""
    assume(workers == 1 or gpus % 1 == 0)  # several workers on one GPU are refused by the settings
    train = Train(workers=workers, batch_size=6, cpus_per_worker=cpus, gpus_per_worker=gpus)
    try:
        places = divide(nodes, train, n_trainings)
    except StudyError:
        assert placed(nodes, workers, cpus or 1, gpus) < workers
        return
    needed = places.at_once * workers
    assert 1 <= places.at_once <= n_trainings
    assert placed(nodes, needed, places.each["CPU"], gpus) == needed
    if cpus is None and places.at_once == n_trainings:
        assert placed(nodes, needed, places.each["CPU"] + 1, gpus) < needed, "cores are left over"


def placed(nodes: Nodes, workers: int, cpus: float, gpus: float) -> int:
    """How many of the workers find room, found by giving each the first place that is free."""
    free_cpus = [node["CPU"] for node in nodes]
    free_gpus = [[1.0] * int(node.get("GPU", 0)) for node in nodes]
    found = 0
    for _ in range(workers):
        for number in range(len(nodes)):
            cards = free_gpus[number]
            if gpus >= 1:
                taken = [card for card, free in enumerate(cards) if free == 1.0][: int(gpus)]
                enough = len(taken) == gpus
            else:
                taken = [card for card, free in enumerate(cards) if free >= gpus - 1e-9][:1] if gpus else []
                enough = bool(taken) or not gpus
            if enough and free_cpus[number] >= cpus:
                free_cpus[number] -= cpus
                for card in taken:
                    cards[card] -= min(gpus, 1.0)
                found += 1
                break
    return found


def test_what_never_fits_is_refused_with_what_there_is() -> None:
    train = Train(workers=2, batch_size=6, cpus_per_worker=3, gpus_per_worker=1)
    message = r"2 workers with 3 CPU and 1 GPU each.*4 CPU, 0 GPU; 2 CPU, 1 GPU\. Lower train\.workers"
    with pytest.raises(StudyError, match=message):
        divide([node(4), node(2, 1)], train, 3)
