"""Audit tables → summary tables, and one ledger of everything that went in; one audit, or what a reviewer decided about
it → its figures and its report.

The study's answers are one table per row of `evaluation.summary.SUMMARIES`. `summary/ledger.parquet` has one row for
each clip and for each part of a recording that became none: done, skipped or failed, with the stage and the reason.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from faithad import parquet, storage
from faithad.audit.finished import require_finished
from faithad.audit.ledger import merge_ledgers
from faithad.audit.reference import evaluate_audit
from faithad.audit.review import review_audit
from faithad.config.study import Study
from faithad.errors import StudyError
from faithad.evaluation.summary import SUMMARIES, Experiment, read_sources, summarize
from faithad.runs import layout
from faithad.runs.lock import alone_in, require_still_alone
from faithad.runs.stages import ResumableStage
from faithad.runs.tables import read_whole
from faithad.scoring.choices import score_name
from faithad.vocabulary import CORRECTED, listed


def evaluate_stage(
    study: Study, audits: list[ResumableStage], features: ResumableStage, ledger_digest: str
) -> ResumableStage:
    settings: dict[str, Any] = {"evaluation.seed": study.evaluation.seed, "protocol": study.protocol}
    settings |= {stage.name: stage.fingerprint for stage in [features, *audits]}
    settings["index ledger"] = ledger_digest
    outputs = tuple(layout.summary(name) for name in (*SUMMARIES, "ledger"))
    return ResumableStage(study.root, "evaluate", settings, outputs, result=layout.summary("ledger"), needs=outputs)


def evaluate(study: Study, manifest: pa.Table, stage: ResumableStage, *, redo: bool) -> None:
    """Write the summary tables and the study's ledger.

    Raises:
        StudyError: an audit lacks clips, or not one test clip could be scored.
        DamagedError: a table is damaged.
    """
    if not stage.begin(redo=redo):
        return
    storage.write_text(storage.join(study.root, layout.STUDY), study.to_yaml())
    sources = read_sources(partial(_read_audits, study), manifest)
    audits = [storage.join(study.root, layout.audit(model, seed)) for model, seed in study.runs]
    features = storage.join(study.root, layout.FEATURES)
    ledger = merge_ledgers(study.root, manifest, audits, others=[(features, layout.SCORED)])
    if not sources["scores"].num_rows:
        failed = [f"  {row['recording']}: {row['reason']}" for row in ledger.to_pylist() if row["status"] == "failed"]
        reasons = listed(failed, most=5, separator="\n")
        raise StudyError(f"Not one test clip could be scored. The first reasons:\n{reasons}")
    experiments = [_experiment(study, manifest, protocol) for protocol in study.judging.protocols]
    tables = {
        name: pa.concat_tables([summarize(name, sources, experiment) for experiment in experiments])
        for name in SUMMARIES
    }
    for name, table in {**tables, "ledger": ledger}.items():
        require_still_alone()
        parquet.write_table(table, storage.join(study.root, layout.summary(name)), schema=table.schema)
    stage.finish()


def _experiment(study: Study, manifest: pa.Table, protocol: str) -> Experiment:
    shared = study.judging.n_frames if protocol == CORRECTED else None
    return Experiment(
        manifest=manifest,
        protocol=protocol,
        n_frames={model: shared or study.n_frames(model) for model in study.models},
        frames_per_s=study.feature_settings.frames_per_s,
        seed=study.evaluation.seed,
        percentiles=study.audit.percentiles,
        scores={model: score_name(study.score_of(model), model) for model in study.models},
    )


def evaluate_audit_and_report(audit: str, annotations: str, **tolerances: float) -> str:
    """Score one audit against reference intervals, and make its report anew with the figures.

    Args, Returns, Raises: as `audit.reference.evaluate_audit`.
    """
    from faithad.report.audit_page import render_audit_report  # drawing takes seconds to import

    require_finished(audit)
    with alone_in(audit):
        lines = evaluate_audit(audit, annotations, **tolerances)
        require_still_alone()
        return f"{lines}\nReport: {render_audit_report(audit)}"


def review_audit_and_report(audit: str, decisions: str) -> str:
    """Write the decisions about one audit's events into its folder, and make its report anew with them.

    Args, Returns, Raises: as `audit.review.review_audit`.
    """
    from faithad.report.audit_page import write_page  # drawing takes seconds to import
    from faithad.report.audit_tables import read_audit
    from faithad.report.reviewed import review_sentences

    require_finished(audit)
    with alone_in(audit):
        lines = review_audit(audit, decisions)
        tables = read_audit(audit)
        require_still_alone()
        return "\n".join([lines, *review_sentences(tables), f"Report: {write_page(audit, tables)}"])


def _read_audits(study: Study, table: str, schema: pa.Schema, *, condition: pc.Expression | None) -> pa.Table:
    """One table of all audits, without rows where no audit wrote any: localization needs annotations."""
    folders = [storage.join(study.root, layout.audit(model, seed)) for model, seed in study.runs]
    return pa.concat_tables([read_whole(folder, table, schema, condition=condition) for folder in folders])
