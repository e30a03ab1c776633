"""Audit tables → summary tables, and one ledger of everything that went in.

The study's answers are one table per row of `evaluation.summary.SUMMARIES`. `summary/ledger.parquet` has one row for
each clip and for each part of a recording that became none: done, skipped or failed, with the stage and the reason.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from faithad import schemas, storage
from faithad.audit.steps import EXPLAIN, SCORE
from faithad.clips.ledger import LedgerRow, clip_ledger_row, ledger_table
from faithad.config.study import Study
from faithad.errors import StudyError
from faithad.evaluation.summary import SUMMARIES, Experiment, summarize
from faithad.runs import layout
from faithad.runs.stages import Stage
from faithad.runs.tables import read_whole
from faithad.vocabulary import listed


def evaluate_stage(study: Study, audits: list[Stage], features: Stage, ledger_digest: str) -> Stage:
    settings = {"evaluation.seed": study.evaluation.seed, "protocol": study.protocol}
    settings |= {stage.name: stage.fingerprint for stage in [features, *audits]}
    settings["index ledger"] = ledger_digest
    outputs = tuple(layout.summary(name) for name in (*SUMMARIES, "ledger"))
    return Stage(study.root, "evaluate", settings, outputs, result=layout.summary("ledger"))


def evaluate(study: Study, manifest: pa.Table, stage: Stage, *, redo: bool) -> None:
    """Write the summary tables and the study's ledger.

    Raises:
        StudyError: an audit is missing, some clip is in no ledger, or not one test clip could be scored.
    """
    if not stage.begin(redo=redo):
        return
    storage.write_text(storage.join(study.root, layout.STUDY), study.to_yaml())
    schema_of = {summary.source: summary.source_schema for summary in SUMMARIES.values()}
    sources = {table: _read_audits(study, table, schema) for table, schema in schema_of.items()}
    ledger = merge_ledgers(study, manifest)
    if not sources["scores"].num_rows:
        failed = [f"  {row['recording']}: {row['reason']}" for row in ledger.to_pylist() if row["status"] == "failed"]
        reasons = listed(failed, most=5, separator="\n")
        raise StudyError(f"Not one test clip could be scored. The first reasons:\n{reasons}")
    experiment = Experiment(
        manifest=manifest,
        protocol=study.protocol,
        n_frames={model: study.n_frames(model) for model in study.models},
        frames_per_s=study.feature_settings.frames_per_s,
        seed=study.evaluation.seed,
    )
    tables = {name: summarize(name, sources[row.source], experiment) for name, row in SUMMARIES.items()}
    for name, table in {**tables, "ledger": ledger}.items():
        storage.write_table(table, storage.join(study.root, layout.summary(name)), schema=table.schema)
    stage.finish()


def merge_ledgers(study: Study, manifest: pa.Table) -> pa.Table:
    """One row for each clip and each part of a recording that became none.

    A clip has failed where any stage failed on it, and is done where all that use it are done.

    Raises:
        StudyError: a clip of the manifest is in no ledger.
    """
    index = storage.read_table(storage.join(study.root, layout.INDEX_LEDGER)).to_pylist()
    failed = {row["clip_id"]: row for row in _failures(storage.join(study.root, layout.FEATURES_LEDGER))}
    audited: dict[str, int] = {}
    for model, seed in study.runs:
        folder = storage.join(study.root, layout.audit(model, seed))
        for row in storage.read_table(storage.join(folder, SCORE.ledger)).to_pylist():
            audited[row["clip_id"]] = audited.get(row["clip_id"], 0) + 1
            if row["status"] == "failed":
                failed.setdefault(row["clip_id"], row)
        for row in _failures(storage.join(folder, EXPLAIN.ledger)):
            failed.setdefault(row["clip_id"], row)
    rows: list[LedgerRow] = []
    lost: list[str] = []
    for clip in manifest.select(["clip_id", "recording", "onset_s", "duration_s", "split"]).to_pylist():
        if clip["clip_id"] in failed:
            rows.append(failed[clip["clip_id"]])
            continue
        is_test = clip["split"] == "test"
        if is_test and audited.get(clip["clip_id"], 0) != len(study.runs):
            lost.append(f"{clip['recording']} at {clip['onset_s']:g} s")
        rows.append(clip_ledger_row(clip, "done", stage="audit" if is_test else "features"))
    if lost:
        raise StudyError(
            f"{len(lost)} clips are in no ledger, because not every model audited them: {listed(lost, most=3)}. "
            "Run the audit again."
        )
    return ledger_table([*rows, *index])


def count_ledger(root: str) -> dict[str, int]:
    """How many clips or parts of recordings are done, skipped and failed."""
    statuses = storage.read_table(storage.join(root, layout.summary("ledger")), columns=["status"])["status"]
    counts = {row["values"]: row["counts"] for row in pc.value_counts(statuses).to_pylist()}
    return {status: counts.get(status, 0) for status in schemas.STATUSES}


def _failures(folder: str) -> list[LedgerRow]:
    return list(read_whole(folder, schemas.LEDGER, condition=pc.field("status") == "failed").to_pylist())


def _read_audits(study: Study, table: str, schema: pa.Schema) -> pa.Table:
    """One table of all audits, without rows where no audit wrote any: localization needs annotations."""
    folders = [storage.join(study.root, layout.audit(model, seed), table) for model, seed in study.runs]
    return pa.concat_tables([read_whole(folder, schema) for folder in folders])
