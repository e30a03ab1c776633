"""Measures the rates of a configuration on this machine, on the Ray that a study would run on.

1. The command is run on a few clips of a demo mill, for a few epochs, in a temporary folder. What it takes beyond the
   rates of these clips does not depend on how many there are: `Rates.fixed`.
2. On all cores (or GPUs) at the same time, tasks read, score and explain some of the configuration's own clips. The
   shards that they write give the bytes.
"""

from __future__ import annotations

import functools
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch

from faithad import schemas, storage
from faithad.audit.steps import EXPLAIN, SCORE
from faithad.clips.ledger import ledger_table
from faithad.config.audit import AuditRun
from faithad.config.study import Study
from faithad.errors import StudyError
from faithad.model.table import MODELS
from faithad.pipelines.audit.worker import Auditor, ModelAudit, ShardedPass
from faithad.pipelines.cluster.machines import alive_nodes
from faithad.pipelines.cluster.session import ray_session
from faithad.pipelines.plan.counts import Counts, count_manifest
from faithad.pipelines.plan.estimate import Case, Subject, work
from faithad.pipelines.plan.machines import Machines, this_machine
from faithad.pipelines.plan.rates import Rates, Speed, TableBytes, rate_settings
from faithad.pipelines.plan.trial import run_trial, training_speed
from faithad.pipelines.shards.log_mels import add_log_mels
from faithad.pipelines.shards.stream import to_bytes
from faithad.progress import console
from faithad.runs import layout
from faithad.runs.tables import read_manifest

# Shards that are timed, by name: what is done, to how many clips at most, and whether whole maps are kept. An explained
# model's first one warms up.
_N_SCORED, _N_EXPLAINED = 8, 3
_SHARDS = {
    "explain map": (EXPLAIN, 1, True),
    "explain one": (EXPLAIN, 1, False),
    "explain few": (EXPLAIN, _N_EXPLAINED, False),
    "score one": (SCORE, 1, False),
    "score few": (SCORE, _N_SCORED, False),
}
# Given to the same share of the explained clips as has reference intervals among the planned ones.
_INTERVALS = [{"onset_s": 1.0, "offset_s": 2.0}, {"onset_s": 4.0, "offset_s": 7.0}]
# Nothing is timed once more after so many seconds.
_ENOUGH_S = 2.0


def measure(subject: Subject, clips: Counts | None, sample: pa.Table) -> Rates:
    """Measure the rates of a configuration on this machine, which takes a minute or two.

    Args:
        subject: what is planned.
        clips: how many there are, None where that is not known.
        sample: some of them as rows of the manifest, as far as their recordings are there.

    Raises:
        StudyError: Ray has several machines, or this one cannot hold what the configuration asks for.
    """
    load, cores, here = os.getloadavg()[0], os.cpu_count() or 1, this_machine()
    console.print("plan: measuring the rates of this machine, which takes a minute or two")
    if load > cores / 2:
        busy = f"other programs keep this machine busy (load {load:.0f} on {cores} cores): its times will be too long"
        console.print(f"plan: {busy}. Measure when it is idle, or give --rates")
    subject = subject if here.gpus else replace(subject, of=_without_gpus(subject.of))
    was_quiet, console.quiet = console.quiet, True  # what the trial says is of no interest
    started = time.monotonic()
    try:
        subprocess.run([sys.executable, "-c", "import faithad.cli, faithad.pipelines.study"], check=True)
        with tempfile.TemporaryDirectory(prefix="faithad-plan-") as folder, ray_session():
            return _measure(subject, clips, sample, here, folder, start_s=time.monotonic() - started)
    finally:
        console.quiet = was_quiet


