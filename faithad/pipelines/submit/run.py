"""`faithad submit`: what `ray job submit --working-dir . -- python jobs/JOB.py ARGS` does, with checks first.

In this order: the cluster is reached and has a Ray that faithad runs on; script and configuration travel with the job,
the configuration is valid, the package is small enough. Then a job of a few seconds with the same environment
(`submit.check`) says which code and which versions every machine has, reads the configuration there, and tries the
storage from all of them. The job tries its storage again when its turn comes, but only this one can say before that
which code it would be.

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
import platform
import shlex
import time
from collections.abc import Iterator, Sequence
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

import faithad
from faithad.errors import ConfigError, StudyError, masked
from faithad.pipelines.submit.check import JOBS, MARK, load, named
from faithad.pipelines.submit.package import files_of, inside, require_small
from faithad.pipelines.submit.server import LOST, Log, connect

# A process of a job starts within seconds; many machines unpack the package, and answer twice, within a minute each.
_CHECK_S = 300.0


def submit_job(
    job: str,
    *,
    address: str | None,
    arguments: Sequence[str],
    working_dir: str = ".",
    shared: Sequence[str] = (),
) -> int:
    """Check, submit, and follow the log on standard output until the job has ended. Ctrl-C leaves it running.

    Args:
        job: full_study, train, search or audit; or the path of a Python script in `working_dir`, whose arguments are
            its own.
        address: the job server's URL; None for that of RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265.
        arguments: for the script. `--config` is relative to `working_dir`, as it is for the job.
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
    environment = {"working_dir": working_dir, "env_vars": variables}
    _refuse_secrets([*arguments, *variables.values()])
    needs = _needs()
    client = connect(address, ray_versions=needs["ray"])
    files = files_of(working_dir)
    job, script = _find(job, files, working_dir)
    _check_configuration(job, arguments, files, working_dir)
    require_small(files, working_dir)
    request = {"distributions": [name for name in needs if name != "python"], "job": job, "arguments": list(arguments)}
    answers = _ask_cluster(client, environment, request)
    print(judge(answers, needs, at=masked(client.get_address())), flush=True)
    return Log(client, _submit(client, ["python", script, *arguments], environment)).follow()


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


def _needs() -> dict[str, SpecifierSet]:
    """The versions that faithad needs, as its own installation says, by the names of the distributions."""
    lines = [Requirement(line) for line in importlib.metadata.requires("faithad") or []]
    needs = {one.name: one.specifier for one in lines if one.marker is None or one.marker.evaluate({"extra": ""})}
    return needs | {"python": SpecifierSet(importlib.metadata.metadata("faithad")["Requires-Python"])}


def _find(job: str, files: dict[str, int], working_dir: str) -> tuple[str, str]:
    """The job, and where its script lies in the working directory, which may be the folder of the jobs itself."""
    for name in JOBS:
        here, below = f"{name}.py", f"jobs/{name}.py"
        if job == name and here in files and below not in files:
            return name, here
        if job == name or os.path.normpath(job) == below:
            return name, inside(below, files, working_dir, what="Job")
    if not job.endswith(".py"):
        raise ConfigError(f"There is no job {job!r}. Jobs are {', '.join(JOBS)}, and Python scripts in --working-dir.")
    return job, inside(job, files, working_dir, what="Script")


def _check_configuration(job: str, arguments: Sequence[str], files: dict[str, int], working_dir: str) -> None:
    """Validate what the job would read. Of a URI, and of a file that only the cluster has, that is left to the check
    over there.
    """
    if job not in JOBS:
        return
    given = named(job, arguments)
    path = None if given.config is None else os.path.expanduser(given.config)
    if path is not None and "://" not in path and not os.path.isabs(path):
        path = os.path.normpath(os.path.join(working_dir, inside(path, files, working_dir, what="--config")))
    if path is None or os.path.exists(path):
        load(job, given, config=path)


