"""The command line.

    faithad synth index train calibrate search audit evaluate report study plan prune submit
            export export-clips review compare figures tables

Heavy imports stand inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from faithad.cli_endings import ending
from faithad.cli_options import (
    Command,
    Config,
    DetectionTolerance,
    GroundTruthTolerance,
    Group,
    Overrides,
    Redo,
    Version,
)
from faithad.errors import ConfigError, shown
from faithad.runs import layout

if TYPE_CHECKING:
    from faithad.config.study import Study

app = typer.Typer(
    cls=Group,
    help="Find abnormal seconds in recordings, say why, and measure how far the explanation can be trusted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# Exit status of an audit or a study that accounts for everything, where some clips or recordings could not be audited.
_SOME_FAILED = 3


@app.callback()
def _options(version: Version = False) -> None:
    pass


@app.command(cls=Command)
def synth(
    out: Annotated[str, typer.Option(help="Folder to write to: a new or an empty one, or a mill made before.")],
    hours: Annotated[
        float, typer.Option(min=0.05, max=1_600, help="Length of all recordings together; a third is for the test.")
    ] = 0.6,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Make recordings of a demo planer mill, with annotated disturbances in the test part, ready for a study."""
    from faithad.demo.making import make_local_mill
    from faithad.demo.mill import recordings_in
    from faithad.demo.study import write_study
    from faithad.pipelines.cluster.session import usable_cores

    n_train, n_test = recordings_in(hours)
    mill = make_local_mill(out, train_recordings=n_train, test_recordings=n_test, seed=seed, workers=usable_cores())
    recordings = f"{n_train} training and {n_test} test recordings with {mill.n_events} disturbances"
    _say(f"{recordings} are in {out}. Next: {write_study(mill.annotations.parent, out)}")


@app.command(cls=Command)
def index(config: Config, overrides: Overrides = None, redo: Redo = False) -> None:
    """List the recordings, cut them into clips, write the manifest."""
    study = _load(config, overrides)
    _stage("index", study, redo)
    _say(f"Manifest: {_below(study, layout.MANIFEST)}. {_next('train', config, overrides)}")


@app.command(cls=Command)
def train(
    config: Annotated[str | None, typer.Option("--config", "-c", help="The study's YAML file, local or a URI.")] = None,
    normals: Annotated[
        list[str] | None,
        typer.Option(help="In place of a study: folder, file or URI of normal recordings. May be given several times."),
    ] = None,
    add_normals: Annotated[
        list[str] | None,
        typer.Option(
            help="With --normals: a reviewed audit, whose rejected events are normal sound. May be given several times."
        ),
    ] = None,
    to: Annotated[str | None, typer.Option(help="With --normals: folder or URI for the model.")] = None,
    false_alarms_per_hour: Annotated[
        float | None, typer.Option(help="With --normals: how often normal sound may alarm; by default 5 % of it.")
    ] = None,
    overrides: Overrides = None,
    redo: Redo = False,
) -> None:
    """Train every model and seed of a study (--config), or one model on normal recordings alone (--normals, --to).

    The second takes minutes, no GPU and no configuration: `faithad audit --model` then finds what differs from them.
    """
    if config is None:
        from faithad.config.normals import load_normals_run
        from faithad.pipelines.training.normals import train_on_normals

        if not normals and to is None:
            raise ConfigError("Give either --config (a study), or --normals and --to (recordings of normal operation).")
        per_hour, added = false_alarms_per_hour, add_normals or []
        run = load_normals_run(
            normals or [], to, add_normals=added, false_alarms_per_hour=per_hour, overrides=overrides or []
        )
        _say(train_on_normals(run, redo=redo))
        return
    _refuse("--add-normals", bool(add_normals), beside="a study (--config): see data.add_normals")
    for option, given in (("--normals", normals), ("--to", to), ("--false-alarms-per-hour", false_alarms_per_hour)):
        _refuse(option, given is not None and given != [], beside="a study (--config)")
    study = _load(config, overrides)
    _stage("index", study, redo)
    _stage("train", study, redo)
    _say(f"{len(study.runs)} models: {_below(study, 'models')}. {_next('audit', config, overrides)}")


