"""An audit against reference intervals: did it find what an expert hears, and do its explanations point there?

Everything is computed from the audit's tables; no model runs. The reference covers all recordings that were audited: a
clip without any interval is normal. The summary tables of a study (`evaluation.summary.SUMMARIES`) are written into
the audit's folder, under the protocol `audit`, and `summary/events`: how events, and the seconds that carry them, agree
with the reference by the time that they share (see `evaluation.intersection`). Intervals in sound that was not scored
count as not found.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from faithad import parquet, schemas, storage
from faithad.audit import agreement
from faithad.audit.finished import read_card, require_finished
from faithad.audit.misfits import without_skipped
from faithad.audit.review import reviewed_reference
from faithad.clips.annotations import Annotation
from faithad.clips.manifest import ClipRow, attach_annotations, manifest_table
from faithad.config.audit import AuditRun, load_written_audit
from faithad.errors import AnnotationError, ConfigError, StudyError
from faithad.evaluation import intersection
from faithad.evaluation.arrays import list_arrays
from faithad.evaluation.controls import NO_MODEL
from faithad.evaluation.peaks import peak_frames
from faithad.evaluation.seconds import AUROC, POOLED
from faithad.evaluation.summary import SUMMARIES, Experiment, read_sources, summarize
from faithad.evaluation.temporal import Intervals, localization
from faithad.runs import layout
from faithad.runs.formats import mark_format
from faithad.runs.lock import alone_in, require_still_alone
from faithad.runs.tables import read_events, read_manifest, read_shards, read_whole
from faithad.scoring.choices import Score, score_name
from faithad.scoring.trained_ensemble import load_any
from faithad.settings import FeatureSettings
from faithad.vocabulary import ENSEMBLE, FITTED, LEVEL, PAPER

PROTOCOL = "audit"
_OWN_EVENTS = (
    "Warning: the reference is this audit's own events, interval for interval, so these figures compare the audit with "
    "itself. Correct the labels first: delete false alarms, add what was missed, move onsets and offsets."
)


def evaluate_audit(
    audit: str,
    annotations: str,
    *,
    detection_tolerance: float = intersection.DETECTION_TOLERANCE,
    ground_truth_tolerance: float = intersection.GROUND_TRUTH_TOLERANCE,
) -> str:
    """Score an audit against reference intervals and write its summary tables.

    Args:
        audit: folder or URI that `faithad audit --out` wrote to.
        annotations: a file or folder of labels, or an audit that was reviewed, see `reviewed_reference`.
        detection_tolerance: share of an event's time that must be labelled for it to be true.
        ground_truth_tolerance: share of an interval that true events must cover for it to be found.

    Returns:
        Lines for the user: the reference, the clips' AUC, the events' precision and recall, those of the seconds that
        carry them, the seconds' F-score. The last line warns where the reference is the audit's own events.

    Raises:
        AnnotationError: the reference cannot be read, or names recordings or times that were not audited.
        ConfigError: a tolerance is not above 0 and at most 1.
        StudyError: there is no finished audit, it scored nothing, or a command is working in its folder.
    """
    tolerances = {"detection_tolerance": detection_tolerance, "ground_truth_tolerance": ground_truth_tolerance}
    for name, share in tolerances.items():
        if not 0 < share <= 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {share}; it must be above 0 and at most 1.")
    require_finished(audit)  # before a lock is put into a folder that may be no audit
    with alone_in(audit):
        return _evaluate(audit, annotations, tolerances)


def _evaluate(audit: str, annotations: str, tolerances: dict[str, float]) -> str:
    run = load_written_audit(storage.join(audit, layout.AUDIT))
    reference = reviewed_reference(annotations)
    ledger = parquet.read_table(storage.join(audit, layout.LEDGER), columns=["clip_id", "status"])
    scores = without_skipped(read_whole(audit, layout.SCORES, schemas.SCORES), ledger)
    manifest = _labelled_manifest(audit, reference, source=annotations)
    scored = manifest.filter(pc.is_in(manifest["clip_id"], value_set=scores["clip_id"].combine_chunks()))
    if not scored.num_rows:
        raise StudyError(f"{audit} holds no scores: not one clip was audited. See its ledger.")
    frames_per_s = _features(audit, run).frames_per_s
    sources = read_sources(partial(read_whole, audit), scored)
    localized, n_frames = _localized(audit, scored, run.audit.percentiles, frames_per_s)
    of_lines = _lines_localized(sources["lines"], scored, run.audit.percentiles, frames_per_s)
    options: dict[str, Any] = {"n_frames": n_frames, "frames_per_s": frames_per_s, "scores": _score_names(audit)}
    experiment = Experiment(scored, protocol=PROTOCOL, percentiles=run.audit.percentiles, **options)
    require_still_alone()
    mark_format(audit)
    tables = {}
    # F-scores are those of this reference, whatever annotations the audit was given.
    others = sources["controls"].filter(pc.not_equal(sources["controls"]["metric"], "f_score"))
    sources |= {"scores": scores, "localization": localized, "controls": pa.concat_tables([of_lines, others])}
    for name, summary in SUMMARIES.items():
        tables[name] = summarize(name, sources, experiment)
        require_still_alone()
        parquet.write_table(tables[name], storage.join(audit, layout.summary(name)), schema=summary.schema)
    intervals = agreement.reference_intervals(audit, reference, scored)
    detections = agreement.event_stretches(audit)
    keys: dict[str, Any] = {"protocol": PROTOCOL, **tolerances}
    keys |= {name: scores[name][0].as_py() for name in ("model", "seed")}
    rows = [
        keys | agreement.agreement_row(kind, stretches, intervals, tolerances) for kind, stretches in detections.items()
    ]
    require_still_alone()
    parquet.write_table(
        pa.Table.from_pylist(rows, schema=schemas.EVENT_SUMMARY),
        storage.join(audit, layout.summary("events")),
        schema=schemas.EVENT_SUMMARY,
    )
    lines = [
        *reference.notes,
        _detection_words(tables["detection"], scored),
        *agreement.agreement_words(rows, intervals.n_whole),
        _second_words(tables, run, _method_of_events(audit, run)),
        f"Tables: {storage.join(audit, layout.SUMMARY)}.",
    ]
    if agreement.are_equal(intervals, detections[agreement.EVENTS]):
        lines.append(_OWN_EVENTS)
    return "\n".join(lines)


def _features(audit: str, run: AuditRun) -> FeatureSettings:
    """The model's features as the audit wrote them down: the model may have moved since. Early audits did not."""
    card = read_card(audit)
    return FeatureSettings(**card["features"]) if card else load_any(run.model).features


