"""What the chaos tests of audits share: a mill of a few hundred clips, a small model, and the comparison of results.

N and seed come from the environment: FAITHAD_KILLS (20), FAITHAD_CHAOS_SEED (0).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from faithad.demo.mill import synthesize

FAITHAD = Path(sys.executable).parent / "faithad"
N_KILLS = int(os.environ.get("FAITHAD_KILLS", "20"))
SEED = int(os.environ.get("FAITHAD_CHAOS_SEED", "0"))

# 16 mel bands by some 100 frames, as in the integration tests: the same code on a fiftieth of the cells.
STUDY: dict[str, Any] = {
    "name": "chaos",
    "models": ["mae"],
    "seeds": [0],
    "features": {"n_fft": 4000, "hop_samples": 2000, "n_mels": 16, "normalization": "training"},
    "train": {"epochs": 1},
}
ATTRIBUTION = {"smooth_grad_samples": 3, "integrated_gradients_steps": 4, "gradient_shap_samples": 3}
MINUTES = 60
CLIPS = 6 * MINUTES
CLIPS_PER_SHARD = 4


def make_mill(folder: Path) -> Path:
    """`train/` and `test/` of a planer, with an annotation table; an hour to audit."""
    synthesize(
        folder, train_recordings=8, test_recordings=MINUTES, seed=5, start=datetime(2019, 12, 4, 8, 0), workers=2
    )
    return folder


def train_model(mill: Path, root: Path) -> Path:
    """The small model, trained for an epoch; its folder."""
    data = {"root": str(mill), "train": ["train"], "test": ["test"], "annotations": "annotations.csv"}
    config = root.with_suffix(".yaml")
    config.write_text(yaml.safe_dump({**STUDY, "root": str(root), "data": data}))
    for stage in ("index", "train"):
        subprocess.run([FAITHAD, stage, "--config", config], check=True, timeout=300, stdout=subprocess.DEVNULL)
    return root / "models" / "mae-0"


def audit_values(mill: Path, model: Path, out: Path, **audit: Any) -> dict[str, Any]:
    """A configuration that fills every table: all clips are explained, some maps are kept, all is annotated."""
    return {
        "model": str(model),
        "recordings": [str(mill / "test")],
        "out": str(out),
        "annotations": str(mill / "annotations.csv"),
        "attribution": ATTRIBUTION,
        "audit": {"explain": "all", "maps": 12, "clips_per_shard": CLIPS_PER_SHARD, **audit},
        # So that there are events, whatever one epoch has taught the model.
        "alarm": {"false_alarm_rate": 0.3},
    }


def published(out: Path) -> list[Path]:
    """The files that a reader of the results sees at this moment: an audit's progress, seen from outside."""
    return [
        Path(folder, name)
        for folder, _, names in os.walk(out)  # which does not mind folders that have just gone
        for name in names
        if not name.startswith(".") and name != "driver.json" and os.path.basename(folder) != "attempts"
    ]


def tables(out: Path) -> dict[str, Path]:
    """Every table of an audit: its name, and its file or its folder of shards."""
    found = {path.stem: path for path in out.glob("*.parquet")}
    found |= {path.parent.name: path.parent for path in out.glob("*/part-*.parquet")}
    return found


def rows(table: Path) -> Counter[str]:
    """A table as a bag of rows, to the last bit: `repr` of a float is exact."""
    files = sorted(table.glob("part-*.parquet")) if table.is_dir() else [table]
    return Counter(repr(sorted(row.items())) for file in files for row in pq.read_table(file).to_pylist())


def differences(found: Path, expected: Path) -> list[str]:
    """What differs between the results of two audits: one line for each table, none where all rows are equal."""
    here, there = tables(found), tables(expected)
    problems = [f"{name} is in one of the two only" for name in sorted(set(here) ^ set(there))]
    for name in sorted(set(here) & set(there)):
        ours, theirs = rows(here[name]), rows(there[name])
        if ours != theirs:
            extra, missing = ours - theirs, theirs - ours
            example = next(iter(extra or missing))[:300]
            problems.append(
                f"{name}: {extra.total()} rows that should not be there, {missing.total()} missing, "
                f"{ours.total()} for {theirs.total()}, such as {example}"
            )
    return problems
