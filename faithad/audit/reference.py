"""An audit against reference intervals: did it find what an expert hears, and do its explanations point there?

Everything is computed from the audit's tables; no model runs. The reference covers all recordings that were audited: a
clip without any interval is normal. The summary tables of a study (`evaluation.summary.SUMMARIES`) are written into
the audit's folder, under the protocol `audit`.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from faithad import schemas, storage
from faithad.audit.events import Span, merge_spans
from faithad.audit.finished import read_card, require_finished
from faithad.clips.annotations import Annotation
from faithad.clips.labels.names import look_up
from faithad.clips.labels.reference import read_reference
from faithad.clips.manifest import ClipRow, attach_annotations, manifest_table
from faithad.config.audit import AuditRun, load_written_audit
from faithad.errors import AnnotationError, StudyError
from faithad.evaluation.peaks import peak_frames
from faithad.evaluation.summary import SUMMARIES, Experiment, source_schemas, summarize
from faithad.evaluation.temporal import Intervals, localization
from faithad.model.checkpoint import load_model
from faithad.runs import layout
from faithad.runs.formats import mark_format
from faithad.runs.lock import alone_in, require_still_alone
from faithad.runs.tables import read_manifest, read_shards, read_whole
from faithad.settings import FeatureSettings
from faithad.vocabulary import count

Stretch = tuple[str, Span]  # of a recording

PROTOCOL = "audit"
# Spans that share less than this overlap by rounding alone.
_SHORTEST_S = 0.001
_OWN_EVENTS = (
    "Warning: the reference is this audit's own events, interval for interval, so these figures compare the audit with "
    "itself. Correct the labels first: delete false alarms, add what was missed, move onsets and offsets."
)


@dataclass(frozen=True)
class _EventCounts:
    """How events and reference agree.

    Attributes:
        right: events that overlap the reference.
        events: all events.
        recalled: stretches of the reference that some event overlaps.
        stretches: all stretches of the reference.
        whole: stretches that are whole windows, because the expert marked no interval in them.
        own: the reference is the audit's own events and nothing else.
    """

    right: int
    events: int
    recalled: int
    stretches: int
    whole: int
    own: bool


def evaluate_audit(audit: str, annotations: str) -> str:
    """Score an audit against reference intervals and write its summary tables.

    Args:
        audit: folder or URI that `faithad audit --out` wrote to.
        annotations: a file or folder of labels, see `read_reference`.

    Returns:
        A line for the user: the reference, the clips' AUC, the events' precision and recall, the seconds' F-score.
        A second line warns where the reference is the audit's own events.

    Raises:
        AnnotationError: the reference cannot be read, or names recordings or times that were not audited.
        StudyError: there is no finished audit, it scored nothing, or a command is working in its folder.
    """
    require_finished(audit)  # before a lock is put into a folder that may be no audit
    with alone_in(audit):
        return _evaluate(audit, annotations)


def _evaluate(audit: str, annotations: str) -> str:
    run = load_written_audit(storage.join(audit, layout.AUDIT))
    reference = read_reference(annotations)
    scores = read_whole(audit, layout.SCORES, schemas.SCORES)
    manifest = _labelled_manifest(audit, reference, source=annotations)
    scored = manifest.filter(pc.is_in(manifest["clip_id"], value_set=scores["clip_id"].combine_chunks()))
    if not scored.num_rows:
        raise StudyError(f"{audit} holds no scores: not one clip was audited. See its ledger.")
    frames_per_s = _features(audit, run).frames_per_s
    localized, n_frames = _localized(audit, scored, run.audit.percentiles, frames_per_s)
    experiment = Experiment(scored, protocol=PROTOCOL, n_frames=n_frames, frames_per_s=frames_per_s)
    require_still_alone()
    mark_format(audit)
    tables = {}
    sources = {table: read_whole(audit, table, schema) for table, schema in source_schemas().items()}
    sources["localization"] = localized
    for name, summary in SUMMARIES.items():
        tables[name] = summarize(name, sources, experiment)
        require_still_alone()
        storage.write_table(tables[name], storage.join(audit, layout.summary(name)), schema=summary.schema)
    counts = _event_counts(audit, reference, scored)
    line = " ".join(
        [
            _detection_words(tables["detection"], scored),
            _event_words(counts),
            _f_score_words(tables["f_score"], run),
            f"Tables: {storage.join(audit, layout.SUMMARY)}.",
        ]
    )
    return f"{line}\n{_OWN_EVENTS}" if counts.own else line


def _features(audit: str, run: AuditRun) -> FeatureSettings:
    """The model's features as the audit wrote them down: the model may have moved since. Early audits did not."""
    card = read_card(audit)
    return FeatureSettings(**card["features"]) if card else load_model(run.model).features


def _labelled_manifest(audit: str, reference: Sequence[Annotation], *, source: str) -> pa.Table:
    """The audit's manifest with the labels and intervals of this reference, whatever it bore before.

    Raises:
        AnnotationError: the reference does not fit the recordings.
    """
    columns = ["recording", "uri", "onset_s", "duration_s"]
    rows = [ClipRow(**clip, split="test") for clip in read_manifest(audit).select(columns).to_pylist()]
    ledger = storage.read_table(storage.join(audit, layout.LEDGER)).cast(schemas.LEDGER)
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
    annotated = manifest.filter(manifest["annotated"])
    intervals: dict[str, Intervals] = {
        clip["clip_id"]: [(interval["onset_s"], interval["offset_s"]) for interval in clip["intervals"]]
        for clip in annotated.select(["clip_id", "intervals"]).to_pylist()
    }
    parts: list[pa.Table] = [schemas.LOCALIZATION.empty_table()]
    n_frames: dict[str, int] = {}
    columns = ["clip_id", "model", "seed", "method", "curve"]
    wanted = pc.field("clip_id").isin(annotated["clip_id"].combine_chunks())
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
                values = {name: getattr(result, name)[place].item() for name in schemas.LOCALIZATION.names[5:]}
                rows.append({**explained, "percentile": percentile, **values})
        parts.append(pa.Table.from_pylist(rows, schema=schemas.LOCALIZATION))
    return pa.concat_tables(parts), n_frames


