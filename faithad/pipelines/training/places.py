"""How many trainings run side by side on this cluster, and with what each of their workers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from faithad.config.sections import Train
from faithad.pipelines.cluster.machines import Nodes, alive_nodes, held, refusal, told, wait_for_machines
from faithad.pipelines.cluster.session import ray_is_ours

_ADVICE = "Lower train.workers, train.cpus_per_worker or train.gpus_per_worker."


@dataclass(frozen=True)
class Places:
    """What the trainings get.

    Attributes:
        workers: of each training.
        each: what each worker asks for: `CPU`, and `GPU` where there is one.
        at_once: how many trainings Ray is given side by side: as many as fit, or more where the cluster may grow.
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
        return held(alive_nodes(), self.each) >= self.workers


def find_places(train: Train, n_trainings: int, *, queue: bool = False) -> Places:
    """Divide the cluster that this process has joined, as `divide` does, once it can hold one training.

    Args:
        train: the study's section.
        n_trainings: as for `divide`.
        queue: on a cluster that is not our own, give Ray all trainings of one worker at once. Those that find no place
            wait for one, where an autoscaler sees them. Several workers have a process beside them while they wait, so
            only as many of such trainings are started as find a place now.

    Raises:
        StudyError: nothing that can hold a single one is there or has come, see `wait_for_machines`.
    """
    each = _asked(train.cpus_per_worker or 1, train.gpus_per_worker)
    wait_for_machines(each, train.workers, request=_request(each, train.workers), advice=_ADVICE)
    places = divide(alive_nodes(), train, n_trainings)
    if queue and train.workers == 1 and not ray_is_ours():
        return replace(places, at_once=_wanted(train, n_trainings))
    return places


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
    each = _asked(train.cpus_per_worker or 1, gpus)
    at_once = min(_wanted(train, n_trainings), held(nodes, each) // workers)
    if not at_once:
        raise refusal(nodes, _request(each, workers), _ADVICE)
    if train.cpus_per_worker is None:
        largest = int(max(node.get("CPU", 0) for node in nodes))
        shares = (_asked(cpus, gpus) for cpus in range(largest, 1, -1))
        each = next((share for share in shares if held(nodes, share) // workers >= at_once), each)
    return Places(workers=workers, each=each, at_once=at_once)


def _wanted(train: Train, n_trainings: int) -> int:
    return min(n_trainings, train.trainings_at_once or n_trainings)


def _asked(cpus: float, gpus: float) -> dict[str, float]:
    return {"CPU": cpus, **({"GPU": gpus} if gpus else {})}


def _request(each: dict[str, float], workers: int) -> str:
    return f"Training asks for {workers} workers with {told(each)} each"
