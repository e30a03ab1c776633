"""An audit against reference intervals: did it find what an expert hears, and do its explanations point there?

Everything is taken from the audit's tables; no model runs. The reference speaks of all recordings that were audited: a
clip without any interval is normal. Written are `summary/{detection,f_score,faithfulness}.parquet` below the audit's
`out`, in the schemas of a study, under the protocol `audit`.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from faithad import schemas, storage
from faithad.audit.events import Span, merge_spans
from faithad.audit.finished import require_finished
from faithad.clips.annotations import Annotation
from faithad.clips.labels.names import look_up
from faithad.clips.labels.reference import read_reference
from faithad.clips.manifest import ClipRow, LedgerRow, attach_annotations, manifest_table
from faithad.config.audit import AuditRun, load_audit_run
from faithad.errors import AnnotationError, StudyError
from faithad.evaluation.peaks import peak_frames
from faithad.evaluation.summary import summarize_detection, summarize_f_score, summarize_faithfulness
from faithad.evaluation.temporal import Intervals, localization
from faithad.model.checkpoint import load_model
from faithad.runs import layout
from faithad.runs.lock import alone_in
from faithad.settings import FeatureSettings

PROTOCOL = "audit"
_SEED = 0  # of the bootstrap
# What two spans share by rounding alone is shorter.
_SHORTEST_S = 0.001
_OWN_EVENTS = (
    "Warning: the reference is this audit's own events, interval for interval, so these figures compare the audit with "
    "itself. Correct the labels first: delete false alarms, add what was missed, move onsets and offsets."
)

Row = dict[str, Any]


@dataclass(frozen=True)
class _EventCounts:
    """How many events are right, and how many stretches of the reference some event overlaps.

    `whole` are the windows among the latter in which the expert heard something but not where; `own`: the reference is
    nothing but the events.
    """

    right: int
    events: int
    found: int
    stretches: int
    whole: int
    own: bool


def evaluate_audit(audit: str, annotations: str) -> str:
    """Score an audit against reference intervals and write its summary tables.

    Args:
        audit: folder or URI that `faithad audit --out` wrote to.
        annotations: a file or folder of labels, see `read_reference`.

    Returns:
        A line for the user: the reference, the clips' AUC, the events' precision and recall, the seconds' F-score;
        and a second one, a warning, where the reference is the audit's own events.

    Raises:
        AnnotationError: the reference cannot be read, or speaks of recordings or times that were not audited.
        StudyError: there is no finished audit, it scored nothing, or somebody works there.
    """
    require_finished(audit)  # before a mark of ours is left in any folder
    with alone_in(audit):
        return _evaluate(audit, annotations)


def _evaluate(audit: str, annotations: str) -> str:
    run = load_audit_run(storage.join(audit, layout.AUDIT))
    reference = read_reference(annotations)
    scores = storage.read_table(storage.join(audit, "scores")).cast(schemas.SCORES)
    manifest = _labelled_manifest(audit, reference, source=annotations)
    scored = manifest.filter(pc.is_in(manifest["clip_id"], value_set=scores["clip_id"].combine_chunks()))
    if not scored.num_rows:
        raise StudyError(f"{audit} holds no scores: not one clip was audited. See its ledger.")
    detection = summarize_detection(scores, scored, protocol=PROTOCOL, seed=_SEED)
    frames_per_s = _features(audit, run).frames_per_s
    localized, n_frames = _localized(audit, scored, run.audit.percentiles, frames_per_s)
    f_score = summarize_f_score(
        localized, scored, protocol=PROTOCOL, n_frames=n_frames, frames_per_s=frames_per_s, seed=_SEED
    )
    faithfulness = summarize_faithfulness(_faithfulness(audit), manifest, protocol=PROTOCOL, seed=_SEED)
    for name, table in (("detection", detection), ("f_score", f_score), ("faithfulness", faithfulness)):
        storage.write_table(table, storage.join(audit, layout.summary(name)), schema=table.schema)
    known = storage.read_table(storage.join(audit, layout.LEDGER), columns=["recording"])["recording"].to_pylist()
    counts = _event_counts(storage.read_table(storage.join(audit, layout.EVENTS)), reference, scored, known)
    line = " ".join(
        [
            _detection_words(detection, scored),
            _event_words(counts),
            _f_score_words(f_score, run),
            f"Tables: {storage.join(audit, 'summary')}.",
        ]
    )
    return f"{line}\n{_OWN_EVENTS}" if counts.own else line


def _features(audit: str, run: AuditRun) -> FeatureSettings:
    """What the model hears, as it was when the audit was made: it may have moved since. Early audits do not say it."""
    location = storage.join(audit, layout.MODEL)
    if not storage.exists(location):
        return load_model(run.model).features
    return FeatureSettings(**json.loads(storage.read_text(location))["features"])


def _labelled_manifest(audit: str, reference: Sequence[Annotation], *, source: str) -> pa.Table:
    """The audit's manifest with the labels and intervals of this reference, whatever it bore before.

    Raises:
        AnnotationError: the reference does not fit the recordings.
    """
    manifest = storage.read_table(storage.join(audit, layout.MANIFEST)).cast(schemas.MANIFEST)
    columns = ["recording", "uri", "onset_s", "duration_s"]
    rows = [ClipRow(**clip, split="test") for clip in manifest.select(columns).to_pylist()]
    ledger = storage.read_table(storage.join(audit, layout.LEDGER)).cast(schemas.LEDGER)
    # Clips that failed are among the rows; what never became clips is only in the ledger.
    unused = [LedgerRow(**row) for row in ledger.filter(pc.is_null(ledger["clip_id"])).to_pylist()]
    try:
        return manifest_table(attach_annotations(rows, reference, ledger=unused))
    except AnnotationError as error:
        raise AnnotationError(f"{source} against {audit}: {error}") from error


def _faithfulness(audit: str) -> pa.Table:
    folder = storage.join(audit, "faithfulness")
    if not storage.list_files(folder, suffixes=[".parquet"]):  # nothing was explained
        return schemas.FAITHFULNESS.empty_table()
    return storage.read_table(folder).cast(schemas.FAITHFULNESS)


def _localized(
    audit: str, manifest: pa.Table, percentiles: Sequence[float], frames_per_s: float
) -> tuple[pa.Table, int]:
    """schemas.LOCALIZATION of the annotated clips that were explained, from their stored curves; and T of these."""
    chosen = manifest.filter(manifest["annotated"])
    intervals: dict[str, Intervals] = {
        clip["clip_id"]: [(interval["onset_s"], interval["offset_s"]) for interval in clip["intervals"]]
        for clip in chosen.select(["clip_id", "intervals"]).to_pylist()
    }
    found: list[pa.Table] = [schemas.LOCALIZATION.empty_table()]
    n_frames = 1
    # Shard by shard and without the maps: curves of days of recordings would fill the memory.
    for _, shard in storage.list_files(storage.join(audit, "attributions"), suffixes=[".parquet"]):
        table = storage.read_table(shard, columns=["clip_id", "model", "seed", "method", "curve"])
        table = table.filter(pc.is_in(table["clip_id"], value_set=chosen["clip_id"].combine_chunks()))
        if table.num_rows:
            rows = list(_localization_rows(table, intervals, percentiles, frames_per_s))
            found.append(pa.Table.from_pylist(rows, schema=schemas.LOCALIZATION))
            n_frames = len(table["curve"][0])
    return pa.concat_tables(found), n_frames


def _localization_rows(
    table: pa.Table, intervals: dict[str, Intervals], percentiles: Sequence[float], frames_per_s: float
) -> Iterator[Row]:
    for row in table.to_pylist():
        peaks = peak_frames(np.asarray(row.pop("curve"), dtype=np.float32), percentiles)
        found = localization(peaks, intervals[row["clip_id"]], frames_per_s=frames_per_s)
        for place, percentile in enumerate(percentiles):
            values = {name: getattr(found, name)[place].item() for name in schemas.LOCALIZATION.names[5:]}
            yield {**row, "percentile": percentile, **values}


def _event_counts(
    events: pa.Table, reference: Iterable[Annotation], scored: pa.Table, known: Iterable[str]
) -> _EventCounts:
    """Events against the stretches of the reference that lie, at least in part, in clips that were scored.

    A window in which the expert heard something but not where counts as one stretch. Stretches that overlap are one.
    """
    audited = _spans(
        (clip["recording"], (clip["onset_s"], clip["onset_s"] + clip["duration_s"]))
        for clip in scored.select(["recording", "onset_s", "duration_s"]).to_pylist()
    )
    find = look_up(known)  # also those of which nothing was scored: another recording may be called the same
    marked: list[tuple[str, Span]] = []
    whole: list[tuple[str, Span]] = []
    for one in reference:
        window, spans = (one.onset_s, one.offset_s), [(one.onset_s + a, one.onset_s + b) for a, b in one.intervals]
        for recording in find(one.recording):
            marked += [(recording, span) for span in spans or [window]]
            whole += [] if spans else [(recording, window)]
    stretches = [
        (recording, span)
        for recording, spans in _spans(marked).items()
        for span in spans
        if _overlaps(span, audited.get(recording, []))
    ]
    of_recording = _spans(stretches)
    parts = [[(part["recording"], (part["onset_s"], part["offset_s"])) for part in parts]
             for parts in events["parts"].to_pylist()]  # fmt: skip
    alarmed = _spans(part for event in parts for part in event)
    return _EventCounts(
        right=sum(any(_overlaps(span, of_recording.get(name, [])) for name, span in event) for event in parts),
        events=len(parts),
        found=sum(_overlaps(span, alarmed.get(name, [])) for name, span in stretches),
        stretches=len(stretches),
        whole=sum(_overlaps(span, audited.get(name, [])) for name, span in whole),
        own=bool(parts) and _hundredths(marked) == _hundredths(part for event in parts for part in event),
    )


def _hundredths(places: Iterable[tuple[str, Span]]) -> set[tuple[str, int, int]]:
    """Spans as label files give them back: these hold fewer digits than a table."""
    return {(recording, round(100 * onset), round(100 * offset)) for recording, (onset, offset) in places}


def _spans(places: Iterable[tuple[str, Span]]) -> dict[str, list[Span]]:
    """Spans by recording, in order, those that overlap or touch as one."""
    found: dict[str, list[Span]] = {}
    for recording, span in places:
        found.setdefault(recording, []).append(span)
    return {recording: merge_spans(spans) for recording, spans in found.items()}


def _overlaps(span: Span, others: Sequence[Span]) -> bool:
    """Whether a span shares some time with one of the others, which are in order and apart."""
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
    recall = f" (recall {counts.found / counts.stretches:.3f})" if counts.stretches else ""
    noun, verb = ("window", "counts") if counts.whole == 1 else ("windows", "count")
    whole = f"; {counts.whole} {noun} without an interval {verb} whole" if counts.whole else ""
    return (
        f"Events: {counts.right} of {counts.events} right{precision}, {counts.found} of {counts.stretches} reference "
        f"intervals found{recall}{whole}."
    )


def _f_score_words(f_score: pa.Table, run: AuditRun) -> str:
    """The F-score of the explanation that the events are told by; all others are in the table."""
    for row in f_score.to_pylist():
        if (row["method"], row["percentile"], row["anomaly_type"]) == (run.events.method, run.events.percentile, "all"):
            return (
                f"Seconds: F {row['mean']:.3f} over {row['n_clips']} explained clips ({row['method']}, percentile "
                f"{row['percentile']:g}; every second flagged: {row['control_every_second']:.3f})."
            )
    return "Seconds: no F-score, as no annotated clip was explained."
