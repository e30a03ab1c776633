"""The cores of Ray Train runs that lost their controller: they are given back to the cluster.

A run holds its cores, or GPUs, by a placement group that its controller, an actor, has made. Where the controller
dies, alone or with the process that started it, Ray keeps the group until the whole job ends, and whoever comes next
waits for cores that nobody works on. Ray Train's own cleaner asks the dashboard who is alive, which a Ray of ours does
not have; the control store, which every Ray has, knows it too.
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
    """While the block runs, give back what dead actors of this job hold: also those that die meanwhile."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(_LOOK_EVERY_S):
            give_back()

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def give_back() -> int:
    """Remove the placement groups of this job whose actor is dead, and say how many these were."""
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
        # Of a group that no actor made it says the same.
        and group.creator_actor_dead
        and not ray.ActorID(group.creator_actor_id).is_nil()
    ]
    for group_id in lost:
        remove_placement_group(PlacementGroup(group_id))
    return len(lost)
