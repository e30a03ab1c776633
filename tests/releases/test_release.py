"""What an earlier release made is still of use: its models judge clips as they did, its results can be read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from faithad import parquet, schemas
from faithad.audit.exports import export_events
from faithad.audit.inputs import relocated
from faithad.audit.reference import evaluate_audit
from faithad.clips.labels.files import FORMATS
from faithad.clips.manifest import Recording
from faithad.config.audit import load_audit_run
from faithad.config.study import load_study
from faithad.errors import ConfigError, StudyError
from faithad.model.checkpoint import load_model
from faithad.pipelines.study import STAGES
from faithad.report.audit_page import render_audit_report
from faithad.report.study_page import render_report
from faithad.runs import layout
from faithad.runs.formats import require_readable

EXPECTED = json.loads((Path(__file__).parent / "0.1.0" / "expected.json").read_text())


@pytest.mark.parametrize("name", ["mae-0", "isolation_forest-0"])
def test_a_model_scores_a_clip_as_it_did(released_study: Path, name: str) -> None:
    model = load_model(str(released_study / "models" / name))
    assert model.alarm is not None
    assert model.alarm.threshold == pytest.approx(EXPECTED[name]["threshold"], rel=1e-12)
    assert model.n_frames == EXPECTED[name]["n_frames"]
    band, frame = torch.meshgrid(torch.arange(model.n_mels), torch.arange(model.n_frames), indexing="ij")
    x = model.prepare((-40 + 10 * torch.sin(band / 3.0) + 5 * torch.cos(frame / 7.0)).float()[None])
    with torch.inference_mode():
        y = model.network(x)
    score = float((y - x).square().mean(dtype=torch.float64)) if model.reconstructs else float(y[0])
    assert score == pytest.approx(EXPECTED[name]["score"], rel=1e-6)


def test_a_study_is_reported(released_study: Path, tmp_path: Path) -> None:
    root = shutil.copytree(released_study, tmp_path / "study")
    page = Path(render_report(str(root))).read_text()
    assert all(title in page for title in ("AE", "MAE", "Isolation forest", "Saliency"))
    assert page.count("<svg") > 10


def test_a_study_is_done_and_reported_by_its_command(released_study: Path, tmp_path: Path) -> None:
    root = shutil.copytree(released_study, tmp_path / "study")
    study = load_study(str(root / layout.STUDY), overrides=[f"root={root}"])
    detection = parquet.read_table(str(root / layout.summary("detection")))
    audits = {file: file.stat().st_mtime_ns for file in (root / "audit").rglob("*.parquet")}
    STAGES["evaluate"](study)
    STAGES["report"](study)
    assert (root / layout.REPORT).exists()
    # The evaluation ran again, because this release has summaries that 0.1.0 had not. Of the tables per clip, the
    # fixture holds the scores.
    found = parquet.read_table(str(root / layout.summary("detection")))
    is_old = pc.and_(
        pc.equal(found["anomaly_type"], "all"), pc.is_in(found["metric"], value_set=pa.array(["auc", "pauc"]))
    )
    assert found.filter(is_old).select(detection.column_names).equals(detection)
    assert (root / layout.summary("comparison")).exists()
    assert audits == {file: file.stat().st_mtime_ns for file in (root / "audit").rglob("*.parquet")}


def test_an_audit_is_reported(released_audit: Path) -> None:
    page = Path(render_audit_report(str(released_audit))).read_text()
    assert page.count("week/loud.wav") > 1
    assert "week/broken.wav" in page


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_an_audits_events_become_labels(released_audit: Path, tmp_path: Path, format: str) -> None:
    line = export_events(str(released_audit), str(tmp_path / "labels"), format=format)
    assert line.startswith("5 events")
    assert any("loud" in file.read_text() or "loud" in file.name for file in (tmp_path / "labels").rglob("*.*"))


def test_an_audit_is_evaluated(released_audit: Path, tmp_path: Path) -> None:
    export_events(str(released_audit), str(tmp_path / "labels"), format="csv")
    (labels,) = (tmp_path / "labels").rglob("*.csv")
    header, *rows = labels.read_text().splitlines()
    labels.write_text("\n".join([header, *(row for row in rows if "loud" in row)]) + "\n")
    line = evaluate_audit(str(released_audit), str(labels))
    assert "Events: 1 of 5 true" in line
    detection = parquet.read_table(str(released_audit / layout.summary("detection")))
    assert detection.schema.equals(schemas.DETECTION_SUMMARY)
    assert detection.to_pylist()[0]["n_anomalous"] == 5
    assert require_readable(str(released_audit)) == schemas.FORMAT, "it holds tables of today now"


def test_an_audit_by_the_engine_that_is_gone_is_evaluated(released_audit: Path, tmp_path: Path) -> None:
    configuration = released_audit / layout.AUDIT
    written = configuration.read_text()
    assert written.count("engine: stream") == 1
    export_events(str(released_audit), str(tmp_path / "labels"), format="csv")
    line = evaluate_audit(str(released_audit), str(tmp_path / "labels"))
    configuration.write_text(written.replace("engine: stream", "engine: captum"))
    assert evaluate_audit(str(released_audit), str(tmp_path / "labels")) == line
    with pytest.raises(ConfigError, match=r"attribution: engine 'captum' is gone; leave the key out"):
        load_audit_run(str(configuration))


def test_an_audit_of_moved_recordings_gets_a_manifest_of_today(released_audit: Path) -> None:
    names = parquet.read_table(str(released_audit / layout.MANIFEST))["recording"].unique().to_pylist()
    relocated(str(released_audit), [Recording(name, f"/elsewhere/{name}", "test") for name in names])
    uris = parquet.read_table(str(released_audit / layout.MANIFEST))["uri"].unique().to_pylist()
    assert uris == [f"/elsewhere/{name}" for name in names]
    assert require_readable(str(released_audit)) == schemas.FORMAT


def test_what_a_newer_faithad_made_is_refused(released_study: Path, released_audit: Path, tmp_path: Path) -> None:
    root = shutil.copytree(released_study, tmp_path / "study")
    for folder in (root, released_audit):
        (folder / layout.FORMAT).write_text(json.dumps({"format": schemas.FORMAT + 1, "faithad": "99.1"}))
    study = load_study(str(root / layout.STUDY), overrides=[f"root={root}"])
    uses = [
        lambda: render_report(str(root)),
        lambda: STAGES["report"](study),
        lambda: STAGES["evaluate"](study),
        lambda: render_audit_report(str(released_audit)),
        lambda: export_events(str(released_audit), str(tmp_path / "labels"), format="csv"),
        lambda: evaluate_audit(str(released_audit), str(tmp_path / "labels")),
    ]
    for use in uses:
        with pytest.raises(StudyError, match=r"made by a newer faithad, 99\.1") as caught:
            use()
        assert f"reads up to FORMAT {schemas.FORMAT}." in str(caught.value)
    assert not (tmp_path / "labels").exists()
