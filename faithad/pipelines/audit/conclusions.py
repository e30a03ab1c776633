"""The last step of an audit: the whole ledger, the events, what lasts, the reasons and the report."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from faithad import parquet, schemas, storage
from faithad.audit.inputs import read_inputs
from faithad.audit.ledger import merge_ledgers
from faithad.audit.misfits import Misfit, with_misfits, without_misfits
from faithad.audit.operating_points import operating_points
from faithad.audit.outcome import events_table, read_scores, states_table
from faithad.audit.raised_alarm import normal_scores
from faithad.audit.reasons import reasons_table, verdict_of, with_method
from faithad.audit.sounds import event_sounds
from faithad.pipelines.audit.open_audit import OpenAudit, misfits_of, write_settings
from faithad.runs import layout
from faithad.runs.fingerprints import table_digest
from faithad.runs.lock import require_still_alone
from faithad.runs.piece_scores import read_piece_scores
from faithad.runs.stages import ResumableStage, flatten
from faithad.runs.tables import read_manifest
from faithad.scoring.trained_ensemble import TrainedEnsemble

# Tables that are made of all others.
_CONCLUSIONS = (layout.EVENTS, layout.STATES, layout.REASONS, layout.SOUNDS, layout.OPERATING_POINTS)


def withdraw_conclusions(out: str) -> None:
    """Remove what was made of tables that are about to change: nobody must read the two together."""
    require_still_alone()
    concluded = (layout.LEDGER, *_CONCLUSIONS, layout.REPORT, layout.SUMMARY)
    for name in (f"{layout.STAGES}/events.json", *concluded):
        storage.delete(storage.join(out, name))


def conclude(audit: OpenAudit, explain: ResumableStage, *, again: bool) -> pa.Table | None:
    """Replace the whole ledger, the events and the report: they cost little, and nothing is built upon them.

    Returns:
        The sounds of the events, if they are known.
    """
    from faithad.report.audit_page import render_audit_report  # drawing takes seconds to import

    run = audit.run
    index, inputs = parquet.read_table(storage.join(run.out, layout.INDEX_LEDGER)), read_inputs(run.out)
    settings = flatten("events", run.events.model_dump(mode="json")) | {"explain": explain.fingerprint}
    settings |= {"index": table_digest(index), "gone": sorted(inputs.gone), "report.sound": run.report.sound}
    outputs = (layout.LEDGER, *_CONCLUSIONS, layout.MODEL, layout.REPORT)
    stage = ResumableStage(run.out, "events", settings, outputs, result=layout.REPORT, needs=outputs)
    sounds = audit.sounds
    if stage.begin(redo=True, again=again):
        write_settings(audit)
        misfits = misfits_of(audit)
        whole = merge_ledgers(run.out, read_manifest(run.out), [run.out], remarks=inputs.remarks())
        ledger = with_misfits(whole, misfits)
        require_still_alone()
        parquet.write_table(ledger, storage.join(run.out, layout.LEDGER), schema=schemas.LEDGER)
        reasons = reasons_table(run.out, run.events.percentile)
        how = with_method(run.events, reasons, run.attribution.methods)
        trusted = verdict_of(reasons, how.method)
        events = events_table(run.out, audit.trained, how, misfits, trusted=trusted)
        states = states_table(run.out, audit.trained, misfits)
        require_still_alone()
        parquet.write_table(reasons, storage.join(run.out, layout.REASONS), schema=schemas.COMPARISON)
        storage.delete(storage.join(run.out, layout.SUMMARY))  # an evaluation of other events
        parquet.write_table(events, storage.join(run.out, layout.EVENTS), schema=schemas.EVENTS)
        parquet.write_table(states, storage.join(run.out, layout.STATES), schema=schemas.STATES)
        sounds = _write_for_report(audit, events, misfits)
        render_audit_report(run.out)
        stage.finish()
    return sounds


def _write_for_report(audit: OpenAudit, events: pa.Table, misfits: Sequence[Misfit]) -> pa.Table:
    """What the report needs recordings or the model for: the events' sound, and what other thresholds would bring.

    Returns:
        The sounds.
    """
    run, trained = audit.run, audit.trained
    assert trained.alarm is not None
    manifest, scores = read_manifest(run.out), read_scores(run.out)
    wanted = events if run.report.sound == "events" else events.slice(0, 0)
    sounds = event_sounds(wanted, manifest, scores, trained, audit.sounds)
    points = operating_points(
        without_misfits(scores, manifest, misfits, but_searched=True),
        manifest,
        normal_scores(run.model),
        alarm=trained.alarm,
        features=trained.features,
        pieces=read_piece_scores(run.model, trained.alarm.pooling),
        lowest=trained.lowest_rescored if isinstance(trained, TrainedEnsemble) else None,
        **run.events.model_dump(),
    )
    require_still_alone()
    parquet.write_table(sounds, storage.join(run.out, layout.SOUNDS), schema=schemas.SOUNDS)
    parquet.write_table(points, storage.join(run.out, layout.OPERATING_POINTS), schema=schemas.OPERATING_POINTS)
    return sounds
