"""The short measurement that a plan rests on: this configuration's own work, on a few clips, on this machine's Ray.

1. A trial run: the whole study with one epoch (or the whole audit) on a few clips of a demo mill. What it takes beyond
   all that is measured otherwise is what no number of clips changes: `fixed.stages`.
2. A process for each core, all at the same time: reading, scoring and explaining a few clips, of the configuration's
   own recordings where there are any. What it writes gives the bytes.
3. As many trainings side by side as the machine carries: seconds for a clip.
4. A pass of readers and actors that do nothing: what the driver and Ray take for a shard.
5. In this process: listing recordings, and gathering tables that are many times as long as the trial's.
"""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa

from faithad.clips.manifest import Recording
from faithad.config.audit import AuditRun
from faithad.config.study import Study
from faithad.errors import RecordingError, StudyError
from faithad.pipelines.cluster.machines import alive_nodes
from faithad.pipelines.cluster.session import ray_session
from faithad.pipelines.headers import read_header
from faithad.pipelines.plan.bytes import table_bytes
from faithad.pipelines.plan.clips import Clips
from faithad.pipelines.plan.machines import Machines, machines_of
from faithad.pipelines.plan.rates import Driver, Fixed, Rates, Speed, rate_settings
from faithad.pipelines.plan.speed import time_audits, time_processes, time_scheduling, time_trainings
from faithad.pipelines.plan.trial import TrialRun, conclude_s, fixed_stages, try_audit, try_study
from faithad.pipelines.shards.log_mels import read_log_mel
from faithad.progress import console
from faithad.runs.fingerprints import fingerprints
from faithad.settings import FeatureSettings


@dataclass(frozen=True)
class Subject:
    """What rates are wanted of.

    Attributes:
        of: the study or the audit.
        model: the name of an audit's model; a study says its own.
        features: of the study, or of the audit's model.
        clips: that it works on, of which some are tried; None: those of a demo mill.
    """

    of: Study | AuditRun
    model: str
    features: FeatureSettings
    clips: Clips | None


def measure(subject: Subject, *, machines: Machines | None) -> tuple[Rates, Machines]:
    """Measure the rates of a configuration on this machine.

    Args:
        subject: of what.
        machines: that will be planned for, None for these: trainings are measured with the threads that they get there.

    Returns:
        The rates, and the machine that they were measured on.

    Raises:
        StudyError: Ray is one of several machines.
        RecordingError: no clip can be read.
    """
    _tell_of_measuring()
    with tempfile.TemporaryDirectory(prefix="faithad-plan-") as name, _quiet():
        program_s = _program_s()
        started = time.monotonic()
        with ray_session():
            ray_s = time.monotonic() - started
            here = machines_of(alive_nodes())
            if here.count > 1:
                raise StudyError(
                    f"Rates are measured on one machine, and this Ray has {here.count}. Plan on one of them "
                    "without RAY_ADDRESS and with --save-rates; give that file as --rates, the cluster as --machines."
                )
            fixed = Fixed(program=program_s, ray=ray_s, process=time_processes(here))
            return _measure(subject, machines or here, here, Path(name), fixed), here


def _tell_of_measuring() -> None:
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    console.print("plan: measuring the rates of this machine, which takes a minute or two")
    if load > cores / 2:
        console.print(
            f"plan: other programs keep this machine busy (load {load:.0f} on {cores} cores): its "
            "times will be too long. Measure when it is idle, or give --rates"
        )


def _measure(subject: Subject, machines: Machines, here: Machines, folder: Path, fixed: Fixed) -> Rates:
    of = subject.of if here.gpus else _without_gpus(subject.of)
    trial = _try(of, subject, folder)
    sample = _readable(subject, trial)
    audits = time_audits(of, trial.models, sample, subject.features, here, folder)
    cpu: dict[str, Any] = {"read": audits.read_s}
    gpu: dict[str, Any] = {}
    (gpu if of.audit.gpus_per_actor else cpu).update(_of_a_whole(audits.speed, of.audit.gpus_per_actor))
    if isinstance(of, Study):
        trainings = _of_a_whole(time_trainings(of, machines, here), of.train.gpus_per_worker)
        (gpu if of.train.gpus_per_worker else cpu).update(trainings)
    rates = Rates(
        measured=f"on {date.today()} on one machine ({here.groups[0].equipment}, {platform.machine()})",
        settings=rate_settings(of, subject.features),
        cpu=Speed(**cpu),
        gpu=Speed(**gpu) if gpu else None,
        scheduling=time_scheduling(of.audit, here),
        fixed=fixed,
        driver=Driver(synth=trial.synth_s, index=_index_s(sample, subject.features), conclude=0.0),
        bytes=table_bytes(trial, audits.tables, size=of.audit.clips_per_shard),
        memory_gib=audits.memory_gib,
    )
    fixed = fixed.model_copy(update={"stages": fixed_stages(trial, rates, here)})
    driver = rates.driver.model_copy(update={"conclude": conclude_s(trial)})
    return rates.model_copy(update={"fixed": fixed, "driver": driver})


def _of_a_whole(times: Any, gpus: float) -> Any:
    """Seconds as a whole GPU would take that was shared while they were measured."""
    if isinstance(times, dict):
        return {key: _of_a_whole(each, gpus) for key, each in times.items()}
    return times * min(1.0, gpus or 1.0)


def _try(of: Study | AuditRun, subject: Subject, folder: Path) -> TrialRun:
    if isinstance(of, Study):
        return try_study(of, folder)
    return try_audit(of, folder, model=subject.model, clip_s=subject.features.clip_s)


def _without_gpus(of: Study | AuditRun) -> Study | AuditRun:
    """The same on cores: there is no GPU here to measure."""
    changed: dict[str, Any] = {
        "audit": of.audit.model_copy(update={"gpus_per_actor": 0.0}),
        "attribution": of.attribution.model_copy(update={"compile": "none"}),
    }
    if isinstance(of, Study):
        changed["train"] = of.train.model_copy(update={"gpus_per_worker": 0.0})
    return of.model_copy(update=changed)


def _readable(subject: Subject, trial: TrialRun) -> pa.Table:
    """Some clips of the configuration's own, or of the trial's where none of them can be read."""
    for clips in (subject.clips.sample if subject.clips else None, trial.manifest):
        good = [] if clips is None else [n for n, row in enumerate(clips.to_pylist()) if _can_be_read(row, subject)]
        if clips is not None and good:
            return clips.take(pa.array(good))
    raise RecordingError("Not one clip could be read, neither of the recordings nor of a demo mill.")


def _can_be_read(row: dict[str, Any], subject: Subject) -> bool:
    try:
        read_log_mel(row, subject.features)
    except RecordingError:
        return False
    return True


def _index_s(sample: pa.Table, features: FeatureSettings) -> float:
    """Seconds that the index takes for a recording: a few small reads, and its header."""
    recordings = [Recording(row["recording"], row["uri"], "test") for row in sample.to_pylist()]
    recordings = list({recording.uri: recording for recording in recordings}.values())
    started = time.monotonic()
    fingerprints([(recording.path, recording.uri) for recording in recordings])
    for recording in recordings:
        read_header(recording)
    return (time.monotonic() - started) / len(recordings)


def _program_s() -> float:
    """How long Python takes until it has read all that it will need."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import faithad.cli, faithad.pipelines.study"], check=True)
    return time.monotonic() - started


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Trial runs are nobody's results."""
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before