def _score_names(audit: str) -> dict[str, str]:
    """The name of the audited model's score."""
    card = read_card(audit)
    choices = card.get("score")
    return {} if choices is None else {card["name"]: score_name(Score(**choices), card["name"])}


def _labelled_manifest(audit: str, reference: Sequence[Annotation], *, source: str) -> pa.Table:
    """The audit's manifest with the labels and intervals of this reference, whatever labels it had before.

    Raises:
        AnnotationError: the reference does not fit the recordings.
    """
    columns = ["recording", "uri", "onset_s", "duration_s"]
    rows = [ClipRow(**clip, split="test") for clip in read_manifest(audit).select(columns).to_pylist()]
    ledger = parquet.read_table(storage.join(audit, layout.LEDGER)).cast(schemas.LEDGER)
    # Clips that failed are among the rows; what never became clips is only in the ledger.
    unused = ledger.filter(pc.is_null(ledger["clip_id"])).to_pylist()
    try:
        return manifest_table(attach_annotations(rows, reference, ledger=unused))
    except AnnotationError as error:
        raise AnnotationError(f"{source} against {audit}: {error}") from error


def _localized(
    audit: str, manifest: pa.Table, percentiles: Sequence[float], frames_per_s: float
) -> tuple[pa.Table, dict[str, int]]:
    """schemas.LOCALIZATION of the annotated clips that were explained, from their curves; and T of these by model."""
    intervals = _intervals(manifest)
    parts: list[pa.Table] = [schemas.LOCALIZATION.empty_table()]
    n_frames: dict[str, int] = {}
    columns = ["clip_id", "model", "seed", "method", "curve"]
    wanted = pc.field("clip_id").isin(pa.array(intervals, pa.string()))
    # Shard by shard and without the maps: those of days of recordings would fill the memory.
    for shard in read_shards(audit, "attributions", columns=columns, condition=wanted):
        rows = []
        for explained in shard.to_pylist():
            curve = np.asarray(explained.pop("curve"), dtype=np.float32)
            n_frames[explained["model"]] = max(n_frames.get(explained["model"], 0), len(curve))
            result = localization(
                peak_frames(curve, percentiles), intervals[explained["clip_id"]], frames_per_s=frames_per_s
            )
            for place, percentile in enumerate(percentiles):
                rates = {name: getattr(result, name)[place].item() for name in vars(result)}
                rows.append({**explained, "protocol": PAPER, "percentile": percentile, **rates})
        parts.append(pa.Table.from_pylist(rows, schema=schemas.LOCALIZATION))
    return pa.concat_tables(parts), n_frames


