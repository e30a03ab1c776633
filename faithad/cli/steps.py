"""What several commands do: load a study, run its stage, say what came of it and what comes next."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import typer

from faithad.errors import shown

if TYPE_CHECKING:
    from faithad.config.study import Study

# Exit status of an audit or a study that accounts for everything, where some clips or recordings could not be audited.
SOME_FAILED = 3


def run_stage(name: str, study: Study, redo: bool) -> None:
    from faithad.pipelines.study import STAGES

    STAGES[name](study, redo=redo)


def load(config: str, overrides: list[str] | None) -> Study:
    from faithad.config.study import load_study

    return load_study(config, overrides=overrides or [])


def below(study: Study, name: str) -> str:
    from faithad import storage

    return storage.join(study.root, name)


def next_line(command: str, config: str, overrides: list[str] | None) -> str:
    """What to run after this; with other settings it would work on another study."""
    settings = [word for override in overrides or [] for word in ("--set", override)]
    return f"Next: {shlex.join(['faithad', command, '--config', config, *settings])}"


def refuse(option: str, given: bool, *, beside: str) -> None:
    """Refuse an option that a command takes, but that does nothing in this use."""
    if given:
        raise typer.BadParameter(f"it has no meaning with {beside}.", param_hint=option)


def say(line: str) -> None:
    typer.echo(shown(line, keep="\n"))
