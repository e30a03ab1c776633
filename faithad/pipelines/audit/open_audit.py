"""An audit that is under way, and its first two steps: what they depend on, and what they write."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from faithad import storage
from faithad.audit.growth import (
    is_recording,
)
from faithad.audit.inputs import INDEXED, Inputs, indexed_tables
from faithad.audit.misfits import Misfit, find_misfits
from faithad.audit.outcome import read_scores
from faithad.audit.steps import EXPLAIN, SCORE
from faithad.clips.ledger import LedgerRow
from faithad.clips.manifest import Recording
from faithad.config.audit import AuditRun
from faithad.model.alarm import AlarmThreshold
from faithad.pipelines.audit.models import SPREAD
from faithad.runs import layout
from faithad.runs.fingerprints import Fingerprint, Look, contents, table_digest
from faithad.runs.lock import require_still_alone
from faithad.runs.stages import FILE_KEY, LABELS_KEY, ResumableStage, flatten
from faithad.runs.tables import read_manifest
from faithad.scoring.trained_ensemble import AnyModel, describe

_EXPLAINS = {"explain", "percentiles", "maps"}


@dataclass(frozen=True)
class OpenAudit:
    """What an audit works with.

    Attributes:
        run: what is audited, and how.
        trained: the model, with the alarm that is raised.
        model_digest: of the model's file.
        recordings: all that are audited; those that are still being written are left out.
        looks: what each file was when it was looked at, by its name.
        known: the recordings that belong to the audit already, and stay.
        left_out: rows of the ledger about other files that lie there.
        sounds: of the events that an earlier look at the same folder found, if their recordings have not changed.
        score: the first step.
    """

    run: AuditRun
    trained: AnyModel
    model_digest: str
    recordings: Sequence[Recording]
    looks: Mapping[str, Look]
    known: Inputs
    left_out: Sequence[LedgerRow]
    sounds: pa.Table | None
    score: ResumableStage


def score_stage(
    run: AuditRun,
    alarm: AlarmThreshold | None,
    model_digest: str,
    files: Mapping[str, Fingerprint],
    *,
    afresh: bool = False,
) -> ResumableStage:
    """The step that scores the clips of some files; `afresh` as in `ResumableStage.with_known_files`."""
    settings: dict[str, Any] = {
        "model": model_digest,
        "remainder": run.remainder,
        # Results of releases without these keys are as good.
        **({} if run.channel == "auto" else {"channel": run.channel}),
        **({"score": run.score} if run.score == "paper" else {}),
        **flatten("audit", run.audit.model_dump(mode="json", exclude=SPREAD | _EXPLAINS)),
        **{f"alarm.{key}": getattr(alarm, key) for key in ("rule", "pooling", "false_alarm_rate", "threshold")},
    }
    if alarm is not None and alarm.by_length:  # results by models without are as good
        settings["alarm.by_length"] = list(map(list, alarm.by_length))
    if run.annotations is not None:
        settings |= {f"{LABELS_KEY}{name}": digest for name, digest in contents(run.annotations).items()}
    # Explanations are those of the clips of these recordings by this model: they go with the scores.
    explanations = (*EXPLAIN.tables, EXPLAIN.ledger, *(f"{layout.STAGES}/explain{end}.json" for end in ("", ".begun")))
    outputs = (*INDEXED, *SCORE.tables, SCORE.ledger, *explanations, layout.HEADER_ATTEMPTS, layout.ATTEMPTS)
    needs = indexed_tables(run.out)
    stage = ResumableStage(run.out, "score", settings, outputs, SCORE.ledger, needs=needs, may_differ=is_recording)
    stage = stage.with_known_files(afresh=afresh)
    # What became of recordings was found out by comparing them with `inputs.parquet`.
    recordings = {f"{FILE_KEY}{name}": fingerprint.digest for name, fingerprint in files.items()}
    return replace(stage, settings={**stage.settings, **recordings})


def explain_stage(audit: OpenAudit, chosen: pa.Table) -> ResumableStage:
    run = audit.run
    settings = {
        "score": audit.score.fingerprint,
        "chosen clips": table_digest(chosen.select(["clip_id", "keep_maps"])),
        **flatten("audit", run.audit.model_dump(mode="json", include=_EXPLAINS)),
        **flatten("attribution", run.attribution.as_in_marks()),
    }
    # Where no clip is chosen nothing is written, and the mark alone says that the stage is done. Shards of other clips
    # are made again, and no others: see `passes`.
    result = EXPLAIN.ledger if chosen.num_rows else ""
    outputs = (*EXPLAIN.tables, EXPLAIN.ledger)
    return ResumableStage(
        run.out, "explain", settings, outputs, result, may_differ={"score", "chosen clips"}.__contains__
    )


def write_settings(audit: OpenAudit) -> None:
    """Write the settings and the model's card that the results are made with."""
    require_still_alone()
    storage.write_text(storage.join(audit.run.out, layout.AUDIT), audit.run.to_yaml())
    card = json.dumps(describe(audit.trained), indent=1)
    storage.write_text(storage.join(audit.run.out, layout.MODEL), card)


def misfits_of(audit: OpenAudit) -> list[Misfit]:
    """The recordings that do not fit the model."""
    out, sound = audit.run.out, audit.trained.sound
    return find_misfits(read_scores(out), read_manifest(out), limit_db=None if sound is None else sound.limit_db)
