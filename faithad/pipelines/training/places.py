"""How many trainings run side by side on this cluster, and what each of their workers gets."""

from __future__ import annotations

from dataclasses import dataclass, replace

from faithad.config.sections import Train
from faithad.pipelines.cluster.machines import Nodes, alive_nodes, held, refusal, resources_text, wait_for_machines
from faithad.pipelines.cluster.session import ray_is_ours
from faithad.vocabulary import count

_ADVICE = "Lower train.workers, train.cpus_per_worker or train.gpus_per_worker."


@dataclass(frozen=True)
class Places:
    """What the trainings get.

    Attributes:
        workers: of each training.
        each: what each worker asks for: `CPU`, and `GPU` if there is one.
        at_once: how many trainings Ray is given side by side: as many as fit, or more if the cluster may grow.
    """

    workers: int
    each: dict[str, float]
    at_once: int

    @property
    def threads(self) -> int:
        """Of one worker."""
        return max(1, int(self.each["CPU"]))


def find_places(train: Train, n_trainings: int, *, queue: bool = False) -> Places:
    """Divide the cluster that this process has joined (see `divide`) once it can hold one training.

    Args:
        train: the study's section.
        n_trainings: as for `divide`.
        queue: on a cluster that is not our own, give Ray all trainings of one worker at once: those that do not fit
            wait in its queue, where an autoscaler sees them. A training of several workers occupies a process while it
            waits, so only as many of these are started as fit.

    Raises:
        StudyError: no machines that can hold one training are there or have come (see `wait_for_machines`).
    """
    each = _resources(train.cpus_per_worker or 1, train.gpus_per_worker)
    wait_for_machines(each, train.workers, request=_request(each, train.workers), advice=_ADVICE)
    places = divide(alive_nodes(), train, n_trainings)
    if queue and train.workers == 1 and not ray_is_ours():
        return replace(places, at_once=_most_at_once(train, n_trainings))
    return places


def divide(nodes: Nodes, train: Train, n_trainings: int) -> Places:
    """Divide a cluster among as many trainings as it carries at once.

    Unless the study sets the cores of a worker, as many trainings as there are cores (or GPU shares) run side by side,
    and each worker gets the largest whole number of cores that all of them can have: many small convolutions gain
    little from more threads, so two trainings of one thread end sooner than two of two threads, one after the other.

    Args:
        nodes: what each machine has in all, such as `{"CPU": 4, "GPU": 1}`, free or in use.
        train: the study's section.
        n_trainings: all of the study, also those that are finished: the number of threads affects how sums are rounded,
            and an interrupted study must end as it would have ended.

    Raises:
        StudyError: the cluster can never hold one training, so a request would wait for ever.
    """
    workers, gpus = train.workers, train.gpus_per_worker
    each = _resources(train.cpus_per_worker or 1, gpus)
    at_once = min(_most_at_once(train, n_trainings), held(nodes, each) // workers)
    if not at_once:
        raise refusal(nodes, _request(each, workers), _ADVICE)
    if train.cpus_per_worker is None:
        largest = int(max(node.get("CPU", 0) for node in nodes))
        shares = (_resources(cpus, gpus) for cpus in range(largest, 1, -1))
        each = next((share for share in shares if held(nodes, share) // workers >= at_once), each)
    return Places(workers=workers, each=each, at_once=at_once)


def _most_at_once(train: Train, n_trainings: int) -> int:
    return min(n_trainings, train.trainings_at_once or n_trainings)


def _resources(cpus: float, gpus: float) -> dict[str, float]:
    return {"CPU": cpus, **({"GPU": gpus} if gpus else {})}


def _request(each: dict[str, float], workers: int) -> str:
    return f"Training asks for {count(workers, 'worker')} with {resources_text(each)} each"
