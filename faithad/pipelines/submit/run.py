"""`faithad submit`: what `ray job submit --working-dir . -- python jobs/JOB.py ARGS` does, with checks first.

In this order: the cluster is reached and takes the token; the package is small enough, script and configuration are in
it, the configuration is valid. On the cluster `submit.check` looks at the versions on every machine; then the job
begins, which tries the storage from all of them before it computes anything.

Ray puts the working directory first on the path of every process of the job, so a faithad that travels (the working
directory holds `faithad/`) wins over one that is installed, on all machines alike. Of the environment here, only the
variables whose names start with FAITHAD_ travel: credentials of the storage are the cluster's own.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pathspec import GitIgnoreSpec

import faithad
from faithad.config.audit import load_study_or_audit
from faithad.config.study import load_study
from faithad.errors import ConfigError, StudyError, masked
from faithad.pipelines.cluster.shared_paths import SHARED
from faithad.pipelines.submit.check import SUBMITTED
from faithad.pipelines.submit.follow import LOST, ask, connect, follow
from faithad.vocabulary import count, listed, size

# Our jobs, and the command that each of them runs.
JOBS = {"full_study": "study", "train": "train", "search": "search", "audit": "audit"}
# What Ray's job server takes in one request.
LIMIT_BYTES = 100 << 20


def submit_job(
    job: str,
    arguments: Sequence[str],
    options: Mapping[str, Any],
    *,
    address: str | None,
    working_dir: str = ".",
    shared: Sequence[str] = (),
) -> int:
    """Check, submit, and follow the log on standard output until the job has ended. Ctrl-C leaves it running.

    Args:
        job: full_study, train, search or audit; or the path of a Python script in `working_dir`.
        arguments: of the script. `--config` is relative to `working_dir`, as it is for the job.
        options: what the arguments say to one of our jobs, by the names of its command's options; else empty.
        address: as for `connect`.
        working_dir: the folder that travels with the job, without what .rayignore and .gitignore leave out.
        shared: folders that all machines share; without any, those of FAITHAD_SHARED, here or on the cluster.

    Returns:
        The job's exit status, as `follow`.

    Raises:
        ConfigError: job, configuration, address or folder are not what they should be, or an argument holds a secret.
        StudyError: the cluster cannot be reached or does not take the job, or `working_dir` is too large.
    """
    variables = {name: value for name, value in os.environ.items() if name.startswith("FAITHAD_")}
    for folder in shared:
        if not os.path.isabs(folder):
            raise ConfigError(f"--shared {folder!r} is no whole path, such as /mnt/faithad, the same on all machines.")
        variables[SHARED] = os.pathsep.join(shared)
    for text in (*arguments, *variables.values()):
        if masked(text) != text:
            raise ConfigError(
                f"{text!r} holds a secret, which would stand in the job's record. Put it into the environment of the "
                "cluster's machines, such as AWS_SECRET_ACCESS_KEY, and leave it out of the URI."
            )
    client = connect(address)
    files = files_of(working_dir)
    if job in JOBS:
        _check_configuration(job, options, files, working_dir)
    command = [*entry_point_of(job, files), *arguments]
    needs = [f"python{importlib.metadata.metadata('faithad')['Requires-Python']}"]
    needs += importlib.metadata.requires("faithad") or []
    variables[SUBMITTED] = json.dumps({"faithad": faithad.__version__, "needs": needs})
    # What the job does, and with which configuration, such as `full_study-demo`.
    name = "-".join(Path(path).stem for path in (job, options.get("config")) if path)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)
    try:
        job_id = ask(
            client.submit_job,
            entrypoint=f"python -m faithad.pipelines.submit.check && exec {shlex.join(command)}",
            runtime_env={"working_dir": working_dir, "env_vars": variables},
            submission_id=f"{name}-{uuid.uuid4().hex[:8]}",
            metadata={"job_name": name},
            within_s=900.0,
        )
    except LOST as error:
        reason = str(error).strip().rpartition("\n")[2]
        raise StudyError(f"The cluster at {client.get_address()} did not take the job: {reason}") from error
    return follow(client, job_id)


def entry_point_of(job: str, files: Mapping[str, int]) -> list[str]:
    """What the cluster runs: the job's script if it travels, else the command of an installed faithad.

    Raises:
        ConfigError: there is no such job, or a script of the user's own does not travel.
    """
    if job in JOBS and f"jobs/{job}.py" in files:
        return ["python", f"jobs/{job}.py"]
    if job in JOBS:
        return ["python", "-c", f"from faithad.cli import job; job({JOBS[job]!r})"]
    if not job.endswith(".py"):
        raise ConfigError(f"There is no job {job!r}. Jobs are {', '.join(JOBS)}, and Python scripts in --working-dir.")
    return ["python", inside(job, files, what="Script")]


def _check_configuration(job: str, options: Mapping[str, Any], files: Mapping[str, int], working_dir: str) -> None:
    """Validate what the job would read. A URI, and a file that only the cluster has, are left to the job."""
    path, overrides = options["config"], options["overrides"] or ()
    if path is not None and "://" not in path and not os.path.isabs(path):
        path = os.path.join(working_dir, inside(path, files, what="--config"))
    if path is not None and not os.path.exists(path):
        return
    if job == "audit":
        named = {name: options[name] for name in ("model", "recordings", "out")}
        load_study_or_audit(path, **named, overrides=overrides)
    elif path is not None:  # else a training on normal recordings alone
        load_study(path, overrides=overrides)


def inside(name: str, files: Mapping[str, int], *, what: str) -> str:
    """The relative path of a file that travels.

    Raises:
        ConfigError: it does not.
    """
    path = os.path.normpath(name)
    if path not in files:
        raise ConfigError(
            f"{what} {name!r} does not travel with the job: it is no file of the working directory (--working-dir), or "
            "a .rayignore or .gitignore leaves it out."
        )
    return path


def files_of(working_dir: str) -> dict[str, int]:
    """Relative path and bytes of every file that travels. Ray's own list is private, and its refusal names no file.

    Raises:
        ConfigError: there is no such local folder, or it cannot be read.
        StudyError: Ray would not take so much; the largest files and folders are named.
    """
    never = GitIgnoreSpec.from_lines([".git", ".venv", "venv", "__pycache__"])  # by Ray, whatever the files say
    try:
        files = dict(_files_below(working_dir, "", [("", never)]))
    except OSError as error:
        raise ConfigError(f"--working-dir {working_dir!r} cannot be packed: {error}.") from error
    total = sum(files.values())
    if total < LIMIT_BYTES:
        return files
    places: Counter[str] = Counter()
    for name, n_bytes in files.items():
        places[name[: name.find("/") + 1] or name] += n_bytes
    largest = listed([f"{place} ({size(n_bytes)})" for place, n_bytes in places.most_common()], most=5)
    raise StudyError(
        f"{os.path.abspath(working_dir)} would travel with the job, {size(total)} in {count(len(files), 'file')}, and "
        f"Ray takes less than {size(LIMIT_BYTES)}. The largest: {largest}. Name what the job does not need in "
        ".rayignore, which is written as .gitignore is, or give a smaller --working-dir. Recordings belong into shared "
        "storage."
    )


def _files_below(root: str, folder: str, ignored: list[tuple[str, GitIgnoreSpec]]) -> Iterator[tuple[str, int]]:
    """Files below `folder`, which is empty or ends with a slash. `ignored`: patterns of the folders above it."""
    for name in (".rayignore", ".gitignore"):
        if os.path.isfile(file := os.path.join(root, folder, name)):
            with open(file, encoding="utf-8", errors="surrogateescape") as lines:
                ignored = [*ignored, (folder, GitIgnoreSpec.from_lines(lines))]
    with os.scandir(os.path.join(root, folder)) as entries:
        for entry in entries:
            path = folder + entry.name + ("/" if entry.is_dir() else "")
            if any(patterns.match_file(path.removeprefix(above)) for above, patterns in ignored):
                continue
            if entry.is_dir():
                yield from _files_below(root, path, ignored)
            elif entry.is_file():
                yield path, entry.stat().st_size
