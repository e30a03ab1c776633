"""The Ray that a stage runs on: the one already joined, the cluster that RAY_ADDRESS names, or one of our own."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator

import psutil
import ray
from ray._private import parameter, ray_constants
from ray._private import utils as ray_utils
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from faithad.errors import ConfigError, StudyError
from faithad.pipelines.cluster.own_folder import ends_when_full, own_folder

OBJECT_STORE_BYTES = 1 << 30

# A Ray of our own starts within 5 to 11 s.
_START_S = 60.0
_FULL_BYTES = 1_000_000

_QUIET = {"log_to_driver": False, "logging_level": logging.ERROR}
# Where one of these is set, somebody has decided who may reach Ray.
_TOKEN_SETTINGS = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
_REACH_S = 5.0
_NO_TOKEN = "no authentication token was found"
_PATIENCE = "RAY_gcs_server_port_wait_time_s"


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Join or start Ray for the block; what was started here is stopped at its end.

    In a submitted job RAY_ADDRESS is set and the job's cluster is joined. Without one, a local Ray is started on the
    cores that this process may use, for this user alone: it has no dashboard, listens on loopback, asks for a token,
    and keeps its sockets and logs in a folder that nobody else may enter. That folder goes at the end, but stays after
    an error, which may tell the user to look into it.

    Raises:
        ConfigError: RAY_ADDRESS is not the address of a head.
        StudyError: the cluster cannot be reached, or does not let us join; a Ray of our own does not start.
    """
    if ray.is_initialized():
        yield
        return
    # A stage that runs for a minute has no need of usage reports, nor of a metrics agent that asks for one.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    folder = own_folder() if ray_is_ours() else None
    try:
        with _own_sigterm():
            if folder is not None:
                _start_own(folder)
            else:
                _join(os.environ["RAY_ADDRESS"])
        _hear_warning_unseen()
        with contextlib.nullcontext() if folder is None else ends_when_full(folder):
            yield
    except Exception:  # and not what a signal raises, after which there is nothing to look into
        folder = None
        raise
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep what this process does at SIGTERM over the start of Ray, which would end it with nothing unwound.

    Ray sets its own handler during `ray.init`, by a private function, and has no setting for it.
    """
    ours, rays = signal.getsignal(signal.SIGTERM), ray_utils.set_sigterm_handler
    if not callable(ours) or threading.current_thread() is not threading.main_thread():
        yield
        return
    ray_utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        ray_utils.set_sigterm_handler = rays
        signal.signal(signal.SIGTERM, ours)  # its C++ side has set another one


class _Nothing:
    """An actor that does nothing."""

    def __init__(self, argument: object) -> None:
        pass


def _hear_warning_unseen() -> None:
    """Hide a warning that Ray writes to the terminal once in a process: here it is written to nowhere.

    It is about actors that may be started again and have arguments in the object store. All of Ray Data's have, so it
    would come with every audit, and nothing can be done about it. This actor is bound to a machine that does not exist:
    no process is started for it.
    """
    nowhere = NodeAffinitySchedulingStrategy("0" * 56, soft=False)
    actor = ray.remote(_Nothing).options(max_restarts=1, num_cpus=0, scheduling_strategy=nowhere)
    argument = ray.put(None)
    sys.stderr.flush()
    terminal = os.dup(2)
    try:
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 2)
        actor.remote(argument)
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


@contextlib.contextmanager
def _come_up(folder: str) -> Iterator[None]:
    """Give a Ray of our own a minute to start in the block; if it does not, end its processes and say why."""

    def too_late(*_: object) -> None:
        raise TimeoutError(f"it was not ready within {_START_S:.0f} s")

    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGALRM, too_late) if in_main else None
    try:
        if in_main:
            signal.setitimer(signal.ITIMER_REAL, _START_S)
        yield
    except (OSError, RuntimeError, RayError) as error:
        _end_processes(folder)
        with contextlib.suppress(OSError):
            if shutil.disk_usage(folder).free < _FULL_BYTES:
                raise StudyError(f"Ray could not be started: the disk of {folder} is full. Make room.") from error
        reason = str(error).strip().rpartition("\n")[2].rstrip(".")
        raise StudyError(f"Ray could not be started: {reason}. Its logs are in {folder}/ray.") from error
    finally:
        if in_main:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def _end_processes(folder: str) -> None:
    """End what a start has left: processes that this one has started and that work in the folder."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(folder in word for word in process.cmdline()):
                process.kill()


@contextlib.contextmanager
def _free_ports() -> Iterator[None]:
    """Let the agent of a Ray that starts in the block take any free port.

    It would take 52365, which a head on the same machine needs for its jobs; `ray.init` has no argument for it.
    """
    parameters = parameter.RayParams
    parameter.RayParams = functools.partial(parameters, dashboard_agent_listen_port=0)
    try:
        yield
    finally:
        parameter.RayParams = parameters


