"""The package that travels with a job: the files of the working directory that no .rayignore and no .gitignore names.

Ray would make one itself, but says only after the upload that it is too large. So it is made here, as a zip file, which
Ray takes for a working directory as well.
"""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator

from pathspec import GitIgnoreSpec

from faithad.errors import ConfigError, StudyError
from faithad.vocabulary import count, listed

# What Ray's job server takes in one request.
LIMIT_BYTES = 100 << 20
# What Ray leaves out of every working directory.
_NEVER = (".git", ".venv", "venv", "__pycache__")
# A file's headers in the package, beside its name, which stands in both of them.
_HEADERS_BYTES = 120
# Files of this size or more are named themselves, smaller ones by their folder.
_BIG_BYTES = 1 << 20
# Of every file, so that equal files make an equal package, which Ray uploads once.
_TIME = (2020, 1, 1, 0, 0, 0)


def files_of(working_dir: str) -> dict[str, int]:
    """Relative path and bytes of every file that travels.

    Raises:
        ConfigError: there is no such local folder, or something in it cannot be read.
    """
    if not os.path.isdir(working_dir):
        raise ConfigError(
            f"--working-dir {working_dir!r} is no folder of this machine. Give the folder that holds jobs/."
        )
    try:
        return dict(_files_below(working_dir, "", [("", GitIgnoreSpec.from_lines(_NEVER))]))
    except OSError as error:
        raise _cannot_pack(working_dir, error) from error


def _files_below(root: str, folder: str, ignored: list[tuple[str, GitIgnoreSpec]]) -> Iterator[tuple[str, int]]:
    """Files below `folder`, which is empty or ends with a slash. `ignored`: patterns of the folders above it."""
    # `ray job submit` heeds this variable, too.
    heeds_gitignore = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE") != "1"
    for name in (".rayignore", ".gitignore") if heeds_gitignore else (".rayignore",):
        if os.path.isfile(file := os.path.join(root, folder, name)):
            with open(file, encoding="utf-8", errors="surrogateescape") as lines:
                ignored = [*ignored, (folder, GitIgnoreSpec.from_lines(lines))]
    with os.scandir(os.path.join(root, folder)) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = folder + entry.name + ("/" if entry.is_dir() else "")
            if any(patterns.match_file(path.removeprefix(above)) for above, patterns in ignored):
                continue
            if entry.is_dir():
                yield from _files_below(root, path, ignored)
            elif entry.is_file():
                yield path, entry.stat().st_size


def require_small(files: dict[str, int], working_dir: str) -> int:
    """The bytes of the package, a little more at most.

    Raises:
        StudyError: Ray would not take it; the largest files and folders are named.
    """
    total = sum(size + _HEADERS_BYTES + 2 * len(os.fsencode(name)) for name, size in files.items())
    if total < LIMIT_BYTES:
        return total
    places: Counter[str] = Counter()
    for name, size in files.items():
        folder = os.path.dirname(name)
        places[name if size >= _BIG_BYTES or not folder else f"{folder}/"] += size
    largest = listed([f"{place} ({_mib(size)})" for place, size in places.most_common()], most=5)
    raise StudyError(
        f"{os.path.abspath(working_dir)} would travel with the job, {_mib(total)} in {count(len(files), 'file')}, and "
        f"Ray takes less than {_mib(LIMIT_BYTES)}. The largest: {largest}. Name what the job does not need in "
        ".rayignore, which is written as .gitignore is, or give a smaller --working-dir. Recordings belong into shared "
        "storage."
    )


def inside(name: str, files: dict[str, int], working_dir: str, *, what: str) -> str:
    """The relative path of a file that travels.

    Raises:
        ConfigError: it does not.
    """
    path, folder = os.path.normpath(name), os.path.abspath(working_dir)
    if path in files:
        return path
    if os.path.isabs(path) or path.startswith(".."):
        reason = "it lies outside"
    elif os.path.isfile(os.path.join(folder, path)):
        reason = "a .rayignore or .gitignore leaves it out of"
    else:
        reason = "there is no such file in"
    raise ConfigError(f"{what} {name!r}: {reason} {folder}, the working directory that travels with the job.")


def pack(files: Iterable[str], working_dir: str, package: str) -> None:
    """Write the package.

    Raises:
        ConfigError: a file cannot be read.
    """
    try:
        with zipfile.ZipFile(package, "w") as archive:
            for name in files:
                file = os.path.join(working_dir, name)
                info = zipfile.ZipInfo.from_file(file, name, strict_timestamps=False)
                info.date_time = _TIME
                with open(file, "rb") as content:
                    archive.writestr(info, content.read())
    except (OSError, ValueError) as error:
        raise _cannot_pack(working_dir, error) from error


def _cannot_pack(working_dir: str, error: Exception) -> ConfigError:
    return ConfigError(f"--working-dir {working_dir!r} cannot be packed: {error}. Leave the file out by .rayignore.")


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / (1 << 20):.1f} MiB"
