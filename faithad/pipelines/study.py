"""The whole study: each stage in turn, from where the last run left off.

A stage needs the marks of the stages that it builds upon, with settings that fit, and knows nothing else about them.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import pyarrow as pa

from faithad import parquet, schemas, storage
from faithad.audit.ledger import count_ledger
from faithad.audit.sounds import clip_sounds
from faithad.config.study import Study
from faithad.errors import StudyError
from faithad.pipelines.audit.models import audit_models, audit_stage, is_audit_whole
from faithad.pipelines.cluster.session import ray_session
from faithad.pipelines.evaluate import evaluate, evaluate_stage
from faithad.pipelines.features import compute_features, features_stage
from faithad.pipelines.index import build_index, check_index, index_stage, require_study_visible
from faithad.pipelines.tracked import require_trackers, track_study
from faithad.pipelines.training.run import train_models, train_stage
from faithad.pipelines.training.trained import damage
from faithad.progress import console
from faithad.runs import layout
from faithad.runs.fingerprints import clips_digest, table_digest
from faithad.runs.formats import replace_damaged
from faithad.runs.lock import alone_in
from faithad.runs.prune import FEATURES, pruned
from faithad.runs.stages import ResumableStage
from faithad.runs.tables import read_manifest

# What audits depend on. Other columns may come with new releases, whose studies go on with audits of older ones.
_NOT_JUDGED = ("uri", "utc_offset_s", "recorder", "machine", "section", "domain", "channel", "take", "shard")
_JUDGED = tuple(name for name in schemas.MANIFEST.names if name not in _NOT_JUDGED)


@dataclass(frozen=True)
class Stages:
    """The marks of all stages after the index."""

    features: ResumableStage
    train: dict[tuple[str, int], ResumableStage]
    audit: dict[tuple[str, int], ResumableStage]
    evaluate: ResumableStage
    report: ResumableStage


def index(study: Study, *, redo: bool = False) -> None:
    """Recordings → `manifest.parquet`. Makes the demo mill first where the study has one."""
    build_index(study, index_stage(study), redo=redo)


def train(study: Study, *, redo: bool = False) -> None:
    """Features → `models/`, one model for each (model, seed)."""
    stages, manifest = open_study(study)
    if not (_are_features_pruned(study) and _are_used(study, stages, manifest)):
        compute_features(study, manifest, stages.features, redo=redo)
    train_models(study, stages.train, redo=redo)
    track_study(study)


def audit(study: Study, *, redo: bool = False) -> None:
    """Test clips x models → `audit/`."""
    stages, manifest = open_study(study)
    _need(stages.train.values(), before="train")
    if _are_features_pruned(study) and not _are_used(study, stages, manifest):
        raise StudyError(
            f"`faithad prune` removed the features below {study.root}, and this audit needs them. Run `faithad train` "
            "with the same configuration first: it makes them again."
        )
    audit_models(study, manifest, stages.audit, stages.train, redo=redo, conclusions=(stages.evaluate, stages.report))


def evaluate_study(study: Study, *, redo: bool = False) -> None:
    """Audit tables → `summary/`."""
    stages, manifest = open_study(study)
    _need(stages.audit.values(), before="audit")
    evaluate(study, manifest, stages.evaluate, redo=redo)


def report(study: Study, *, redo: bool = False) -> None:
    """All tables → `report.html`. Replaced without `--redo` when its settings or tables changed."""
    from faithad.report.study_page import render_report  # drawing takes seconds to import
    from faithad.report.study_tables import example_clips

    stages, manifest = open_study(study)
    _need([stages.evaluate], before="evaluate")
    if stages.report.begin(redo=True):
        wanted = example_clips(study.root) if study.report.sound == "events" else []
        clips = {clip["clip_id"]: clip for clip in manifest.to_pylist() if clip["clip_id"] in set(wanted)}
        sounds = clip_sounds([clips[clip_id] for clip_id in wanted])
        parquet.write_table(sounds, storage.join(study.root, layout.CLIP_SOUNDS), schema=schemas.CLIP_SOUNDS)
        render_report(study.root)
        stages.report.finish()
    track_study(study)


def _alone(stage: Callable[..., None]) -> Callable[..., None]:
    """The same stage, which refuses to run while another driver works in the study's root."""

    @functools.wraps(stage)
    def run(study: Study, *, redo: bool = False) -> None:
        require_trackers(study)
        with alone_in(study.root):
            replace_damaged(study.root)
            stage(study, redo=redo)

    return run