def _start_own(folder: str) -> None:
    """Start a Ray that no other user and no other machine can reach, with its sockets and logs in a folder."""
    # On Linux, Ray takes the network card's address for its node's, also where 127.0.0.1 is asked for, and listens
    # everywhere. Only on systems without clusters it listens on loopback, and it reads the public variable that says
    # so (RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER) when it is imported, which is long ago by now.
    ray_constants.ENABLE_RAY_CLUSTER = False
    if sys.platform == "linux":  # so are the workers that share a training
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, "lo")
    if not _TOKEN_SETTINGS & set(os.environ):
        # Ray would write one into the home folder, for everybody to read.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        AuthenticationTokenLoader.instance().reset_cache()  # it reads the variable once, and may have done so
    with _come_up(folder), _free_ports():
        ray.init(
            address="local",
            num_cpus=usable_cores(),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=os.path.join(folder, "ray"),
            **_QUIET,
        )


def _join(address: str) -> None:
    if address != "auto":  # which Ray looks up among the processes of this machine
        _require_reachable(address)
    # Ray asks a head that refuses us twenty times; each time it waits 40 s for one that is silent.
    is_set = _PATIENCE in os.environ
    os.environ.setdefault(_PATIENCE, "1")
    try:
        ray.init(**_QUIET)
    except (AuthenticationError, ConnectionError, RuntimeError) as error:
        raise StudyError(_refused(address, str(error.__cause__ or error).strip())) from error
    finally:
        if not is_set:  # a Ray of our own, started later, needs the time
            del os.environ[_PATIENCE]


def _require_reachable(address: str) -> None:
    host, _, port = address.rpartition(":")
    no_head = ConfigError(
        f"RAY_ADDRESS {address!r} is not the address of a head: give host and port, such as head:6379 (the port of "
        "`ray start --head`; Ray Client, ray://, cannot do what faithad needs), or auto for the head on this machine. "
        "Without RAY_ADDRESS faithad starts a Ray of its own."
    )
    if "://" in address or not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise no_head
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
    except UnicodeError as error:  # no name of a host, such as `.head`
        raise no_head from error
    except OSError as error:
        reason = f"nothing answers within {_REACH_S:.0f} s" if isinstance(error, TimeoutError) else error.strerror
        raise StudyError(
            f"There is no cluster at {address}, which RAY_ADDRESS names: {reason}. Is the head running, and its port "
            "reachable from here? Without RAY_ADDRESS faithad starts a Ray of its own."
        ) from error


def _refused(address: str, reason: str) -> str:
    """What to say of a head that was reached and could not be joined."""
    cluster = f"The cluster at {address}, which RAY_ADDRESS names,"
    if "InvalidAuthToken" in reason or _NO_TOKEN in reason:
        return token_refusal(address, reason)
    if "Version mismatch" in reason:
        return f"{cluster} runs other versions than this process. {reason[reason.index('Version mismatch') :]}"
    hint = "Ray says: " + reason.rpartition("\n")[2]
    if address == "auto":
        return (
            f"RAY_ADDRESS is 'auto', and no Ray on this machine could be joined. Give host and port of a head. {hint}"
        )
    return (
        f"{cluster} was reached but could not be joined. Is it the port of the head itself (6379, unless `ray start "
        f"--head --port` said another), of Ray {ray.__version__}, and is this one of the cluster's machines? {hint}"
    )


def token_refusal(address: str, reason: str) -> str:
    """What to say of a cluster that refuses our token, or misses it. `reason`: what Ray says."""
    where = (
        "The token is the one that the head was started with: put it into ~/.ray/auth_token, or into a file that "
        "RAY_AUTH_TOKEN_PATH names, readable by you alone; RAY_AUTH_TOKEN, where it is set, wins over both."
    )
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return f"The cluster at {address} asks for a token, and none was sent. Set RAY_AUTH_MODE=token. {where}"
    if _NO_TOKEN in reason:
        return f"RAY_AUTH_MODE is 'token', and there is no token here for the cluster at {address}. {where}"
    return f"The cluster at {address} does not accept this token: it is another cluster's, or an old one. {where}"


def ray_is_ours() -> bool:
    """Whether Ray was started for this process alone and goes with it; else it is a cluster that others use too."""
    return not os.environ.get("RAY_ADDRESS")


def usable_cores() -> int:
    """Cores that this process may use: fewer than the machine has under taskset, Slurm or a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cluster_total(resource: str) -> float:
    """How much of a resource (`CPU`, `GPU`) the whole cluster has."""
    return float(ray.cluster_resources().get(resource, 0.0))
