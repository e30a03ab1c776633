"""Runs side by side: what differs, what is new, what drifted; as a page and as tables."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pytest
import yaml
from typer.testing import CliRunner

import tests.report.audit.conftest as audits
from faithad import cli, parquet, schemas
from faithad.errors import ConfigError
from faithad.report.compare import compare_runs
from faithad.report.compare.runs import default_folder, run_names
from faithad.runs import layout
from tests.report.audit.conftest import build_audit
from tests.report.study.conftest import build_study

pytestmark = pytest.mark.long

Render = Callable[..., tuple[str, Any]]
NASTY = "<script>alert(1)</script>{{ 7 * 7 }}"


@pytest.fixture
def week_47(tmp_path: Path) -> str:
    out = build_audit(tmp_path / "week-47", hours=1.0)
    write_levels(out)
    return out


def next_week(folder: Path, monkeypatch: pytest.MonkeyPatch, *, louder_db: float = 0.0, **options: Any) -> str:
    """An audit of the same mill, seven days later; the second half of it may be louder, and its scores with it."""
    monkeypatch.setattr(audits, "START", audits.START + timedelta(days=7))
    out = build_audit(folder, hours=1.0, **options)
    write_levels(out, louder_db=louder_db)
    if louder_db:
        change_scores(out, lambda name: 8.0 if name >= name_of_number(30) else 0.0)
    return out


def name_of_number(number: int) -> str:
    start = audits.START + timedelta(minutes=number)
    return f"MPD_{start:%y-%m-%d_%H%M}_{number:05d}.wav"


def write_levels(out: str, *, louder_db: float = 0.0) -> None:
    names = sorted(set(parquet.read_table(f"{out}/manifest.parquet")["recording"].to_pylist()))
    noise = np.random.default_rng(1).normal(0, 0.7, len(names))
    rows = [
        {"recording": name, "sample_rate_hz": 20_000, "channels": 1, "heard": "mean", "sampled_s": 2.5,
         "level_dbfs": [float(-31 + noise[number] + louder_db * (number >= len(names) // 2))], "problems": []}
        for number, name in enumerate(names)
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=schemas.HEALTH)
    parquet.write_table(table, f"{out}/{layout.HEALTH}", schema=schemas.HEALTH)


def change_scores(out: str, more: Callable[[str], float]) -> None:
    """Add to the scores of each recording; alarms follow, events do not."""
    manifest = parquet.read_table(f"{out}/manifest.parquet")
    names = dict(zip(manifest["clip_id"].to_pylist(), manifest["recording"].to_pylist(), strict=True))
    (file,) = Path(out, "scores").iterdir()
    rows = parquet.read_table(str(file)).to_pylist()
    for row in rows:
        row["score"] += more(names[row["clip_id"]])
        row["alarm"] = row["score"] > row["threshold"]
    parquet.write_table(pa.Table.from_pylist(rows, schema=schemas.SCORES), str(file), schema=schemas.SCORES)


def read(to: Path | str, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = parquet.read_table(f"{to}/{name}.parquet").to_pylist()
    return rows


def test_a_louder_recorder_is_one_sentence(
    week_47: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, render: Render
) -> None:
    week_48 = next_week(tmp_path / "week-48", monkeypatch, louder_db=6.0)
    answer = CliRunner().invoke(cli.app, ["compare", week_47, week_48])
    assert answer.exit_code == 0, answer.output
    first, second, *_ = answer.output.splitlines()
    assert first.startswith("MPD is 6 dB louder since Thursday, 2019-12-12 06:30; its scores rose with it (3 % of its ")
    assert first.endswith("fit the alarm anew with faithad calibrate, if this is how it sounds from now on.")
    assert "different as a whole" not in answer.output
    assert second.startswith("There are ")
    assert second.endswith("none of them in sound that both heard.")
    to = tmp_path / "compare-week-47-week-48"
    level, score = read(to, "drift")
    assert (level["quantity"], score["quantity"]) == ("level_dbfs", "score")
    assert level["since"] == score["since"] == audits.START + timedelta(minutes=30)
    assert level["after"] - level["before"] == pytest.approx(6, abs=0.7)
    assert score["after"] - score["before"] == pytest.approx(8, abs=1)
    assert (level["n_before"], level["n_after"]) == (90, 30)
    assert not read(to, "clips")
    assert {row["status"] for row in read(to, "events")} == {"unheard"}
    html = (to / "compare.html").read_text()
    _, page = render(str(to), lambda root: f"{root}/compare.html")
    page.check_is_whole(html)
    assert "Drift: did recorders change?" in page.text
    for name in ("settings", "numbers", "clips", "events", "drift"):
        table = parquet.read_table(f"{to}/{name}.parquet")
        assert pacsv.read_csv(to / f"{name}.csv").num_rows == table.num_rows
        assert table.schema.names == layout.TABLES[f"compared/{name}"].schema.names


def test_weeks_that_are_alike_have_no_drift(week_47: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = compare_runs([week_47, next_week(tmp_path / "week-48", monkeypatch)])
    assert "louder" not in said
    assert "scores of" not in said
    assert not any(row["matters"] for row in read(tmp_path / "compare-week-47-week-48", "drift"))


def test_scores_may_rise_at_the_same_level(week_47: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    week_48 = next_week(tmp_path / "week-48", monkeypatch)
    change_scores(week_48, lambda name: 8.0)
    said = compare_runs([week_47, week_48])
    assert said.startswith("The scores of MPD rose since Thursday, 2019-12-12 06:00, at the same level (")
    assert "listen to some of it; fit the alarm anew" in said


def test_scores_of_other_models_are_not_compared(week_47: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    week_48 = next_week(tmp_path / "week-48", monkeypatch, louder_db=6.0)
    card = Path(week_48, "model.json")
    card.write_text(card.read_text().replace('"seed": 0', '"seed": 1'))
    said = compare_runs([week_47, week_48])
    assert said.splitlines()[0] == "MPD is 6 dB louder since Thursday, 2019-12-12 06:30."
    assert {row["quantity"] for row in read(tmp_path / "compare-week-47-week-48", "drift")} == {"level_dbfs"}


def test_one_recording_is_one_case(week_47: str, tmp_path: Path) -> None:
    """The same recordings, audited again after one of them was replaced: its events are told as one thing."""
    again = str(tmp_path / "again")
    shutil.copytree(week_47, again)
    name = name_of_number(45)
    change_scores(again, lambda recording: 20.0 * (recording == name))
    events = parquet.read_table(f"{again}/events.parquet").to_pylist()
    added = [
        {**events[0], "event_id": f"n{number}", "recording": name, "onset_s": 10.0 * number, "duration_s": 5.0,
         "parts": [{"recording": name, "onset_s": 10.0 * number, "offset_s": 10.0 * number + 5}]}
        for number in range(6)
    ]  # fmt: skip
    gone, *others = events
    table = pa.Table.from_pylist([*others, *added], schema=schemas.EVENTS)
    parquet.write_table(table, f"{again}/events.parquet", schema=schemas.EVENTS)
    said = compare_runs([week_47, again], str(tmp_path / "to"))
    assert f"{name} is different as a whole in again: 6 of 6 clips alarm, " in said
    assert said.count("different as a whole") == 1
    n = len(others)
    assert f"In sound that both heard, 0 events of again are new, 1 of week-47 is gone, {n} in both." in said
    rows = read(tmp_path / "to", "events")
    assert [row["event_id"] for row in rows if row["whole_recording"]] == [event["event_id"] for event in added]
    (lost,) = [row for row in rows if row["status"] == "gone"]
    assert (lost["reference_event_id"], lost["event_id"]) == (gone["event_id"], None)
    alarm, score = read(tmp_path / "to", "clips")
    assert (alarm["metric"], score["metric"]) == ("alarm", "score")
    assert alarm["n_clips"] == score["n_clips"] == 358
    assert score["estimate"] == pytest.approx(20 * 6 / 358)
    assert not read(tmp_path / "to", "drift")


def test_studies_on_the_same_clips(tmp_path: Path, render: Render) -> None:
    """Twelve recordings say nothing for sure, so the rule says; the numbers are there all the same."""
    roots = [build_study(tmp_path / name, n_recordings=24) for name in ("old", "new")]
    for seed in (0, 1, 2):
        file = Path(roots[1], f"audit/mae-{seed}/scores/part-0.parquet")
        rows = parquet.read_table(str(file)).to_pylist()
        labels = {
            row["clip_id"]: row["label"] for row in parquet.read_table(f"{roots[1]}/manifest.parquet").to_pylist()
        }
        rows = [row | {"score": row["score"] + 30 * labels[row["clip_id"]]} for row in rows]
        parquet.write_table(pa.Table.from_pylist(rows, schema=schemas.SCORES), str(file), schema=schemas.SCORES)
    settings = yaml.safe_load(Path(roots[1], "study.yaml").read_text()) | {"train": {"epochs": 9}}
    Path(roots[1], "study.yaml").write_text(yaml.safe_dump(settings))
    said = compare_runs(roots, str(tmp_path / "to"))
    assert said.startswith("new against old, on the same test clips: MAE, AUC: higher by ")
    assert "Set otherwise: train.epochs." in said
    rows = {(row["metric"], row["model"], row["method"]): row for row in read(tmp_path / "to", "clips")}
    assert rows["auc", "mae", "mean"]["verdict"] == "yes"
    assert rows["auc", "ae", "mean"]["estimate"] == 0
    assert rows["auc", "ae", "mean"]["n_seeds"] == 3
    areas = [row["value"] for row in read(tmp_path / "to", "numbers") if row["name"] == "MAE, whole clip: AUC"]
    assert areas == [pytest.approx(0.83)] * 2  # of the summaries, which nobody has made anew
    _, page = render(str(tmp_path / "to"), lambda root: f"{root}/compare.html")
    page.check_is_whole((tmp_path / "to/compare.html").read_text())


def test_what_cannot_be_compared(week_47: str, tmp_path: Path) -> None:
    study = build_study(tmp_path / "study", models=("ae",), seeds=(0,), n_recordings=4, n_examples=0)
    with pytest.raises(ConfigError, match="Give at least two runs"):
        compare_runs([week_47])
    with pytest.raises(ConfigError, match=r"but .*study is a study and .*week-47 an audit\."):
        compare_runs([week_47, study])


def test_names_stay_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, render: Render) -> None:
    first = build_audit(tmp_path / "a", hours=0.5, boards=1, recording=NASTY)
    second = next_week(tmp_path / "b", monkeypatch, recording=NASTY)
    compare_runs([first, second], str(tmp_path / "to"))
    html, page = render(str(tmp_path / "to"), lambda root: f"{root}/compare.html")
    page.check_is_whole(html)
    assert f"{NASTY}_19-12-12" in page.text


def test_runs_have_short_names_and_a_place_beside_them() -> None:
    assert run_names(["runs/a", "runs/b/"]) == ["a", "b"]
    assert run_names(["x/demo", "y/demo"]) == ["x/demo", "y/demo"]
    assert run_names(["x/demo", "x/demo"]) == ["x/demo (1)", "x/demo (2)"]
    assert default_folder(["s3://bucket/runs/a", "b"]) == "s3://bucket/runs/compare-a-b"
    assert default_folder(["a/", "b"]) == "compare-a-b"
