"""What a submitted job does first, on the head: have all machines what faithad needs?

The variable FAITHAD_SUBMITTED holds JSON: `faithad`, the version that submits, and `needs`, the requirements of its
installation, with one of `python`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import faithad
from faithad.errors import FaithadError, StudyError
from faithad.extensions import extension_distributions

SUBMITTED = "FAITHAD_SUBMITTED"


def versions(needs: Iterable[str]) -> dict[str, str]:
    """The `executable` of this process, and versions here by name: of `needs`, faithad, and packages that extend it."""
    has = {"executable": sys.executable, "faithad": faithad.__version__}
    for name in [*needs, *extension_distributions()]:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            has[name] = platform.python_version() if name == "python" else importlib.metadata.version(name)
    return has


def misfits(machines: Mapping[str, Mapping[str, str]], needs: Mapping[str, str]) -> list[str]:
    """A line for each way in which machines do not fit the job. `machines`: their `versions`, with those of the head.

    What faithad needs must be there in the version that it needs, all else in the same version as on the head.
    """
    head = machines["the head"]
    lines: dict[str, list[str]] = {}
    for machine, has in machines.items():
        wrong = []
        for name in sorted({*needs, *head, *has} - {"executable"}):
            here, there = has.get(name, "missing"), head.get(name, "missing")
            if name not in needs:
                if here != there:
                    wrong.append(f"{name} is {here}, and on the head {there}")
            elif name not in has:
                wrong.append(f"{name} is missing")
            elif not SpecifierSet(needs[name]).contains(here, prereleases=True):
                wrong.append(f"{name} is {here}, and must be {needs[name]}")
        if wrong:
            lines.setdefault(f"({has['executable']}): {'; '.join(wrong)}", []).append(machine)
    return [f"{', '.join(names)} {line}" for line, names in lines.items()]


def check(submitted: Mapping[str, Any]) -> str:
    """What the machines have, and which faithad runs.

    Raises:
        StudyError: a machine cannot run the job.
    """
    lines = [Requirement(line) for line in submitted["needs"]]
    needs = {line.name: str(line.specifier) for line in lines if not line.marker or line.marker.evaluate({"extra": ""})}
    which = "travels with the job and is used"
    if not Path(faithad.__file__).resolve().is_relative_to(Path.cwd()):
        which = f"is installed on the cluster ({submitted['faithad']} here); none travels with the job"
        needs = dict.fromkeys(needs, "")  # it has seen to its own versions
    machines = {"the head": versions(needs)}
    problems = misfits(machines, needs)
    if not problems:  # else the head may lack what is imported here
        from faithad.pipelines.cluster.machines import ask_other_machines
        from faithad.pipelines.cluster.session import ray_session

        with ray_session():
            answers, errors = ask_other_machines(versions, list(needs))
        machines |= answers
        problems = [f"{name} cannot run the job's code: {error}" for name, error in errors.items()]
        problems += misfits(machines, needs)
    if problems:
        raise StudyError("\n  ".join(["The cluster cannot run this job:", *problems]))
    head = machines["the head"]
    has = ", ".join(f"{name} {head[name]}" for name in ("ray", "torch", "python"))
    return f"cluster: {len(machines)} of its machines answered: {has}\nfaithad: {head['faithad']} {which}"


if __name__ == "__main__":
    try:
        print(check(json.loads(os.environ[SUBMITTED])))
    except FaithadError as error:
        sys.exit(f"{type(error).__name__}: {error}")
