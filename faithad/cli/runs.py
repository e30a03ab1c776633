"""The commands of any run, a study or an audit: its plan before it, figures, tables and comparisons after it."""

from __future__ import annotations

from typing import Annotated

import typer

from faithad.cli import steps
from faithad.cli.options import Overrides


def compare(
    runs: Annotated[
        list[str], typer.Argument(help="Roots of studies, or results of `faithad audit --out`: first the reference.")
    ],
    to: Annotated[
        str | None, typer.Option(help="Folder or URI to write to; without it, compare-A-B beside the first run.")
    ] = None,
) -> None:
    """Compare runs with the first one: settings, numbers, the same clips, events, and drift of recorders."""
    from faithad.report.compare import compare_runs

    steps.say(compare_runs(runs, to))


def figures(
    run: Annotated[str, typer.Argument(help="A study's root, or results of `faithad audit --out`.")],
    to: Annotated[str, typer.Option(help="Folder or URI to write to.")],
    format: Annotated[str, typer.Option(help="pdf, svg and png, separated by commas.")] = "pdf",
) -> None:
    """Write every figure of a report for a paper: one column wide and two, with its legend and its fonts."""
    from faithad.report.figures import write_figures

    steps.say(write_figures(run, to, formats=format.split(",")))


def tables(
    run: Annotated[str, typer.Argument(help="A study's root, or results of `faithad audit --out`.")],
    to: Annotated[str | None, typer.Option(help="Folder or URI to write to; without it, they are printed.")] = None,
    format: Annotated[str, typer.Option(help="latex, csv and markdown, separated by commas.")] = "markdown",
) -> None:
    """Print or write a study's numbers as the tables of a paper, or the events of an audit as one."""
    from faithad.report.paper_tables import write_tables

    steps.say(write_tables(run, formats=format.split(","), to=to))


def plan(
    config: Annotated[str, typer.Option("--config", "-c", help="A study's YAML file, or an audit's.")],
    overrides: Overrides = None,
    search: Annotated[bool, typer.Option("--search", help="Plan `faithad search` with the study's file.")] = False,
    machines: Annotated[
        str | None, typer.Option(help="The cluster to plan for (cluster/machines.yaml); without it, this machine.")
    ] = None,
    rates: Annotated[
        str | None, typer.Option(help="Rates from --save-rates, or stated by hand; without it, they are measured here.")
    ] = None,
    save_rates: Annotated[str | None, typer.Option(help="Where to write the rates that were measured.")] = None,
) -> None:
    """Say how long a study, a search or an audit will take, what it will write and cost, and its bottleneck."""
    from faithad.pipelines.plan.run import make_plan
    from faithad.pipelines.plan.text import plan_text

    options = {"machines": machines, "rates": rates, "save_rates": save_rates}
    steps.say(plan_text(make_plan(config, overrides=overrides or [], search=search, **options)))


def prune(
    run: Annotated[str, typer.Argument(help="Root of a finished study or search, or the folder of an audit.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")] = False,
) -> None:
    """Say what a finished run holds, and remove what can be made again: features, maps, spectrograms, checkpoints."""
    from faithad.runs.prune import prune

    steps.say(prune(run, dry_run=dry_run))
