"""`faithad audit --model`: recordings and a trained model in, a list of events with reasons out.

An audit has three steps, each with its own mark (see `stages`), so that changing a setting repeats only what depends
on it:

    score      recordings → manifest → a score and perhaps an alarm for every clip
    explain    the clips that `audit.explain` asks for → curves, maps, faithfulness
    events     all tables → the whole ledger, events and the report; replaced without --redo when settings or
               tables changed

Beside the tables, `out` holds `audit.yaml`, the resolved configuration; `model.json`, the model's card with the alarm
that is raised, so that the results can be read without the model; and `inputs.parquet`, the files that were read.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from faithad import schemas, storage
from faithad.audit.choice import choose_clips, keep_highest
from faithad.audit.inputs import INDEXED, indexed_tables, relocated
from faithad.audit.ledger import merge_ledgers, remove_failed_shards
from faithad.audit.misfits import Misfit, find_misfits, with_misfits, without_misfits
from faithad.audit.outcome import Outcome, audit_outcome, events_table, read_scores
from faithad.audit.raised_alarm import raised_alarm
from faithad.audit.steps import EXPLAIN, SCORE, Step
from faithad.clips.inputs import find_recordings
from faithad.clips.manifest import Recording
from faithad.config.audit import AuditRun
from faithad.errors import ConfigError, RecordingError, shown
from faithad.model.alarm import AlarmThreshold
from faithad.pipelines.audit.models import SPREAD
from faithad.pipelines.audit.passes import Pass, is_whole, run_passes, wait_for_room
from faithad.pipelines.audit.worker import ModelAudit
from faithad.pipelines.cluster.session import ray_session
from faithad.pipelines.cluster.shared_paths import require_visible
from faithad.pipelines.index import index_recordings, opened_since
from faithad.progress import console
from faithad.report.audit_page import render_audit_report
from faithad.runs import layout
from faithad.runs.fingerprints import Fingerprint, contents, fingerprints, table_digest
from faithad.runs.lock import alone_in, require_still_alone
from faithad.runs.stages import FILE_KEY, Stage, flatten
from faithad.runs.tables import read_manifest
from faithad.scoring.trained_ensemble import AnyModel, describe, digest_of_files, load_any
from faithad.vocabulary import listed

_EXPLAINS = {"explain", "percentiles", "maps"}


@dataclass(frozen=True)
class _OpenAudit:
    """What an audit works with. `inputs` are the fingerprints of the recordings, by their names."""

    run: AuditRun
    trained: AnyModel
    recordings: list[Recording]
    inputs: dict[str, Fingerprint]
    score: Stage


def run_audit(run: AuditRun, *, redo: bool = False, retry_failed: bool = False) -> Outcome:
    """Audit recordings, from where the last run left off.

    Args:
        run: what to audit, and how.
        redo: remove results of other settings, of another model or of other recordings, and make them again.
        retry_failed: try again the clips that failed, with all others in their shards, and the recordings that could
            not be opened. If one of these opens, the shards are cut anew, and all clips are audited again.

    Raises:
        ConfigError: the results would lie among the recordings.
        RecordingError: there are no recordings, or none of them gave a clip.
        CheckpointError: the model is missing or damaged.
        AnnotationError: the annotations cannot be understood or do not fit the recordings.
        StudyError: results of other settings are in the way, or the work could not be done.
    """
    _refuse_results_among_recordings(run)
    audit = _open(run)
    with alone_in(run.out), contextlib.ExitStack() as session:  # Ray is joined only if something is left for it
        audit = replace(audit, score=audit.score.with_known_files(afresh=redo))
        _work(audit, session, redo=redo, retry_failed=retry_failed)
    return audit_outcome(run.out)


def _refuse_results_among_recordings(run: AuditRun) -> None:
    out = run.out.rstrip("/") + "/"
    for location in run.recordings:
        if out.startswith(location.rstrip("/") + "/"):
            raise ConfigError(
                f"The results are to go to {run.out}, which lies in the folder of the recordings, {location}. Give a "
                "folder outside of it (--out)."
            )


def _open(run: AuditRun) -> _OpenAudit:
    """Look at the model and the recordings, and say which alarm is raised."""
    trained = load_any(run.model)
    trained.alarm = raised_alarm(run, trained)
    recordings = find_recordings([("test", location) for location in run.recordings])
    digests = fingerprints([(recording.path, recording.uri) for recording in recordings])
    inputs = dict(zip((recording.path for recording in recordings), digests, strict=True))
    return _OpenAudit(run, trained, recordings, inputs, _score_stage(run, trained.alarm, inputs))


def _work(audit: _OpenAudit, session: contextlib.ExitStack, *, redo: bool, retry_failed: bool) -> None:
    run = audit.run
    again = retry_failed or (audit.score.is_done() and not _is_whole(audit, SCORE, read_manifest(run.out)))
    is_new = audit.score.begin(redo=redo, again=again)
    if is_new:
        _join_ray(run, session)
        _withdraw_conclusions(run.out)
        if retry_failed:
            audit = _forget_failures(audit)
        _score(audit)
        audit.score.finish()
    else:
        relocated(run.out, audit.recordings)
    chosen = _choose(audit)
    explain = _explain_stage(audit, chosen)
    again = retry_failed or (explain.is_done() and not _is_whole(audit, EXPLAIN, chosen))
    if explain.begin(redo=redo or retry_failed, again=again):
        is_new = True
        _join_ray(run, session)
        _withdraw_conclusions(run.out)
        if retry_failed:
            remove_failed_shards(run.out, EXPLAIN)
        _run_pass(audit, EXPLAIN, chosen, title="explain")
        explain.finish()
    _conclude(audit, explain, again=is_new)


def _join_ray(run: AuditRun, session: contextlib.ExitStack) -> None:
    session.enter_context(ray_session())
    wait_for_room(run.audit)
    require_visible([run.model, *run.recordings], [run.out])


def _withdraw_conclusions(out: str) -> None:
    """Remove what was made of tables that are about to change: nobody must read the two together."""
    require_still_alone()
    for name in (f"{layout.STAGES}/events.json", layout.LEDGER, layout.EVENTS, layout.REPORT, layout.SUMMARY):
        storage.delete(storage.join(out, name))


def _forget_failures(audit: _OpenAudit) -> _OpenAudit:
    """Remove the shards with clips that failed, or all shards where a recording opens now that did not before."""
    opened = opened_since(audit.run, audit.recordings)
    if not opened:
        remove_failed_shards(audit.run.out, SCORE)
        return audit
    names = listed([shown(name) for name in opened], most=1)
    console.print(f"retry: {names} can be opened now: shards are cut anew, all clips audited again")
    audit.score.reset()
    score = _score_stage(audit.run, audit.trained.alarm, audit.inputs)
    score.begin(redo=False)
    return replace(audit, score=score)


def _score_stage(run: AuditRun, alarm: AlarmThreshold | None, inputs: Mapping[str, Fingerprint]) -> Stage:
    settings: dict[str, Any] = {
        "model": digest_of_files(run.model)[:16],
        "remainder": run.remainder,
        **({} if run.channel == "auto" else {"channel": run.channel}),  # results of releases without it are as good
        **flatten("audit", run.audit.model_dump(mode="json", exclude=SPREAD | _EXPLAINS)),
        **{f"alarm.{key}": getattr(alarm, key) for key in ("rule", "pooling", "false_alarm_rate", "threshold")},
    }
    settings |= {f"{FILE_KEY}{name}": fingerprint.digest for name, fingerprint in inputs.items()}
    if run.annotations is not None:
        settings |= {f"{FILE_KEY}annotations {name}": digest for name, digest in contents(run.annotations).items()}
    outputs = (*INDEXED, layout.HEALTH, *SCORE.tables, SCORE.ledger, layout.HEADER_ATTEMPTS, layout.ATTEMPTS)
    return Stage(run.out, "score", settings, outputs, result=SCORE.ledger, needs=indexed_tables(run.out))


def _explain_stage(audit: _OpenAudit, chosen: pa.Table) -> Stage:
    run = audit.run
    settings = {
        "score": audit.score.fingerprint,
        "chosen clips": table_digest(chosen.select(["clip_id", "keep_maps"])),
        **flatten("audit", run.audit.model_dump(mode="json", include=_EXPLAINS)),
        **flatten("attribution", run.attribution.as_in_marks()),
    }
    # Where no clip is chosen nothing is written, and the mark alone says that the stage is done.
    result = EXPLAIN.ledger if chosen.num_rows else ""
    return Stage(run.out, "explain", settings, (*EXPLAIN.tables, EXPLAIN.ledger), result=result)


def _score(audit: _OpenAudit) -> None:
    run = audit.run
    _describe(audit)
    features, inputs = audit.trained.features, audit.inputs
    clips = index_recordings(
        run, audit.recordings, inputs, clip_s=features.clip_s, sample_rate_hz=features.sample_rate_hz
    )
    left_over = storage.read_table(storage.join(run.out, layout.INDEX_LEDGER)).to_pylist()
    if not clips.num_rows and not any(row["status"] == "failed" for row in left_over):
        reasons = listed([f"  {shown(row['recording'])}: {row['reason']}" for row in left_over], separator="\n")
        raise RecordingError(f"There is nothing to audit: not one recording gave a clip.\n{reasons}")
    _run_pass(audit, SCORE, clips, title="score")


def _describe(audit: _OpenAudit) -> None:
    """Write beside the results what they are made with."""
    require_still_alone()
    storage.write_text(storage.join(audit.run.out, layout.AUDIT), audit.run.to_yaml())
    card = json.dumps(describe(audit.trained), indent=1)
    storage.write_text(storage.join(audit.run.out, layout.MODEL), card)


def _choose(audit: _OpenAudit) -> pa.Table:
    """The clips to explain, with `keep_maps`: whole maps are kept of those with the highest scores."""
    clips, scores = read_manifest(audit.run.out), read_scores(audit.run.out)
    if not audit.trained.explained:
        scores = scores.slice(0, 0)
    misfits, alarm, settings = _misfits(audit), audit.trained.alarm, audit.run.audit
    searched = without_misfits(scores, clips, misfits, but_searched=True)
    chosen = choose_clips(clips, searched, explain=settings.explain, alarm=alarm)
    return keep_highest(chosen, without_misfits(scores, clips, misfits), settings.maps, alarm)


def _misfits(audit: _OpenAudit) -> list[Misfit]:
    """The recordings that do not fit the model."""
    out, sound = audit.run.out, audit.trained.sound
    return find_misfits(read_scores(out), read_manifest(out), limit_db=None if sound is None else sound.limit_db)


def _pass(audit: _OpenAudit, step: Step, clips: pa.Table) -> Pass:
    return Pass(ModelAudit(audit.run.model, audit.run.out, audit.trained.alarm), step, clips)


def _is_whole(audit: _OpenAudit, step: Step, clips: pa.Table) -> bool:
    """Whether all shards of a step that is marked as done are there and what was written."""
    return not clips.num_rows or is_whole(_pass(audit, step, clips), audit.run.audit)


def _run_pass(audit: _OpenAudit, step: Step, clips: pa.Table, *, title: str) -> None:
    run, trained = audit.run, audit.trained
    run_passes(
        [_pass(audit, step, clips)],
        attribution=run.attribution,
        audit=run.audit,
        features=trained.features,
        title=title,
    )


def _conclude(audit: _OpenAudit, explain: Stage, *, again: bool) -> None:
    """Replace the whole ledger, the events and the report: they cost little, and nothing is built upon them."""
    run = audit.run
    settings = flatten("events", run.events.model_dump(mode="json")) | {"explain": explain.fingerprint}
    outputs = (layout.LEDGER, layout.EVENTS, layout.MODEL, layout.REPORT)
    stage = Stage(run.out, "events", settings, outputs, result=layout.REPORT, needs=outputs)
    if stage.begin(redo=True, again=again):
        _describe(audit)
        misfits = _misfits(audit)
        ledger = with_misfits(merge_ledgers(run.out, read_manifest(run.out), [run.out]), misfits)
        require_still_alone()
        storage.write_table(ledger, storage.join(run.out, layout.LEDGER), schema=schemas.LEDGER)
        events = events_table(run.out, audit.trained, run.events, misfits)
        require_still_alone()
        storage.delete(storage.join(run.out, layout.SUMMARY))  # an evaluation of other events
        storage.write_table(events, storage.join(run.out, layout.EVENTS), schema=schemas.EVENTS)
        render_audit_report(run.out)
        stage.finish()
