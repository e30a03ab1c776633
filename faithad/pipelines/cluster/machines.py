"""The machines of the cluster, and waiting for machines that an autoscaler starts.

A cluster with an autoscaler often starts with only a head that has no CPUs, and Ray does not say how far it can grow.
So if the present machines are too small for a request, the autoscaler is asked for more, and the request fails only
if they do not arrive in time. A Ray that faithad started for itself cannot grow: there, such a request fails at once.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from faithad.errors import StudyError
from faithad.pipelines.cluster.session import ray_is_ours
from faithad.progress import console

Nodes = list[dict[str, float]]

# How many seconds to wait for machines. A cloud may take ten minutes to start and set up one with a GPU.
WAIT = "FAITHAD_WAIT_S"
_WAIT_S = 900.0
_LOOK_EVERY_S = 0.5
# How long to wait for the answers of all machines: one that has just joined may still unpack the working directory.
_ANSWER_S = 60.0


class Answers(NamedTuple):
    """The answers of other machines by the names of the machines, and the last line of each machine's error."""

    answers: dict[str, Any]
    errors: dict[str, str]


def ask_other_machines(question: Callable[..., Any], *arguments: Any) -> Answers:
    """Call a function on every machine but this one; Ray must have been joined.

    Machines that go away, or do not answer in a minute, are left out and named on the console.
    """
    own_node = ray.get_runtime_context().get_node_id()
    asked: dict[ray.ObjectRef, str] = {}
    for node in ray.nodes():
        if node["Alive"] and node["NodeID"] != own_node:
            on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(question).options(num_cpus=0, max_retries=0, scheduling_strategy=on_node)
            asked[task.remote(*arguments)] = f"{node['NodeManagerAddress']} (node {node['NodeID'][:8]})"
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S) if asked else ([], [])
    answers: dict[str, Any] = {}
    errors: dict[str, str] = {}
    for task in answered:
        try:
            answers[asked[task]] = ray.get(task)
        except RayTaskError as error:
            errors[asked[task]] = str(error).strip().splitlines()[-1]
        except RayError:
            console.print(f"{asked[task]} went away and was not asked")
    for task in silent:
        ray.cancel(task, force=True)
        console.print(f"{asked[task]} did not answer within {_ANSWER_S:.0f} s")
    return Answers(answers, errors)


def alive_nodes() -> Nodes:
    """What each machine has in all, such as `{"CPU": 4, "GPU": 1}`; free or in use."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def wait_s() -> float:
    """How many seconds to wait for machines.

    Raises:
        StudyError: FAITHAD_WAIT_S is not a number of seconds.
    """
    given = os.environ.get(WAIT, "")
    try:
        seconds = float(given or _WAIT_S)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise StudyError(f"{WAIT} is {given!r}: give a number of seconds, 0 or more, to wait for machines to come.")
    return seconds


def wait_for_machines(each: Mapping[str, float], count: int = 1, *, request: str, advice: str) -> None:
    """Wait until `count` workers with the resources `each` fit on the machines, whatever else runs on them.

    Args:
        each: resources of one worker, all on one machine.
        count: how many workers.
        request: the request in words: `An audit actor asks for 1 CPU`.
        advice: what the user can do if no such machines arrive.

    Raises:
        StudyError: no such machines arrived in time, or this Ray was started by faithad and cannot grow.
    """
    if held(alive_nodes(), each) >= count:
        return
    if ray_is_ours():
        raise refusal(alive_nodes(), request, advice)
    console.print(
        f"waiting for machines: {request}, there are {_listed(alive_nodes())}. An autoscaler is asked for more; "
        f"up to {wait_s():.0f} s ({WAIT})"
    )
    started = time.monotonic()
    # The autoscaler sees this placement group. Unlike a call of `request_resources`, it ends with this process, even
    # if that is killed: nobody should pay for machines that a killed job asked for.
    demand = placement_group([dict(each)] * count)
    try:
        while held(alive_nodes(), each) < count:
            if time.monotonic() - started > wait_s():
                raise refusal(alive_nodes(), request, f"{advice} Nothing came in {wait_s():.0f} s ({WAIT}).")
            time.sleep(_LOOK_EVERY_S)
    finally:
        remove_placement_group(demand)
    console.print(f"waiting for machines: they came after {time.monotonic() - started:.0f} s")


def refusal(nodes: Nodes, request: str, advice: str) -> StudyError:
    """The error for a request that does not fit on the machines."""
    return StudyError(f"{request}, the cluster's machines have: {_listed(nodes)}. {advice}")


def held(nodes: Nodes, each: Mapping[str, float]) -> int:
    """How many workers with the resources `each` fit on the nodes; each worker needs all of them on one machine."""
    return sum(
        min(_held(node.get(resource, 0), resource, amount) for resource, amount in each.items()) for node in nodes
    )


def _held(total: float, resource: str, amount: float) -> int:
    """How many workers fit, by one resource of a node. A share of a GPU is of one GPU: 0.4 fits twice on each."""
    if resource == "GPU" and amount < 1:
        return int(total) * math.floor(1 / amount + 1e-9)
    return math.floor(total / amount + 1e-9)


def resources_text(each: Mapping[str, float]) -> str:
    """Resources in a sentence: `1 CPU and 0.5 GPU`."""
    return " and ".join(f"{amount:g} {resource}" for resource, amount in each.items())


def _listed(nodes: Nodes) -> str:
    kinds = Counter(f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU" for node in nodes)
    return "; ".join(kind if n == 1 else f"{n} times {kind}" for kind, n in kinds.items())
