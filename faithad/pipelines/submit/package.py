"""What travels with a job: the files of the working directory that neither .rayignore nor .gitignore leaves out.

Ray packs them without compression and its job server takes less than 100 MiB, but says so only after the upload.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path

from ray._private import ray_constants
from ray._private.runtime_env import packaging

from faithad.errors import ConfigError, StudyError

LIMIT_BYTES: int = ray_constants.DASHBOARD_CLIENT_MAX_SIZE
# A file's two headers in the package, beside its name, which stands in both.
_HEADERS_BYTES = 30 + 46 + 40
# Files from this size on are named themselves, smaller ones by their folder.
_BIG_BYTES = 1 << 20


def files_of(working_dir: str) -> dict[str, int]:
    """Relative path and bytes of every file that Ray would pack, found by its own walk.

    Raises:
        ConfigError: there is no such local folder, or something in it cannot be read.
    """
    root = Path(working_dir).absolute()
    if not root.is_dir():
        raise ConfigError(
            f"--working-dir {working_dir!r} is no folder of this machine. Give the folder that holds jobs/."
        )
    found: dict[str, int] = {}

    def note(path: Path) -> None:
        if path.is_file():
            found[str(path.relative_to(root))] = path.stat().st_size

    defaults = ray_constants.get_runtime_env_default_excludes()
    heeds_gitignore = os.environ.get(ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    left_out = [packaging._get_excludes(root, defaults)]
    quiet = logging.getLogger(f"{__name__}.walk")
    quiet.setLevel(logging.CRITICAL)
    try:
        packaging._dir_travel(root, left_out, note, include_gitignore=heeds_gitignore, logger=quiet)
    except OSError as error:
        raise ConfigError(
            f"--working-dir {working_dir!r} cannot be packed: {error}. Leave it out by .rayignore."
        ) from error
    return found


def require_small(files: dict[str, int], working_dir: str, *, limit_bytes: int = LIMIT_BYTES) -> int:
    """The bytes of the package.

    Raises:
        StudyError: Ray would not take it; the largest files and folders are named.
    """
    total = sum(size + _HEADERS_BYTES + 2 * len(os.fsencode(name)) for name, size in files.items())
    if total < limit_bytes:
        return total
    places: Counter[str] = Counter()
    for name, size in files.items():
        folder = os.path.dirname(name)
        places[name if size >= _BIG_BYTES or not folder else f"{folder}/"] += size
    largest = ", ".join(f"{place} ({_mib(size)})" for place, size in places.most_common(5))
    raise StudyError(
        f"{os.path.abspath(working_dir)} would travel with the job, {_mib(total)} in {len(files)} files, and Ray takes "
        f"less than {_mib(limit_bytes)}. The largest: {largest}. Name what the job does not need in .rayignore, which "
        "is written as .gitignore is, or give a smaller --working-dir. Recordings belong into shared storage."
    )


def inside(name: str, files: dict[str, int], working_dir: str, *, what: str) -> str:
    """The relative path of a file that travels.

    Raises:
        ConfigError: it does not.
    """
    path = os.path.normpath(name)
    if path in files:
        return path
    folder = os.path.abspath(working_dir)
    if os.path.isabs(path) or path.startswith(".."):
        reason = f"it lies outside {folder}, the working directory that travels with the job"
    elif os.path.isfile(os.path.join(folder, path)):
        reason = f"a .rayignore or .gitignore leaves it out, so that it would not travel with {folder}"
    else:
        reason = f"there is no such file in {folder}, the working directory that travels with the job"
    raise ConfigError(f"{what} {name!r}: {reason}.")


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / (1 << 20):.1f} MiB"
