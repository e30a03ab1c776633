"""Decisions that the report saved, as labels beside the audit."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from faithad import parquet, storage
from faithad.audit.exports import export_events
from faithad.audit.reference import evaluate_audit
from faithad.audit.rejected_clips import Named, read_rejected_clips
from faithad.audit.review import clip_verdicts, review_audit
from faithad.config.data import Data
from faithad.errors import AnnotationError, RecordingError, StudyError
from faithad.pipelines.index import find_clips
from faithad.runs import layout
from tests.audit.conftest import FIRST, ODD, SECOND
from tests.label_files import read_labels
from tests.pipelines.audits_without_ray import without_ray


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
    rows = parquet.read_table(storage.join(audit.out, "review/decisions.parquet")).to_pylist()
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


def test_a_reviewed_audit_is_a_reference(reviewed: tuple[Any, str], tmp_path: Path) -> None:
    audit, _ = reviewed
    lines = evaluate_audit(audit.out, audit.out).splitlines()
    assert lines[0] == (
        f"The reference is what a review of {audit.out} confirmed; all other sound counts as normal, and so do 1 event "
        "that a reviewer left open."
    )
    assert any(line.startswith("Events: 1 of 3 true") for line in lines)
    (Path(audit.out) / layout.CONFIRMED).unlink()
    with pytest.raises(AnnotationError, match="is an audit that nobody has reviewed: give labels, or run `faithad rev"):
        evaluate_audit(audit.out, audit.out)


def test_rejected_clips_are_normal_training_clips(reviewed: tuple[Any, str], tmp_path: Path) -> None:
    audit, _ = reviewed
    (clip,) = read_rejected_clips([audit.out, audit.out], clip_s=10.0, besides=[])
    assert (clip.recording, clip.onset_s, clip.duration_s, clip.split, clip.label) == (FIRST, 0.0, 10.0, "train", 0)
    assert clip.recorded_at == datetime(2024, 5, 6, 7, 0)
    known = Named(FIRST, str(audit.places[FIRST]), "train")
    assert read_rejected_clips([audit.out], clip_s=10.0, besides=[known]) == []
    with pytest.raises(RecordingError, match="is a test recording: a model must not learn from it"):
        read_rejected_clips([audit.out], clip_s=10.0, besides=[known._replace(split="test")])
    with pytest.raises(RecordingError, match=r"would both be called 'mill/MPD.*': rename one"):
        read_rejected_clips([audit.out], clip_s=10.0, besides=[known._replace(uri="/elsewhere.wav")])


def test_a_study_trains_on_rejected_clips(reviewed: tuple[Any, str], tmp_path: Path) -> None:
    audit, _ = reviewed
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "a.wav", np.zeros(8_000 * 40), 8_000)
    folders: dict[str, Any] = {"root": str(tmp_path), "train": ("good",), "test": ("bad",)}
    with without_ray():
        alone = find_clips(Data(**folders), marks=str(tmp_path / "marks"))
        joined = find_clips(Data(**folders, add_normals=(audit.out,)), marks=str(tmp_path / "marks"))
        assert {row.recording for row in joined.clips} - {row.recording for row in alone.clips} == {FIRST}
        assert len(joined.clips) == len(alone.clips) + 1
        data = Data(**{**folders, "test": ("mill",)}, add_normals=(audit.out,))
        with pytest.raises(RecordingError, match="is a test recording"):
            find_clips(data, marks=str(tmp_path / "marks"))


def test_a_clip_with_another_event_is_not_normal() -> None:
    """Rejected, confirmed and undecided events share clips in all ways."""
    events = [{"event_id": "no", "clip_ids": ["a", "b", "c"]}, {"event_id": "yes", "clip_ids": ["b", "d"]},
              {"event_id": "open", "clip_ids": ["c"]}]  # fmt: skip
    decisions = {"no": {"verdict": "reject"}, "yes": {"verdict": "confirm"}}
    assert clip_verdicts(events, decisions) == {
        "a": {"reject"},
        "b": {"reject", "confirm"},
        "c": {"reject", None},
        "d": {"confirm"},
    }


def test_an_audit_that_nobody_reviewed_is_not_learned_from(audit: Any) -> None:
    with pytest.raises(StudyError, match="Nobody has reviewed the audit in"):
        read_rejected_clips([audit.out], clip_s=10.0, besides=[])


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
