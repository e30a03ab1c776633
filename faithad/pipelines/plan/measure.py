"""Measures the rates of a configuration on this machine, on the Ray that a study would run on.

1. The command is run on a few clips of a demo mill, for a few epochs, in a temporary folder. What it takes beyond the
   rates of these clips does not depend on how many there are: `Rates.fixed`.
2. On all cores (or GPUs) at the same time, tasks do with some of the configuration's own clips what the audit does.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from ray.exceptions import RayError

from faithad import parquet, schemas
from faithad.audit.steps import EXPLAIN, SCORE, Step
from faithad.clips.ledger import ledger_table
from faithad.config.audit import AuditRun
from faithad.config.data import Data
from faithad.demo.mill import CLIP_S, synthesize
from faithad.errors import StudyError
from faithad.model.table import MODELS
from faithad.pipelines.audit.models import model_audit
from faithad.pipelines.audit.run import run_audit
from faithad.pipelines.audit.worker import Auditor, ModelAudit, SharedPass
from faithad.pipelines.cluster.machines import alive_nodes
from faithad.pipelines.cluster.session import ray_session, usable_cores
from faithad.pipelines.features import training_statistics
from faithad.pipelines.plan.estimate import FORWARD, LAST, Plan, estimate
from faithad.pipelines.plan.sections import Cost, Counts, MachineGroup, Machines, Rates
from faithad.pipelines.search.run import search_study
from faithad.pipelines.shards.failures import first_cause
from faithad.pipelines.shards.log_mels import add_log_mels
from faithad.pipelines.shards.stream import shard_size, shards, to_bytes
from faithad.pipelines.study import STAGES
from faithad.progress import console
from faithad.runs import layout
from faithad.runs.tables import read_manifest
from faithad.scoring.trained_ensemble import load_any

# What is run, in which stages of a plan.
_RUN: dict[str, Mapping[str, Callable[[Any], object]]] = {
    "study": STAGES,
    "search": {"search": search_study},
    "audit": {"audit": run_audit},
}
# Of the command that is run on a demo mill. The first epoch warms up.
_EPOCHS, _MOST_TRAIN_CLIPS = 3, 64
# The most that are read, scored and explained.
_N_CLIPS = 8
_ELSEWHERE = (
    "Run `faithad plan --save-rates FILE` on a machine of the cluster, without RAY_ADDRESS; then give that file as "
    "--rates, and the cluster as --machines."
)
# Nothing is timed once more after so many seconds.
_ENOUGH_S = 1.0


def this_machine() -> Machines:
    """The machine that this runs on, with the cores that this process may use."""
    return Machines(groups=(MachineGroup(name="this machine", cpus=usable_cores(), gpus=torch.cuda.device_count()),))


def count_clips(manifest: pa.Table) -> Counts:
    """The clips of a manifest."""
    splits = manifest["split"].to_pylist()
    return Counts(
        **{name: splits.count(name) for name in schemas.SPLITS},
        annotated=pc.sum(pc.and_(manifest["annotated"], pc.equal(manifest["split"], "test"))).as_py() or 0,
        recordings=len(pc.unique(manifest["recording"])),
    )


def measure(plan: Plan, manifest: pa.Table) -> Rates:
    """Measure the rates of a plan on this machine, which takes a minute or two.

    Args:
        plan: without rates.
        manifest: its clips.

    Raises:
        StudyError: Ray has several machines, this one cannot hold what the configuration asks for, or clips cannot be
            read.
    """
    here = this_machine()
    trains_on_gpu = plan.command != "audit" and plan.train.gpus_per_worker
    if not here.total("GPU") and (plan.of.audit.gpus_per_actor or trains_on_gpu):
        raise StudyError(f"The configuration asks for GPUs, and this machine has none. {_ELSEWHERE}")
    console.print("plan: measuring the rates of this machine, which takes a minute or two")
    if (load := os.getloadavg()[0]) > (cores := os.cpu_count() or 1) / 2:
        busy = f"other programs keep this machine busy (load {load:.0f} on {cores} cores): its times will be too long"
        console.print(f"plan: {busy}. Measure when it is idle, or give --rates")
    was_quiet, console.quiet = console.quiet, True  # what the trial says is of no interest
    try:
        with tempfile.TemporaryDirectory(prefix="faithad-plan-") as folder:
            return _measure(replace(plan, machines=here), manifest, Path(folder))
    finally:
        console.quiet = was_quiet


def _measure(plan: Plan, manifest: pa.Table, folder: Path) -> Rates:
    trial, root, gpus = _make_trial(plan, folder), folder / "out", plan.of.audit.gpus_per_actor
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import faithad.cli, faithad.pipelines.study"], check=True)
    with ray_session():
        fixed = defaultdict(float, start=time.monotonic() - started)
        if (n := len(alive_nodes())) > 1:
            raise StudyError(f"Rates are measured on one machine, and this Ray has {n}. {_ELSEWHERE}")
        for name, run in _RUN[plan.command].items():
            started = time.monotonic()
            run(trial.of)
            fixed[LAST if name in ("evaluate", "report") else name] += time.monotonic() - started
        # A clip may end the process that reads it: then the task is tried again, until it leaves that clip out.
        task = ray.remote(_time_clips).options(num_cpus=1, num_gpus=gpus or None, max_retries=-1)
        n_tasks = max(1, int(plan.machines.total("GPU") / gpus if gpus else plan.machines.total("CPU")))
        given = plan, ray.put(manifest), _audits(trial)
        try:
            values = ray.get([task.remote(*given, str(folder / f"{k}")) for k in range(n_tasks)])[0]
        except RayError as error:
            raise StudyError(f"Rates cannot be measured: {first_cause(error)}") from error
    trial = replace(trial, clips=count_clips(read_manifest(str(root))))
    if plan.command != "audit":
        values |= {"learn": _learn(trial, root), "threads": trial.places.threads}
        values["feature_bytes"] = _size(root, f"{layout.FEATURES}/*/*") / trial.n_features
    values["report_bytes"] = _size(root, "*.html") + _size(root, f"{layout.SUMMARY}/*")
    rates = Rates(measured=f"on {date.today()} on {plan.machines} ({platform.machine()})", **values)
    for stage in estimate(replace(trial, rates=rates)):
        # A search and an audit are run in one go, with their index.
        fixed[stage.name if stage.name in fixed else next(iter(_RUN[plan.command]))] -= stage.seconds
    return rates.model_copy(update={"fixed": dict(fixed)})


def _make_trial(plan: Plan, folder: Path) -> Plan:
    """The same command with its root at `out` in a folder, on a mill that is made there."""
    of, n_train, mill = plan.of, 4, folder / "mill"
    changes: dict[str, Any] = {}
    if of.audit.explain not in ("all", "none"):  # of so few clips none may alarm
        changes["audit"] = of.audit.model_copy(update={"explain": "top:2"})
    if isinstance(of, AuditRun):
        changes |= {"recordings": (str(mill / "test"),), "out": str(folder / "out"), "annotations": None}
    else:
        # Whole batches, and so many trainings that all cores are as busy as they will be.
        n_train, at_once = min(_MOST_TRAIN_CLIPS, of.train.batch_size), plan.places.at_once
        ratios = of.search.mask_ratios[:at_once]
        grid = {"mask_ratios": ratios, "patches": of.search.patches[:1], "space": {}, "algorithm": "grid"}
        alone = {"scheduler": "none", "scores": (), "members": ()}
        data = {"train": ("train",), "test": ("test",), "annotations": "annotations.csv", "clip_s": of.data.clip_s}
        changes |= {
            "root": str(folder / "out"),
            "seeds": of.seeds[: math.ceil(at_once / len(ratios if plan.command == "search" else of.models))],
            "data": Data(root=str(mill), **data),
            "train": of.train.model_copy(update={"epochs": _EPOCHS, "warmup_epochs": 1}),
            "search": of.search.model_copy(update=grid | alone),
        }
    recording_s = max(CLIP_S, 2 * plan.features.clip_s)
    synthesize(mill, train_recordings=2 + n_train // 2, test_recordings=2, seed=0, recording_s=recording_s)
    return replace(plan, of=of.model_copy(update=changes))


def _audits(trial: Plan) -> dict[str, ModelAudit]:
    """Of each model that is audited, by its name."""
    of = trial.of
    if isinstance(of, AuditRun):
        own_alarm = load_any(of.model).alarm
        audit = ModelAudit(of.model, "", own_alarm, judging=of.judging, as_paper=of.score == "paper")
        return {trial.audited[0]: audit}
    if trial.command == "search":
        return {}
    training = training_statistics(of)
    return {model: model_audit(of, model, seed, training) for model, seed in trial.runs}


def _learn(trial: Plan, root: Path) -> dict[str, float]:
    """Seconds of the fastest epoch for a clip, by model."""
    learn, n = dict[str, float](), trial.clips.train + FORWARD * trial.clips.validation
    for model, seed in trial.runs:
        if not MODELS[model].fitted:
            trials = f"{layout.TRIALS}/*/{layout.EPOCHS}"
            files = root.glob(trials if trial.command == "search" else layout.epochs(model, seed))
            learn[model] = min(pc.min(parquet.read_table(str(file))["duration_s"]).as_py() for file in files) / n
    return learn


def _time_clips(plan: Plan, manifest: pa.Table, audits: Mapping[str, ModelAudit], folder: str) -> dict[str, Any]:
    """What one of Ray's processes does with a few clips, on one thread: the rates `read`, `score` and `explain`."""
    torch.set_num_threads(1)
    tested = manifest.filter(pc.equal(manifest["split"], "test"))
    some = tested.slice(max(0, tested.num_rows - _N_CLIPS) // 2, _N_CLIPS)
    read, runs = functools.partial(add_log_mels, some, plan.features, mark=f"{folder}/read.json"), itertools.count()
    first_s = _least_s(lambda: read(run=f"{next(runs)}"))
    again_s = _least_s(lambda: read(run="0"))  # a run knows the spectra of recordings that it has read
    n_sharing = pc.sum(pc.is_in(manifest["recording"], value_set=some["recording"].combine_chunks())).as_py()
    values: dict[str, Any] = {"read": again_s / some.num_rows + max(0.0, first_s - again_s) / n_sharing}
    clips, failed = read(run="0")
    if not clips.num_rows:
        raise StudyError(f"Not one of {some.num_rows} test clips can be read. The first reason: {failed[0]['reason']}")
    for mark in ("keep_maps", "deep", "sanity"):
        clips = clips.append_column(mark, pa.array([False] * clips.num_rows))
    for kind, step, n in (("score", SCORE, plan.clips.test), ("explain", EXPLAIN, plan.n_explained)):
        parts = shards(clips, size=shard_size(n, largest=plan.of.audit.clips_per_shard))
        values[kind] = {
            model: _shard_cost(plan, replace(audit, out=f"{folder}/{kind}/{model}"), step, parts)
            for model, audit in audits.items()
            if MODELS[model].explained or not step.explains
        }
    return values


def _shard_cost(plan: Plan, audit: ModelAudit, step: Step, parts: list[pa.Table]) -> Cost:
    """Of a clip in these shards, whose tables are written."""
    shared = SharedPass(audit, step, None)
    auditor = Auditor([shared], plan.of.attribution, plan.of.audit, plan.features, threads=1, run="plan")
    none = to_bytes(ledger_table([]))
    rows = [{"pass": 0, "shard": k, "clips": to_bytes(part), "failed": none} for k, part in enumerate(parts)]
    seconds, n = _least_s(lambda: [auditor(row) for row in rows]), sum(part.num_rows for part in parts)
    return Cost(seconds=seconds / n, bytes=_size(Path(audit.out), "*/*.parquet") / n)


def _size(root: Path, pattern: str) -> int:
    return sum(file.stat().st_size for file in root.glob(pattern))


def _least_s(do: Callable[[], object]) -> float:
    """The least of up to five times, of fewer where it takes long: whatever comes between can only add to it."""
    took: list[float] = []
    while not took or (len(took) < 5 and sum(took) < _ENOUGH_S):
        started = time.perf_counter()
        do()
        took.append(time.perf_counter() - started)
    return min(took)
