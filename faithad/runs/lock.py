"""One driver at a time in one folder: two that write the same tables would take back each other's results.

A driver says in `stages/driver.json` below the folder who it is, and renews that file every few seconds until it is
done. Another one that comes meanwhile stops with an error. Nobody has to clean up after one that was killed:

1. On the same machine its process is looked for.
2. From another machine its next renewal is waited for. No clocks are compared, they differ between machines.

Two that come in the same moment may both find nobody. Then the one that wrote last stays, and the other one, which sees
that at its next renewal, stops; so does one that was suspended for so long that it was taken for dead.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from faithad import storage
from faithad.errors import StudyError
from faithad.progress import console

Driver = dict[str, Any]

_RENEWAL_S = 5.0
# Without any renewal for so long, a driver on another machine is dead: several in turn may be lost to a network, and a
# store that is silent is asked for 100 s (see `storage`).
_DEAD_AFTER_S = 30.0
_DEAD_IN_A_STORE_AFTER_S = 150.0

# What this process holds, and in which thread.
_held: dict[str, int] = {}


@contextlib.contextmanager
def alone_in(root: str) -> Iterator[None]:
    """Keep all other drivers out of a folder for the block. A block inside, of the same thread, changes nothing.

    Args:
        root: folder or URI of a study or of an audit's results.

    Raises:
        StudyError: another driver works there.
    """
    if _held.get(root) == threading.get_ident():
        yield
        return
    require_nobody_in(root)
    location = _location(root)
    me = _introduction()
    if not _is_left(me, location):
        yield
        return
    done, lost = threading.Event(), threading.Event()
    renewal = threading.Thread(target=_renew, args=(location, me, done, lost), daemon=True)
    _held[root] = threading.get_ident()
    renewal.start()
    try:
        with _stoppable(lost):
            yield
        if lost.is_set():  # what interrupted it was taken for something else
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        if lost.is_set():
            raise StudyError(f"Another run has taken over {root} meanwhile; this one stopped.") from None
        raise
    finally:
        del _held[root]
        done.set()
        renewal.join()
        with contextlib.suppress(OSError, StudyError, pa.ArrowException):
            if not lost.is_set() and _is_mine(_read(location), me):
                storage.delete(location)


def _is_left(me: Driver, location: str) -> bool:
    """Leave our mark. Where nobody can write, one may still look at what is there, and needs none.

    Raises:
        StudyError: a store does not take it at the moment.
    """
    try:
        storage.write_text(location, json.dumps(me))
    except StudyError:
        if storage.is_remote(location):
            raise
        return False
    return True


@contextlib.contextmanager
def _stoppable(lost: threading.Event) -> Iterator[None]:
    """Let an interrupt through: a job of Ray blocks it and a shell's background ignores it, in all that they start."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        if lost.is_set():
            raise KeyboardInterrupt

    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    if ignored:
        signal.signal(signal.SIGINT, stop)
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def require_nobody_in(root: str) -> None:
    """Return once it is clear that nobody works in a folder: for those who only read there, and leave no mark.

    Raises:
        StudyError: a driver works there.
    """
    location = _location(root)
    other = _read(location)
    if other is None:
        return
    if other["machine"] == _machine() and other["born"] is not None:
        born = _born(other["pid"])
        if born == other["born"]:
            raise _refusal(root, other)
        if born is not None or other["user"] == _user():
            return
        # A system may hide the processes of other users.
    patience_s = _DEAD_IN_A_STORE_AFTER_S if storage.is_remote(root) else _DEAD_AFTER_S
    console.print(f"{root}: {_who(other)} worked here; waiting up to {patience_s:.0f} s for a sign of life")
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        time.sleep(min(1.0, _RENEWAL_S))
        now = _read(location)
        if now is None:
            return
        if now != other:
            raise _refusal(root, now)


def _location(root: str) -> str:
    return storage.join(root, "stages", "driver.json")


def _refusal(root: str, other: Driver) -> StudyError:
    return StudyError(
        f"{_who(other)} works in {root} since {other['since']}. Wait until it is done, or end it: what it has finished "
        "stays. Or give another folder."
    )


def _who(other: Driver) -> str:
    return f"Process {other['pid']} of {other['user']} on {other['host']}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number without a name
        return f"user {os.getuid()}"


def _introduction() -> Driver:
    return {
        "run": uuid.uuid4().hex,
        "user": _user(),
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "born": _born(os.getpid()),
        "since": f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z}",
        "renewals": 0,
    }


def _renew(location: str, me: Driver, done: threading.Event, lost: threading.Event) -> None:
    while not done.wait(_RENEWAL_S):
        with contextlib.suppress(OSError, StudyError, pa.ArrowException):  # the storage is away for a moment
            # Gone or another's: whoever took over may be done by now, and its tables are not to be touched.
            if not _is_mine(_read(location), me):
                lost.set()
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return
            me["renewals"] += 1
            storage.write_text(location, json.dumps(me))


def _is_mine(there: Driver | None, me: Driver) -> bool:
    return there is not None and there["run"] == me["run"]


def _read(location: str) -> Driver | None:
    """The mark, if there is one; half a file, as a power cut may leave, is none."""
    with contextlib.suppress(FileNotFoundError, ValueError):  # it may go in between
        if storage.exists(location):
            found: Driver = json.loads(storage.read_text(location))
            if isinstance(found, dict) and found.keys() == _introduction().keys():
                return found
    return None


def _machine() -> str:
    """Tells machines, their starts and their containers apart: within these a process has a number of its own."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _born(pid: int) -> str | None:
    """When a process began, as the system counts; None where it is not alive, or where the system does not tell.

    A later process may have the same number, and one that was killed is listed until its parent has asked for it.
    """
    try:
        state, *others = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else others[18]
