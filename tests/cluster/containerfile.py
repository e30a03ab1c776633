"""Read and carry out cluster/Containerfile without an engine: its steps in a folder and a virtual environment."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).parents[2]

INSTRUCTIONS = {"ARG", "FROM", "RUN", "COPY", "WORKDIR", "ENV", "USER"}
# Steps on the system of the image, which are not for the machine of a test.
SYSTEM = ("apt-get", "useradd")


class Step(NamedTuple):
    instruction: str
    text: str

    @property
    def command(self) -> str:
        """What a shell gets of a RUN step: the options that come first are the engine's."""
        return re.sub(r"^(--\S+\s+)*", "", self.text)

    @property
    def is_of_the_system(self) -> bool:
        return self.command.startswith(SYSTEM)


def read_steps() -> list[Step]:
    """The instructions, comments left out and continued lines joined.

    Raises:
        ValueError: a line is no instruction that this reader knows.
    """
    text = (PROJECT / "cluster" / "Containerfile").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    steps = []
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if line.strip():
            instruction, _, rest = line.partition(" ")
            if instruction not in INSTRUCTIONS:
                raise ValueError(f"unknown instruction in {line!r}")
            steps.append(Step(instruction, rest.strip()))
    return steps


def build(folder: Path, environment: Path) -> None:
    """Carry out the steps, except those of the system, in their order.

    Args:
        folder: the image's working directory.
        environment: the virtual environment that stands for the image's Python.
    """
    folder.mkdir()
    inside = {key: os.environ[key] for key in ("HOME", "LANG") if key in os.environ}
    inside |= {key: value for key, value in os.environ.items() if key.startswith(("PIP_", "SSL_"))}
    inside["PATH"] = f"{environment / 'bin'}:/usr/bin:/bin"
    for step in read_steps():
        if step.instruction == "COPY":
            _copy(step, folder)
        if step.instruction == "RUN" and not step.is_of_the_system:
            command = ["bash", "-c", step.command]
            subprocess.run(command, cwd=folder, env=inside, check=True, timeout=1200)


def _copy(step: Step, folder: Path) -> None:
    *sources, target = shlex.split(step.text)
    for source in sources:
        if (PROJECT / source).is_dir():
            shutil.copytree(PROJECT / source, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(PROJECT / source, folder / target)
