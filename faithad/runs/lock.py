"""One driver at a time in one folder: two that write the same tables would undo each other's results.

A driver is a process that runs a command. It leaves a mark in the folder, `stages/driver.json`, which says who it is,
and renews the mark every few seconds until it is done. A second driver that comes meanwhile stops with an error. Nobody
has to clean up after a driver that was killed:

1. On the same machine, the second driver looks for the first one's process.
2. From another machine, it waits for the next renewal. It compares no clocks, because these differ between machines.

A driver may lose its folder: two that start in the same moment may both find nobody, and one that was suspended for
long is taken for dead. Then the driver whose mark was written last goes on. The other one calls `require_still_alone`
before it writes and between its steps. That raises if it finds another's mark, or none, and also if the folder could
not be read for so long that others may take this driver for dead.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from faithad import storage
from faithad.errors import FullError, StudyError
from faithad.progress import console
from faithad.runs import layout
from faithad.runs.marks import read_mark

Mark = dict[str, Any]

_RENEWAL_S = 5.0
# A driver on another machine that did not renew its mark for this long is dead. A network may lose several renewals in
# turn, and a silent store is asked for 100 s (see `storage`).
_DEAD_AFTER_S = 30.0
_DEAD_IN_A_STORE_AFTER_S = 150.0
# What reading or writing a mark raises while the storage is away.
_AWAY = (OSError, StudyError, pa.ArrowException)


@dataclass
class _Hold:
    """A folder that a thread of this process works in.

    Attributes:
        root: the folder.
        mark: the content of the file while the folder is ours.
        seen_at: when the file was last seen, by the wall clock, which goes on while a machine sleeps.
        is_lost: the file was another's, or gone.
    """

    root: str
    mark: Mark
    thread: int = field(default_factory=threading.get_ident)
    seen_at: float = field(default_factory=time.time)
    is_lost: bool = False

    def look(self) -> bool:
        """Read the file, and return whether that worked. While the storage is away, what was seen last holds."""
        with contextlib.suppress(*_AWAY):
            mark = _read(_location(self.root))
            # No mark means that the other driver is done already: its tables must not be touched either.
            self.is_lost = self.is_lost or mark is None or mark["run"] != self.mark["run"]
            self.seen_at = time.time()
            return True
        return False

    @property
    def unseen_s(self) -> float:
        """Seconds since the file was last seen."""
        return abs(time.time() - self.seen_at)

    def renew(self, done: threading.Event) -> None:
        """Renew the mark until the work is done or the folder is lost."""
        while not (done.wait(_RENEWAL_S) or self.is_lost):
            # A process may be suspended between the look and here. Then others may have come, and it looks again first.
            if self.look() and not self.is_lost and self.unseen_s < _patience_s(self.root) / 2:
                with contextlib.suppress(*_AWAY):
                    self.mark["renewals"] += 1
                    storage.write_text(_location(self.root), json.dumps(self.mark))

    def check(self) -> None:
        """Raise if the folder was or may be lost. Reads the file only if the renewals stopped, as when suspended."""
        if self.unseen_s > 2 * _RENEWAL_S and not self.look() and self.unseen_s > _patience_s(self.root):
            raise StudyError(
                f"{self.root} could not be read for {self.unseen_s:.0f} s, so another run may have taken it over; this "
                "one stopped. Run the same command again once it can be read: what was finished stays."
            )
        self.require()

    def require(self) -> None:
        """Raise if the folder was lost when the file was last seen."""
        if self.is_lost:
            raise StudyError(f"Another run has taken over {self.root} meanwhile; this one stopped.")


# The folders that this process works in.
_held: dict[str, _Hold] = {}


@contextlib.contextmanager
def alone_in(root: str) -> Iterator[None]:
    """Keep all other drivers out of a folder for the block. A block inside it, of the same thread, changes nothing.

    Args:
        root: folder or URI of a study or of an audit's results.

    Raises:
        StudyError: another driver works there, or took over while the block ran.
    """
    if root in _held and _held[root].thread == threading.get_ident():
        yield
        return
    require_nobody_in(root)
    hold = _Hold(root, _introduction())
    if not _leave_mark(hold):
        yield
        return
    done = threading.Event()
    renewal = threading.Thread(target=hold.renew, args=(done,), daemon=True)
    _held[root] = hold
    renewal.start()
    try:
        yield
    except Exception:
        hold.look()
        hold.require()  # the error may come from tables that the other driver has removed
        raise
    finally:
        del _held[root]
        done.set()
        renewal.join()
        if hold.look() and not hold.is_lost:
            with contextlib.suppress(*_AWAY):
                storage.delete(_location(root))
    hold.require()


def require_still_alone() -> None:
    """Return if this thread still has to itself all folders that it holds by `alone_in`; cheap enough for any loop.

    Raises:
        StudyError: another driver has taken one over, or may have done so while it could not be read.
    """
    for hold in list(_held.values()):
        if hold.thread == threading.get_ident():
            hold.check()


def _leave_mark(hold: _Hold) -> bool:
    """Whether our mark is in the folder. Where nobody can write, a driver only reads, and needs none."""
    try:
        storage.write_text(_location(hold.root), json.dumps(hold.mark))
    except FullError:
        raise
    except StudyError:
        if storage.is_remote(hold.root):  # which only fails to answer at the moment
            raise
        return False
    return True


def require_nobody_in(root: str) -> None:
    """Return once it is clear that no driver works in a folder. A command that only reads there leaves no mark.

    Raises:
        StudyError: a driver works there.
    """
    location = _location(root)
    other = _read(location)
    if other is None:
        return
    if other["machine"] == machine() and other["born"] is not None:
        alive_since = born(other["pid"])
        if alive_since == other["born"]:
            raise _refusal(root, other)
        if alive_since is not None or other["user"] == _user():
            return
        # The system may hide the processes of other users, so this one may be alive.
    patience_s = _patience_s(root)
    console.print(f"{root}: {_who(other)} worked here; waiting up to {patience_s:.0f} s for a sign of life")
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        time.sleep(min(1.0, _RENEWAL_S))
        now = _read(location)
        if now is None:
            return
        if now != other:
            raise _refusal(root, now)


def _patience_s(root: str) -> float:
    """The time without a renewal after which other drivers take one for dead."""
    return _DEAD_IN_A_STORE_AFTER_S if storage.is_remote(root) else _DEAD_AFTER_S


def _location(root: str) -> str:
    return storage.join(root, layout.DRIVER)


def _refusal(root: str, other: Mark) -> StudyError:
    return StudyError(
        f"{_who(other)} works in {root} since {other['since']}. Wait until it is done, or end it: what it has finished "
        "stays. Or give another folder."
    )


def _who(other: Mark) -> str:
    return f"Process {other['pid']} of {other['user']} on {other['host']}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number without a name
        return f"user {os.getuid()}"


def _introduction() -> Mark:
    return {
        "run": uuid.uuid4().hex,
        "user": _user(),
        "host": socket.gethostname(),
        "machine": machine(),
        "pid": os.getpid(),
        "born": born(os.getpid()),
        "since": f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z}",
        "renewals": 0,
    }


def _read(location: str) -> Mark | None:
    """The mark, if there is a whole one."""
    mark = read_mark(location)
    return mark if mark is not None and mark.keys() == _introduction().keys() else None


def machine() -> str:
    """This machine, its start and its container: within these, the number of a process means one process."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def born(pid: int) -> str | None:
    """When a process began, as the system counts; None if it is not alive, or if the system does not say.

    A later process may have the same number. A killed process stays listed until its parent has waited for it.
    """
    try:
        state, *others = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else others[18]
