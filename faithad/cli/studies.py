"""The commands of studies and of their models: recordings, trainings, a search, a report."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from faithad.cli import steps
from faithad.cli.options import Config, Overrides, Redo
from faithad.errors import ConfigError
from faithad.runs import layout


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
    steps.say(f"{recordings} are in {out}. Next: {write_study(mill.annotations.parent, out)}")


def index(config: Config, overrides: Overrides = None, redo: Redo = False) -> None:
    """List the recordings, cut them into clips, write the manifest."""
    study = steps.load(config, overrides)
    steps.run_stage("index", study, redo)
    steps.say(f"Manifest: {steps.below(study, layout.MANIFEST)}. {steps.next_line('train', config, overrides)}")


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
        steps.say(train_on_normals(run, redo=redo))
        return
    steps.refuse("--add-normals", bool(add_normals), beside="a study (--config): see data.add_normals")
    for option, given in (("--normals", normals), ("--to", to), ("--false-alarms-per-hour", false_alarms_per_hour)):
        steps.refuse(option, given is not None and given != [], beside="a study (--config)")
    study = steps.load(config, overrides)
    steps.run_stage("index", study, redo)
    steps.run_stage("train", study, redo)
    steps.say(
        f"{len(study.runs)} models: {steps.below(study, 'models')}. {steps.next_line('audit', config, overrides)}"
    )


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
    steps.say(calibrate_model(run, redo=redo))


def search(config: Config, overrides: Overrides = None, redo: Redo = False) -> None:
    """Search the MAE's mask ratio, patch size and other settings, and write the best ones as a configuration."""
    from faithad.pipelines.search.run import search_study

    steps.say(search_study(steps.load(config, overrides), redo=redo))


def report(config: Config, overrides: Overrides = None, redo: Redo = False) -> None:
    """Write report.html, one file to read and to send."""
    study = steps.load(config, overrides)
    steps.run_stage("report", study, redo)
    steps.say(f"Report: {steps.below(study, layout.REPORT)}. Open it in a browser.")


def study(config: Config, overrides: Overrides = None, redo: Redo = False) -> None:
    """Run all stages, from where the last run left off.

    Exit status 3: all is accounted for, but some recordings could not be read, or some clips not be audited.
    """
    from faithad.pipelines.study import n_failed, run_study

    given = steps.load(config, overrides)
    steps.say(run_study(given, redo=redo))
    if n_failed(given):
        sys.exit(steps.SOME_FAILED)
