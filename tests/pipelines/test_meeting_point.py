"""Who can reach the place where the workers of a training meet: real processes, without Ray."""

from __future__ import annotations

import multiprocessing
import socket
from multiprocessing.connection import Connection

import psutil
import pytest
import ray
import torch
import torch.distributed as dist

from faithad.errors import ConfigError
from faithad.pipelines.training import meeting_point
from faithad.pipelines.training.meeting_point import meet, open_meeting_point

pytestmark = pytest.mark.long

Place = tuple[str, int]


def work(rank: int, pipe: Connection, interface: str | None, is_one_machine: bool) -> None:
    """Meet the other worker, add up with it, and tell the sum and where this process listens."""
    if rank == 0:
        pipe.send(open_meeting_point(is_one_machine=is_one_machine, interface=interface))
    host, port = pipe.recv()
    meet(host, port, worker_rank=rank, n_workers=2, backend="gloo", timeout_s=60, interface=interface or "lo")
    total = torch.tensor([rank + 1.0])
    dist.all_reduce(total)
    listening = [c.laddr for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN]
    pipe.send((float(total), host, {address.ip for address in listening}, port in {a.port for a in listening}))
    dist.destroy_process_group()


@pytest.mark.parametrize(("interface", "is_one_machine"), [(None, True), ("lo", False)])
def test_workers_meet_on_one_interface_alone(interface: str | None, is_one_machine: bool) -> None:
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(2)]
    workers = [
        context.Process(target=work, args=(rank, pipes[rank][1], interface, is_one_machine)) for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    place: Place = pipes[0][0].recv()
    for ours, _ in pipes:
        ours.send(place)
    answers = [ours.recv() for ours, _ in pipes]
    for worker in workers:
        worker.join(60)
    assert [(total, host, addresses) for total, host, addresses, _ in answers] == [
        (3.0, "127.0.0.1", {"127.0.0.1"})
    ] * 2
    assert [holds_it for *_, holds_it in answers] == [True, False]


def test_without_an_interface_the_addresses_of_the_cluster_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.2")
    host, port = open_meeting_point(is_one_machine=False, interface=None)
    assert host == "127.0.0.2"
    socket.create_connection((host, port), timeout=5).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    meeting_point._listening.pop().close()


def test_an_interface_that_is_not_there_is_named_beside_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"train\.interface is 'nine0', and .* has no such .*; it has .*lo"):
        open_meeting_point(is_one_machine=False, interface="nine0")
