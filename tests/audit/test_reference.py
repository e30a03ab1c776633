"""An audit against what an expert made of its events: every figure by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from faithad import parquet, schemas, storage
from faithad.audit import reference
from faithad.audit.exports import export_events
from faithad.audit.reference import evaluate_audit
from faithad.audit.review import reviewed_reference
from faithad.clips.annotations import Annotation, write_annotations
from faithad.clips.ledger import ledger_row, ledger_table
from faithad.config.audit import load_audit_run
from faithad.errors import AnnotationError, ConfigError, StudyError
from faithad.evaluation.detection import auc
from faithad.evaluation.summary import SUMMARIES, Experiment, Summary
from faithad.model.checkpoint import describe, load_model
from faithad.pipelines.evaluate import evaluate_audit_and_report
from faithad.report.audit_page import render_audit_report

FIRST, SECOND = "MPD_24-05-06_0700_00001.wav", "MPD_24-05-06_0701_00002.wav"


def labels(folder: Path, **tracks: str) -> str:
    """Audacity label tracks: `first`, `second` or `odd`, lines of onset, offset and text."""
    names = {"first": f"{FIRST}.txt", "second": f"{SECOND}.txt", "odd": "O'B %3Cb%3E%09=1.flac.txt"}
    folder.mkdir()
    for track, lines in tracks.items():
        (folder / names[track]).write_text(lines.replace(" ", "\t"))
    return str(folder)


def summary(audit: Any, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = parquet.read_table(storage.join(audit.out, "summary", f"{name}.parquet")).to_pylist()
    return rows


def test_events_taken_over_as_they_are_agree_throughout(audit: Any, tmp_path: Path) -> None:
    export_events(audit.out, str(tmp_path / "labels"), format="raven")
    line = evaluate_audit(audit.out, str(tmp_path / "labels"))
    assert line.startswith("Clips: 4 anomalous, 10 normal; AUC 1.000 (1.000 to 1.000), pAUC 1.000")
    assert (
        "Events: 3 of 3 true (precision 1.000), 4 of 4 reference intervals found (recall 1.000). 40.0 s detec" in line
    )
    *_, tables, warning = line.split("\n")
    assert tables == f"Tables: {audit.out}/summary."
    assert warning.startswith("Warning: the reference is this audit's own events, interval for interval")


@pytest.mark.parametrize(("first", "second"), [("50 60", "0 10"), ("0 10\n50 59.9", "0 10\n50 60")])
def test_corrected_events_are_a_reference(audit: Any, tmp_path: Path, first: str, second: str) -> None:
    line = evaluate_audit(audit.out, labels(tmp_path / "labels", first=first, second=second, odd="10 20"))
    assert "Warning" not in line


def test_windows_without_an_interval_count_whole(audit: Any, tmp_path: Path) -> None:
    """In the published table an anomaly that nobody hears has a window and no interval; the next one touches it."""
    table = tmp_path / "annotations.csv"
    rows = [
        Annotation(FIRST, 5, "broken_board", 40.0, 50.0, ((8.0, 10.0),)),
        Annotation(FIRST, 6, "broken_board", 50.0, 60.0, ((0.0, 3.0),)),
        Annotation(SECOND, 1, "broken_board", 0.0, 10.0),
    ]
    write_annotations(rows, str(table))
    line = evaluate_audit(audit.out, str(table))
    assert "2 of 2 reference intervals found (recall 1.000). 40.0 s detected, 15.0 s labelled, 13.0 s both." in line
    assert "\n1 window without an interval counts whole.\n" in line


def test_an_expert_s_corrections(audit: Any, tmp_path: Path) -> None:
    """The first alarm was none; a board got stuck unnoticed; the alarm of the odd recording is 1.5 s long."""
    reference = labels(
        tmp_path / "labels",
        first="53 56.5 broken\n",
        second="2 4 broken\n3.5 5 broken\n25 26 stuck\n",
        odd="10.5 12 stuck\n",
    )
    line = evaluate_audit(audit.out, reference)
    # Overlapping labels are one stretch. Found: 53-56.5, 2-5 and 10.5-12; not found: 25-26.
    assert "Events: 2 of 3 true (precision 0.667), 3 of 4 reference intervals found (recall 0.750)." in line
    # Seconds 0 and 55 of the first recording, 0 of the second and 11 of the odd one carry the events.
    assert (
        "Seconds that carry them: 2 of 4 true (precision 0.500), 1 of 4 reference intervals found (recall 0.250)."
        in line
    )
    assert (
        "4.0 s detected, 9.0 s labelled, 2.0 s both.\nTrue: at least 5 % of its time is labelled. Found: what" in line
    )
    events, seconds = summary(audit, "events")
    assert (events["detections"], seconds["detections"]) == ("events", "seconds")
    expected = {"model": "mae", "seed": 0, "protocol": "audit", "detection_tolerance": 0.05,
                "ground_truth_tolerance": 0.5, "n_reference": 4, "n_not_heard": 0, "not_heard": []}  # fmt: skip
    assert expected.items() <= events.items()
    assert expected.items() <= seconds.items()
    assert (events["n_detections"], events["n_true"], events["n_found"]) == (3, 2, 3)
    assert (events["precision"], events["recall"], seconds["recall"]) == (2 / 3, 0.75, 0.25)
    scores = [3.0, 1.0, 1.2, 1.1, 1.3, 5.0, 4.0, 1.0, 1.0, 1.4, 1.5, 1.0, 2.5, 1.9]
    truth = [0, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0, 0, 1, 0]
    (row,) = [
        row
        for row in summary(audit, "detection")
        if (row["model"], row["metric"], row["pooling"], row["anomaly_type"]) == ("mae", "auc", "mean", "all")
    ]
    assert row["mean"] == pytest.approx(auc(scores, truth))
    assert (row["protocol"], row["n_normal"], row["n_anomalous"]) == ("audit", 10, 4)
    assert f"AUC {row['mean']:.3f}" in line
    # The levels that the fixture writes rise with the scores.
    assert f"; the level of the loudest second, which needs no model: AUC {row['mean']:.3f}" in line
    # Peaks lie in second 5, 0 and 1 of the three explained clips; the expert's seconds are 3-6, 2-4 and 0-1.
    f_scores = [2 / (1 + 4), 0.0, 2 / (1 + 2)]
    (row,) = [row for row in summary(audit, "f_score") if (row["percentile"], row["anomaly_type"]) == (95.0, "all")]
    assert (row["method"], row["n_clips"], row["mean"]) == ("saliency", 3, pytest.approx(sum(f_scores) / 3))
    assert f"Seconds: F {row['mean']:.3f} over 3 explained clips (saliency, percentile 95" in line
    # The clips are loudest in seconds 4, 2 and 0: a curve that needs no model, against the same seconds.
    (line_row,) = [row for row in summary(audit, "controls") if (row["line"], row["percentile"]) == ("level", 95.0)]
    assert (line_row["metric"], line_row["mean"]) == ("f_score", pytest.approx((0.4 + 0.5 + 2 / 3) / 3))
    assert f"; every second flagged: {row['control_every_second']:.3f}, level: {line_row['mean']:.3f})" in line
    (asked,) = [
        asked
        for asked in summary(audit, "comparison")
        if (asked["question"], asked["metric"], asked["percentile"]) == ("against_no_model", "f_score", 95.0)
    ]
    assert (asked["model_b"], asked["estimate"]) == ("level", pytest.approx(row["mean"] - line_row["mean"]))
    assert asked["verdict"] == "undecided: 3 recordings, 20 are needed"
    (area,) = [
        area
        for area in summary(audit, "seconds")
        if (area["method"], area["metric"], area["ranked"]) == ("saliency", "auroc", "pooled")
    ]
    assert f" AUROC of seconds {area['mean']:.3f}." in line
    by_type = {row["anomaly_type"]: row["mean"] for row in summary(audit, "f_score") if row["percentile"] == 95.0}
    assert by_type == {"all": row["mean"], "broken": pytest.approx(0.2), "stuck": pytest.approx(f_scores[2])}
    rows = {row["scope"]: row["n_clips"] for row in summary(audit, "faithfulness") if row["percentile"] == 95.0}
    assert rows == {"annotated": 3, "all": 4}


def test_an_interval_in_a_clip_that_failed_is_not_found_and_named(audit: Any, tmp_path: Path) -> None:
    reference = labels(tmp_path / "labels", first="53 56 x\n", second="44 46 x\n61 63 x\n")
    line = evaluate_audit(audit.out, reference)
    assert (
        "1 of 3 true (precision 0.333), 1 of 3 reference intervals found (recall 0.333); 2 not heard: "
        "mill/MPD_24-05-06_0701_00002.wav. 40.0 s detected" in line
    )
    events, _ = summary(audit, "events")
    assert (events["n_not_heard"], events["not_heard"]) == (2, ["mill/MPD_24-05-06_0701_00002.wav"])
    assert line.startswith("Clips: 1 anomalous, 13 normal")


def test_recordings_that_failed_are_named_as_not_heard(audit: Any, tmp_path: Path) -> None:
    """One of eleven intervals lies in a recording that was heard, ten in one that could not be opened."""
    location = storage.join(audit.out, "ledger.parquet")
    failed = ledger_table([ledger_row("mill/20240506_080000.wav", "failed", "is truncated")])
    both = pa.concat_tables([parquet.read_table(location), failed])
    parquet.write_table(both, location, schema=schemas.LEDGER)
    reference = tmp_path / "labels.csv"
    lines = [f"20240506_080000.wav,{k},{k}.5" for k in range(10)] + [f"{FIRST},53,56"]
    reference.write_text("\n".join(["recording,onset_s,offset_s", *lines]))
    line = evaluate_audit(audit.out, str(reference))
    assert "1 of 11 reference intervals found (recall 0.091); 10 not heard: mill/20240506_080000.wav." in line


def test_tolerances_are_settings(audit: Any, tmp_path: Path) -> None:
    reference = labels(tmp_path / "labels", first="50 51 x\n58 70 x\n")
    assert "1 of 3 true" in evaluate_audit(audit.out, reference)
    line = evaluate_audit(audit.out, reference, detection_tolerance=0.2, ground_truth_tolerance=0.1)
    assert "Events: 0 of 3 true (precision 0.000), 0 of 2 reference" in line
    assert "True: at least 20 % of its time is labelled. Found: what is true covers at least 10 % of it." in line
    line = evaluate_audit(audit.out, reference, ground_truth_tolerance=0.1)
    assert "2 of 2 reference intervals found" in line
    assert {row["ground_truth_tolerance"] for row in summary(audit, "events")} == {0.1}
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match=r"--detection-tolerance is .*; it must be above 0 and at most 1"):
            evaluate_audit(audit.out, reference, detection_tolerance=share)


def test_the_report_tells_how_events_agree_with_labels(audit: Any, tmp_path: Path) -> None:
    reference = labels(tmp_path / "labels", first="53 56.5 broken\n", second="2 4 broken\n44 46 x\n", odd="")
    render_audit_report(audit.out)
    report = Path(audit.out, "report.html")
    assert "Against" not in report.read_text()
    said = evaluate_audit_and_report(audit.out, reference, ground_truth_tolerance=0.6)
    assert said.endswith(f"\nReport: {report}")
    text = " ".join(report.read_text().split())
    assert (
        "Against the labels, 1 of 3 events are true, and 2 of 3 labelled intervals are found; 1 lies in sound that was "
        "not heard: mill/MPD_24-05-06_0701_00002.wav. Alarms last 40 s, labels 7.5 s, both at once 5.5 s." in text
    )
    assert '<td class="n">1 of 3</td><td class="n">0.333</td> <td class="n">2 of 3</td><td class="n">0.667</td>' in text
    assert "what is true covers at least 60 % of it" in text


def test_a_reference_without_any_interval_means_false_alarms_only(audit: Any, tmp_path: Path) -> None:
    line = evaluate_audit(audit.out, labels(tmp_path / "labels", first="", second="", odd=""))
    assert line.startswith("Clips: 0 anomalous, 14 normal; no AUC, which needs both.\nEvents: 0 of 3 true")
    assert "0 of 0 reference intervals found. 40.0 s detected, 0.0 s labelled" in line
    assert "\nSeconds: no F-score" in line
    assert summary(audit, "detection") == summary(audit, "f_score") == []


def test_nothing_was_explained(audit: Any, tmp_path: Path) -> None:
    for name in ("attributions", "lines", "faithfulness"):
        storage.delete(storage.join(audit.out, name))
    line = evaluate_audit(audit.out, labels(tmp_path / "labels", first="53 56 x\n"))
    assert "Seconds: no F-score, as no annotated clip was explained." in line
    assert summary(audit, "faithfulness") == []


def test_references_to_other_recordings_are_refused(audit: Any, tmp_path: Path) -> None:
    reference = tmp_path / "labels.csv"
    reference.write_text(f"recording,onset_s,offset_s\nother.wav,1,2\n{FIRST},75,76\n{FIRST},5,6\n")
    with pytest.raises(AnnotationError) as caught:
        evaluate_audit(audit.out, str(reference))
    assert str(reference) in str(caught.value)
    assert f"{FIRST} 75-76 s; other.wav 1-2 s" in str(caught.value)
    assert "5-6 s" not in str(caught.value)
    assert not storage.exists(storage.join(audit.out, "summary"))


def test_the_model_and_the_recordings_may_be_gone(audit: Any, tmp_path: Path) -> None:
    reference = labels(tmp_path / "labels", first="53 56.5 broken\n")
    before = evaluate_audit(audit.out, reference)
    model = load_model(load_audit_run(storage.join(audit.out, "audit.yaml")).model)
    storage.write_text(storage.join(audit.out, "model.json"), json.dumps(describe(model)))
    run = load_audit_run(storage.join(audit.out, "audit.yaml"), model=str(tmp_path / "gone"))
    storage.write_text(storage.join(audit.out, "audit.yaml"), run.to_yaml())
    for place in audit.places.values():
        place.unlink()
    assert evaluate_audit(audit.out, reference) == before
    assert export_events(audit.out, str(tmp_path / "csv"), format="csv").startswith("3 events in 3 recordings")


def test_nobody_may_change_an_audit_that_is_evaluated(
    audit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = Path(audit.out, "stages", "driver.json")

    def read(location: str) -> list[Annotation]:
        assert json.loads(mark.read_text())["pid"] == os.getpid()
        return reviewed_reference(location)

    monkeypatch.setattr(reference, "reviewed_reference", read)
    assert evaluate_audit(audit.out, labels(tmp_path / "labels", first="53 56 x\n")).startswith("Clips: 1 anomalous")
    assert not mark.exists()


def test_an_audit_that_scored_nothing(audit: Any, tmp_path: Path) -> None:
    reference = labels(tmp_path / "labels", first="53 56 x\n")
    location = storage.join(audit.out, "scores", "part-00000.parquet")
    table = parquet.read_table(location)
    parquet.write_table(table.slice(0, 0), location, schema=table.schema)
    with pytest.raises(StudyError, match="not one clip was audited"):
        evaluate_audit(audit.out, reference)


def test_a_new_summary_is_a_row(audit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = pa.schema([pa.field("protocol", pa.string()), pa.field("n_curves", pa.int64())])

    def n_curves(faithfulness: pa.Table, experiment: Experiment) -> list[dict[str, Any]]:
        return [{"n_curves": pc.count_distinct(faithfulness["clip_id"]).as_py()}]

    explained = parquet.read_table(storage.join(audit.out, "faithfulness"))
    monkeypatch.setitem(SUMMARIES, "curves", Summary({"faithfulness": schemas.FAITHFULNESS}, schema, n_curves))
    evaluate_audit(audit.out, labels(tmp_path / "labels", first="53 56 broken\n"))
    expected = len(set(explained["clip_id"].to_pylist()))
    assert expected > 0
    assert summary(audit, "curves") == [{"protocol": "audit", "n_curves": expected}]
