"""The command itself, run on a few clips of a demo mill for a few epochs, in a folder aside."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from faithad import storage
from faithad.config.data import Data
from faithad.config.study import Study
from faithad.demo.mill import CLIP_S, synthesize
from faithad.model.table import MODELS
from faithad.pipelines.audit.run import run_audit
from faithad.pipelines.plan.counts import Counts
from faithad.pipelines.plan.estimate import FORWARD, LAST, Subject
from faithad.pipelines.plan.machines import Machines
from faithad.pipelines.search.plan import MODEL, read_records
from faithad.pipelines.search.run import search_study
from faithad.pipelines.study import STAGES
from faithad.pipelines.training.places import divide
from faithad.runs import layout

# The first epoch warms up.
_EPOCHS, _MOST_TRAIN_CLIPS = 3, 64


def run_trial(subject: Subject, here: Machines, folder: str) -> tuple[Subject, dict[str, float]]:
    """Run the command with its root at `out` in a folder, on a mill that is made there.

    Returns:
        What was run, and the seconds of each stage: a search and an audit are one stage.
    """
    of, n_train, audit = subject.of, 4, subject.of.audit
    if audit.explain not in ("all", "none"):  # of so few clips none may alarm
        audit = audit.model_copy(update={"explain": "top:2"})
    changes: dict[str, Any] = {"audit": audit}
    stages: Mapping[str, Callable[[Any], object]]
    if isinstance(of, Study):
        stages = {"search": search_study} if subject.searches else STAGES
        # Whole batches, and so many trainings that all cores are as busy as they will be.
        n_train = min(_MOST_TRAIN_CLIPS, of.train.batch_size)
        at_once = divide(here.nodes, subject.train, len(subject.runs)).at_once
        cells = {"mask_ratios": of.search.mask_ratios[:at_once], "patches": of.search.patches[:1]}
        n_seeds = math.ceil(at_once / len(cells["mask_ratios"] if subject.searches else of.models))
        data = {"train": ("train",), "test": ("test",), "annotations": "annotations.csv", "clip_s": of.data.clip_s}
        changes |= {
            "root": f"{folder}/out",
            "seeds": of.seeds[:n_seeds],
            "data": Data(root=f"{folder}/mill", **data),
            "train": of.train.model_copy(update={"epochs": _EPOCHS, "schedule": "warm_restarts"}),
            "search": of.search.model_copy(update={"algorithm": "grid", "scheduler": "none", **cells}),
        }
    else:
        stages = {"audit": run_audit}
        changes |= {"recordings": (f"{folder}/mill/test",), "out": f"{folder}/out", "annotations": None}
    clips_s = max(CLIP_S, 2 * subject.features.clip_s)
    synthesize(f"{folder}/mill", train_recordings=2 + n_train // 2, test_recordings=2, seed=0, recording_s=clips_s)
    tried = of.model_copy(update=changes)
    took_s: dict[str, float] = {}
    for stage, run in stages.items():
        started = time.monotonic()
        run(tried)
        name = LAST if stage in ("evaluate", "report") else stage
        took_s[name] = took_s.get(name, 0.0) + time.monotonic() - started
    return replace(subject, of=tried), took_s


def training_speed(trial: Subject, study: Study, clips: Counts, here: Machines) -> dict[str, Any]:
    """Fields of `Speed`, by the epochs of a trial's trainings."""
    if trial.searches:
        epochs_s = {MODEL: min(record.duration_s for record in read_records(study.root)) / _EPOCHS}
    else:
        networks = {model: seed for model, seed in trial.runs if not MODELS[model].fitted}
        tables = {
            model: storage.read_table(f"{study.root}/{layout.epochs(model, seed)}") for model, seed in networks.items()
        }
        epochs_s = {model: min(table["duration_s"].to_pylist()) for model, table in tables.items()}
    clip = study.train.workers * min(1.0, trial.train.gpus_per_worker or 1.0)
    clip /= clips.train + FORWARD * clips.validation
    threads = divide(here.nodes, trial.train, len(trial.runs)).threads
    return {"learn": {model: seconds * clip for model, seconds in epochs_s.items()}, "threads": threads}
