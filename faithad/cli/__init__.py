"""The command line.

    faithad synth index train calibrate search audit evaluate report study plan prune submit
            export export-clips review compare figures tables

Heavy imports stand inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from faithad.cli.audits import audit, evaluate, export, export_clips, review
from faithad.cli.endings import ending
from faithad.cli.options import Command, Group, Version
from faithad.cli.runs import compare, figures, plan, prune, tables
from faithad.cli.studies import calibrate, index, report, search, study, synth, train

app = typer.Typer(
    cls=Group,
    help="Find abnormal seconds in recordings, say why, and measure how far the explanation can be trusted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _options(version: Version = False) -> None:
    pass


# In the order of `faithad --help`.
_COMMANDS: tuple[Callable[..., None], ...] = (
    synth, index, train, calibrate, audit, evaluate, export, review, export_clips, compare, figures, tables, search,
    report, study, plan, prune,
)  # fmt: skip
for _command in _COMMANDS:
    app.command(cls=Command)(_command)


@app.command(cls=Command, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def submit(
    context: typer.Context,
    job: Annotated[str, typer.Argument(help="full_study, train, search or audit, or a script of the working folder.")],
    address: Annotated[
        str | None, typer.Option(help="The cluster's job server, such as http://127.0.0.1:8265 (the default).")
    ] = None,
    working_dir: Annotated[str, typer.Option(help="The folder that travels with the job.")] = ".",
    shared: Annotated[
        list[str] | None,
        typer.Option(help="A folder that all machines of the cluster share. May be given several times."),
    ] = None,
) -> None:
    """Check a cluster, submit a job to it and follow its log. All further options are the job's: --config, --set.

    The exit status is the job's.
    """
    from faithad.pipelines.submit.run import JOBS, submit_job

    if job.startswith("-"):
        raise typer.BadParameter(
            f"The job's name is missing before {job!r}; jobs are {', '.join(JOBS)}, and Python scripts.",
            param_hint="JOB",
        )
    name = next((name for name in JOBS if os.path.normpath(job) == f"jobs/{name}.py"), job)
    options = {}
    if name in JOBS:  # its options are those of its command
        command = typer.main.get_group(app).commands[JOBS[name]]
        options = command.make_context(f"faithad submit {name}", list(context.args)).params
    sys.exit(submit_job(name, context.args, options, address=address, working_dir=working_dir, shared=shared or []))


def main() -> None:
    """Run the command."""
    with ending(sys.argv[1] if len(sys.argv) > 1 else ""):
        app()


def job(command: str) -> None:
    """Run a command as the entry point of a submitted job, with the arguments of the script that calls this.

    Relative paths then start in a folder that stays, `faithad` in the head node's home folder unless FAITHAD_HOME names
    another: a job's current folder is a copy of the working directory that Ray deletes.
    """
    os.environ.setdefault("FAITHAD_HOME", str(Path.home() / "faithad"))
    sys.argv.insert(1, command)
    main()
