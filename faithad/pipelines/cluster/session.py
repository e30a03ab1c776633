"""The Ray that a stage runs on: the one already joined, the cluster that RAY_ADDRESS names, or one of our own."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator

import ray
from ray._common.utils import get_default_system_temp_dir
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

OBJECT_STORE_BYTES = 1 << 30

_QUIET = {"log_to_driver": False, "logging_level": logging.ERROR}
# Where one of these is set, somebody has decided who may reach Ray.
_TOKEN_SETTINGS = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Join or start Ray for the block; what was started here is stopped at its end.

    In a submitted job RAY_ADDRESS is set and the job's cluster is joined. Without one, a local Ray is started on the
    cores that this process may use, for this user alone: it has no dashboard, listens on loopback, asks for a token,
    and keeps its sockets and logs in a folder that nobody else may enter. That folder goes at the end, but stays after
    an error, which may tell the user to look into it. (One socket is open to other machines: the store in which
    PyTorch's workers find each other, where several share a training. It can be told no address.)
    """
    if ray.is_initialized():
        yield
        return
    # A stage that runs for a minute has no need of usage reports, nor of a metrics agent that asks for one.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    folder = _start_own() if ray_is_ours() else None
    if folder is None:
        ray.init(**_QUIET)
    try:
        yield
    finally:
        ray.shutdown()
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _start_own() -> str:
    """Start a Ray that no other user and no other machine can reach; the folder of its sockets and logs."""
    # On Linux, Ray takes the network card's address for its node's, also where 127.0.0.1 is asked for, and listens
    # everywhere. As on systems on which it knows of no clusters, it is to be content with loopback.
    ray_constants.ENABLE_RAY_CLUSTER = False
    if sys.platform == "linux":  # so are the workers that share a training
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, "lo")
    if not _TOKEN_SETTINGS & set(os.environ):
        # Ray would write one into the home folder, for everybody to read.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        AuthenticationTokenLoader.instance().reset_cache()
    # Ray opens its folder to everybody, hence one around it; below Ray's own choice, as paths of sockets must be short.
    folder = tempfile.mkdtemp(prefix="ray-", dir=get_default_system_temp_dir())
    ray.init(
        address="local",
        num_cpus=usable_cores(),
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        _temp_dir=os.path.join(folder, "ray"),
        **_QUIET,
    )
    return folder


def ray_is_ours() -> bool:
    """Whether Ray was started for this process alone and goes with it; else it is a cluster that others use too."""
    return not os.environ.get("RAY_ADDRESS")


def usable_cores() -> int:
    """Cores that this process may use: fewer than the machine has under taskset, Slurm or a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cluster_total(resource: str) -> float:
    """How much of a resource (`CPU`, `GPU`) the whole cluster has."""
    return float(ray.cluster_resources().get(resource, 0.0))
