"""A small disk of its own that a test can fill, so that it is full where the test wants it."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from faithad.errors import StudyError

_SAYS = re.compile(
    r"Location '(?P<file>[^']*)' cannot be written: the disk is full\. (?P<folder>\S*) has room for 0\.\d MB\. "
    r"Make room, and run the same command again: what was finished stays\.\Z"
)


@dataclass(frozen=True)
class Disk:
    """`folder` is where the disk is mounted. A file that belongs to no result fills it."""

    folder: Path

    @property
    def _ballast(self) -> Path:
        return self.folder / ".ballast"

    def leave(self, n_bytes: int) -> None:
        """Leave so much room and no more, while others may write."""
        self.empty()
        with self._ballast.open("wb") as file:
            while True:
                free = os.statvfs(self.folder)
                try:
                    os.posix_fallocate(file.fileno(), 0, max(1, free.f_bavail * free.f_frsize - n_bytes))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                else:
                    return

    def empty(self) -> None:
        """Make room again."""
        self._ballast.unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(folder: Path, n_bytes: int) -> Iterator[Disk]:
    """A disk in memory, mounted at a folder; a test is skipped where nobody may mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={n_bytes},mode=700", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def places_where_full(disk: Disk, work: Callable[[], object], *, step_bytes: int) -> list[str]:
    """Do some work on a disk that has no room, then a little more, until it is done.

    Returns:
        The files that could not be written, as paths on the disk. Each error names its file, its folder, and how much
        room is left.
    """
    places: list[str] = []
    while (error := _error_of(work, disk, len(places) * step_bytes)) is not None:
        says = _SAYS.search(str(error))
        assert says, error
        assert says["file"].startswith(f"{says['folder']}/"), error
        places.append(os.path.relpath(says["file"], disk.folder))
    return places


def _error_of(work: Callable[[], object], disk: Disk, n_bytes: int) -> StudyError | None:
    disk.leave(n_bytes)
    try:
        work()
    except StudyError as error:
        return error
    return None
