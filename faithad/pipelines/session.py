"""The Ray that a stage runs on: the one already joined, the cluster that RAY_ADDRESS names, or one of our own."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

import ray

OBJECT_STORE_BYTES = 1 << 30


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Join or start Ray for the block; what was started here is stopped at its end.

    In a submitted job RAY_ADDRESS is set and the job's cluster is joined. Without one, a local Ray is started on the
    cores that this process may use; it listens on loopback and has no dashboard.
    """
    if ray.is_initialized():
        yield
        return
    # A stage that runs for a minute has no need of usage reports, nor of a metrics agent that asks for one.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if ray_is_ours():
        ray.init(
            address="local",
            num_cpus=usable_cores(),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            **quiet,
        )
    else:
        ray.init(**quiet)
    try:
        yield
    finally:
        ray.shutdown()


def ray_is_ours() -> bool:
    """Whether Ray was started for this process alone and goes with it; else it is a cluster that others use too."""
    return not os.environ.get("RAY_ADDRESS")


def usable_cores() -> int:
    """Cores that this process may use: fewer than the machine has under taskset, Slurm or a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cluster_total(resource: str) -> float:
    """How much of a resource (`CPU`, `GPU`) the whole cluster has."""
    return float(ray.cluster_resources().get(resource, 0.0))
