"""A trial run for a plan: the configuration's own stages, whole, on a few clips of a demo mill, in a folder aside."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from faithad import storage
from faithad.audit.ledger import merge_ledgers
from faithad.config.audit import AuditRun
from faithad.config.data import Data
from faithad.config.study import Study
from faithad.demo.mill import CLIP_S, DEMO_START, synthesize
from faithad.pipelines.audit.run import run_audit
from faithad.pipelines.evaluate import evaluate
from faithad.pipelines.plan.clips import count_manifest
from faithad.pipelines.plan.estimate import Case, estimate
from faithad.pipelines.plan.machines import Machines
from faithad.pipelines.plan.rates import Rates
from faithad.pipelines.study import STAGES
from faithad.report.audit_page import render_audit_report
from faithad.runs import layout
from faithad.runs.stages import Stage
from faithad.runs.tables import read_manifest, read_shards, shard_files

# Of each split; the shortest from which a validation clip can be held out, with room for disturbances.
_RECORDINGS, _CLIPS_EACH = 2, 2
_EXPLAINED = 2
_DEMO_RECORDING_S = 60.0
# How many times as long as the trial's the tables are that are gathered.
_LONGER = 100


@dataclass(frozen=True)
class TrialRun:
    """What was run, and what it came to.

    Attributes:
        of: the configuration of the trial.
        walls_s: seconds of each stage.
        synth_s: core seconds that a minute of the demo mill takes.
        models: folders of the trained models.
    """

    of: Study | AuditRun
    walls_s: dict[str, float]
    synth_s: float
    models: dict[str, str]

    @property
    def root(self) -> str:
        return self.of.root if isinstance(self.of, Study) else self.of.out

    @property
    def manifest(self) -> pa.Table:
        return read_manifest(self.root)


def try_study(study: Study, folder: Path) -> TrialRun:
    """Run all stages of a study with one epoch and one seed."""
    mill, synth_s = _mill(folder, study.data.clip_s)
    tried = study.model_copy(
        update={
            "root": str(folder / "study"),
            "seeds": study.seeds[:1],
            "data": Data(
                root=str(mill),
                train=("train",),
                test=("test",),
                annotations="annotations.csv",
                clip_s=study.data.clip_s,
            ),
            "train": study.train.model_copy(
                update={"epochs": 1, "schedule": "warm_restarts", "workers": min(2, study.train.workers)}
            ),
            "audit": study.audit.model_copy(update=_few(study.audit.explain)),
        }
    )
    walls_s = {}
    for name, stage in STAGES.items():
        started = time.monotonic()
        stage(tried)
        walls_s[name] = time.monotonic() - started
    models = {model: storage.join(tried.root, layout.model(model, seed)) for model, seed in tried.runs}
    return TrialRun(tried, walls_s, synth_s, models)


def try_audit(run: AuditRun, folder: Path, *, model: str, clip_s: float) -> TrialRun:
    """Run an audit; `model` is the name of what it audits with."""
    mill, synth_s = _mill(folder, clip_s)
    tried = run.model_copy(
        update={
            "recordings": (str(mill / "test"),),
            "out": str(folder / "out"),
            "annotations": None,
            "audit": run.audit.model_copy(update=_few(run.audit.explain)),
        }
    )
    started = time.monotonic()
    run_audit(tried)
    return TrialRun(tried, {"audit": time.monotonic() - started}, synth_s, {model: run.model})


def conclude_s(trial: TrialRun) -> float:
    """Seconds that ledgers and tables take for each clip of each model, told by tables that are many times as long."""
    started = time.monotonic()
    _conclude(trial)
    before_s = time.monotonic() - started
    folders = [f"audit/{model}-{seed}/" for model, seed in trial.of.runs] if isinstance(trial.of, Study) else [""]
    for folder in folders:
        for name in ("scores", "ledger", "localization", "faithfulness", "explained"):
            _lengthen(storage.join(trial.root, f"{folder}{name}"))
    manifest = trial.manifest
    longer = pa.concat_tables([manifest, *_copies(manifest)])
    storage.write_table(longer, storage.join(trial.root, layout.MANIFEST), schema=manifest.schema)
    started = time.monotonic()
    _conclude(trial)
    after_s = time.monotonic() - started
    n_more = _LONGER * int(pc.sum(pc.equal(manifest["split"], "test")).as_py())
    return max(0.0, after_s - before_s) / (n_more * len(folders))


def fixed_stages(trial: TrialRun, rates: Rates, machines: Machines) -> dict[str, float]:
    """What the trial's stages took beyond what the rates say of its clips; the processes were there before it."""
    of, there = trial.of, rates.fixed.model_copy(update={"process": 0.0})
    rates = rates.model_copy(update={"fixed": there})
    runs = tuple(of.runs) if isinstance(of, Study) else tuple((model, 0) for model in trial.models)
    clips = count_manifest(trial.manifest, source="the trial")
    planned = estimate(Case(of, runs, alarm_rate=0.0, clips=clips, machines=machines, rates=rates))
    expected_s = {stage.name: stage.wall_s or 0.0 for stage in planned}
    if isinstance(of, Study):
        return {name: wall_s - expected_s.get(name, 0.0) for name, wall_s in trial.walls_s.items()}
    return {"audit": trial.walls_s["audit"] - expected_s["audit"] - expected_s["index"]}


def _mill(folder: Path, clip_s: float) -> tuple[Path, float]:
    recording_s = max(CLIP_S, min(3600.0, _CLIPS_EACH * clip_s))
    started = time.monotonic()
    synthesize(
        folder / "mill",
        train_recordings=_RECORDINGS,
        test_recordings=_RECORDINGS,
        seed=0,
        start=DEMO_START,
        recording_s=recording_s,
    )
    made_s = 2 * _RECORDINGS * recording_s
    return folder / "mill", (time.monotonic() - started) / made_s * _DEMO_RECORDING_S


def _few(explain: str) -> dict[str, object]:
    """Of so few clips none may alarm, and then nothing would be explained."""
    few = explain if explain in ("all", "none") else f"top:{_EXPLAINED}"
    return {"explain": few}


def _conclude(trial: TrialRun) -> None:
    if isinstance(trial.of, Study):
        evaluate(trial.of, trial.manifest, Stage(trial.root, "gathered", {}, (), result="-"), redo=True)
    else:
        merge_ledgers(trial.root, trial.manifest, [trial.root])
        render_audit_report(trial.root)


def _lengthen(folder: str) -> None:
    """Add copies of a table's rows, which differ in their clips' ids."""
    if not shard_files(folder):
        return
    table = pa.concat_tables(list(read_shards(folder)))
    storage.write_table(
        pa.concat_tables(_copies(table)), storage.join(folder, layout.shard(99_999)), schema=table.schema
    )


def _copies(table: pa.Table) -> list[pa.Table]:
    position = table.schema.get_field_index("clip_id")
    ids = table["clip_id"].to_pylist()
    return [
        table.set_column(position, table.schema.field(position), pa.array([f"{name}-{copy}" for name in ids]))
        for copy in range(_LONGER)
    ]
