"""What the report reads of a study's root, as pandas frames; nothing is loaded that is not drawn.

How shards are read stands in `shards`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa

from faithad import schemas, storage
from faithad.errors import StudyError
from faithad.report.settings import look_up, read_settings
from faithad.report.shards import Example, clip_ids, columns_of, each, examples
from faithad.runs import layout
from faithad.runs.formats import require_readable
from faithad.runs.tables import read_manifest

MAX_EXAMPLES = 4

_MANIFEST_COLUMNS = [name for name in schemas.MANIFEST.names if name != "uri"]
_SCORE_COLUMNS = ["clip_id", "model", "seed", "score", "worst_second_score", "threshold", "alarm"]

_Shards = dict[tuple[str, str], list[str]]


@dataclass(frozen=True)
class StudyTables:
    """A finished study. `scores` carries the manifest's columns of each clip beside its own.

    `flat_curves` has one row per (model, method): how many of its `n_curves` were flagged `degenerate`.
    """

    settings: dict[str, Any]
    settings_text: str
    manifest: pd.DataFrame
    ledger: pd.DataFrame
    epochs: pd.DataFrame
    scores: pd.DataFrame
    detection: pd.DataFrame
    f_score: pd.DataFrame
    faithfulness: pd.DataFrame
    flat_curves: pd.DataFrame
    examples: list[Example]

    def setting(self, key: str) -> Any:
        """The value at a dotted key of the resolved configuration, or None."""
        return look_up(self.settings, key)


def read_study(root: str) -> StudyTables:
    """Read everything that the report shows.

    Args:
        root: the study's root, a local path or a URI.

    Raises:
        StudyError: a stage has not run yet (its name is in the text), `study.yaml` is no YAML mapping, or a newer
            faithad made the tables.
    """
    require_readable(root)
    text, settings = _read_settings(root)
    if not storage.exists(storage.join(root, layout.MANIFEST)):
        raise _not_run_yet(root, "index")
    manifest = read_manifest(root).select(_MANIFEST_COLUMNS).to_pandas()
    epoch_files, shards = _epoch_files(root), _audit_shards(root)
    runs = sorted({run for run, table in shards if table == "scores"}, key=_run_order)
    if not runs:
        raise _not_run_yet(root, "audit" if epoch_files else "train")
    score_files = [file for run in runs for file in shards[run, "scores"]]
    scores = columns_of(score_files, _SCORE_COLUMNS, schemas.SCORES).to_pandas()
    scores = scores.merge(manifest, on="clip_id", how="left", validate="many_to_one")
    protocol = settings.get("protocol")
    test = manifest[manifest["split"] == "test"]
    return StudyTables(
        settings=settings,
        settings_text=text,
        manifest=manifest,
        ledger=_read(root, "summary/ledger.parquet", schemas.LEDGER, stage="evaluate"),
        epochs=columns_of(epoch_files, schemas.EPOCHS.names, schemas.EPOCHS).to_pandas(),
        scores=scores,
        detection=_summary(root, "detection", schemas.DETECTION_SUMMARY, protocol, needed=test["label"].nunique() == 2),
        f_score=_summary(root, "f_score", schemas.F_SCORE_SUMMARY, protocol, needed=bool(test["annotated"].any())),
        faithfulness=_summary(root, "faithfulness", schemas.FAITHFULNESS_SUMMARY, protocol, needed=True),
        flat_curves=_flat_curves([file for run in runs for file in shards[run, "attributions"]]),
        examples=_read_examples(shards, runs, manifest),
    )


def _read_settings(root: str) -> tuple[str, dict[str, Any]]:
    location = storage.join(root, layout.STUDY)
    if not storage.exists(location):
        raise StudyError(f"There is no study at {root}: no study.yaml. Check the root, or run `faithad index` first.")
    return read_settings(location)


def _not_run_yet(root: str, stage: str) -> StudyError:
    return StudyError(f"The stage `{stage}` has not finished for the study at {root}. Run `faithad {stage}` first.")


def _read(
    root: str, path: str, schema: pa.Schema, *, stage: str, needed: bool = True, columns: list[str] | None = None
) -> pd.DataFrame:
    location = storage.join(root, path)
    if storage.exists(location):
        return storage.read_table(location, columns=columns).to_pandas()
    if needed:
        raise _not_run_yet(root, stage)
    return schema.empty_table().to_pandas()


def _summary(root: str, name: str, schema: pa.Schema, protocol: Any, *, needed: bool) -> pd.DataFrame:
    """The rows of the study's own protocol; rows without a value (nothing to average) are left out."""
    table = _read(root, f"summary/{name}.parquet", schema, stage="evaluate", needed=needed)
    if protocol in set(table["protocol"]):
        table = table[table["protocol"] == protocol]
    return table[table["mean"].notna()].reset_index(drop=True)


def _epoch_files(root: str) -> list[str]:
    files = storage.list_files(storage.join(root, "models"), suffixes=[".parquet"])
    found = [(path.split("/")[0], file) for path, file in files if path.endswith("/epochs.parquet")]
    return [file for _, file in sorted(found, key=lambda pair: _run_order(pair[0]))]


def _audit_shards(root: str) -> _Shards:
    """Shard locations by (run, table); a run is a folder `<model>-<seed>`."""
    shards: _Shards = defaultdict(list)
    for path, file in storage.list_files(storage.join(root, "audit"), suffixes=[".parquet"]):
        parts = path.split("/")
        if len(parts) >= 3:
            shards[parts[0], parts[1]].append(file)
    return shards


def _run_order(run: str) -> tuple[str, int, str]:
    model, _, seed = run.rpartition("-")
    return (model, int(seed), "") if seed.isdecimal() else (run, 0, run)


def _flat_curves(files: list[str]) -> pd.DataFrame:
    columns = ["model", "method", "degenerate"]
    flags = columns_of(files, columns, schemas.attributions(1, 1)).to_pandas()
    counts = flags.groupby(["model", "method"])["degenerate"].agg(["sum", "size"]).reset_index()
    return counts.rename(columns={"sum": "n_flat", "size": "n_curves"})


def _read_examples(shards: _Shards, runs: list[str], manifest: pd.DataFrame) -> list[Example]:
    """The example clips under the first seed of each model that kept their spectrograms, clip by clip."""
    pictured: dict[str, str] = {}
    for run in runs:
        if (run, "spectrograms") in shards:
            pictured.setdefault(run.rpartition("-")[0], run)
    files = [file for run in pictured.values() for file in shards[run, "spectrograms"]]
    chosen = _choose(manifest, set().union(*each(clip_ids, files)))
    found: list[Example] = []
    for run in pictured.values():
        found += examples(shards[run, "spectrograms"], shards[run, "attributions"], chosen)
    return sorted(found, key=lambda example: (chosen.index(example.clip_id), example.model))


def _choose(manifest: pd.DataFrame, available: set[str]) -> list[str]:
    """At most MAX_EXAMPLES clips: annotated ones first, every anomaly type once before any comes twice."""
    clips = manifest[manifest["clip_id"].isin(available)].sort_values(["recording", "onset_s", "clip_id"])
    turn = clips.groupby(["annotated", "anomaly_type"], dropna=False).cumcount()
    rank = clips.assign(turn=turn, normal=clips["label"].ne(1))
    best = rank.sort_values(["annotated", "normal", "turn"], ascending=[False, True, True], kind="stable")
    kept = best.head(MAX_EXAMPLES).sort_values(["recording", "onset_s", "clip_id"])
    return [str(clip_id) for clip_id in kept["clip_id"]]
