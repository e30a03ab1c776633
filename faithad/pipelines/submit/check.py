"""The check before a job. It runs on the cluster, as a job of its own: would the job run here?

    python -m faithad.pipelines.submit.check REQUEST

REQUEST is JSON: `needs`, the versions that faithad needs, by the names of the distributions and of `python`; `faithad`,
the version that submits; `job` and `options`, as for `submit_job`. Lines of the log that start with `MARK` say what the
cluster has, with exit status 0, or what keeps it from running the job, with exit status 1. Until all distributions are
known to be there, nothing is imported that a bare Python lacks.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faithad
from faithad.errors import ConfigError, FaithadError, StudyError
from faithad.extensions import extension_distributions

if TYPE_CHECKING:
    from faithad.config.audit import AuditRun
    from faithad.config.study import Study

MARK = "faithad-check: "
# Our jobs, and the command that each of them runs.
JOBS = {"full_study": "study", "train": "train", "search": "search", "audit": "audit"}


def name_of(job: str) -> str:
    """The name of one of our jobs that is given by its script; else what is given."""
    return next((name for name in JOBS if os.path.normpath(job) == f"jobs/{name}.py"), job)


def settle_home() -> None:
    """Let relative paths start in the folder `faithad` of the head node's home folder, unless FAITHAD_HOME is set."""
    os.environ.setdefault("FAITHAD_HOME", str(Path.home() / "faithad"))


def load(job: str, options: Mapping[str, Any], *, config: str | None) -> Study | AuditRun:
    """The validated configuration of one of our jobs.

    Raises:
        ConfigError: the configuration is impossible.
    """
    from faithad.config.audit import load_study_or_audit
    from faithad.config.study import Study, load_study

    overrides = options["overrides"] or ()
    if job != "audit":
        if config is None:
            raise ConfigError(
                f"The job {job} needs --config here. A training on normal recordings (--normals) is submitted by `ray "
                "job submit --working-dir . -- python jobs/train.py --normals FOLDER --to MODEL`."
            )
        return load_study(config, overrides=overrides)
    named = {name: options[name] for name in ("model", "recordings", "out")}
    loaded = load_study_or_audit(config, **named, overrides=overrides)
    if isinstance(loaded, Study) and options["retry_failed"]:
        raise ConfigError("--retry-failed has no meaning with a study.")
    return loaded


def versions(distributions: Iterable[str]) -> dict[str, Any]:
    """The versions that a Python process of a job has on its machine.

    Returns:
        `executable`: that Python. `travels`: whether faithad is in the job's working directory. `has`: the versions of
        the distributions, or of `python`, None for one that is missing. `same`: the versions that must be the same on
        all machines, of faithad and of the packages that add methods or models to it.
    """
    has: dict[str, str | None] = {}
    for name in distributions:
        try:
            has[name] = platform.python_version() if name == "python" else importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            has[name] = None
    same = {"faithad": faithad.__version__}
    same |= {name: importlib.metadata.version(name) for name in extension_distributions()}
    travels = Path(faithad.__file__).resolve().is_relative_to(Path.cwd())
    return {"executable": sys.executable, "travels": travels, "has": has, "same": same}


def misfits(machines: Mapping[str, Mapping[str, Any]], needs: Mapping[str, str]) -> list[str]:
    """A line for each way in which machines do not fit the job. `machines`: their `versions`, the head's first."""
    head = next(iter(machines.values()))
    lines: dict[str, list[str]] = {}
    for machine, its in machines.items():
        wrong = [f"{name} is missing" for name, version in its["has"].items() if version is None]
        if its["travels"] and not wrong:  # an installed faithad has seen to its own versions
            from packaging.specifiers import SpecifierSet

            for name, version in its["has"].items():
                if not SpecifierSet(needs[name]).contains(version, prereleases=True):
                    wrong.append(f"{name} is {version}, and must be {needs[name]}")
        for name in sorted({*its["same"], *head["same"]}):
            here, there = (its["same"].get(name, "missing"), head["same"].get(name, "missing"))
            if here != there:
                wrong.append(f"{name} is {here}, and on the head {there}")
        if wrong:
            lines.setdefault(f"({its['executable']}): {'; '.join(wrong)}", []).append(machine)
    return [f"{', '.join(names)} {line}" for line, names in lines.items()]


def summary(machines: Mapping[str, Mapping[str, Any]], submitted_by: str) -> list[str]:
    """What the machines have, and which faithad runs."""
    head = next(iter(machines.values()))
    has = ", ".join(f"{name} {head['has'][name]}" for name in ("ray", "torch", "python"))
    version = head["same"]["faithad"]
    which = "travels with the job and is used"
    if not head["travels"]:
        here = "" if version == submitted_by else f" ({submitted_by} here)"
        which = f"is installed on the cluster{here}; none travels with the job"
    return [f"cluster: {len(machines)} of its machines answered: {has}", f"faithad: {version} {which}"]


def check(request: Mapping[str, Any]) -> int:
    """Say in the log whether the job would run. Returns the exit status."""
    machines = {"the head": versions(request["needs"])}
    problems = misfits(machines, request["needs"])
    if not problems:
        try:
            _look_further(request, machines)
        except FaithadError as error:
            problems = [f"{type(error).__name__}: {error}"]
        problems = misfits(machines, request["needs"]) or problems
    for text in problems or summary(machines, request["faithad"]):
        for line in text.splitlines():
            print(MARK + line, flush=True)
    return 1 if problems else 0


def _look_further(request: Mapping[str, Any], machines: dict[str, dict[str, Any]]) -> None:
    """Read the configuration, add the versions of the other machines to `machines`, try the storage from all of them.

    Raises:
        FaithadError: the configuration is impossible, a machine cannot run our code, or one does not see the storage.
    """
    from faithad.config.study import Study
    from faithad.pipelines.cluster.machines import ask_other_machines
    from faithad.pipelines.cluster.session import ray_session
    from faithad.pipelines.cluster.shared_paths import require_visible
    from faithad.pipelines.index import require_study_visible

    settle_home()
    job, options = request["job"], request["options"]
    loaded = load(job, options, config=options["config"]) if job in JOBS else None
    with ray_session():
        answers, errors = ask_other_machines(versions, list(request["needs"]))
        machines |= answers
        if errors:
            raise StudyError("\n".join(f"{name} cannot run the job's code: {error}" for name, error in errors.items()))
        if isinstance(loaded, Study):
            require_study_visible(loaded)
        elif loaded is not None:
            require_visible([loaded.model, *loaded.recordings], [loaded.out])


if __name__ == "__main__":
    sys.exit(check(json.loads(sys.argv[1])))