def _event_counts(audit: str, reference: Iterable[Annotation], scored: pa.Table) -> _EventCounts:
    """Events against the stretches of the reference that lie, at least in part, in clips that were scored.

    A window without an interval counts as one stretch. Stretches that overlap are one.
    """
    audited = _by_recording(
        (clip["recording"], (clip["onset_s"], clip["onset_s"] + clip["duration_s"]))
        for clip in scored.select(["recording", "onset_s", "duration_s"]).to_pylist()
    )
    # Of the ledger, because a recording that gave no score may be called the same as another one.
    names = storage.read_table(storage.join(audit, layout.LEDGER), columns=["recording"])["recording"].to_pylist()
    recordings_of = look_up(names)
    marked: list[Stretch] = []
    whole: list[Stretch] = []
    for annotation in reference:
        window = (annotation.onset_s, annotation.offset_s)
        spans = [(annotation.onset_s + onset, annotation.onset_s + offset) for onset, offset in annotation.intervals]
        for recording in recordings_of(annotation.recording):
            marked += [(recording, span) for span in spans or [window]]
            whole += [] if spans else [(recording, window)]
    stretches = [
        (recording, span)
        for recording, spans in _by_recording(marked).items()
        for span in spans
        if _overlaps(span, audited.get(recording, []))
    ]
    heard = _by_recording(stretches)
    events: list[list[Stretch]] = [
        [(part["recording"], (part["onset_s"], part["offset_s"])) for part in parts]
        for parts in storage.read_table(storage.join(audit, layout.EVENTS), columns=["parts"])["parts"].to_pylist()
    ]
    all_parts = [part for event in events for part in event]
    alarmed = _by_recording(all_parts)
    return _EventCounts(
        right=sum(any(_overlaps(span, heard.get(name, [])) for name, span in event) for event in events),
        events=len(events),
        recalled=sum(_overlaps(span, alarmed.get(name, [])) for name, span in stretches),
        stretches=len(stretches),
        whole=sum(_overlaps(span, audited.get(name, [])) for name, span in whole),
        own=bool(events) and _hundredths(marked) == _hundredths(all_parts),
    )


def _hundredths(stretches: Iterable[Stretch]) -> set[tuple[str, int, int]]:
    """Stretches in hundredths of a second: label files hold fewer digits than tables."""
    return {(recording, round(100 * onset), round(100 * offset)) for recording, (onset, offset) in stretches}


def _by_recording(stretches: Iterable[Stretch]) -> dict[str, list[Span]]:
    """Spans by recording, in order, those that overlap or touch as one."""
    spans: dict[str, list[Span]] = {}
    for recording, span in stretches:
        spans.setdefault(recording, []).append(span)
    return {recording: merge_spans(of_recording) for recording, of_recording in spans.items()}


def _overlaps(span: Span, others: Sequence[Span]) -> bool:
    """Whether a span shares some time with one of the others, which are sorted and do not overlap."""
    place = bisect.bisect_right(others, span[0] + _SHORTEST_S, key=lambda other: other[1])
    return place < len(others) and others[place][0] + _SHORTEST_S < span[1]


def _detection_words(detection: pa.Table, scored: pa.Table) -> str:
    labels = scored["label"].to_pylist()
    n_anomalous, n_normal = labels.count(1), labels.count(0)
    unsure = f" ({labels.count(None)} undecided)" if None in labels else ""
    words = f"Clips: {n_anomalous} anomalous, {n_normal} normal{unsure}"
    areas: dict[str, str] = {}
    for row in detection.to_pylist():
        if row["pooling"] == "mean":
            known = row["ci_low"] is not None
            interval = f" ({row['ci_low']:.3f} to {row['ci_high']:.3f})" if known else ""
            areas[row["metric"]] = f"{row['mean']:.3f}{interval}"
    if not areas:
        return f"{words}; no AUC, which needs both."
    return f"{words}; AUC {areas['auc']}, pAUC {areas['pauc']}."


def _event_words(counts: _EventCounts) -> str:
    precision = f" (precision {counts.right / counts.events:.3f})" if counts.events else ""
    recall = f" (recall {counts.recalled / counts.stretches:.3f})" if counts.stretches else ""
    windows = count(counts.whole, "window without an interval counts", "windows without an interval count")
    whole = f"; {windows} whole" if counts.whole else ""
    return (
        f"Events: {counts.right} of {counts.events} right{precision}, {counts.recalled} of {counts.stretches} "
        f"reference intervals found{recall}{whole}."
    )


def _f_score_words(f_score: pa.Table, run: AuditRun) -> str:
    """The F-score of the explanation that gives the events their seconds; all others are in the table."""
    for row in f_score.to_pylist():
        if (row["method"], row["percentile"], row["anomaly_type"]) == (run.events.method, run.events.percentile, "all"):
            return (
                f"Seconds: F {row['mean']:.3f} over {row['n_clips']} explained clips ({row['method']}, percentile "
                f"{row['percentile']:g}; every second flagged: {row['control_every_second']:.3f})."
            )
    return "Seconds: no F-score, as no annotated clip was explained."
