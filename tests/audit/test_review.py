"""Decisions that the report saved, as labels beside the audit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from faithad import storage
from faithad.audit.exports import export_events
from faithad.audit.reference import evaluate_audit
from faithad.audit.review import review_audit
from faithad.errors import AnnotationError
from tests.audit.conftest import FIRST, ODD, SECOND
from tests.label_files import read_labels


def decided(path: Path, *decisions: dict[str, str]) -> str:
    path.write_text(json.dumps({"format": 1, "decisions": list(decisions)}))
    return str(path)


@pytest.fixture
def reviewed(audit: Any, tmp_path: Path) -> tuple[Any, str]:
    first, both, odd = [event["event_id"] for event in audit.events()]
    decisions = decided(
        tmp_path / "decisions.json",
        {"event_id": first, "verdict": "reject", "kind": "a saw", "note": "=1+1"},
        {"event_id": both, "verdict": "confirm", "kind": "stuck", "note": ""},
        {"event_id": odd, "verdict": "unsure", "kind": "", "note": ""},
        {"event_id": "nobody", "verdict": "confirm", "kind": "", "note": ""},
    )
    return audit, review_audit(audit.out, decisions)


def test_decisions_become_a_table_and_labels(reviewed: tuple[Any, str]) -> None:
    audit, line = reviewed
    assert line.startswith("3 of 3 events reviewed: 1 confirmed, 1 rejected, 1 unsure. 1 decision is about events that")
    rows = storage.read_table(storage.join(audit.out, "review/decisions.parquet")).to_pylist()
    assert [(row["verdict"], row["kind"], row["note"]) for row in rows] == [
        ("reject", "a saw", "=1+1"),
        ("confirm", "stuck", ""),
        ("unsure", "", ""),
    ]
    labels = read_labels(storage.join(audit.out, "review/confirmed.csv"))
    assert [(label.recording, label.onset_s, label.offset_s, label.text) for label in labels] == [
        (FIRST, 50.0, 60.0, "stuck"),
        (SECOND, 0.0, 10.0, "stuck"),
    ]
    (label,) = read_labels(storage.join(audit.out, "review/rejected.csv"))
    assert (label.recording, label.onset_s, label.offset_s, label.text) == (FIRST, 0.0, 10.0, "a saw")


def test_evaluate_understands_the_confirmed_ones(reviewed: tuple[Any, str]) -> None:
    audit, _ = reviewed
    lines = evaluate_audit(audit.out, storage.join(audit.out, "review/confirmed.csv"))
    assert "Events: 1 of 3 true" in lines


def test_an_export_leaves_out_what_was_rejected(reviewed: tuple[Any, str], tmp_path: Path) -> None:
    audit, _ = reviewed
    line = export_events(audit.out, str(tmp_path / "labels"), format="audacity")
    assert line.startswith("2 events in 3 recordings")
    found = read_labels(str(tmp_path / "labels"), submitted=True)
    assert sorted((label.recording, label.text.split(",")[0]) for label in found) == [
        (FIRST, "stuck"),
        (SECOND, "stuck"),
        (ODD, "alarm 1.2x"),
    ]


def test_a_second_review_takes_the_place_of_the_first(reviewed: tuple[Any, str], tmp_path: Path) -> None:
    audit, _ = reviewed
    event_id = audit.events()[0]["event_id"]
    decisions = decided(tmp_path / "again.json", {"event_id": event_id, "verdict": "confirm"})
    assert review_audit(audit.out, decisions).startswith("1 of 3 events reviewed: 1 confirmed, 0 rejected, 0 unsure.")
    assert len(read_labels(storage.join(audit.out, "review/confirmed.csv"))) == 1
    assert len(storage.read_text(storage.join(audit.out, "review/rejected.csv")).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "holds no decisions: give the file that `Save decisions`"),
        ('{"format": 1, "decisions": [{"event_id": 3}]}', "holds no decisions"),
        ('{"format": 1, "decisions": []}', "has no decision about an event"),
        (
            '{"format": 1, "decisions": [{"event_id": "x", "verdict": "maybe"}]}',
            "has the verdict 'maybe'; allowed: confirm, reject, unsure",
        ),
    ],
)
def test_what_is_no_review(audit: Any, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "decisions.json").write_text(text)
    with pytest.raises(AnnotationError, match=message):
        review_audit(audit.out, str(tmp_path / "decisions.json"))
    with pytest.raises(AnnotationError, match="does not exist"):
        review_audit(audit.out, str(tmp_path / "nothing.json"))
    assert not storage.exists(storage.join(audit.out, "review"))
