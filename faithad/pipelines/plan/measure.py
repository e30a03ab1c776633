"""Measures the rates of a configuration on this machine, on the Ray that a study would run on.

1. The command is run on a few clips of a demo mill, for a few epochs, in a temporary folder. What it takes beyond the
   rates of these clips does not depend on how many there are: `Rates.fixed`.
2. On all cores (or GPUs) at the same time, tasks read, score and explain some of the configuration's own clips, and
   write the tables.
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
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch

from faithad import parquet, schemas
from faithad.audit.judging import TableRow
from faithad.audit.model import AuditEnsemble, AuditModel, prepare_audit
from faithad.audit.shard import audit_clips, table_schemas, to_table
from faithad.config.data import Data
from faithad.config.study import Study
from faithad.demo.mill import CLIP_S, synthesize
from faithad.errors import StudyError
from faithad.features import Normalization
from faithad.model.checkpoint import load_model
from faithad.model.table import MODELS
from faithad.pipelines.audit.run import run_audit
from faithad.pipelines.cluster.machines import alive_nodes
from faithad.pipelines.cluster.session import ray_session, usable_cores
from faithad.pipelines.plan.estimate import FORWARD, LAST, Plan, estimate
from faithad.pipelines.plan.sections import Cost, Counts, Group, Machines, Rates
from faithad.pipelines.search.plan import MODEL
from faithad.pipelines.search.records import read_records
from faithad.pipelines.search.run import search_study
from faithad.pipelines.shards.log_mels import add_log_mels, log_mels_of
from faithad.pipelines.study import STAGES
from faithad.progress import console
from faithad.runs import layout
from faithad.runs.tables import read_manifest
from faithad.scoring.trained_ensemble import AnyModel, load_any

# Of the command that is run on a demo mill. The first epoch warms up.
_EPOCHS, _MOST_TRAIN_CLIPS = 3, 64
_N_READ, _N_SCORED, _N_EXPLAINED = 8, 8, 3
# Given to the same share of the explained clips as has reference intervals among the planned ones.
_INTERVALS = [{"onset_s": 1.0, "offset_s": 2.0}, {"onset_s": 4.0, "offset_s": 7.0}]
_ELSEWHERE = (
    "Run `faithad plan --save-rates FILE` on a machine of the cluster, without RAY_ADDRESS; then give that file as "
    "--rates, and the cluster as --machines."
)
# Nothing is timed once more after so many seconds.
_ENOUGH_S = 1.0


def this_machine() -> Machines:
    """The machine that this runs on, with the cores that this process may use."""
    return Machines(groups=(Group(name="this machine", cpus=usable_cores(), gpus=torch.cuda.device_count()),))


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
        StudyError: Ray has several machines, or this one cannot hold what the configuration asks for.
    """
    here = this_machine()
    if not here.total("GPU") and (
        plan.of.audit.gpus_per_actor or (plan.command != "audit" and plan.train.gpus_per_worker)
    ):
        raise StudyError(f"The configuration asks for GPUs, and this machine has none. {_ELSEWHERE}")
    console.print("plan: measuring the rates of this machine, which takes a minute or two")
    if (load := os.getloadavg()[0]) > (cores := os.cpu_count() or 1) / 2:
        busy = f"other programs keep this machine busy (load {load:.0f} on {cores} cores): its times will be too long"
        console.print(f"plan: {busy}. Measure when it is idle, or give --rates")
    was_quiet, console.quiet = console.quiet, True  # what the trial says is of no interest
    started = time.monotonic()
    try:
        subprocess.run([sys.executable, "-c", "import faithad.cli, faithad.pipelines.study"], check=True)
        with tempfile.TemporaryDirectory(prefix="faithad-plan-") as folder, ray_session():
            if (n := len(alive_nodes())) > 1:
                raise StudyError(f"Rates are measured on one machine, and this Ray has {n}. {_ELSEWHERE}")
            fixed = {"start": time.monotonic() - started}
            return _measure(replace(plan, machines=here), manifest, folder, fixed)
    finally:
        console.quiet = was_quiet