@app.command(cls=Command)
def calibrate(
    model: Annotated[
        list[str],
        typer.Option(
            help="Folder of a trained model, such as runs/demo/models/mae-0; may be given several times, for models of "
            "one study that are to be one: the sum of their scores."
        ),
    ],
    normals: Annotated[
        list[str],
        typer.Option(
            help="Folder, file or URI of normal recordings (may be given several times), or the results of one "
            "`faithad audit --out`, whose clips that did not alarm, or were rejected in a review, are taken for normal."
        ),
    ],
    to: Annotated[str, typer.Option(help="Folder or URI for the new model.")],
    false_alarms_per_hour: Annotated[
        float | None, typer.Option(help="How often normal sound may alarm; as often as for the old model by default.")
    ] = None,
    overrides: Overrides = None,
    redo: Redo = False,
) -> None:
    """Fit the alarm of a model, or of several as one, to normal sound, as of another microphone, without training.

    The new model is the old one with thresholds (and, of a calibrated score, normal clips to compare with) of its own.
    """
    from faithad.config.normals import load_calibration_run
    from faithad.pipelines.training.calibrate import calibrate_model

    per_hour = false_alarms_per_hour
    run = load_calibration_run(model, normals, to, false_alarms_per_hour=per_hour, overrides=overrides or [])
    _say(calibrate_model(run, redo=redo))


@app.command(cls=Command)
def audit(
    config: Annotated[
        str | None, typer.Option("--config", "-c", help="A study's YAML file, or an audit's (configs/audit.yaml).")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Folder of a trained model, such as runs/demo/models/mae-0.")
    ] = None,
    recordings: Annotated[
        list[str] | None, typer.Option(help="Folder, file or URI of recordings. May be given several times.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Folder or URI for the results.")] = None,
    channel: Annotated[
        str | None,
        typer.Option(
            help="Which channel is heard: a number from 1, first, loudest, mean, each (one by one), or auto: the mean "
            "where all channels hold the same sound, else one without a fault."
        ),
    ] = None,
    overrides: Overrides = None,
    redo: Redo = False,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            help="Try again what failed: recordings, and clips. Clips that were computed in one go (a shard) with one "
            "that failed are computed again with it.",
        ),
    ] = False,
    accept_missing: Annotated[
        bool,
        typer.Option(
            "--accept-missing", help="Keep the results of recordings that are gone for good; the ledger says so."
        ),
    ] = False,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", help="Go on with recordings that come, once nobody writes into them, until Ctrl-C ends it."
        ),
    ] = False,
) -> None:
    """Audit recordings with a trained model (--model, --recordings, --out), or the test clips of a study (--config).

    The same command again takes up recordings that came since, and audits no other again.

    Exit status 3, of an audit with a trained model: all is accounted for, but some clips could not be audited or some
    recordings not be read. The test clips of a study end with 0 then; `faithad evaluate` names them in
    summary/ledger.parquet, and `faithad study` ends with 3.
    """
    from faithad.config.audit import AuditRun, load_study_or_audit

    given = load_study_or_audit(
        config, model=model, recordings=recordings, out=out, channel=channel, overrides=overrides or []
    )
    if not isinstance(given, AuditRun):
        for option, value in (
            ("--retry-failed", retry_failed),
            ("--accept-missing", accept_missing),
            ("--follow", follow),
        ):
            _refuse(option, value, beside="a study")
        _refuse("--channel", channel is not None, beside="a study: see data.channel")
        _stage("audit", given, redo)
        _say(f"Audit tables: {_below(given, 'audit')}. {_next('evaluate', str(config), overrides)}")
        return
    how = {"redo": redo, "retry_failed": retry_failed, "accept_missing": accept_missing}
    if follow:
        from faithad.pipelines.audit.follow import follow_audit

        outcome = follow_audit(given, **how, say=_say)
    else:
        from faithad.pipelines.audit.run import run_audit

        outcome = run_audit(given, **how)
    _say(outcome.line)
    if outcome.n_failed:
        sys.exit(_SOME_FAILED)


