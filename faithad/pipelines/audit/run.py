"""`faithad audit --model`: recordings and a trained model in, a list of events with reasons out.

Three steps, each with its own mark (see `stages`), so that what is cheap to change costs little to change:

    score      recordings → manifest → a score and perhaps an alarm for every clip
    explain    the clips that `audit.explain` asks for → curves, maps, faithfulness
    events     all tables → the whole ledger, events and the report; made anew whenever it is asked for

Beside the tables, `out` holds `audit.yaml`, the resolved configuration; `model.json`, what the model says of itself and
the alarm that is raised, so that nobody needs the model to read the results; and `inputs.parquet`, the files that were
read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from faithad import schemas, storage
from faithad.audit.choice import choose_clips, keep_highest
from faithad.audit.events import find_events
from faithad.audit.ledger import Counts, count_ledger, merge_ledger, remove_failed_shards
from faithad.audit.steps import EXPLAIN, SCORE, Step
from faithad.clips.inputs import find_recordings
from faithad.clips.manifest import Recording
from faithad.config.audit import AuditRun
from faithad.errors import ConfigError, RecordingError, StudyError, shown
from faithad.evaluation.alarms import fit_alarm
from faithad.model.alarm import AlarmThreshold
from faithad.model.checkpoint import FILE_NAME, TrainedModel, describe, load_model
from faithad.pipelines.audit.index import index_recordings, opens_now, relocated
from faithad.pipelines.audit.models import SPREAD, read_scores
from faithad.pipelines.audit.passes import Plan, run_plans, wait_for_room
from faithad.pipelines.audit.worker import ModelAudit
from faithad.pipelines.cluster.session import ray_session
from faithad.pipelines.cluster.shared_paths import require_visible
from faithad.pipelines.index import digest
from faithad.progress import console
from faithad.report.audit_page import render_audit_report
from faithad.runs import layout
from faithad.runs.fingerprints import Fingerprint, contents, fingerprints
from faithad.runs.lock import alone_in
from faithad.runs.stages import FILE_KEY, Stage, flatten
from faithad.runs.tables import read_whole
from faithad.vocabulary import POOLINGS, count, listed

_EXPLAINS = {"explain", "percentiles", "maps"}
_FEW_ABOVE = 5


@dataclass(frozen=True)
class Outcome:
    """What an audit came to. `line` says it to a person; failed and skipped count recordings without clips as well."""

    line: str
    n_done: int
    n_failed: int
    n_skipped: int


@dataclass(frozen=True)
class _Opened:
    """What an audit works with. `inputs` are the contents of the recordings, by their names."""

    run: AuditRun
    trained: TrainedModel
    recordings: list[Recording]
    inputs: dict[str, Fingerprint]
    score: Stage

    @property
    def audit(self) -> ModelAudit:
        return ModelAudit(self.run.model, self.run.out, self.trained.alarm)


def run_audit(run: AuditRun, *, redo: bool = False, retry_failed: bool = False) -> Outcome:
    """Audit recordings, from where the last run left off.

    Args:
        run: what to audit, and how.
        redo: remove results of other settings, of another model or of other recordings, and make them again.
        retry_failed: try clips that failed once more, and all in the same shards; and recordings that could not be
            opened. If one of these opens, the shards are cut anew, and all clips are audited again.

    Raises:
        ConfigError: the results would lie among the recordings.
        RecordingError: there are no recordings, or none of them gave a clip.
        CheckpointError: the model is missing or damaged.
        AnnotationError: the annotations cannot be understood or do not fit the recordings.
        StudyError: results of other settings are in the way, or the work could not be done.
    """
    _refuse_results_among_recordings(run)
    opened = _open(run)
    with alone_in(run.out), contextlib.ExitStack() as session:  # of Ray, and only if something is left for it
        _work(replace(opened, score=opened.score.settled(afresh=redo)), session, redo=redo, retry_failed=retry_failed)
    return _outcome(run, count_ledger(run.out))


def _refuse_results_among_recordings(run: AuditRun) -> None:
    out = run.out.rstrip("/") + "/"
    for location in run.recordings:
        if out.startswith(location.rstrip("/") + "/"):
            raise ConfigError(
                f"The results are to go to {run.out}, which lies in the folder of the recordings, {location}. Give a "
                "folder outside of it (--out)."
            )


def _work(opened: _Opened, session: contextlib.ExitStack, *, redo: bool, retry_failed: bool) -> None:
    run = opened.run
    is_new = opened.score.begin(redo=redo, again=retry_failed)
    if is_new:
        _join_ray(run, session)
        _withdraw(run.out)
        if retry_failed:
            opened = _retried(opened)
        _score(opened)
        opened.score.finish()
    else:
        relocated(run.out, opened.recordings)
    chosen = _chosen(opened)
    explain = _explain_stage(opened, chosen)
    if explain.begin(redo=redo or retry_failed, again=retry_failed):
        is_new = True
        _join_ray(run, session)
        _withdraw(run.out)
        if retry_failed:
            remove_failed_shards(run.out, EXPLAIN)
        _pass(opened, EXPLAIN, chosen, title="explain")
        explain.finish()
    _finish(opened, explain, again=is_new)


def _join_ray(run: AuditRun, session: contextlib.ExitStack) -> None:
    session.enter_context(ray_session())
    wait_for_room(run.audit)
    require_visible([run.model, *run.recordings], [run.out])


def _withdraw(out: str) -> None:
    """Take back what was concluded from tables that are about to change: nobody must read the two together."""
    for name in ("stages/events.json", layout.LEDGER, layout.EVENTS, layout.REPORT):
        storage.delete(storage.join(out, name))


def _retried(opened: _Opened) -> _Opened:
    """Forget what failed, so that it is tried again: the shards of such clips, or all where a recording opens now."""
    run = opened.run
    found = opens_now(run, opened.recordings)
    if not found:
        remove_failed_shards(run.out, SCORE)
        return opened
    names = listed([shown(name) for name in found], most=1)
    console.print(f"retry: {names} can be opened now: shards are cut anew, all clips audited again")
    opened.score.reset()
    score = _score_stage(run, opened.trained.alarm, opened.inputs)
    score.begin(redo=False)
    return replace(opened, score=score)


def _open(run: AuditRun) -> _Opened:
    """Look at the model and the recordings, and say which alarm is raised."""
    trained = load_model(run.model)
    trained.alarm = _alarm(run, trained)
    recordings = find_recordings([("test", location) for location in run.recordings])
    found = fingerprints([(recording.path, recording.uri) for recording in recordings])
    inputs = {recording.path: one for recording, one in zip(recordings, found, strict=True)}
    return _Opened(run, trained, recordings, inputs, _score_stage(run, trained.alarm, inputs))


def _alarm(run: AuditRun, trained: TrainedModel) -> AlarmThreshold:
    """The alarm of the run, fitted to the model's validation scores, or the one stored with the model.

    Raises:
        StudyError: there is neither, or the model lacks the scores that the run's alarm pools.
    """
    alarm = trained.alarm
    if run.alarm is not None:
        location = storage.join(run.model, layout.VALIDATION_SCORES)
        if not storage.exists(location):
            raise StudyError(
                f"The section alarm asks for another threshold than the model's own, and {location}, which it is "
                "fitted to, is missing. Copy it there from where the model was trained, or leave the section out."
            )
        scores = storage.read_table(location)[POOLINGS[run.alarm.pooling].column]
        if scores.null_count:
            raise StudyError(
                f"alarm.pooling is {run.alarm.pooling!r}, but the model {trained.name!r} gives one score for a whole "
                "clip. Set alarm.pooling to mean."
            )
        alarm = fit_alarm(scores.to_numpy(), **run.alarm.model_dump(), clip_s=trained.features.clip_s)
    if alarm is None:
        raise StudyError(f"The model in {run.model} has no alarm of its own. Set the section alarm.")
    # Of so few clips, one more or less above the threshold makes another rate.
    roughly = ", very roughly" if alarm.n_validation * alarm.false_alarm_rate < _FEW_ABOVE else ""
    console.print(
        f"alarm: above {alarm.threshold:.4g} ({POOLINGS[alarm.pooling].phrase}), by rule {alarm.rule!r} on "
        f"{alarm.n_validation} normal clips; {alarm.false_alarms_per_hour:.3g} false alarms per hour are to be expected"
        f"{roughly}"
    )
    return alarm


def _score_stage(run: AuditRun, alarm: AlarmThreshold | None, inputs: Mapping[str, Fingerprint]) -> Stage:
    settings: dict[str, Any] = {
        "model": hashlib.sha256(storage.read_bytes(storage.join(run.model, FILE_NAME))).hexdigest()[:16],
        "remainder": run.remainder,
        **flatten("audit", run.audit.model_dump(mode="json", exclude=SPREAD | _EXPLAINS)),
        **{f"alarm.{key}": getattr(alarm, key) for key in ("rule", "pooling", "false_alarm_rate", "threshold")},
    }
    settings |= {f"{FILE_KEY}{name}": found.digest for name, found in inputs.items()}
    if run.annotations is not None:
        settings |= {f"{FILE_KEY}annotations {name}": found for name, found in contents(run.annotations).items()}
    tables = (layout.MANIFEST, layout.INPUTS, layout.INDEX_LEDGER, *SCORE.tables, SCORE.ledger)
    return Stage(run.out, "score", settings, (*tables, layout.ATTEMPTS), result=SCORE.ledger)


def _explain_stage(opened: _Opened, chosen: pa.Table) -> Stage:
    run = opened.run
    settings = {
        "score": opened.score.fingerprint,
        "chosen clips": digest(chosen.select(["clip_id", "keep_maps"])),
        **flatten("audit", run.audit.model_dump(mode="json", include=_EXPLAINS)),
        **flatten("attribution", run.attribution.model_dump(mode="json")),
    }
    # Where no clip is chosen nothing is written, and the mark alone says so.
    result = EXPLAIN.ledger if chosen.num_rows else ""
    return Stage(run.out, "explain", settings, (*EXPLAIN.tables, EXPLAIN.ledger), result=result)


def _score(opened: _Opened) -> None:
    run = opened.run
    _describe(opened)
    clips = index_recordings(run, opened.recordings, opened.inputs, clip_s=opened.trained.features.clip_s)
    left_over = storage.read_table(storage.join(run.out, layout.INDEX_LEDGER)).to_pylist()
    if not clips.num_rows and not any(row["status"] == "failed" for row in left_over):
        reasons = "\n".join(f"  {shown(row['recording'])}: {row['reason']}" for row in left_over[:10])
        raise RecordingError(f"There is nothing to audit: not one recording gave a clip.\n{reasons}")
    _pass(opened, SCORE, clips, title="score")


def _describe(opened: _Opened) -> None:
    """Say with the results what they were made with."""
    storage.write_text(storage.join(opened.run.out, layout.AUDIT), opened.run.to_yaml())
    model = json.dumps(describe(opened.trained), indent=1)
    storage.write_text(storage.join(opened.run.out, layout.MODEL), model)


def _chosen(opened: _Opened) -> pa.Table:
    """The clips to explain, with `keep_maps`: pictures are kept of those that stand out most."""
    clips, scores = storage.read_table(storage.join(opened.run.out, layout.MANIFEST)), read_scores(opened.run.out)
    if not opened.trained.explained:
        scores = scores.slice(0, 0)
    alarm, audit = opened.trained.alarm, opened.run.audit
    chosen = choose_clips(clips, scores, explain=audit.explain, alarm=alarm)
    return keep_highest(chosen, scores, audit.maps, alarm)


def _pass(opened: _Opened, step: Step, clips: pa.Table, *, title: str) -> None:
    run = opened.run
    run_plans(
        [Plan(opened.audit, step, clips)],
        attribution=run.attribution,
        audit=run.audit,
        features=opened.trained.features,
        title=title,
    )


def _finish(opened: _Opened, explain: Stage, *, again: bool) -> None:
    """The whole ledger, the events and the report: cheap, and nothing builds upon them, so they are simply replaced."""
    run = opened.run
    settings = flatten("events", run.events.model_dump(mode="json")) | {"explain": explain.fingerprint}
    outputs = (layout.LEDGER, layout.EVENTS, layout.MODEL, layout.REPORT)
    stage = Stage(run.out, "events", settings, outputs, result=layout.REPORT)
    if stage.begin(redo=True, again=again):
        _describe(opened)
        merge_ledger(run.out)
        storage.write_table(_events(opened), storage.join(run.out, layout.EVENTS), schema=schemas.EVENTS)
        render_audit_report(run.out)
        stage.finish()


def _events(opened: _Opened) -> pa.Table:
    run, trained = opened.run, opened.trained
    assert trained.alarm is not None
    scores = read_scores(run.out)
    alarmed = scores.filter(pc.fill_null(scores["alarm"], False))["clip_id"].combine_chunks()
    of_alarms = pc.field("clip_id").isin(alarmed) & (pc.field("method") == run.events.method)
    judged = of_alarms & (pc.field("mode") == "frame") & (pc.field("percentile") == run.events.percentile)
    shape = trained.n_mels, trained.n_frames
    return find_events(
        scores,
        storage.read_table(storage.join(run.out, layout.MANIFEST)),
        alarm=trained.alarm,
        explanations=_explanations(run.out, schemas.attributions(*shape), of_alarms),
        faithfulness=read_whole(storage.join(run.out, "faithfulness"), schemas.FAITHFULNESS, condition=judged),
        features=trained.features,
        **run.events.model_dump(),
    )


def _explanations(out: str, schema: pa.Schema, condition: pc.Expression) -> pa.Table:
    """The curves of some clips; whole maps, which are the bulk, stay where they are."""
    columns = [name for name in schema.names if name not in ("map", "map_scale")]
    return read_whole(storage.join(out, "attributions"), schema, columns=columns, condition=condition)


def _outcome(run: AuditRun, counts: Counts) -> Outcome:
    """The last line for the user: what was accounted for, and where to look."""
    parts = [f"{counts.clips_done:,} of {count(counts.clips, 'clip')} audited"]
    parts += [f"{counts.clips_failed:,} failed"] if counts.clips_failed else []
    parts += [f"{count(counts.parts_failed, 'recording')} unreadable"] if counts.parts_failed else []
    parts += [f"{count(counts.parts_skipped, 'part')} of the recordings skipped"] if counts.parts_skipped else []
    see = f" (see {storage.join(run.out, layout.LEDGER)})" if len(parts) > 1 else ""
    n_events = storage.read_table(storage.join(run.out, layout.EVENTS), columns=["event_id"]).num_rows
    return Outcome(
        line=f"{', '.join(parts)}{see}. {count(n_events, 'event')}: {storage.join(run.out, layout.EVENTS)}  "
        f"Report: {storage.join(run.out, layout.REPORT)}",
        n_done=counts.clips_done,
        n_failed=counts.clips_failed + counts.parts_failed,
        n_skipped=counts.parts_skipped,
    )
