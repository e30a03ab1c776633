"""Where the relative paths of a submitted job start."""

from __future__ import annotations

import os
from pathlib import Path


def settle_home() -> None:
    """Let relative paths start in the folder `faithad` of the head node's home folder, unless FAITHAD_HOME is set."""
    os.environ.setdefault("FAITHAD_HOME", str(Path.home() / "faithad"))