@app.command(cls=Command)
def evaluate(
    config: Annotated[str | None, typer.Option("--config", "-c", help="The study's YAML file, local or a URI.")] = None,
    audit: Annotated[str | None, typer.Option(help="Results of `faithad audit --out`, in place of a study.")] = None,
    annotations: Annotated[
        str | None,
        typer.Option(
            help="With --audit: reference intervals, as the published table, as labels of another tool, or a reviewed "
            "audit, of which they are the confirmed events."
        ),
    ] = None,
    detection_tolerance: DetectionTolerance = None,
    ground_truth_tolerance: GroundTruthTolerance = None,
    overrides: Overrides = None,
    redo: Redo = False,
) -> None:
    """Summarise a study's audits, or score one audit against reference intervals (--audit, --annotations)."""
    tolerances = {"detection_tolerance": detection_tolerance, "ground_truth_tolerance": ground_truth_tolerance}
    if audit is not None and annotations is not None and config is None:
        for option, given in (("--set", overrides), ("--redo", redo)):
            _refuse(option, bool(given), beside="--audit: it scores the results that are there")
        from faithad.pipelines.evaluate import evaluate_audit_and_report

        changed = {name: share for name, share in tolerances.items() if share is not None}
        _say(evaluate_audit_and_report(audit, annotations, **changed))
    elif config is not None and audit is None and annotations is None:
        for name, share in tolerances.items():
            _refuse(f"--{name.replace('_', '-')}", share is not None, beside="a study, which has no events")
        study = _load(config, overrides)
        _stage("evaluate", study, redo)
        _say(f"Summary tables: {_below(study, layout.SUMMARY)}. {_next('report', config, overrides)}")
    else:
        raise ConfigError("Give either --config (a study), or --audit and --annotations (one audit).")


@app.command(cls=Command)
def export(
    audit: Annotated[str, typer.Argument(help="Results of `faithad audit --out`.")],
    to: Annotated[str, typer.Option(help="Folder or URI to write to.")],
    format: Annotated[str, typer.Option(help="audacity, raven, label-studio or csv.")],
    changes: Annotated[
        bool, typer.Option("--changes", help="What lasts (states.parquet) in place of the events.")
    ] = False,
) -> None:
    """Write the events of an audit, or what lasts in it, as labels for another tool."""
    from faithad.audit.exports import export_changes, export_events

    _say((export_changes if changes else export_events)(audit, to, format=format))


@app.command(cls=Command)
def review(
    audit: Annotated[str, typer.Argument(help="Results of `faithad audit --out`.")],
    decisions: Annotated[str, typer.Option(help="The file that `Save decisions` in its report.html wrote.")],
) -> None:
    """Write the decisions of a review beside the audit, as labels of confirmed and of rejected events.

    The report then says how many alarms were false. `evaluate --annotations`, `calibrate --normals` and `train
    --add-normals` take the reviewed audit.
    """
    from faithad.pipelines.evaluate import review_audit_and_report

    _say(review_audit_and_report(audit, decisions))


@app.command("export-clips", cls=Command)
def export_clips(
    audit: Annotated[str, typer.Argument(help="Results of `faithad audit --out`.")],
    to: Annotated[str, typer.Option(help="Folder or URI to write to.")],
    margin: Annotated[float, typer.Option(min=0, help="Seconds of sound before and after each event.")] = 2.0,
    longest: Annotated[
        float,
        typer.Option(help="Seconds of a WAV at most: of a longer event, those around its strongest moment. inf: all."),
    ] = 30.0,
) -> None:
    """Cut a WAV around each event of an audit, to listen to; of a long event, its strongest moment."""
    from faithad.audit.exports import export_clips

    _say(export_clips(audit, to, margin_s=margin, longest_s=longest))


@app.command(cls=Command)
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

    _say(compare_runs(runs, to))


