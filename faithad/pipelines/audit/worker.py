"""What Ray's processes do in an audit: tasks turn shards into features, actors hold models and write the tables.

Each shard of each pass writes one file into every table, always under the same name. The ledger's file is written last,
says what the others hold (see `runs.shards`) and marks the shard as done: a run after a kill goes on with the shards
that lack it, and overwrites what it finds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import torch

from faithad import parquet, storage
from faithad.audit.judging import TableRow
from faithad.audit.model import AuditEnsemble, AuditModel, prepare_audit
from faithad.audit.shard import audit_clips, table_schemas, to_table
from faithad.audit.steps import Step
from faithad.clips.ledger import clip_ledger_row, ledger_table
from faithad.config.sections import Attribution, Audit
from faithad.features import Normalization
from faithad.model.alarm import AlarmThreshold
from faithad.model.checkpoint import TrainedModel, load_model
from faithad.pipelines.shards.freed_memory import keep_freed_memory
from faithad.pipelines.shards.log_mels import add_log_mels, log_mels_of
from faithad.pipelines.shards.stream import ShardRow, from_bytes, to_bytes
from faithad.runs import layout
from faithad.runs.attempts import attempt
from faithad.runs.shards import write_shard_ledger
from faithad.scoring.trained_ensemble import AnyModel, load_any
from faithad.settings import AS_IN_PAPER, FeatureSettings, JudgingSettings
from faithad.storage import Checksum


@dataclass(frozen=True)
class ModelAudit:
    """One model's audit.

    Attributes:
        model: the model's folder.
        out: the folder of the tables.
        alarm: raised in place of the alarm that is stored with the model.
        expect: what the model must be, see `load_model`.
        training: mean and deviation of each mel band in training, in the unit of the features; None if not known.
        judging: how maps are judged.
        linear: the folder of the linear model whose error is one of the lines; None for none.
        inpainter: the folder of the MAE that predicts the hidden frames of deep clips; None for none.
        as_paper: whether a clip's score is its mean squared error, whatever score is stored with the model.
        beside_paper: see `AuditModel`.
    """

    model: str
    out: str
    alarm: AlarmThreshold | None
    expect: Mapping[str, Any] | None = None
    training: Normalization | None = None
    judging: JudgingSettings = AS_IN_PAPER
    linear: str | None = None
    inpainter: str | None = None
    as_paper: bool = False
    beside_paper: bool = False

    def load(self) -> AnyModel:
        """The model with this audit's alarm.

        Raises:
            CheckpointError: it is missing, damaged, or not what is expected.
        """
        trained = load_any(self.model, expect=self.expect)
        if self.as_paper and isinstance(trained, TrainedModel):
            trained.score = None
        trained.alarm = self.alarm
        return trained


@dataclass(frozen=True)
class SharedPass:
    """One step of one model's audit, as Ray's processes get it.

    Attributes:
        audit: which model, and where its tables go.
        step: what is done to the clips.
        clips: reference to the clips in Ray's object store, shard by shard, so that no process holds a copy.
    """

    audit: ModelAudit
    step: Step
    clips: Any

    def location(self, table: str, shard: int) -> str:
        return storage.join(self.audit.out, table, layout.shard(shard))

    def mark(self, doing: str, shard: int) -> str:
        return storage.join(self.audit.out, layout.ATTEMPTS, f"{self.step.ledger}-{doing}-{shard:05d}.json")

    def shard(self, row: ShardRow) -> pa.Table:
        """The clips of the shard that a row names."""
        return ray.get(self.clips).slice(row["first"], row["n_clips"])


def read_shard(row: ShardRow, *, passes: Sequence[SharedPass], features: FeatureSettings, run: str) -> ShardRow:
    """Read the features of the shard that a row names by its pass and its place there."""
    keep_freed_memory()
    torch.set_num_threads(1)
    shared, number = passes[row["pass"]], row["shard"]
    clips, failed = add_log_mels(shared.shard(row), features, mark=shared.mark("read", number), run=run)
    return {**row, "clips": to_bytes(clips), "failed": to_bytes(ledger_table(failed))}


class Auditor:
    """An actor that audits one shard after another, and keeps each model that it has loaded."""

    def __init__(
        self,
        passes: Sequence[SharedPass],
        attribution: Attribution,
        audit: Audit,
        features: FeatureSettings,
        threads: int,
        run: str,
    ) -> None:
        self._passes, self._attribution, self._audit, self._features = passes, attribution, audit, features
        self._run = run
        self._device = torch.device("cuda" if audit.gpus_per_actor else "cpu")
        self._models: dict[str, AuditModel | AuditEnsemble] = {}
        keep_freed_memory()
        torch.set_num_threads(threads)

    def __call__(self, row: ShardRow) -> ShardRow:
        """Audit one shard and write its files. Returns how many clips are done and how many failed."""
        shared, number = self._passes[row["pass"]], row["shard"]
        step, model = shared.step, self._model(shared.audit)
        table = from_bytes(row["clips"])
        log_mels = torch.from_numpy(log_mels_of(table, self._features).copy())
        clips = table.drop_columns(["log_mel"]).to_pylist()
        attempted = attempt(
            shared.mark("audit", number),
            [clip["clip_id"] for clip in clips],
            run=self._run,
            what="Auditing this clip",
            together=lambda positions: self.audit(model, [clips[k] for k in positions], log_mels[positions], step),
            alone=lambda k: self.audit(model, [clips[k]], log_mels[k : k + 1], step),
        )
        tables = attempted.result or {}
        ledger = [*tables.get("ledger", []), *from_bytes(row["failed"]).to_pylist()]
        ledger += [
            clip_ledger_row(clips[k], "failed", stage=step.stage, reason=reason)
            for k, reason in attempted.left_out.items()
        ]
        schemas = table_schemas(model.trained)
        files: dict[str, Checksum] = {}
        for name in step.tables:
            location = shared.location(name, number)
            if tables.get(name):
                table = to_table(tables[name], schemas[name])
                files[f"{name}/{layout.shard(number)}"] = parquet.write_table(
                    table, location, schema=schemas[name], flush=False
                )
            else:  # an attempt that was cut short may have written some
                storage.delete(location)
        write_shard_ledger(ledger, shared.location(step.ledger, number), files=files)
        n_failed = sum(entry["status"] == "failed" for entry in ledger)
        return {"n_done": len(ledger) - n_failed, "n_failed": n_failed}

    def audit(
        self, model: AuditModel | AuditEnsemble, clips: list[TableRow], log_mels: torch.Tensor, step: Step
    ) -> dict[str, list[TableRow]]:
        """The rows of all tables for some clips of a shard."""
        return audit_clips(model, clips, log_mels, explain=step.explains)

    def _model(self, audit: ModelAudit) -> AuditModel | AuditEnsemble:
        if audit.model not in self._models:
            self._models[audit.model] = prepare_audit(
                audit.load(),
                attribution=self._attribution,
                audit=self._audit,
                device=self._device,
                training=audit.training,
                beside_paper=audit.beside_paper,
                judging=audit.judging,
                linear=None if audit.linear is None else load_model(audit.linear),
                inpainter=None if audit.inpainter is None else load_model(audit.inpainter),
            )
        return self._models[audit.model]