def _submit(client: JobSubmissionClient, command: Sequence[str], environment: dict[str, Any]) -> str:
    try:
        return str(client.submit_job(entrypoint=shlex.join(command), runtime_env=environment))
    except (*LOST, RuntimeError, OSError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[-1]
        raise StudyError(f"The cluster at {client.get_address()} did not take the job: {reason}") from error


def _ask_cluster(
    client: JobSubmissionClient, environment: dict[str, Any], request: dict[str, Any]
) -> list[dict[str, Any]]:
    """The answers of `submit.check`, run as a job with the environment of the job to be."""
    command = ["python", "-m", "faithad.pipelines.submit.check", json.dumps(request)]
    check = _submit(client, command, environment)
    deadline = time.monotonic() + _CHECK_S
    try:
        while not (job := client.get_job_info(check)).status.is_terminal():
            if time.monotonic() > deadline:
                raise StudyError(
                    f"The check before the job did not end within {_CHECK_S:.0f} s ({job.status}: {job.message}). See "
                    f"`ray job logs {check}`."
                )
            time.sleep(0.3)
        log = client.get_job_logs(check)
    except (*LOST, RuntimeError) as error:
        raise StudyError(
            f"The job server at {client.get_address()} was lost while {check} looked around: {error}"
        ) from error
    except BaseException:  # nobody waits for it any more
        with contextlib.suppress(*LOST, RuntimeError):
            client.stop_job(check)
        raise
    answers = [json.loads(line.removeprefix(MARK)) for line in log.splitlines() if line.startswith(MARK)]
    if job.status != JobStatus.SUCCEEDED and not any("problem" in answer for answer in answers):
        answers.append({"problem": _why(job, log)})
    return answers


def _why(job: JobDetails, log: str) -> str:
    """Why the check could say nothing."""
    if "No module named 'faithad'" in log:
        return (
            "it has no faithad, and none travels with the job. Submit from the folder that holds faithad/ and jobs/, "
            "or install it in the image or the environments of all machines"
        )
    if "No module named faithad." in log:
        return (
            "its faithad is too old for `faithad submit`. Install this one there, or submit from a folder that holds it"
        )
    if job.driver_exit_code == 127:
        return "there is no `python` on the head's PATH. Start the head with its environment activated"
    last = "\n    ".join((log if job.driver_exit_code is not None else job.message or log).strip().splitlines()[-20:])
    return f"the check before the job failed ({job.status}):\n    {last}"


def judge(answers: Sequence[dict[str, Any]], needs: dict[str, SpecifierSet], *, at: str) -> str:
    """What to tell of a cluster that the job can run on.

    Raises:
        StudyError: it cannot.
    """
    kinds = [answer for answer in answers if "versions" in answer]
    problems = [line for kind in kinds for line in _misfits(kind, kinds[0]["versions"], needs)]
    problems = problems or [answer["problem"] for answer in answers if "problem" in answer]
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise StudyError(f"The cluster at {at} cannot run this job; nothing was started:{lines}")
    head = kinds[0]["versions"]
    n_machines = sum(len(kind["machines"]) for kind in kinds)
    runs = ", ".join(f"{name} {head['distributions'][name]}" for name in ("ray", "torch"))
    here = platform.python_version()
    python = head["python"] if head["python"] == here else f"{head['python']} ({here} here)"
    return f"cluster: {n_machines} of its machines at {at} answered: {runs}, python {python}\n{_which_faithad(head)}"


def _misfits(kind: dict[str, Any], head: dict[str, Any], needs: dict[str, SpecifierSet]) -> Iterator[str]:
    """What keeps one kind of machine from running the job. An installed faithad has seen to its own versions."""
    found = kind["versions"]
    has = found["distributions"] | {"python": found["python"]}
    wrong = [f"{name} is missing" for name, version in has.items() if version is None]
    if found["travels"]:
        wrong += [
            f"{name} is {version}, and must be {needs[name]}"
            for name, version in has.items()
            if version is not None and not needs[name].contains(version, prereleases=True)
        ]
    if found["faithad"] != head["faithad"]:
        wrong.append(f"faithad is {found['faithad']}, and on the head {head['faithad']}")
    if wrong:
        yield f"{', '.join(kind['machines'])} ({found['executable']}): {'; '.join(wrong)}"


def _which_faithad(head: dict[str, Any]) -> str:
    version, baked = head["faithad"], head["baked"]
    if not head["travels"]:
        other = "" if version == faithad.__version__ else f" ({faithad.__version__} here)"
        return f"faithad: {version} is installed on the cluster{other}; none travels with the job"
    over = f", before {baked}, which is installed on the cluster" if baked else ""
    return f"faithad: {version} travels with the job and is used{over}"
