"""What the tests of audits share: an audit of little cost, and its tables."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from faithad import parquet, storage
from faithad.config.audit import AuditRun, load_audit_run
from faithad.config.study import Study

SETTINGS = {
    "attribution": {"methods": ["error_map", "saliency"]},
    "audit": {"percentiles": [90, 95], "maps": 1},
}
RATE = 20_000
# Clips of the recordings of `week`: those of the mill, of the long one, of the noise and of the short one.
WEEK_CLIPS = 8 + 64 + 3 + 1


def make_run(finished: Study, recordings: Path, out: Path, *changes: str, model: str = "mae-0") -> AuditRun:
    """An audit with a model of the finished study."""
    overrides = [f"{section}.{key}={value}" for section, values in SETTINGS.items() for key, value in values.items()]
    return load_audit_run(
        None,
        model=f"{finished.root}/models/{model}",
        recordings=[str(recordings)],
        out=str(out),
        overrides=[*overrides, *changes],
    )


def table(out: Path | str, name: str) -> pd.DataFrame:
    return parquet.read_table(storage.join(str(out), name)).to_pandas()
