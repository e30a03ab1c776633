"""`faithad submit`: what `ray job submit --working-dir . -- python jobs/JOB.py ARGS` does, with checks first.

It works from any folder: where none of our jobs' scripts travels, the faithad that is installed on the cluster is the
job's entry point.

In this order: the cluster is reached and takes the token; script and configuration travel with the job, the
configuration is valid, the package is small enough. Then a job of a few seconds with the same environment (see
`submit.check`) looks at the versions on every machine, reads the configuration there, and tries the storage from all of
them.

Which faithad runs: Ray puts the working directory first on the path of every process of the job, so one that travels
(the working directory holds `faithad/`) wins over one that is installed on the cluster, on all machines alike.

What travels of the environment here: the variables whose names start with FAITHAD_, and nothing else. Credentials of
the storage are the cluster's own; the token goes into the requests to the job server and nowhere else.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import shlex
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from packaging.requirements import Requirement
from ray.job_submission import JobStatus, JobSubmissionClient

import faithad
from faithad.errors import ConfigError, StudyError, masked
from faithad.pipelines.submit.check import JOBS, MARK, load
from faithad.pipelines.submit.follow import LOST, ask, connect, follow, watch
from faithad.pipelines.submit.package import files_of, inside, require_small

# A process of a job starts within seconds; many machines unpack the package, and answer twice, within a minute each.
_CHECK_S = 300.0
_UPLOAD_S = 900.0
# Of the agent on each machine that starts jobs there.
_AGENT_PORT = 52365


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
        options: what the arguments say to one of our jobs, by the names of its command's options. Nothing is known of
            a script of the user's own.
        address: the job server's URL; None for that of RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265.
        working_dir: the folder that travels with the job, without what .rayignore and .gitignore leave out.
        shared: folders that all machines of the cluster share, FAITHAD_SHARED of the job; without any, that of the
            environment here, or else the cluster's own.

    Returns:
        The job's exit status; 1 where it has none, 130 after Ctrl-C.

    Raises:
        ConfigError: job, configuration, address or folder are not what they should be, or an argument holds a secret.
        StudyError: the cluster cannot be reached or cannot run the job, or some machine does not see the storage.
    """
    variables = _variables(shared)
    _refuse_secrets([*arguments, *variables.values()])
    client = connect(address)
    files = files_of(working_dir)
    if job in JOBS:
        _check_configuration(job, options, files, working_dir)
    elif not job.endswith(".py"):
        raise ConfigError(f"There is no job {job!r}. Jobs are {', '.join(JOBS)}, and Python scripts in --working-dir.")
    entry_point = entry_point_of(job, files, working_dir)
    require_small(files, working_dir)
    environment = {"working_dir": working_dir, "env_vars": variables}
    request = {"needs": _needs(), "faithad": faithad.__version__, "job": job, "options": options}
    print(_ask_cluster(client, environment, request), flush=True)
    job_id = _submit(client, [*entry_point, *arguments], environment, name=_name(job, options))
    return follow(client, job_id)


def entry_point_of(job: str, files: dict[str, int], working_dir: str) -> list[str]:
    """What the cluster runs: the job's script if it travels, else the command of an installed faithad.

    Raises:
        ConfigError: a script of the user's own does not travel.
    """
    if job not in JOBS:
        return ["python", inside(job, files, working_dir, what="Script")]
    if (script := f"jobs/{job}.py") in files:
        return ["python", script]
    return ["python", "-c", f"from faithad.cli import job; job({JOBS[job]!r})"]


def _variables(shared: Sequence[str]) -> dict[str, str]:
    variables = {name: value for name, value in os.environ.items() if name.startswith("FAITHAD_")}
    for folder in shared:
        if not os.path.isabs(folder):
            raise ConfigError(f"--shared {folder!r} is no whole path, such as /mnt/faithad, the same on all machines.")
        variables["FAITHAD_SHARED"] = os.pathsep.join(shared)
    return variables


