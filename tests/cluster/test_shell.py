"""Everything in cluster/ that a shell will read: syntax, and what shellcheck knows of traps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.cluster.containerfile import PROJECT, read_steps

SHELLCHECK = Path(sys.executable).parent / "shellcheck"
SCRIPTS = sorted((PROJECT / "cluster").glob("*.sh"))


def scripts() -> dict[str, str]:
    """The scripts, the RUN steps of the container file and the commands of the `ray up` files, each as a script."""
    found = {path.name: path.read_text() for path in SCRIPTS}
    runs = [step for step in read_steps() if step.instruction == "RUN"]
    found |= {f"Containerfile-{number}": f"#!/bin/sh\n{step.command}\n" for number, step in enumerate(runs)}
    for name in ("aws.yaml", "on-premise.yaml"):
        for key, commands in yaml.safe_load((PROJECT / "cluster" / name).read_text()).items():
            if key.endswith("commands"):
                # Ray exports the address before what follows.
                start = "#!/usr/bin/env bash\nexport RAY_HEAD_IP=192.0.2.10\n"
                found |= {f"{name}-{key}-{number}": f"{start}{line}\n" for number, line in enumerate(commands)}
    return found


def shellcheck(script: str) -> subprocess.CompletedProcess[str]:
    # SC2016: `echo '…$PATH…' >> ~/.bashrc` means its single quotes.
    options = ["--severity=style", "--exclude=SC2016", "-"]
    return subprocess.run([SHELLCHECK, *options], input=script, capture_output=True, text=True, check=False)


def test_scripts_are_found_and_can_be_run() -> None:
    assert {path.name for path in SCRIPTS} == {"slurm.sh", "two-nodes.sh"}
    assert all(path.stat().st_mode & 0o111 for path in SCRIPTS)
    assert len(scripts()) > 12


@pytest.mark.parametrize("name", scripts())
def test_bash_and_shellcheck_find_nothing(name: str) -> None:
    script = scripts()[name]
    assert subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False).stderr == ""
    checked = shellcheck(script)
    assert checked.returncode == 0, checked.stdout


def test_shellcheck_does_find_something() -> None:
    assert "SC2086" in shellcheck("#!/bin/sh\nrm -rf $1\n").stdout