def _measure(plan: Plan, manifest: pa.Table, folder: str, fixed: dict[str, float]) -> Rates:
    trial, took_s = _run_trial(plan, folder)
    root, machines, gpus = Path(folder, "out"), trial.machines, trial.of.audit.gpus_per_actor
    mill = read_manifest(str(root))
    trial = replace(trial, clips=count_clips(mill))
    some = manifest.take(list(range(0, manifest.num_rows, math.ceil(manifest.num_rows / _N_READ))))
    clips = ray.put(pa.concat_tables([some, mill.filter(pc.equal(mill["split"], "test"))]))
    share = 1.0 if plan.of.audit.explain == "annotated" else plan.clips.annotated / plan.clips.test
    n_annotated = math.ceil(_N_EXPLAINED * share)
    # A clip may end the process that reads it: then the task is tried again, until it leaves that clip out.
    task = ray.remote(_time_clips).options(num_cpus=1, num_gpus=gpus or None, max_retries=-1)
    n_tasks = max(1, int(machines.total("GPU") / gpus if gpus else machines.total("CPU")))
    values = ray.get([task.remote(trial, root, clips, n_annotated, f"{folder}/{k}") for k in range(n_tasks)])[0]
    if isinstance(trial.of, Study):
        values |= {"learn": _learning_s(trial, trial.of), "threads": trial.places.threads}
    sizes = Counter[str]()
    for file in root.rglob("*.*"):
        sizes[file.relative_to(root).parts[0]] += file.stat().st_size
    values["bytes"] = {
        "features": sizes[layout.FEATURES] / max(1, trial.n_features),
        "models": sizes[layout.BEST_MODEL] + sizes[layout.MODELS] / len(trial.runs),  # a search has no models/
        "report": sum(sizes[name] for name in (layout.REPORT, layout.SEARCH_REPORT, layout.SUMMARY)),
    }
    rates = Rates(measured=f"on {date.today()} on {machines} ({platform.machine()})", **values)
    expected_s = {stage.name: stage.seconds for stage in estimate(replace(trial, rates=rates))}
    if len(took_s) == 1:  # of one command that does all
        expected_s = dict.fromkeys(took_s, sum(expected_s.values()))
    beyond_s = {name: seconds - expected_s[name] for name, seconds in took_s.items()}
    return rates.model_copy(update={"fixed": fixed | beyond_s})


