"""The commands of audits: find events, judge them, hand them to other tools. A study has the first two as well."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from faithad.cli import steps
from faithad.cli.options import DetectionTolerance, GroundTruthTolerance, Overrides, Redo
from faithad.errors import ConfigError
from faithad.runs import layout


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
            steps.refuse(option, value, beside="a study")
        steps.refuse("--channel", channel is not None, beside="a study: see data.channel")
        steps.run_stage("audit", given, redo)
        steps.say(f"Audit tables: {steps.below(given, 'audit')}. {steps.next_line('evaluate', str(config), overrides)}")
        return
    how = {"redo": redo, "retry_failed": retry_failed, "accept_missing": accept_missing}
    if follow:
        from faithad.pipelines.audit.follow import follow_audit

        outcome = follow_audit(given, **how, say=steps.say)
    else:
        from faithad.pipelines.audit.run import run_audit

        outcome = run_audit(given, **how)
    steps.say(outcome.line)
    if outcome.n_failed:
        sys.exit(steps.SOME_FAILED)


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
            steps.refuse(option, bool(given), beside="--audit: it scores the results that are there")
        from faithad.pipelines.evaluate import evaluate_audit_and_report

        changed = {name: share for name, share in tolerances.items() if share is not None}
        steps.say(evaluate_audit_and_report(audit, annotations, **changed))
    elif config is not None and audit is None and annotations is None:
        for name, share in tolerances.items():
            steps.refuse(f"--{name.replace('_', '-')}", share is not None, beside="a study, which has no events")
        study = steps.load(config, overrides)
        steps.run_stage("evaluate", study, redo)
        steps.say(
            f"Summary tables: {steps.below(study, layout.SUMMARY)}. {steps.next_line('report', config, overrides)}"
        )
    else:
        raise ConfigError("Give either --config (a study), or --audit and --annotations (one audit).")


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

    steps.say((export_changes if changes else export_events)(audit, to, format=format))


def review(
    audit: Annotated[str, typer.Argument(help="Results of `faithad audit --out`.")],
    decisions: Annotated[str, typer.Option(help="The file that `Save decisions` in its report.html wrote.")],
) -> None:
    """Write the decisions of a review beside the audit, as labels of confirmed and of rejected events.

    The report then says how many alarms were false. `evaluate --annotations`, `calibrate --normals` and `train
    --add-normals` take the reviewed audit.
    """
    from faithad.pipelines.evaluate import review_audit_and_report

    steps.say(review_audit_and_report(audit, decisions))


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

    steps.say(export_clips(audit, to, margin_s=margin, longest_s=longest))