STAGES: dict[str, Callable[..., None]] = {
    "index": _alone(index),
    "train": _alone(train),
    "audit": _alone(audit),
    "evaluate": _alone(evaluate_study),
    "report": _alone(report),
}


def run_study(study: Study, *, redo: bool = False) -> str:
    """Run every stage that is not done yet, on one Ray.

    Returns:
        The last line for the user: what was accounted for and where the results are.
    """
    require_trackers(study)
    if _finished(study):
        console.print("All stages were done already.")
        with alone_in(study.root) if study.track else nullcontext():
            track_study(study)
    else:
        with alone_in(study.root), ray_session():
            require_study_visible(study)
            for name, stage in STAGES.items():
                started = time.monotonic()
                stage(study, redo=redo)
                console.print(f"{name}: done ({time.monotonic() - started:.0f} s)")
    return closing_line(study)


def closing_line(study: Study) -> str:
    """What became of the study's clips, and where to look."""
    ledger = storage.join(study.root, layout.summary("ledger"))
    counts = count_ledger(ledger)
    losses = {"skipped": counts.parts_skipped, "failed": counts.parts_failed + counts.clips_failed}
    parts = [f"{counts.clips_done} clips done", *(f"{n} {status}" for status, n in losses.items() if n)]
    see = f" (see {ledger})" if len(parts) > 1 else ""
    see += f". Not heard: {counts.unheard}" if counts.unheard else ""
    report = storage.join(study.root, layout.REPORT)
    return f"{', '.join(parts)}{see}. Tables: {study.root}  Report: {report}"


def n_failed(study: Study) -> int:
    """How many files, parts of recordings and clips of a finished study could not be read or audited."""
    counts = count_ledger(storage.join(study.root, layout.summary("ledger")))
    return counts.parts_failed + counts.clips_failed


def _finished(study: Study) -> bool:
    """Whether all stages are done, and their results are whole. It needs no Ray: a finished study answers soon."""
    if not index_stage(study).is_done():
        return False
    stages, manifest = open_study(study)
    if not (_are_features_pruned(study) or stages.features.is_done()):
        return False
    return stages.evaluate.is_done() and stages.report.is_done() and _are_used(study, stages, manifest)


def _are_features_pruned(study: Study) -> bool:
    return FEATURES in pruned(study.root)


def _are_used(study: Study, stages: Stages, manifest: pa.Table) -> bool:
    """Whether all that is made of the features is there, and whole."""
    made = [*stages.train.values(), *stages.audit.values()]
    return all(stage.is_done() for stage in made) and all(
        damage(study, *run) is None and is_audit_whole(study, manifest, *run) for run in study.runs
    )


def open_study(study: Study) -> tuple[Stages, pa.Table]:
    """The marks of the stages after the index, and the manifest."""
    if not storage.exists(storage.join(study.root, layout.MANIFEST)):
        raise StudyError(f"{study.root} has no manifest yet. Run `faithad index` with the same configuration first.")
    check_index(study)
    manifest = read_manifest(study.root)
    ledger = parquet.read_table(storage.join(study.root, layout.INDEX_LEDGER))
    learned = clips_digest(manifest, ("train", "validation"), ("clip_id", "duration_s", "split"))
    judged = clips_digest(manifest, ("test",), _JUDGED)
    features = features_stage(study, learned)
    trainings = {run: train_stage(study, *run, features) for run in study.runs}
    audits = {run: audit_stage(study, *run, trainings, judged) for run in study.runs}
    evaluation = evaluate_stage(study, list(audits.values()), features, table_digest(ledger))
    settings = {"evaluate": evaluation.fingerprint, "search": _search_digest(study.root)}
    settings |= {"report.sound": study.report.sound}
    outputs = (layout.REPORT, layout.CLIP_SOUNDS)
    page = ResumableStage(study.root, "report", settings, outputs, result=layout.REPORT, needs=outputs)
    return Stages(features, trainings, audits, evaluation, page), manifest


def _search_digest(root: str) -> str | None:
    """The digest of the table of a search in the same root, which the report shows."""
    location = storage.join(root, layout.summary("search"))
    return table_digest(parquet.read_table(location)) if storage.exists(location) else None


def _need(stages: Iterable[ResumableStage], *, before: str) -> None:
    for stage in stages:
        if not stage.is_done():
            raise StudyError(
                f"Stage {stage.name!r} is not done with these settings in {stage.root}. "
                f"Run `faithad {before}` with the same configuration first."
            )
