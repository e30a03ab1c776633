"""Where the workers of one training meet: a small store of PyTorch's, in the first worker, that asks for no token.

PyTorch would let it listen on all interfaces, where other machines could fill its memory. Here it is given a socket
that listens on loopback if all workers are on one machine, else on the cluster's own interface.
"""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend

from faithad.errors import ConfigError

# Of the workers' own connections; PyTorch reads them.
_INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_LOOPBACK = "127.0.0.1"

# Of the first worker, between `open_meeting_point` and `meet`.
_listening: list[socket.socket] = []


@dataclass
class MeetingPoint(TorchConfig):  # type: ignore[misc]
    """`interface`: a network interface of each machine, such as eth1; None takes the one of the cluster's addresses."""

    interface: str | None = None

    @property
    def backend_cls(self) -> type[_Meeting]:
        return _Meeting


class _Meeting(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: MeetingPoint) -> None:
        """Join the workers in one process group."""
        has_gpus = worker_group.get_resources_per_worker().get("GPU", 0) > 0
        is_one_machine = len(set(worker_group.execute(_machine))) == 1
        interface = backend_config.interface
        host, port = worker_group.execute_single(
            0, open_meeting_point, is_one_machine=is_one_machine, interface=interface
        )
        worker_group.execute(_set_torch_distributed_env_vars)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank,
                    meet,
                    host,
                    port,
                    worker_rank=rank,
                    n_workers=len(worker_group),
                    backend="nccl" if has_gpus else "gloo",
                    timeout_s=backend_config.timeout_s,
                    interface=_loopback_interface() if is_one_machine else interface,
                )
                for rank in range(len(worker_group))
            ]
        )


def open_meeting_point(*, is_one_machine: bool, interface: str | None) -> tuple[str, int]:
    """Listen for the other workers, in the first one. Returns host and port.

    Raises:
        ConfigError: this machine has no such interface, or it has no address.
    """
    host = _LOOPBACK if is_one_machine else _address_of(interface) if interface else ray.util.get_node_ip_address()
    for left_over in _listening:  # of a start that failed
        left_over.close()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    _listening[:] = [socket.create_server((host, 0), family=family)]
    return host, int(_listening[0].getsockname()[1])


def meet(
    host: str, port: int, *, worker_rank: int, n_workers: int, backend: str, timeout_s: float, interface: str | None
) -> None:
    """Join the process group, in each worker; the first one holds the store."""
    for variable in _INTERFACE_VARIABLES if interface else ():
        os.environ.setdefault(variable, str(interface))
    timeout = timedelta(seconds=timeout_s)
    listening = _listening.pop().detach() if worker_rank == 0 else None
    store = dist.TCPStore(  # type: ignore[attr-defined]
        host, port, n_workers, worker_rank == 0, timeout=timeout, master_listen_fd=listening
    )
    dist.init_process_group(backend, store=store, rank=worker_rank, world_size=n_workers, timeout=timeout)


def _machine() -> str:
    return str(ray.get_runtime_context().get_node_id())


def _loopback_interface() -> str | None:
    return "lo" if sys.platform == "linux" else None


def _address_of(interface: str) -> str:
    interfaces = psutil.net_if_addrs()
    for family in (socket.AF_INET, socket.AF_INET6):
        for address in interfaces.get(interface, ()):
            if address.family == family:
                return str(address.address)
    raise ConfigError(
        f"train.interface is {interface!r}, and {socket.gethostname()} has no such network interface with an address; "
        f"it has {', '.join(sorted(interfaces))}."
    )
