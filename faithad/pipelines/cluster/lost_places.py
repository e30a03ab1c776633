"""Gives the cores of Ray Train runs that lost their controller back to the cluster.

A run holds its cores, or GPUs, by a placement group that its controller, an actor, has made. When the controller dies,
alone or with the process that started it, Ray keeps the group until the whole job ends, and the next run waits for
cores that nobody works on. Ray Train's own cleaner asks the dashboard which actors are alive, but a Ray of our own has
no dashboard. The control store, which every Ray has, knows it too. Ray's public `placement_group_table` leaves out who
made a group, so the store is asked through a private call.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import ray
from ray._private.state import state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.util.placement_group import PlacementGroup, remove_placement_group

_LOOK_EVERY_S = 1.0


@contextlib.contextmanager
def giving_back() -> Iterator[None]:
    """While the block runs, give back what dead actors of this job hold, also of actors that die meanwhile."""
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(_LOOK_EVERY_S):
            give_back()

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()


def give_back() -> int:
    """Remove the placement groups of this job whose actor is dead. Returns how many these were."""
    job = ray.get_runtime_context().get_job_id()
    groups = [
        PlacementGroupTableData.FromString(content)
        for content in state._connect_and_get_accessor().get_placement_group_table()
    ]
    lost = [
        ray.PlacementGroupID(group.placement_group_id)
        for group in groups
        if group.state != PlacementGroupTableData.REMOVED
        and group.creator_job_id.hex() == job
        # The flag is also set for a group that no actor made.
        and group.creator_actor_dead
        and not ray.ActorID(group.creator_actor_id).is_nil()
    ]
    for group_id in lost:
        remove_placement_group(PlacementGroup(group_id))
    return len(lost)
