"""`faithad plan`: what a study, a search or an audit will take, before any of it is done.

    clips       counted here by the headers of the recordings, or stated in the file of rates
    rates       measured on this machine (`plan.measure`), or read from a file
    machines    this one, or those of a file (`plan.sections`)
    the plan    their products (`plan.estimate`), as text (`plan.text`)

`tests/benchmarks/planning.py` compares plans with real runs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from faithad.clips.inputs import find_recordings
from faithad.clips.manifest import manifest_table
from faithad.config.audit import is_study, load_audit_run
from faithad.config.study import Study, load_study
from faithad.demo.making import make_mill
from faithad.errors import ConfigError, RecordingError, StudyError
from faithad.pipelines.cluster.session import usable_cores
from faithad.pipelines.cutting import cut_recordings
from faithad.pipelines.index import find_clips
from faithad.pipelines.plan.estimate import Plan
from faithad.pipelines.plan.measure import count_clips, measure, this_machine
from faithad.pipelines.plan.sections import Counts, Machines, Rates, read_section, write_rates
from faithad.pipelines.search.plan import check_search
from faithad.runs.stages import differences, flatten
from faithad.scoring.trained_ensemble import load_any


def make_plan(
    config: str,
    *,
    overrides: Sequence[str] = (),
    search: bool = False,
    machines: str | None = None,
    rates: str | None = None,
    save_rates: str | None = None,
) -> Plan:
    """Plan a study, a search or an audit. A demo mill of a study is made, as the study would make it.

    Args:
        config: a study's YAML file, or an audit's.
        overrides: `section.key=value` strings.
        search: plan the search of the study, and not the study itself.
        machines: YAML file of the cluster to plan for; None: this machine.
        rates: YAML file of rates; None: they are measured here, which takes a minute or two.
        save_rates: where to write the rates that were measured.

    Raises:
        ConfigError: a file cannot be read, is wrong, or the arguments do not fit each other.
        RecordingError: there are no recordings to count, and no rates file says how many clips there are.
        CheckpointError: the model of an audit is missing or damaged.
        StudyError: the rates hold for other settings, `save_rates` cannot be written, or the machines can never hold
            what the configuration asks for.
    """
    if rates is not None and save_rates is not None:
        raise ConfigError("--rates says them and --save-rates measures them: give one of the two.")
    plan = _open(config, overrides, search)
    if machines is not None:
        plan = replace(plan, machines=read_section(Machines, machines))
    settings = _rate_settings(plan)
    if rates is not None:
        known = read_section(Rates, rates)
        if lines := differences(known.settings, settings):
            raise StudyError(
                f"The rates in {rates} hold for other settings:\n{lines}\nMeasure them anew with --save-rates, or "
                "change what the file says under `settings` if its figures hold for these."
            )
        clips = known.clips or count_clips(_find_clips(plan))
        return replace(plan, clips=clips, rates=known.model_copy(update={"measured": f"{rates}, {known.measured}"}))
    manifest = _find_clips(plan)
    plan = replace(plan, clips=count_clips(manifest))
    plan = replace(plan, rates=measure(plan, manifest).model_copy(update={"settings": settings}))
    if save_rates is not None:
        write_rates(plan.rates, save_rates)
    return plan


def _open(config: str, overrides: Sequence[str], search: bool) -> Plan:
    """The plan without clips and rates."""
    unknown = Counts(test=1, recordings=1), this_machine(), Rates()
    if is_study(config):
        study = load_study(config, overrides=overrides)
        if search:
            check_search(study)
        rate = study.alarm.rate(study.data.clip_s)
        return Plan("search" if search else "study", study, study.feature_settings, rate, ("", 0), *unknown)
    if search:
        raise ConfigError(f"--search plans the search of a study, and {config} is the configuration of an audit.")
    run = load_audit_run(config, overrides=overrides)
    trained = load_any(run.model)
    rate = 0.0 if trained.alarm is None else trained.alarm.false_alarm_rate
    rate = rate if run.alarm is None else run.alarm.rate(trained.features.clip_s)
    return Plan("audit", run, trained.features, rate, (trained.name, trained.seed), *unknown)


def _find_clips(plan: Plan) -> pa.Table:
    """The clips, as rows of the manifest that the command will write."""
    with tempfile.TemporaryDirectory() as marks:
        if isinstance(plan.of, Study):
            data = plan.of.data
            if data.synthetic is not None:
                make_mill(data.root, **data.synthetic.model_dump(), workers=usable_cores())
            rows = find_clips(data, marks=marks).clips
        else:
            recordings = find_recordings([("test", location) for location in plan.of.recordings])
            run, clip_s = plan.of, plan.features.clip_s
            cuts = cut_recordings(recordings, clip_s=clip_s, remainder=run.remainder, channel=run.channel, marks=marks)
            rows = [row for cut in cuts for row in cut.clips]
    if not rows:
        raise RecordingError("There is nothing to audit: not one recording gives a clip.")
    return manifest_table(rows)


def _rate_settings(plan: Plan) -> dict[str, Any]:
    """The settings that rates depend on."""
    of, train = plan.of, {}
    if isinstance(of, Study):
        keys = {"batch_size", "patch", "precision", "optimizer", "compile", "workers", "gpus_per_worker"}
        train = {"protocol": of.protocol, "train": plan.train.model_dump(mode="json", include=keys)}
    sections = {
        "features": vars(plan.features),
        "attribution": of.attribution.model_dump(mode="json", exclude={"seed"}),
        "audit": of.audit.model_dump(mode="json", include={"percentiles", "micro_batch", "gpus_per_actor"}),
    }
    models = sorted({model for model, _ in plan.runs})
    return flatten("", {"command": plan.command, "models": models, **sections, **train})
