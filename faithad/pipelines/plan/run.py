"""`faithad plan`: what a study, a search or an audit will take, before any of it is done.

    clips       counted (`plan.counts`), or stated in the file of rates
    rates       measured on this machine (`plan.measure`), or read from a file (`plan.rates`)
    machines    this one, or those of a file (`plan.machines`)
    the plan    their products (`plan.estimate`), as text (`plan.text`)

`tests/benchmarks/planning.py` compares plans with real runs.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import pyarrow as pa

from faithad import schemas, storage
from faithad.config.audit import is_study, load_audit_run
from faithad.config.study import Study, load_study
from faithad.errors import ConfigError, RecordingError, StudyError
from faithad.model.checkpoint import load_model
from faithad.pipelines.plan.counts import Counts, count_audit, count_study
from faithad.pipelines.plan.estimate import Case, Subject
from faithad.pipelines.plan.machines import Machines, read_section, this_machine
from faithad.pipelines.plan.measure import measure
from faithad.pipelines.plan.rates import Rates, rate_settings, refuse_other_settings, write_rates
from faithad.pipelines.search.plan import check_search


def plan_case(
    config: str,
    *,
    overrides: Sequence[str] = (),
    search: bool = False,
    machines: str | None = None,
    rates: str | None = None,
    save_rates: str | None = None,
) -> tuple[Case, str]:
    """Plan a study, a search or an audit.

    Args:
        config: a study's YAML file, or an audit's.
        overrides: `section.key=value` strings.
        search: plan the search of the study, and not the study itself.
        machines: YAML file of the cluster to plan for; None: this machine.
        rates: YAML file of rates; None: they are measured here, which takes a minute or two.
        save_rates: where to write the rates that were measured.

    Returns:
        What `plan_text` makes a text of, and where the rates come from.

    Raises:
        ConfigError: a file cannot be read, is wrong, or the arguments do not fit each other.
        RecordingError: there are no recordings to count, and no rates file says how many clips there are.
        CheckpointError: the model of an audit is missing or damaged.
        StudyError: the rates hold for other settings, `save_rates` cannot be written, or the machines can never hold
            what the configuration asks for.
    """
    if rates is not None and save_rates is not None:
        raise ConfigError("--rates says them and --save-rates measures them: give one of the two.")
    subject = _subject(config, overrides, search)
    cluster = this_machine() if machines is None else read_section(Machines, machines)
    if rates is not None:
        known = read_section(Rates, rates)
        refuse_other_settings(known, rate_settings(subject.of, subject.features), name=rates)
        clips, source = known.clips or _count(subject, may_lack=False)[0], f"{rates}, measured {known.measured}"
    else:
        if save_rates is not None:  # rather than after minutes of measuring
            _require_writable(save_rates)
        clips, sample = _count(subject, may_lack=save_rates is not None)
        known = measure(subject, clips, sample.slice(0, 32))
        source = f"measured {known.measured}"
        if save_rates is not None:
            write_rates(known, save_rates)
    if clips is None:
        raise StudyError(
            f"The recordings are not there to be counted. The rates are in {save_rates}: say there under `clips` how "
            f"many there will be (train, validation, test, recordings), and plan with --rates {save_rates}."
        )
    return Case(**vars(subject), clips=clips, machines=cluster, rates=known), source


def _subject(config: str, overrides: Sequence[str], search: bool) -> Subject:
    if is_study(config):
        study = load_study(config, overrides=overrides)
        if search:
            check_search(study)
        return Subject(study, study.alarm.false_alarm_rate, study.feature_settings, searches=search)
    if search:
        raise ConfigError(f"--search plans the search of a study, and {config} is the configuration of an audit.")
    run = load_audit_run(config, overrides=overrides)
    trained = load_model(run.model)
    alarm = run.alarm or trained.alarm
    rate = alarm.false_alarm_rate if alarm is not None else 0.0
    return Subject(run, rate, trained.features, audited=(trained.name, trained.seed))


def _count(subject: Subject, *, may_lack: bool) -> tuple[Counts | None, pa.Table]:
    """The clips; None where there are no recordings and there may be none."""
    try:
        if isinstance(subject.of, Study):
            return count_study(subject.of)
        return count_audit(subject.of, clip_s=subject.features.clip_s)
    except RecordingError as error:
        if may_lack:
            return None, schemas.MANIFEST.empty_table()
        raise RecordingError(
            f"{error}\nTo plan without the recordings, measure with --save-rates, say in that file under `clips` how "
            "many there will be, and plan with --rates."
        ) from error


def _require_writable(location: str) -> None:
    """Refuse a place where `write_rates` would fail; a file that stands there is left as it is."""
    if storage.is_folder(location):
        raise StudyError(f"--save-rates {location!r} is a folder: name a file, such as rates.yaml in it.")
    probe = f"{location}.{uuid.uuid4().hex}"
    try:
        storage.write_text(probe, "")
        storage.delete(probe)
    except StudyError as error:
        raise StudyError(str(error).replace(probe, location)) from error
