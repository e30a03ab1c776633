"""The files that travel with a job: those of the working directory that no .rayignore and no .gitignore names.

Ray packs them, and says only after the upload that they are too large. So they are listed here first.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

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


def files_of(working_dir: str) -> dict[str, int]:
    """Relative path and bytes of every file that travels.

    Raises:
        ConfigError: there is no such local folder, or it cannot be read.
    """
    try:
        return dict(_files_below(working_dir, "", [("", GitIgnoreSpec.from_lines(_NEVER))]))
    except OSError as error:
        raise ConfigError(
            f"--working-dir {working_dir!r} cannot be packed: {error}. Give the folder of this machine that holds "
            "jobs/, and leave out by .rayignore what cannot be read."
        ) from error


def _files_below(root: str, folder: str, ignored: list[tuple[str, GitIgnoreSpec]]) -> Iterator[tuple[str, int]]:
    """Files below `folder`, which is empty or ends with a slash. `ignored`: patterns of the folders above it."""
    # Ray heeds this variable, too.
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
    reason = "there is no such file in"
    if os.path.isabs(path) or path.startswith(".."):
        reason = "it lies outside"
    elif os.path.isfile(os.path.join(folder, path)):
        reason = "a .rayignore or .gitignore leaves it out of"
    raise ConfigError(f"{what} {name!r}: {reason} {folder}, the working directory that travels with the job.")


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / (1 << 20):.1f} MiB"
