"""The summary tables of a study, from audit tables that a test has written: no Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from faithad import parquet, schemas, storage
from faithad.audit.steps import SCORE
from faithad.clips.ledger import clip_ledger_row, ledger_table
from faithad.clips.manifest import ClipRow, manifest_table
from faithad.config.study import Study, parse_study
from faithad.evaluation.summary import SUMMARIES, Experiment, Summary
from faithad.pipelines.evaluate import evaluate, evaluate_stage
from faithad.runs import layout
from faithad.runs.stages import ResumableStage

CLIPS = [
    ClipRow(
        recording=f"{number}.wav", uri=f"{number}.wav", onset_s=0.0, duration_s=10.0, split="test", label=number % 2
    )
    for number in range(4)
]
SCORES = (1.0, 3.0, 2.0, 4.0)
ALARM_SHARE = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("protocol", pa.string(), nullable=False),
        pa.field("alarms", pa.float64()),
    ]
)


def alarm_share(scores: pa.Table, experiment: Experiment) -> list[dict[str, Any]]:
    """A summary that somebody adds: the share of test clips that alarmed."""
    alarmed = scores.filter(pc.is_in(scores["clip_id"], value_set=pa.array(experiment.clips.ids)))["alarm"]
    return [{"model": scores["model"][0].as_py(), "alarms": pc.mean(alarmed.cast(pa.int8())).as_py()}]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A study of one classical model, up to the end of its audit."""
    settings = f"name: tiny\nroot: {tmp_path}\nmodels: [one_class_svm]\nseeds: [0]\ndata: {{layout: planer, root: x}}\n"
    study = parse_study(settings, name="study.yaml")
    rows = manifest_table(CLIPS).to_pylist()
    scores = [
        {"clip_id": row["clip_id"], "model": "one_class_svm", "seed": 0, "score": score, "alarm": score > 2.5}
        for row, score in zip(rows, SCORES, strict=True)
    ]
    done = ledger_table([clip_ledger_row(row, "done", stage="audit") for row in rows])
    audit = storage.join(study.root, layout.audit("one_class_svm", 0))
    tables = {
        layout.INDEX_LEDGER: ledger_table([]),
        f"{layout.FEATURES_LEDGER}/{layout.shard(0)}": done,
    }
    for location, table in tables.items():
        parquet.write_table(table, storage.join(study.root, location), schema=table.schema)
    written = {SCORE.ledger: done, layout.SCORES: pa.Table.from_pylist(scores, schema=schemas.SCORES)}
    for folder, table in written.items():
        parquet.write_table(table, storage.join(audit, folder, layout.shard(0)), schema=table.schema)
    return study


def evaluated(study: Study) -> ResumableStage:
    features = ResumableStage(study.root, "features", {}, (layout.FEATURES,), result=layout.FEATURES_LEDGER)
    stage = evaluate_stage(study, [], features, "digest")
    evaluate(study, manifest_table(CLIPS), stage, redo=False)
    return stage


def summary(study: Study, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = parquet.read_table(storage.join(study.root, layout.summary(name))).to_pylist()
    return rows


def test_every_summary_is_written(study: Study) -> None:
    stage = evaluated(study)
    areas = [row for row in summary(study, "detection") if row["metric"] == "auc"]
    assert [(row["mean"], row["score"]) for row in areas if row["anomaly_type"] == "all"] == [(1.0, "own")]
    assert summary(study, "f_score") == summary(study, "faithfulness") == []
    assert len(summary(study, "ledger")) == len(CLIPS)
    assert set(stage.outputs) == {layout.summary(name) for name in (*SUMMARIES, "ledger")}


def test_a_new_summary_is_a_row(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Summary({layout.SCORES: schemas.SCORES}, ALARM_SHARE, alarm_share)
    monkeypatch.setitem(SUMMARIES, "alarm_share", row)
    stage = evaluated(study)
    assert stage.is_done()
    assert summary(study, "alarm_share") == [{"model": "one_class_svm", "protocol": "paper", "alarms": 0.5}]
    assert layout.summary("alarm_share") in stage.outputs


def test_a_summary_that_is_added_to_a_finished_study_is_written_by_the_next_run(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated(study)
    monkeypatch.setitem(SUMMARIES, "alarm_share", Summary({layout.SCORES: schemas.SCORES}, ALARM_SHARE, alarm_share))
    evaluated(study)
    assert summary(study, "alarm_share") == [{"model": "one_class_svm", "protocol": "paper", "alarms": 0.5}]
