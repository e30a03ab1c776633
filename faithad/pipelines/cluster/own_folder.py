"""The temporary folder of a Ray of our own: for this user alone, with a short path, on a disk with room."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator

from faithad.errors import ConfigError, StudyError
from faithad.runs.lock import born, machine

_PREFIX = "ray-"
# A file next to Ray's: the process that made the folder.
_OWNER = "owner.json"
_LEAST_FREE_BYTES = 100_000_000
# With less, Ray cannot start a process.
_NO_ROOM_BYTES = 100_000
_LOOK_EVERY_S, _PATIENCE_S = 5.0, 60.0
# A socket's path has at most 107 bytes. Ray's own part of it ends with the number of this process.
_MOST_BYTES = 107
_BELOW = "/ray-abcdefgh/ray/session_2026-11-29_13-50-38_123456_{pid}/sockets/plasma_store"


def own_folder() -> str:
    """Make a private folder for Ray's own, which Ray opens to everybody, and remove those that killed runs have left.

    It is made in RAY_TMPDIR, else in the first of TMPDIR, /tmp and /var/tmp that is fit for it.

    Raises:
        ConfigError: RAY_TMPDIR is not fit, or none of the others is.
        StudyError: there is too little room.
    """
    place = _place()
    remove_left_over(place)
    try:
        n_free = shutil.disk_usage(place).free
        if n_free < _LEAST_FREE_BYTES:
            raise StudyError(
                f"{place}, the temporary folder for Ray, has {n_free / 1e6:.0f} MB of free space; "
                f"{_LEAST_FREE_BYTES / 1e6:.0f} MB are needed. Make room, or name another folder in RAY_TMPDIR."
            )
        folder = tempfile.mkdtemp(prefix=_PREFIX, dir=place)
        with open(os.path.join(folder, _OWNER), "w") as file:
            json.dump({"pid": os.getpid(), "born": born(os.getpid()), "machine": machine()}, file)
    except OSError as error:
        raise StudyError(
            f"{place}, the temporary folder for Ray, cannot be used: {error.strerror}. Name another one in RAY_TMPDIR."
        ) from error
    return folder


@contextlib.contextmanager
def ends_when_full(folder: str) -> Iterator[None]:
    """End the block as Ctrl-C would once the folder's disk has been full for a minute: Ray then waits for ever.

    It works in the main thread, where alone Python handles signals; SIGINT itself is ignored by what runs in the
    background of a script.

    Raises:
        StudyError: the disk is full.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    is_full, is_over = threading.Event(), threading.Event()

    def watch() -> None:
        full_s = 0.0
        while full_s < _PATIENCE_S:
            if is_over.wait(_LOOK_EVERY_S):
                return
            full_s = full_s + _LOOK_EVERY_S if shutil.disk_usage(folder).free < _NO_ROOM_BYTES else 0.0
        is_full.set()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, signal.default_int_handler)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    except BaseException as error:
        if is_full.is_set():
            raise StudyError(
                f"The disk of {os.path.dirname(folder)}, which has Ray's temporary folder, is full. Make room, or name "
                "another folder in RAY_TMPDIR, and run the same command again: what was finished stays."
            ) from error
        raise
    finally:
        is_over.set()
        watcher.join()
        signal.signal(signal.SIGUSR2, before)


def remove_left_over(place: str) -> None:
    """Remove this user's folders whose Ray was started by a process of this machine that has ended."""
    for folder in os.scandir(place):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # none of ours, or just being removed
            if not folder.name.startswith(_PREFIX) or not folder.is_dir(follow_symlinks=False):
                continue
            if folder.stat(follow_symlinks=False).st_uid != os.getuid():
                continue
            with open(os.path.join(folder.path, _OWNER)) as file:
                owner = json.loads(file.read(10_000))
            if owner["machine"] == machine() and owner["born"] is not None and born(owner["pid"]) != owner["born"]:
                shutil.rmtree(folder.path, ignore_errors=True)


def _place() -> str:
    named = os.environ.get("RAY_TMPDIR")
    if named:
        if (problem := _problem(named)) is not None:
            raise ConfigError(f"RAY_TMPDIR is {named!r}, which {problem}. Name another folder, such as /tmp.")
        return os.path.abspath(named)
    of_user = os.environ.get("TMPDIR") if sys.platform == "linux" else None  # that of macOS is long
    places = [*([of_user] if of_user else []), "/tmp", "/var/tmp"]
    for place in places:
        if _problem(place) is None:
            return os.path.abspath(place)
    reasons = ", ".join(f"{place} {_problem(place)}" for place in places)
    raise ConfigError(f"There is no temporary folder for Ray: {reasons}. Name one in RAY_TMPDIR.")


def _problem(place: str) -> str | None:
    """Why a folder cannot hold Ray's folder."""
    most = _MOST_BYTES - len(_BELOW.format(pid=os.getpid()))
    if len(os.fsencode(os.path.abspath(place))) > most:
        return f"has more than {most} bytes, too many for the names of sockets below it"
    if not os.path.isdir(place):
        return "does not exist"
    if not os.access(place, os.W_OK | os.X_OK):
        return "may not be written"
    return None