def _lines_localized(
    lines: pa.Table, manifest: pa.Table, percentiles: Sequence[float], frames_per_s: float
) -> pa.Table:
    """schemas.CONTROLS: F-scores of the curves that need no model, schemas.LINES of annotated clips."""
    intervals, rows = _intervals(manifest), []
    keys = lines.select(["clip_id", "model", "seed", "line"]).to_pylist()
    for row, curve in zip(keys, list_arrays(lines["curve"]), strict=True):
        peaks = peak_frames(curve, percentiles)
        f_scores = localization(peaks, intervals[row["clip_id"]], frames_per_s=frames_per_s).f_score.tolist()
        row |= {"protocol": PAPER, "metric": "f_score"}
        rows += [{**row, "percentile": p, "value": value} for p, value in zip(percentiles, f_scores, strict=True)]
    return pa.Table.from_pylist(rows, schema=schemas.CONTROLS)


def _intervals(manifest: pa.Table) -> dict[str, Intervals]:
    """The intervals of the annotated clips."""
    annotated = manifest.filter(manifest["annotated"]).select(["clip_id", "intervals"])
    return {
        clip["clip_id"]: [(interval["onset_s"], interval["offset_s"]) for interval in clip["intervals"]]
        for clip in annotated.to_pylist()
    }


def _detection_words(detection: pa.Table, scored: pa.Table) -> str:
    labels = scored["label"].to_pylist()
    n_anomalous, n_normal = labels.count(1), labels.count(0)
    unsure = f" ({labels.count(None)} undecided)" if None in labels else ""
    words = f"Clips: {n_anomalous} anomalous, {n_normal} normal{unsure}"
    areas: dict[str, str] = {}
    level = ""
    for row in detection.to_pylist():
        if row["anomaly_type"] != "all" or row["mean"] is None:
            continue
        known = row["ci_low"] is not None
        figure = f"{row['mean']:.3f}" + (f" ({row['ci_low']:.3f} to {row['ci_high']:.3f})" if known else "")
        if row["model"] != LEVEL and row["pooling"] in ("mean", FITTED, ENSEMBLE):
            areas[row["metric"]] = figure
        elif (row["model"], row["pooling"], row["metric"]) == (LEVEL, "worst_second", "auc"):
            level = f"; the level of the loudest second, which needs no model: AUC {figure}"
    if not areas:
        return f"{words}; no AUC, which needs both."
    shares = [f"{areas[f'caught_{rate}']} at {rate} %" for rate in (5, 2, 1) if f"caught_{rate}" in areas]
    caught = f"; share caught {', '.join(shares)} false alarms" if shares else ""
    return f"{words}; AUC {areas['auc']}, pAUC {areas['pauc']}{caught}{level}."


def _method_of_events(audit: str, run: AuditRun) -> str:
    """The method that explains the events, which may have been chosen for them."""
    methods = read_events(audit)["method"].drop_null()
    return str(methods[0].as_py()) if len(methods) else run.events.method


def _second_words(tables: dict[str, pa.Table], run: AuditRun, method: str) -> str:
    """How well the explanation that gives the events their seconds finds the reference's seconds, compared with the
    curves that need no model; all other explanations are in the tables.
    """
    percentile = run.events.percentile
    for row in tables["f_score"].to_pylist():
        if (row["method"], row["percentile"], row["anomaly_type"]) == (method, percentile, "all"):
            comparisons = [f"every second flagged: {row['control_every_second']:.3f}"]
            comparisons += [
                f"{line['line'].replace('_', ' ')}: {line['mean']:.3f}"
                for line in tables["controls"].to_pylist()
                if line["metric"] == "f_score" and line["line"] in NO_MODEL and line["percentile"] == percentile
            ]
            ranked = [
                f" AUROC of seconds {area['mean']:.3f}."
                for area in tables["seconds"].to_pylist()
                if (area["method"], area["metric"], area["ranked"]) == (method, AUROC, POOLED)
                and area["scope"] == "annotated"
            ]
            return (
                f"Seconds: F {row['mean']:.3f} over {row['n_clips']} explained clips ({method}, percentile "
                f"{percentile:g}; {', '.join(comparisons)}).{''.join(ranked)}"
            )
    return "Seconds: no F-score, as no annotated clip was explained."
