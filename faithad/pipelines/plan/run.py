"""`faithad plan`: what a study or an audit will take, before any of it is done.

    clips       counted (see `plan.clips`)
    rates       measured on this machine (`plan.measure`), or read from a file (`plan.rates`)
    machines    this one, or those of a file (`plan.machines`)
    the plan    arithmetic (`plan.estimate`), with the audit's way through the cluster simulated (`plan.simulation`)

`tests/benchmarks/planning.py` and `scheduling.py` compare plans and simulations with real runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from faithad import schemas
from faithad.config.audit import is_study, load_audit_run
from faithad.config.study import Study, load_study
from faithad.errors import ConfigError, RecordingError, StudyError
from faithad.model.checkpoint import load_model
from faithad.pipelines.plan.clips import Clips, clips_of_audit, clips_of_study
from faithad.pipelines.plan.estimate import Case
from faithad.pipelines.plan.machines import read_machines, this_machine
from faithad.pipelines.plan.measure import Subject, measure
from faithad.pipelines.plan.rates import (
    Rates,
    StatedClips,
    rate_settings,
    read_rates,
    refuse_other_settings,
    require_writable,
    write_rates,
)
from faithad.pipelines.plan.text import plan_text


def plan(
    config: str, *, overrides: Sequence[str], machines: str | None, rates: str | None, save_rates: str | None
) -> str:
    """Plan a study or an audit.

    Args:
        config: a study's YAML file, or an audit's.
        overrides: `section.key=value` strings.
        machines: YAML file of the cluster to plan for; None: this machine.
        rates: YAML file of rates; None: they are measured here, which takes about a minute.
        save_rates: where to write the rates that were measured.

    Returns:
        The plan, to be printed.

    Raises:
        ConfigError: a file cannot be read, is wrong, or the arguments do not fit each other.
        RecordingError: there are no recordings to count, and no rates file says how many clips there are.
        CheckpointError: the model of an audit is missing or damaged.
        StudyError: the rates hold for other settings, `save_rates` cannot be written, or the machines can never hold
            what the configuration asks for.
    """
    case, source = plan_case(config, overrides=overrides, machines=machines, rates=rates, save_rates=save_rates)
    return plan_text(case, source=source)


def plan_case(
    config: str,
    *,
    overrides: Sequence[str] = (),
    machines: str | None = None,
    rates: str | None = None,
    save_rates: str | None = None,
) -> tuple[Case, str]:
    """What `plan` makes a text of, and where its rates come from."""
    if rates is not None and save_rates is not None:
        raise ConfigError("--rates says them and --save-rates measures them: give one of the two.")
    subject, runs, alarm_rate = _subject(config, overrides)
    wanted = None if machines is None else read_machines(machines)
    known = None if rates is None else read_rates(rates)
    if known is not None and rates is not None:
        refuse_other_settings(known, rate_settings(subject.of, subject.features), name=rates)
    if save_rates is not None:  # rather than after a minute of measuring
        require_writable(save_rates)
    counted = _count(subject, known, may_lack=save_rates is not None)
    here = this_machine()
    if known is None:
        known, here = measure(replace(subject, clips=counted), machines=wanted)
        if save_rates is not None:
            write_rates(known, save_rates)
    if counted is None:
        raise StudyError(
            f"The recordings are not there to be counted. The rates are in {save_rates}: say there under `clips` how "
            f"many there will be (train, validation, test, recordings), and plan with --rates {save_rates}."
        )
    source = f"measured {known.measured}" if rates is None else f"{rates}, measured {known.measured}"
    return Case(subject.of, runs, alarm_rate, counted, wanted or here, known), source


def _subject(config: str, overrides: Sequence[str]) -> tuple[Subject, tuple[tuple[str, int], ...], float]:
    """What is planned, its models and seeds, and the share of clips that may alarm."""
    if is_study(config):
        study = load_study(config, overrides=overrides)
        return Subject(study, "", study.feature_settings, None), tuple(study.runs), study.alarm.false_alarm_rate
    run = load_audit_run(config, overrides=overrides)
    trained = load_model(run.model)
    alarm = run.alarm or trained.alarm
    rate = alarm.false_alarm_rate if alarm is not None else 0.0
    return Subject(run, trained.name, trained.features, None), ((trained.name, trained.seed),), rate


def _count(subject: Subject, rates: Rates | None, *, may_lack: bool) -> Clips | None:
    """The clips, as a file of rates says or as they are counted; None where there are none and there may be none."""
    if rates is not None and rates.clips is not None:
        return _stated(rates.clips)
    try:
        if isinstance(subject.of, Study):
            return clips_of_study(subject.of)
        return clips_of_audit(subject.of, clip_s=subject.features.clip_s)
    except RecordingError as error:
        if may_lack:
            return None
        raise RecordingError(
            f"{error}\nTo plan without the recordings, measure with --save-rates, say in that file under `clips` how "
            "many there will be, and plan with --rates."
        ) from error


def _stated(clips: StatedClips) -> Clips:
    return Clips(**clips.model_dump(), to_make=0, source="the file of rates", sample=schemas.MANIFEST.empty_table())