def _refuse_secrets(texts: Sequence[str]) -> None:
    """The dashboard shows a job's command and its variables to everybody who may look at it."""
    for text in texts:
        if masked(text) != text:
            raise ConfigError(
                f"{text!r} holds a secret, which would stand in the job's record. Put it into the environment of the "
                "cluster's machines, such as AWS_SECRET_ACCESS_KEY, and leave it out of the URI."
            )


def _needs() -> dict[str, str]:
    """The versions that faithad needs, as its own installation says."""
    lines = [Requirement(line) for line in importlib.metadata.requires("faithad") or []]
    needs = {line.name: str(line.specifier) for line in lines if not line.marker or line.marker.evaluate({"extra": ""})}
    return needs | {"python": importlib.metadata.metadata("faithad")["Requires-Python"]}


def _check_configuration(job: str, options: Mapping[str, Any], files: dict[str, int], working_dir: str) -> None:
    """Validate what the job would read. A URI, and a file that only the cluster has, are left to the check there."""
    path = None if options["config"] is None else os.path.expanduser(options["config"])
    if path is not None and "://" not in path and not os.path.isabs(path):
        path = os.path.normpath(os.path.join(working_dir, inside(path, files, working_dir, what="--config")))
    if path is None or os.path.exists(path):
        load(job, options, config=path)


def _name(job: str, options: Mapping[str, Any]) -> str:
    """The name of a job in the dashboard, such as `full_study-demo`: what it does, and with which configuration."""
    words = [os.path.splitext(os.path.basename(path))[0] for path in (job, options.get("config")) if path]
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", "-".join(words))


def _submit(client: JobSubmissionClient, command: Sequence[str], environment: dict[str, Any], *, name: str) -> str:
    try:
        job = {
            "entrypoint": shlex.join(command),
            "runtime_env": {**environment},  # Ray changes it
            "submission_id": f"{name}-{uuid.uuid4().hex[:8]}",
            "metadata": {"job_name": name},
        }
        return str(ask(client.submit_job, within_s=_UPLOAD_S, **job))
    except LOST as error:
        reason = (str(error).strip() or repr(error)).splitlines()[-1]
        if "No available agent" in str(error):
            raise StudyError(
                f"The cluster at {masked(client.get_address())} takes no jobs: no machine that may run them has a "
                f"dashboard agent. Its port ({_AGENT_PORT}, unless `ray start` was told another one) is probably "
                "taken, for example by another Ray on the same machine: end that one, or start the head with `ray "
                "start --head --dashboard-agent-listen-port 0`."
            ) from error
        raise StudyError(f"The cluster at {client.get_address()} did not take the job: {reason}") from error


def _ask_cluster(client: JobSubmissionClient, environment: dict[str, Any], request: dict[str, Any]) -> str:
    """What the check on the cluster says of a cluster that the job can run on.

    Raises:
        StudyError: the job cannot run there, or the check did not end.
    """
    check = _submit(
        client, ["python", "-m", "faithad.pipelines.submit.check", json.dumps(request)], environment, name="check"
    )
    try:
        job, log = watch(client, check, lambda log: None, limit_s=_CHECK_S)
    except BaseException:  # nobody waits for the check any more
        with contextlib.suppress(*LOST):
            ask(client.stop_job, check)
        raise
    said = [line.removeprefix(MARK) for line in log.splitlines() if line.startswith(MARK)]
    if job.status == JobStatus.SUCCEEDED:
        return "\n".join(said)
    if re.search("No module named '?faithad", log):
        said = [
            "it has no faithad, or one without `submit`, and none travels with the job. Submit from the folder that "
            "holds faithad/ and jobs/, or install it in the image or the environments of all machines"
        ]
    if not said:
        last = (log if job.driver_exit_code is not None else job.message or log).strip().splitlines()[-20:]
        said = [f"the check before the job failed ({job.status}):", *last]
    reasons = "".join(f"\n  {line}" for line in said)
    raise StudyError(
        f"The cluster at {masked(client.get_address())} cannot run this job; nothing was started:{reasons}"
    )