@app.command(cls=Command)
def figures(
    run: Annotated[str, typer.Argument(help="A study's root, or results of `faithad audit --out`.")],
    to: Annotated[str, typer.Option(help="Folder or URI to write to.")],
    format: Annotated[str, typer.Option(help="pdf, svg and png, separated by commas.")] = "pdf",
) -> None:
    """Write every figure of a report for a paper: one column wide and two, with its legend and its fonts."""
    from faithad.report.figures import write_figures

    _say(write_figures(run, to, formats=format.split(",")))


@app.command(cls=Command)
def tables(
    run: Annotated[str, typer.Argument(help="A study's root, or results of `faithad audit --out`.")],
    to: Annotated[str | None, typer.Option(help="Folder or URI to write to; without it, they are printed.")] = None,
    format: Annotated[str, typer.Option(help="latex, csv and markdown, separated by commas.")] = "markdown",
) -> None:
    """Print or write a study's numbers as the tables of a paper, or the events of an audit as one."""
    from faithad.report.paper_tables import write_tables

    _say(write_tables(run, formats=format.split(","), to=to))


@app.command(cls=Command)
def search(config: Config, overrides: Overrides = None, redo: Redo = False) -> None:
    """Search the MAE's mask ratio, patch size and other settings, and write the best ones as a configuration."""
    from faithad.pipelines.search.run import search_study

    _say(search_study(_load(config, overrides), redo=redo))


@app.command(cls=Command)
def report(config: Config, overrides: Overrides = None, redo: Redo = False) -> None:
    """Write report.html, one file to read and to send."""
    study = _load(config, overrides)
    _stage("report", study, redo)
    _say(f"Report: {_below(study, layout.REPORT)}. Open it in a browser.")


@app.command(cls=Command)
def study(config: Config, overrides: Overrides = None, redo: Redo = False) -> None:
    """Run all stages, from where the last run left off.

    Exit status 3: all is accounted for, but some recordings could not be read, or some clips not be audited.
    """
    from faithad.pipelines.study import n_failed, run_study

    given = _load(config, overrides)
    _say(run_study(given, redo=redo))
    if n_failed(given):
        sys.exit(_SOME_FAILED)


@app.command(cls=Command)
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
    _say(plan_text(make_plan(config, overrides=overrides or [], search=search, **options)))


@app.command(cls=Command)
def prune(
    run: Annotated[str, typer.Argument(help="Root of a finished study or search, or the folder of an audit.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")] = False,
) -> None:
    """Say what a finished run holds, and remove what can be made again: features, maps, spectrograms, checkpoints."""
    from faithad.runs.prune import prune

    _say(prune(run, dry_run=dry_run))


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
    from faithad.pipelines.submit.check import JOBS, name_of
    from faithad.pipelines.submit.run import submit_job

    if job.startswith("-"):
        raise typer.BadParameter(
            f"The job's name is missing before {job!r}; jobs are {', '.join(JOBS)}, and Python scripts.",
            param_hint="JOB",
        )
    name, options = name_of(job), {}
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

    Relative paths then start in a folder that stays (`settle_home`): a job's current folder is a copy of the working
    directory that Ray deletes.
    """
    from faithad.pipelines.submit.check import settle_home

    settle_home()
    sys.argv.insert(1, command)
    main()


def _stage(name: str, study: Study, redo: bool) -> None:
    from faithad.pipelines.study import STAGES

    STAGES[name](study, redo=redo)


def _load(config: str, overrides: list[str] | None) -> Study:
    from faithad.config.study import load_study

    return load_study(config, overrides=overrides or [])


def _below(study: Study, name: str) -> str:
    from faithad import storage

    return storage.join(study.root, name)


def _next(command: str, config: str, overrides: list[str] | None) -> str:
    """What to run after this; with other settings it would work on another study."""
    settings = [word for override in overrides or [] for word in ("--set", override)]
    return f"Next: {shlex.join(['faithad', command, '--config', config, *settings])}"


def _refuse(option: str, given: bool, *, beside: str) -> None:
    """Refuse an option that a command takes, but that does nothing in this use."""
    if given:
        raise typer.BadParameter(f"it has no meaning with {beside}.", param_hint=option)


def _say(line: str) -> None:
    typer.echo(shown(line, keep="\n"))
