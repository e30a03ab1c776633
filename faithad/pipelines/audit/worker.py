"""What Ray's processes do in an audit: readers turn shards into features, actors hold models and write the tables.

Each (work, shard) writes one file of a fixed name into every table. The ledger's is written last, so it marks the shard
as done: a run that was killed goes on with the shards that lack one, and nothing is written twice under two names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import torch

from faithad import storage
from faithad.audit.shard import AuditModel, audit_clips, table_schemas, to_table
from faithad.audit.steps import Step
from faithad.config.sections import Attribution, Audit
from faithad.model.alarm import AlarmThreshold
from faithad.model.checkpoint import TrainedModel, load_model
from faithad.pipelines.shards.freed_memory import keep_freed_memory
from faithad.pipelines.shards.log_mels import add_log_mels, log_mels_of
from faithad.pipelines.shards.stream import from_bytes, to_bytes
from faithad.runs import layout
from faithad.runs.attempts import attempt
from faithad.runs.ledgers import Row, failed_row, ledger_table, place
from faithad.settings import FeatureSettings


@dataclass(frozen=True)
class ModelAudit:
    """One model's audit.

    Attributes:
        model: the model's folder.
        out: the folder of the tables.
        alarm: the threshold to judge scores by, in place of the one that is stored with the model.
        expect: what the model must be, see `load_model`.
    """

    model: str
    out: str
    alarm: AlarmThreshold | None
    expect: Mapping[str, Any] | None = None

    def load(self) -> TrainedModel:
        """The model with this audit's alarm.

        Raises:
            CheckpointError: it is missing, damaged, or not what is expected.
        """
        trained = load_model(self.model, expect=self.expect)
        trained.alarm = self.alarm
        return trained


@dataclass(frozen=True)
class Work:
    """One step of one model's audit, cut in shards.

    Attributes:
        audit: with which model, and where to.
        step: what is done.
        clips: reference to the rows of the manifest, in Ray's object store: no process needs a copy of its own.
        n_clips: how many there are.
        size: clips in a shard.
    """

    audit: ModelAudit
    step: Step
    clips: Any
    n_clips: int
    size: int

    def location(self, table: str, shard: int) -> str:
        return storage.join(self.audit.out, table, layout.shard(shard))

    def mark(self, doing: str, shard: int) -> str:
        return storage.join(self.audit.out, layout.ATTEMPTS, f"{self.step.ledger}-{doing}-{shard:05d}.json")

    def shard(self, number: int) -> pa.Table:
        return ray.get(self.clips).slice(number * self.size, self.size)


def read_shard(row: Row, *, works: Sequence[Work], features: FeatureSettings, run: str) -> Row:
    """Read the features of the shard that a row names by `work` and `shard`."""
    keep_freed_memory()
    torch.set_num_threads(1)
    work, number = works[row["work"]], row["shard"]
    clips, failed = add_log_mels(work.shard(number), features, mark=work.mark("read", number), run=run)
    return {**row, "clips": to_bytes(clips), "failed": to_bytes(ledger_table(failed))}


class Auditor:
    """Holds the models that it has met and audits one shard after another."""

    def __init__(
        self,
        works: Sequence[Work],
        attribution: Attribution,
        audit: Audit,
        features: FeatureSettings,
        threads: int,
        run: str,
    ) -> None:
        self._works, self._attribution, self._audit, self._features = works, attribution, audit, features
        self._run = run
        self._device = torch.device("cuda" if audit.gpus_per_actor else "cpu")
        self._models: dict[str, AuditModel] = {}
        keep_freed_memory()
        torch.set_num_threads(threads)

    def __call__(self, row: Row) -> Row:
        """Audit one shard and write its files; says how many clips it did and how many failed."""
        work, number = self._works[row["work"]], row["shard"]
        held = self._model(work.audit)
        table = from_bytes(row["clips"])
        log_mels = torch.from_numpy(log_mels_of(table, self._features).copy())
        clips = table.drop_columns(["log_mel"]).to_pylist()
        attempted = attempt(
            work.mark("audit", number),
            [clip["clip_id"] for clip in clips],
            run=self._run,
            what="Auditing this clip",
            together=lambda positions: self.audit(held, [clips[k] for k in positions], log_mels[positions], work.step),
            alone=lambda k: self.audit(held, [clips[k]], log_mels[k : k + 1], work.step),
        )
        tables = attempted.result or {}
        ledger = [*tables.get("ledger", []), *from_bytes(row["failed"]).to_pylist()]
        ledger += [
            failed_row(clips[k], stage=work.step.stage, reason=reason) for k, reason in attempted.left_out.items()
        ]
        tables["ledger"] = sorted(ledger, key=place)
        schemas = table_schemas(held.trained)
        for name in work.step.tables:
            if tables.get(name):
                self._write(tables[name], work.location(name, number), schemas[name])
            else:  # an attempt that was cut short may have left some
                storage.delete(work.location(name, number))
        self._write(tables["ledger"], work.location(work.step.ledger, number), schemas["ledger"])
        n_failed = sum(entry["status"] == "failed" for entry in tables["ledger"])
        return {"n_done": len(tables["ledger"]) - n_failed, "n_failed": n_failed}

    def audit(self, held: AuditModel, clips: list[Row], log_mels: torch.Tensor, step: Step) -> dict[str, list[Row]]:
        """The rows of all tables for some clips of a shard."""
        return audit_clips(held, clips, log_mels, explain=step.explains)

    def _model(self, audit: ModelAudit) -> AuditModel:
        if audit.model not in self._models:
            self._models[audit.model] = AuditModel.prepare(
                audit.load(), attribution=self._attribution, audit=self._audit, device=self._device
            )
        return self._models[audit.model]

    @staticmethod
    def _write(rows: list[Row], location: str, schema: pa.Schema) -> None:
        storage.write_table(to_table(rows, schema), location, schema=schema)
