"""Does every machine of a cluster see the files that a command reads and writes?

A folder of the machine on which a command was started is another folder, or none, on the next machine. So on a cluster
of several machines a local path is refused unless it lies below a folder that FAITHAD_SHARED says all machines share.
Then it is tried: each machine reads a file that this one has just written. URIs are tried in the same way, since a
machine may lack the credentials. A Ray of one machine needs none of this.

Every command calls this right after it has joined Ray and before it writes anything, a study through
`index.require_study_visible`. The result is remembered as long as the machines are the same, so that each stage may
call it again.
"""

from __future__ import annotations

import functools
import os
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import ray

from faithad import storage
from faithad.errors import StudyError
from faithad.pipelines.cluster.machines import ask_other_machines

# Folders, with the system's separator between them, that every machine sees under the same path.
SHARED = "FAITHAD_SHARED"

# A network file system may show a new file to other machines a moment later.
_PATIENCE_S = 3.0


def require_visible(reads: Iterable[str], writes: Iterable[str]) -> None:
    """Refuse what some machine of the cluster cannot see; Ray must have been joined.

    Machines that go away meanwhile, and machines that do not answer in a minute, are left out.

    Args:
        reads: files and folders that tasks read. One that is missing on this machine as well is not looked for.
        writes: folders that tasks write to. They are made if they do not exist yet.

    Raises:
        StudyError: FAITHAD_SHARED does not name a folder around a local path, a folder cannot be written from here, or
            some machines do not see it; each is named.
    """
    nodes = tuple(sorted(node["NodeID"] for node in ray.nodes() if node["Alive"]))
    if len(nodes) > 1:
        _require_visible(ray.get_runtime_context().get_job_id(), nodes, tuple(reads), tuple(writes))


@functools.lru_cache(maxsize=16)  # an error is not remembered
def _require_visible(job: str, nodes: Sequence[str], reads: Sequence[str], writes: Sequence[str]) -> None:
    for location in (*reads, *writes):
        _refuse_unshared(location, len(nodes))
    content = f"{job} {uuid.uuid4().hex}"
    probes = [storage.join(location, f".faithad-{uuid.uuid4().hex}") for location in writes]
    samples = [sample for location in reads if (sample := _sample(location)) is not None]
    try:
        for probe in probes:
            storage.write_text(probe, content)
        answers, errors = ask_other_machines(_unseen, samples, probes, content)
    finally:
        for probe in probes:
            storage.delete(probe)
    blind = [f"  {machine}: {reason}" for machine, reasons in answers.items() for reason in reasons]
    blind += [f"  {machine}: {error}" for machine, error in errors.items()]  # it cannot even run our code
    if blind:
        lines = "\n".join(sorted(blind))
        raise StudyError(
            f"Not every machine of the cluster sees what is to be read and written:\n{lines}\n"
            "Mount the same storage under the same path on all of them, or give URIs such as s3://bucket/folder, with "
            "the credentials and the endpoint in the environment of every machine."
        )


def _refuse_unshared(location: str, n_nodes: int) -> None:
    if storage.is_remote(location):
        return
    path = os.path.realpath(storage.locate(location)[1])
    shared = [folder for folder in os.environ.get(SHARED, "").split(os.pathsep) if folder]
    if any(os.path.commonpath([path, folder]) == folder for folder in map(os.path.realpath, shared)):
        return
    hint = f"{SHARED} is {os.pathsep.join(shared)!r}" if shared else f"{SHARED} is not set"
    raise StudyError(
        f"{location} is a path of this machine, but the cluster has {n_nodes} machines, which may not see it ({hint}). "
        "Give a URI such as s3://bucket/folder; or a path below a folder that all machines share, and name that folder "
        f"in {SHARED} or by `faithad submit --shared FOLDER`."
    )


def _sample(location: str) -> str | None:
    """What a machine that sees `location` must find.

    An unmounted mount point still exists as an empty folder, so a file inside it is looked for.
    """
    if storage.is_remote(location) or not storage.is_folder(location):
        return location if storage.exists(location) else None
    with os.scandir(storage.locate(location)[1]) as entries:
        return next((entry.path for entry in entries), None)


def _unseen(samples: Sequence[str], probes: Sequence[str], content: str) -> list[str]:
    """What this machine does not see, and why."""
    checks: list[tuple[str, Any]] = [(sample, storage.exists) for sample in samples]
    checks += [(probe, lambda location: storage.read_text(location) == content) for probe in probes]
    deadline, unseen = time.monotonic() + _PATIENCE_S, []
    for location, is_seen in checks:
        while (reason := _reason(location, is_seen)) is not None and time.monotonic() < deadline:
            time.sleep(0.2)
        unseen += [] if reason is None else [reason]
    return unseen


def _reason(location: str, is_seen: Any) -> str | None:
    try:
        return None if is_seen(location) else f"{location} is not there"
    except FileNotFoundError:
        return f"{location} is not there"
    except (OSError, StudyError) as error:
        return f"{location} cannot be read: {error}"