def _measure(
    subject: Subject, clips: Counts | None, sample: pa.Table, here: Machines, folder: str, *, start_s: float
) -> Rates:
    if (n := len(alive_nodes())) > 1:
        raise StudyError(
            f"Rates are measured on one machine, and this Ray has {n}. Plan on one of them without RAY_ADDRESS and "
            "with --save-rates; give that file as --rates, the cluster as --machines."
        )
    trial, took_s = run_trial(subject, here, folder)
    root, gpus = f"{folder}/out", trial.of.audit.gpus_per_actor
    manifest = read_manifest(root)
    counts = count_manifest(manifest, source="the trial")
    # A clip may end the process that reads it: then the task is tried again, until it leaves that clip out.
    task = ray.remote(time_clips).options(num_cpus=1, num_gpus=gpus or None, max_retries=-1)
    clips_ref = ray.put(pa.concat_tables([sample, manifest.filter(pc.equal(manifest["split"], "test"))]))
    share = clips.annotated / clips.test if clips else 1.0
    n_tasks = max(1, int(here.gpus / gpus if gpus else here.cpus))
    tasks = [task.remote(trial, root, clips_ref, share, f"{folder}/timed-{k}") for k in range(n_tasks)]
    read_s, speed, tables = ray.get(tasks)[0]
    speeds: dict[bool, dict[str, Any]] = {False: {}, True: {}}  # of a core, of a GPU
    speeds[gpus > 0] |= speed
    if isinstance(trial.of, Study):
        speeds[trial.train.gpus_per_worker > 0] |= training_speed(trial, trial.of, counts, here)
    report = _size(root, layout.REPORT, layout.SUMMARY, layout.SEARCH_REPORT)
    rates = Rates(
        measured=f"on {date.today()} on one machine ({here.groups[0].equipment}, {platform.machine()})",
        settings=rate_settings(subject.of, subject.features),
        read=read_s,
        cpu=Speed(**speeds[False]),
        gpu=Speed(**speeds[True]) if speeds[True] else None,
        bytes=tables | {"report": report, "models": _size(root, "models", n=len(trial.runs))},
    )
    case = Case(**vars(trial), clips=counts, machines=here, rates=rates)
    expected_s = {stage.name: stage.seconds or 0.0 for stage in work(case)}
    if len(took_s) == 1:  # of one command that does all
        expected_s = dict.fromkeys(took_s, sum(expected_s.values()))
    fixed = {"start": start_s} | {name: seconds - expected_s[name] for name, seconds in took_s.items()}
    return rates.model_copy(update={"fixed": fixed})


def _size(root: str, *names: str, n: int = 1) -> TableBytes:
    """One nth of some files and folders."""
    sizes = [n_bytes for name in names for _, n_bytes in storage.sizes(f"{root}/{name}", suffixes=[""])]
    return TableBytes(file=sum(sizes) / n)


def _without_gpus(of: Study | AuditRun) -> Study | AuditRun:
    """The same on cores, where there is no GPU to measure."""
    changed: dict[str, Any] = {
        "audit": of.audit.model_copy(update={"gpus_per_actor": 0.0}),
        "attribution": of.attribution.model_copy(update={"compile": "none"}),
    }
    if isinstance(of, Study):
        changed["train"] = of.train.model_copy(update={"gpus_per_worker": 0.0})
        changed["search"] = of.search.model_copy(update={"gpus_per_trial": 0.0})
    return of.model_copy(update=changed)


