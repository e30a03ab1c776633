"""How many trainings run side by side on this cluster, and with what each of their workers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import ray

from faithad.config_sections import Train
from faithad.errors import StudyError

Nodes = list[dict[str, float]]


@dataclass(frozen=True)
class Places:
    """What the trainings get.

    Attributes:
        workers: of each training.
        each: what each worker asks for: `CPU`, and `GPU` where there is one.
        at_once: how many trainings fit side by side.
    """

    workers: int
    each: dict[str, float]
    at_once: int

    @property
    def threads(self) -> int:
        """Of one worker."""
        return max(1, int(self.each["CPU"]))

    def can_still_be_met(self) -> bool:
        """Whether the machines that are alive can hold one training."""
        return _trainings(_alive_nodes(), self.each, self.workers) > 0


def find_places(train: Train, n_trainings: int) -> Places:
    """Divide the cluster that this process has joined, as `divide` does."""
    return divide(_alive_nodes(), train, n_trainings)


def divide(nodes: Nodes, train: Train, n_trainings: int) -> Places:
    """Divide a cluster among as many trainings as it carries at once.

    Where the study does not say how many cores a worker gets, as many trainings as there are cores (or GPU shares) run
    side by side, and each worker gets the largest whole number of cores that all of them can have: many small
    convolutions gain little from more threads, and two trainings of one thread are faster than two in turn of two.

    Args:
        nodes: what each machine has in all, such as `{"CPU": 4, "GPU": 1}`; free or in use.
        train: the study's section.
        n_trainings: all of the study, not only those that are left: the number of threads has a say in how sums are
            rounded, and a study that was interrupted is to end as it would have ended.

    Raises:
        StudyError: the cluster can never hold a single one. Such a request would wait for ever.
    """
    workers, gpus = train.workers, train.gpus_per_worker
    wanted = min(n_trainings, train.trainings_at_once or n_trainings)
    each = _asked(train.cpus_per_worker or 1, gpus)
    at_once = min(wanted, _trainings(nodes, each, workers))
    if not at_once:
        asked = " and ".join(f"{amount:g} {resource}" for resource, amount in each.items())
        there = "; ".join(f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU" for node in nodes)
        raise StudyError(
            f"Training asks for {workers} workers with {asked} each, the cluster's machines have: {there}. "
            "Lower train.workers, train.cpus_per_worker or train.gpus_per_worker."
        )
    if train.cpus_per_worker is None:
        largest = int(max(node.get("CPU", 0) for node in nodes))
        shares = (_asked(cpus, gpus) for cpus in range(largest, 1, -1))
        each = next((share for share in shares if _trainings(nodes, share, workers) >= at_once), each)
    return Places(workers=workers, each=each, at_once=at_once)


def _alive_nodes() -> Nodes:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _asked(cpus: float, gpus: float) -> dict[str, float]:
    return {"CPU": cpus, **({"GPU": gpus} if gpus else {})}


def _trainings(nodes: Nodes, each: dict[str, float], workers: int) -> int:
    """How many trainings of so many workers the nodes can hold at once; a worker lives on one node."""
    held = (min(_held(node.get(resource, 0), resource, amount) for resource, amount in each.items()) for node in nodes)
    return sum(held) // workers


def _held(total: float, resource: str, amount: float) -> int:
    """How many workers a node's resource is enough for. No worker has parts of two GPUs: 0.4 goes twice into each."""
    if resource == "GPU" and amount < 1:
        return int(total) * math.floor(1 / amount + 1e-9)
    return math.floor(total / amount + 1e-9)