def _run_trial(plan: Plan, folder: str) -> tuple[Plan, dict[str, float]]:
    """Run the command with its root at `out` in a folder, on a mill that is made there.

    Returns:
        What was run, and the seconds of each stage: a search and an audit are one stage.
    """
    of, n_train, searches = plan.of, 4, plan.command == "search"
    changes: dict[str, Any] = {}
    stages: dict[str, Callable[[Any], object]] = {"audit": run_audit}
    if isinstance(of, Study):
        stages = {"search": search_study} if searches else dict(STAGES)
        # Whole batches, and so many trainings that all cores are as busy as they will be.
        n_train, at_once = min(_MOST_TRAIN_CLIPS, of.train.batch_size), plan.places.at_once
        ratios = of.search.mask_ratios[:at_once]
        cells = {
            "mask_ratios": ratios,
            "patches": of.search.patches[:1],
            "space": {},
            "algorithm": "grid",
            "scheduler": "none",
            "scores": (),
            "members": (),
        }
        data = {"train": ("train",), "test": ("test",), "annotations": "annotations.csv", "clip_s": of.data.clip_s}
        changes = {
            "root": f"{folder}/out",
            "seeds": of.seeds[: math.ceil(at_once / len(ratios if searches else of.models))],
            "data": Data(root=f"{folder}/mill", **data),
            "train": of.train.model_copy(update={"epochs": _EPOCHS, "schedule": "warm_restarts"}),
            "search": of.search.model_copy(update=cells),
        }
    else:
        changes = {"recordings": (f"{folder}/mill/test",), "out": f"{folder}/out", "annotations": None}
    if of.audit.explain not in ("all", "none"):  # of so few clips none may alarm
        changes["audit"] = of.audit.model_copy(update={"explain": "top:2"})
    recording_s = max(CLIP_S, 2 * plan.features.clip_s)
    synthesize(f"{folder}/mill", train_recordings=2 + n_train // 2, test_recordings=2, seed=0, recording_s=recording_s)
    trial = replace(plan, of=of.model_copy(update=changes))
    took_s = dict[str, float]()
    for stage, run in stages.items():
        started, name = time.monotonic(), LAST if stage in ("evaluate", "report") else stage
        run(trial.of)
        took_s[name] = took_s.get(name, 0.0) + time.monotonic() - started
    return trial, took_s


def _learning_s(trial: Plan, study: Study) -> dict[str, float]:
    """Seconds for a clip in one epoch, by model: of the fastest epoch, or of a search's fastest trial."""
    n = trial.clips.train + FORWARD * trial.clips.validation
    if trial.command == "search":
        return {MODEL: min(record.duration_s for record in read_records(study.root)) / _EPOCHS / n}
    tables = {model: layout.epochs(model, seed) for model, seed in trial.runs if not MODELS[model].fitted}
    epochs = {model: parquet.read_table(f"{study.root}/{table}") for model, table in tables.items()}
    return {model: min(table["duration_s"].to_pylist()) / n for model, table in epochs.items()}


def _time_clips(trial: Plan, root: Path, clips: pa.Table, n_annotated: int, folder: str) -> dict[str, Any]:
    """What one of Ray's processes does: read, score and explain clips on one thread, and write their tables.

    Args:
        trial: what was run on the tiny mill.
        root: of the trial, with a study's trained models.
        clips: rows of the manifest; the first that can be read are taken.
        n_annotated: how many of the explained ones get reference intervals.
        folder: for what is written.

    Returns:
        Fields of `Rates`.
    """
    torch.set_num_threads(1)
    of = trial.of
    read = functools.partial(add_log_mels, settings=trial.features, mark=f"{folder}/read.json")
    readable, _ = read(clips, run="plan")
    readable = readable.slice(0, _N_SCORED)
    log_mels = torch.from_numpy(log_mels_of(readable, trial.features).copy())
    rows = readable.drop_columns(["log_mel"]).to_pylist()
    for k, row in enumerate(rows):
        row |= {"annotated": k < n_annotated, "intervals": _INTERVALS if k < n_annotated else []}
    read_s = _least_s(lambda: read(clips, run="plan"))
    rates: dict[str, Any] = {"read": read_s / clips.num_rows, "score": {}, "explain": {}}
    if trial.features.reference == "recording":  # a run reads the spectrum of a recording once, and then knows it
        own, runs = clips.slice(0, _N_READ // 2), itertools.count()  # those of the tiny mill are short, and come last
        again_s, first_s = _least_s(lambda: read(own, run="plan")), _least_s(lambda: read(own, run=f"{next(runs)}"))
        rates["spectrum"] = max(0.0, first_s - again_s) / len(pc.unique(own["uri"]))
    for model, seed in {} if trial.command == "search" else dict(trial.runs).items():
        trained = load_any(str(root / layout.model(model, seed)) if isinstance(of, Study) else of.model)
        device = torch.device("cuda" if of.audit.gpus_per_actor else "cpu")
        prepared = prepare_audit(
            trained,
            attribution=of.attribution,
            audit=of.audit,
            device=device,
            beside_paper=isinstance(of, Study),
            **_judged(trial, trained, seed, root),
        )
        rates["score"][model] = _cost(prepared, rows, log_mels, explain=False, folder=folder)
        if trained.explained and of.audit.explain != "none":
            cost = _cost(prepared, rows[:_N_EXPLAINED], log_mels, explain=True, folder=folder)
            rates["explain"][model] = cost.model_copy(update=_checks_s(trial, prepared, rows[:1], log_mels))
    return rates


def _judged(trial: Plan, trained: AnyModel, seed: int, root: Path) -> dict[str, Any]:
    """How a model's maps are judged, and the models that a study takes for that."""
    of = trial.of
    if not isinstance(of, Study):
        return {"judging": of.judging}
    beside = {name: load_model(str(root / layout.model(*run))) for name, run in of.beside(trained.name, seed).items()}
    # What they are does not change what they cost.
    return {"judging": of.judging, "training": Normalization.identity(trained.n_mels), **beside}


def _checks_s(
    trial: Plan, model: AuditModel | AuditEnsemble, rows: list[TableRow], log_mels: torch.Tensor
) -> dict[str, float]:
    """What the checks of a clip take beyond its explanation, as fields of `Cost`."""
    if not isinstance(trial.of, Study):
        return {}

    def seconds(**marks: bool) -> float:
        clips = [{**row, "keep_maps": False, **marks} for row in rows]
        return _least_s(lambda: audit_clips(model, clips, log_mels[:1], explain=True))

    checks = trial.of.checks(trial.of.seeds[0])
    explained_s = seconds() if checks.deep else 0.0
    deep_s = seconds(deep=True) if checks.deep else explained_s
    sanity_s = seconds(deep=True, sanity=True) if checks.sanity else deep_s
    return {"deep_s": max(0.0, deep_s - explained_s), "sanity_s": max(0.0, sanity_s - deep_s)}


def _cost(
    model: AuditModel | AuditEnsemble, rows: list[TableRow], log_mels: torch.Tensor, *, explain: bool, folder: str
) -> Cost:
    """By a shard of one clip, and one of all; and one of one clip whose maps are kept."""
    table_schema = table_schemas(model.trained)

    def shard(n: int, *, keep_maps: bool = False) -> int:
        """Audit so many clips and write their tables. Returns the bytes that were written."""
        clips, n_bytes = [{**row, "keep_maps": keep_maps} for row in rows[:n]], 0
        for name, table_rows in audit_clips(model, clips, log_mels[:n], explain=explain).items():
            if table_rows:
                file, schema = f"{folder}/{name}.parquet", table_schema[name]
                parquet.write_table(to_table(table_rows, schema), file, schema=schema)
                n_bytes += Path(file).stat().st_size
        return n_bytes

    n = len(rows)
    one_bytes, all_bytes, map_bytes = shard(1), shard(n), shard(1, keep_maps=True)  # these also warm up
    one_s, all_s = _least_s(lambda: shard(1)), _least_s(lambda: shard(n))
    clip_s, clip_bytes = max(0.0, all_s - one_s) / (n - 1), max(0.0, all_bytes - one_bytes) / (n - 1)
    return Cost(
        clip_s=clip_s,
        shard_s=max(0.0, one_s - clip_s),
        clip_bytes=clip_bytes,
        shard_bytes=one_bytes - clip_bytes,
        maps_bytes=map_bytes - one_bytes,
    )


def _least_s(do: Callable[[], object]) -> float:
    """The least of up to five times, of fewer where it takes long: whatever comes between can only add to it."""
    took: list[float] = []
    while not took or (len(took) < 5 and sum(took) < _ENOUGH_S):
        started = time.perf_counter()
        do()
        took.append(time.perf_counter() - started)
    return min(took)