def time_clips(
    trial: Subject, root: str, clips: pa.Table, annotated_share: float, folder: str
) -> tuple[float, dict[str, Any], dict[str, TableBytes]]:
    """What one of Ray's processes does: read, score and explain clips on one thread.

    Args:
        trial: what was run on the tiny mill.
        root: of the trial, with a study's trained models.
        clips: rows of the manifest; the first that can be read are taken.
        annotated_share: how many of the explained ones get reference intervals.
        folder: for what is written.

    Returns:
        Seconds to read a clip, fields of `Speed`, and the bytes of the tables.
    """
    of, features = trial.of, trial.features
    share = min(1.0, of.audit.gpus_per_actor or 1.0)  # rates are of a whole GPU
    torch.set_num_threads(1)

    def read(some: pa.Table) -> pa.Table:
        # A mark of its own for each part: if reading a later one ends the process, the next process reads all again.
        return add_log_mels(some, features, mark=f"{folder}/{some['clip_id'][0]}.json", run="plan")[0]

    clips = readable_clips(clips, read)
    read_s = _seconds(lambda: read(clips.drop_columns(["log_mel"]))) / clips.num_rows
    for name, part in (("score one", clips.slice(0, 1)), ("score few", clips)):
        for table, columns in ((layout.FEATURES, ["clip_id", "log_mel"]), ("manifest", schemas.MANIFEST.names)):
            rows = part.select(columns)
            storage.write_table(rows, f"{folder}/{name}/{table}/{layout.shard(0)}", schema=rows.schema)
    clips = _annotated(clips, math.ceil(annotated_share * _N_EXPLAINED))
    speed: dict[str, Any] = {"score": {}, "explain": {}}
    n_scored, n_explained = clips.num_rows, min(clips.num_rows, _N_EXPLAINED)
    for model, seed in [] if trial.searches else dict(trial.runs).items():
        place = f"{root}/{layout.model(model, seed)}" if isinstance(of, Study) else of.model
        shards = {name: shard for name, shard in _SHARDS.items() if MODELS[model].explained or shard[0] == SCORE}
        passes = [
            ShardedPass(ModelAudit(place, f"{folder}/{name}", None), step, None, n)
            for name, (step, n, _) in shards.items()
        ]
        auditor = Auditor(passes, of.attribution, of.audit, features, threads=1, run="plan")
        took_s = {}
        for k, (name, (_, n, keep_maps)) in enumerate(shards.items()):
            part = clips.slice(0, n)
            part = part.append_column("keep_maps", pa.array([keep_maps] * part.num_rows))
            row = {"pass": k, "shard": 0, "clips": to_bytes(part), "failed": to_bytes(ledger_table([]))}
            took_s[name] = share * _seconds(functools.partial(auditor, row))
        further_s = max(0.0, took_s["score few"] - took_s["score one"])
        speed["score"][model] = score_s = further_s / (n_scored - 1) if n_scored > 1 else took_s["score one"]
        speed["shard"] = shard_s = max(0.0, took_s["score one"] - score_s)
        if "explain few" in took_s:
            speed["explain"][model] = max(0.0, took_s["explain few"] - shard_s) / n_explained
    scored = ("manifest", layout.FEATURES, layout.SCORES, SCORE.ledger)
    tables = {table: _table_bytes(folder, table, "score") for table in scored}
    return read_s, speed, tables | {table: _table_bytes(folder, table, "explain") for table in layout.EXPLANATIONS}


def readable_clips(clips: pa.Table, read: Callable[[pa.Table], pa.Table]) -> pa.Table:
    """The first clips that can be read, as many as are scored; no more are read than that takes."""
    parts: list[pa.Table] = []
    n_wanted = _N_SCORED
    while n_wanted and clips.num_rows:
        part, clips = clips.slice(0, n_wanted), clips.slice(n_wanted)
        parts.append(read(part))
        n_wanted -= parts[-1].num_rows
    return pa.concat_tables(parts)


def _seconds(do: Callable[[], object]) -> float:
    """The least of up to five times, of fewer where it takes long: whatever comes between can only add to it."""
    took: list[float] = []
    while not took or (len(took) < 5 and sum(took) < _ENOUGH_S):
        started = time.perf_counter()
        do()
        took.append(time.perf_counter() - started)
    return min(took)


def _annotated(clips: pa.Table, n: int) -> pa.Table:
    """The clips, of which the first n have reference intervals."""
    rows = clips.drop_columns(["log_mel"]).to_pylist()
    marked = [row | {"annotated": k < n, "intervals": _INTERVALS if k < n else []} for k, row in enumerate(rows)]
    return pa.Table.from_pylist(marked, schema=schemas.MANIFEST).append_column("log_mel", clips["log_mel"])


def _table_bytes(folder: str, table: str, step: str) -> TableBytes:
    """What a file of a table takes, by a shard of one clip, one of a few, and one with whole maps."""

    def shard(name: str) -> tuple[int, int]:
        place = f"{folder}/{step} {name}/{table}"
        if not (files := storage.sizes(place, suffixes=[".parquet"])):
            return 0, 0
        return len(pc.unique(storage.read_table(place, columns=["clip_id"])["clip_id"])), files[0][1]

    (one, one_bytes), (few, few_bytes), (_, map_bytes) = map(shard, ("one", "few", "map"))
    clip_bytes = (few_bytes - one_bytes) / (few - one) if few > one else 0.0
    return TableBytes(file=one_bytes - one * clip_bytes, clip=clip_bytes, maps=max(0.0, map_bytes - one_bytes))
