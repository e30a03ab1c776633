"""`faithad audit --model`: recordings and a trained model in, a list of events with reasons out.

An audit has three steps, each with its own mark (see `stages`), so that changing a setting repeats only what depends
on it:

    score      recordings → manifest → a score and perhaps an alarm for every clip
    explain    the clips that `audit.explain` asks for → curves, maps, faithfulness
    events     all tables → the whole ledger, events and the report; replaced without --redo when settings or
               tables changed

Recordings that came since the last run are a take of their own: they are scored and explained in shards of their own,
and nothing of the earlier takes is done again (see `takes`); the events are those of all takes.

In addition to the tables, `out` holds `audit.yaml`, the resolved configuration; `model.json`, the model's card with the
alarm that is raised, so that the results can be read without the model; and `inputs.parquet`, the files that were read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from faithad import parquet, storage
from faithad.audit.chosen_score import with_score
from faithad.audit.events import find_events
from faithad.audit.growth import (
    audited_recordings,
    is_still_written,
    skipped_rows,
    with_clips,
    withdraw_changed,
)
from faithad.audit.inputs import Inputs, read_inputs
from faithad.audit.ledger import remove_failed_shards
from faithad.audit.misfits import without_misfits
from faithad.audit.model import require_baselines
from faithad.audit.outcome import Outcome, audit_outcome, read_scores
from faithad.audit.raised_alarm import raised_alarm
from faithad.audit.steps import EXPLAIN, SCORE, Step
from faithad.clips.channels import split_name
from faithad.clips.inputs import find_left_out, find_recordings
from faithad.clips.manifest import Recording
from faithad.config.audit import AuditRun
from faithad.errors import ConfigError, RecordingError, StudyError, shown
from faithad.pipelines.audit.conclusions import conclude, withdraw_conclusions
from faithad.pipelines.audit.open_audit import OpenAudit, explain_stage, misfits_of, score_stage, write_settings
from faithad.pipelines.audit.passes import Pass, is_whole, run_passes, wait_for_room
from faithad.pipelines.audit.takes import choose_by_take, read_takes
from faithad.pipelines.audit.worker import ModelAudit
from faithad.pipelines.audit_index import index_recordings, opened_since
from faithad.pipelines.cluster.session import ray_session
from faithad.pipelines.cluster.shared_paths import require_visible
from faithad.pipelines.shards.log_mels import with_looks
from faithad.progress import console
from faithad.runs import layout
from faithad.runs.fingerprints import STILL_WRITTEN, Look, looks
from faithad.runs.lock import alone_in
from faithad.runs.stages import FILE_KEY, differences, is_finished
from faithad.scoring.trained_ensemble import digest_of_files, load_any
from faithad.vocabulary import listed


def run_audit(
    run: AuditRun, *, redo: bool = False, retry_failed: bool = False, accept_missing: bool = False
) -> Outcome:
    """Audit recordings, from where the last run left off. Recordings that came since are audited, too.

    Args:
        run: what to audit, and how.
        redo: remove results of other settings, of another model or of recordings that have changed or gone, and make
            them again.
        retry_failed: try again the clips that failed, with all others in their shards, and the recordings that could
            not be opened.
        accept_missing: keep the results of recordings that are gone, and say so in the ledger.

    Raises:
        ConfigError: the results would lie among the recordings, or the model lacks the baselines of its explanations.
        RecordingError: there are no recordings, or none of them gave a clip.
        CheckpointError: the model is missing or damaged.
        AnnotationError: the annotations cannot be understood or do not fit the recordings.
        StudyError: results of other settings, or of recordings that have changed or gone, are in the way, or the work
            could not be done.
    """
    return AuditRunner(run).look(redo=redo, retry_failed=retry_failed, accept_missing=accept_missing)


class AuditRunner:
    """Audits a folder as often as it is asked to look at it; the model and the files that did not change stay known."""

    def __init__(self, run: AuditRun) -> None:
        """Look at the model, and say which alarm is raised. Raises what `run_audit` raises."""
        _refuse_results_among_recordings(run)
        self._run = run
        self._trained = with_score(run, load_any(run.model))
        if run.audit.explain != "none":
            require_baselines(self._trained, run.attribution)
        self._trained.alarm = raised_alarm(run, self._trained)
        self._model_digest = digest_of_files(run.model)[:16]
        self._looks: dict[str, Look] = {}
        self._sounds: pa.Table | None = None

    def look(
        self,
        *,
        redo: bool = False,
        retry_failed: bool = False,
        accept_missing: bool = False,
        only_settled: bool = False,
        check: bool = True,
    ) -> Outcome:
        """Audit what is not audited yet.

        Args:
            redo: see `run_audit`.
            retry_failed: see `run_audit`.
            accept_missing: see `run_audit`.
            only_settled: whether to leave out every new file that was modified in the last `follow.settle_s`; otherwise
                only those whose header also lacks a length.
            check: whether to check what an earlier run has finished.
        """
        run = self._run
        recordings = find_recordings([("test", location) for location in run.recordings])
        now = looks([(recording.path, recording.uri) for recording in recordings], before=self._looks)
        self._looks = dict(zip((recording.path for recording in recordings), now, strict=True))
        with alone_in(run.out), contextlib.ExitStack() as session:  # Ray is joined only if something is left for it
            audit = self._open(recordings, redo=redo, accept_missing=accept_missing, only_settled=only_settled)
            self._sounds = _work(audit, session, redo=redo, retry_failed=retry_failed, check=check)
        return audit_outcome(run.out)

    def _open(
        self, recordings: Sequence[Recording], *, redo: bool, accept_missing: bool, only_settled: bool
    ) -> OpenAudit:
        """Compare the recordings with those that were audited."""
        run, looks = self._run, self._looks
        score = score_stage(run, self._trained.alarm, self._model_digest, {})
        for step, name in ((SCORE, "score"), (EXPLAIN, "explain")):
            if not is_finished(run.out, name):
                withdraw_changed(run.out, step)  # a run that was killed may not have come to it
        known = audited_recordings(run.out)
        known = known.accepting(looks, missing=accept_missing)
        if not redo and (in_the_way := known.differing(looks).keys() & with_clips(run.out, known)):
            raise _other_recordings(run.out, known, looks, in_the_way)
        if redo and known.differing(looks):
            score.reset()
            known = Inputs()
        known = known.without(known.differing(looks))  # no clip is theirs: they are taken as they are now
        left_out = find_left_out(run.recordings)
        written = {
            recording.path
            for recording in recordings
            if recording.path not in known.files
            and is_still_written(
                recording.uri, looks[recording.path], within_s=run.follow.settle_s, only_settled=only_settled
            )
        }
        left_out += skipped_rows(dict.fromkeys(written, STILL_WRITTEN))
        recordings = [recording for recording in recordings if recording.path not in written]
        new_looks = {
            recording.path: looks[recording.path] for recording in recordings if recording.path not in known.files
        }
        files = known.having(new_looks).files
        score = score_stage(run, self._trained.alarm, self._model_digest, files, afresh=redo)
        return OpenAudit(
            run, self._trained, self._model_digest, recordings, looks, known, left_out, self._sounds, score
        )


def _refuse_results_among_recordings(run: AuditRun) -> None:
    out = run.out.rstrip("/") + "/"
    for location in run.recordings:
        if out.startswith(location.rstrip("/") + "/"):
            raise ConfigError(
                f"The results are to go to {run.out}, which lies in the folder of the recordings, {location}. Give a "
                "folder outside of it (--out)."
            )


def _other_recordings(out: str, known: Inputs, looks: Mapping[str, Look], names: Collection[str]) -> StudyError:
    new_looks = {
        f"{FILE_KEY}{name}": look.fingerprint.digest for name, look in looks.items() if name not in known.files
    }
    before = {f"{FILE_KEY}{name}": known.files[name].digest for name in names}
    now = {f"{FILE_KEY}{name}": looks[name].fingerprint.digest for name in names if name in looks}
    put_back = ""
    if now.keys() < before.keys():
        put_back = "Put back what went, or accept that it is lost (--accept-missing), and the same command goes on. "
    if now:
        put_back = "Put back what was there, and the same command goes on. "
    return StudyError(
        f"{out} holds results of recordings that are not what they were:\n{differences(before, now | new_looks)}\n"
        f"{put_back}Or: give another folder (--out), or --redo to remove those results and audit all recordings again."
    )


def _work(
    audit: OpenAudit, session: contextlib.ExitStack, *, redo: bool, retry_failed: bool, check: bool
) -> pa.Table | None:
    """Do what is left of an audit, and return the sounds of its events if they are known."""
    run = audit.run
    again = retry_failed or (check and audit.score.is_done() and not _is_whole(audit, SCORE, _clips(run)))
    is_new = audit.score.begin(redo=redo, again=again)
    if is_new:
        _join_ray(run, session)
        withdraw_conclusions(run.out)
        if retry_failed:
            audit = _forget_failures(audit)
        audit = _score(audit)
        audit.score.finish()
    else:
        _index(audit)
    chosen = _choose(audit)
    explain = explain_stage(audit, chosen)
    again = retry_failed or (check and explain.is_done() and not _is_whole(audit, EXPLAIN, chosen))
    if explain.begin(redo=redo, again=again):
        is_new = True
        _join_ray(run, session)
        withdraw_conclusions(run.out)
        if retry_failed:
            remove_failed_shards(run.out, EXPLAIN)
        _run_pass(audit, EXPLAIN, with_looks(chosen, audit.looks), title="explain")
        if changed := withdraw_changed(run.out, EXPLAIN):
            return _work(_without(audit, changed), session, redo=redo, retry_failed=False, check=check)
        explain.finish()
    return conclude(audit, explain, again=is_new)


def _join_ray(run: AuditRun, session: contextlib.ExitStack) -> None:
    session.enter_context(ray_session())
    wait_for_room(run.audit)
    require_visible([run.model, *run.recordings], [run.out])


def _forget_failures(audit: OpenAudit) -> OpenAudit:
    """Remove the shards with clips that failed; recordings that open now, and did not before, count as new ones."""
    opened = opened_since(audit.run, audit.recordings)
    remove_failed_shards(audit.run.out, SCORE)
    if not opened:
        return audit
    console.print(f"retry: {listed([shown(name) for name in opened], most=1)} can be opened now")
    return replace(audit, known=audit.known.without(opened))


def _score(audit: OpenAudit) -> OpenAudit:
    """Index and score. Recordings that change meanwhile leave the audit, until the next run."""
    run = audit.run
    write_settings(audit)
    clips = _index(audit)
    left_over = parquet.read_table(storage.join(run.out, layout.INDEX_LEDGER)).to_pylist()
    if not clips.num_rows and not any(row["status"] == "failed" for row in left_over):
        reasons = listed([f"  {shown(row['recording'])}: {row['reason']}" for row in left_over], separator="\n")
        raise RecordingError(f"There is nothing to audit: not one recording gave a clip.\n{reasons}")
    _run_pass(audit, SCORE, with_looks(clips, audit.looks), title="score")
    while changed := withdraw_changed(run.out, SCORE):
        audit = _without(audit, changed)
        _run_pass(audit, SCORE, with_looks(_clips(run), audit.looks), title="score")
    return _without(audit, {})


def _without(audit: OpenAudit, changed: Mapping[str, str]) -> OpenAudit:
    """The audit of what `inputs.parquet` names, after recordings have left it; says which, and why."""
    if changed:
        names = [f"{shown(name)} {reason}" for name, reason in changed.items()]
        console.print(f"audit: {listed(names, most=3, separator='; ')}")
    known = read_inputs(audit.run.out)
    ledger = parquet.read_table(storage.join(audit.run.out, layout.INDEX_LEDGER)).to_pylist()
    return replace(
        audit,
        recordings=[recording for recording in audit.recordings if recording.path in known.files],
        known=known,
        left_out=[row for row in ledger if split_name(row["recording"])[0] not in known.files],
        score=score_stage(audit.run, audit.trained.alarm, audit.model_digest, known.files),
    )


def _index(audit: OpenAudit) -> pa.Table:
    return index_recordings(
        audit.run,
        audit.recordings,
        audit.looks,
        clip_s=audit.trained.features.clip_s,
        sample_rate_hz=audit.trained.features.sample_rate_hz,
        clips_per_shard=audit.run.audit.clips_per_shard,
        known=audit.known,
        left_out=audit.left_out,
    )


def _clips(run: AuditRun) -> pa.Table:
    return read_takes(run.out, run.audit.clips_per_shard)


def _choose(audit: OpenAudit) -> pa.Table:
    """The clips to explain, with `keep_maps`: of the highest scores, one of each event before a second one of any."""
    scores = read_scores(audit.run.out)
    if not audit.trained.explained:
        scores = scores.slice(0, 0)
    misfits, clips = misfits_of(audit), _clips(audit.run)
    searched = without_misfits(scores, clips, misfits, but_searched=True)
    pictured = without_misfits(scores, clips, misfits)
    alarm, features = audit.trained.alarm, audit.trained.features
    assert alarm is not None
    how: dict[str, Any] = {"features": features, **audit.run.events.model_dump()}
    events = find_events(searched, clips, alarm=alarm, explanations=None, faithfulness=None, **how)
    event_of = {clip_id: number for number, ids in enumerate(events["clip_ids"].to_pylist()) for clip_id in ids}
    return choose_by_take(clips, searched, audit.run.audit, alarm=alarm, pictured=pictured, event_of=event_of)


def _pass(audit: OpenAudit, step: Step, clips: pa.Table) -> Pass:
    run = audit.run
    own = ModelAudit(run.model, run.out, audit.trained.alarm, judging=run.judging, as_paper=run.score == "paper")
    return Pass(own, step, clips)


def _is_whole(audit: OpenAudit, step: Step, clips: pa.Table) -> bool:
    """Whether all shards of a step that is marked as done are there and what was written."""
    return not clips.num_rows or is_whole(_pass(audit, step, clips))


def _run_pass(audit: OpenAudit, step: Step, clips: pa.Table, *, title: str) -> None:
    run, trained = audit.run, audit.trained
    run_passes(
        [_pass(audit, step, clips)],
        attribution=run.attribution,
        audit=run.audit,
        features=trained.features,
        title=title,
    )
