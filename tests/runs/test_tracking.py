"""Runs in experiment trackers, read back by the trackers' own readers; a second export adds nothing."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from faithad import listing, parquet, storage
from faithad.errors import ConfigError
from faithad.runs import layout, tracking
from faithad.runs.trackers import TrackedRun

STUDY = TrackedRun("study", "study", "mill", {}, {}, files=("report.html",))
TRAINING = TrackedRun(
    "training/mae-0",
    "training",
    "mae-0",
    {"model": "mae", "seed": 0, "train.learning_rate": 0.001},
    {1: {"train_loss": 0.5, "validation_loss": float("nan")}, 2: {"train_loss": 0.25, "validation_loss": 0.75}},
    parent="study",
)
GROWN = replace(TRAINING, points={**TRAINING.points, 3: {"train_loss": 0.125, "validation_loss": 0.5}})
FAILED = TrackedRun("search/r0.3", "trial", "r0.3", {"seed": 0}, {}, parent="study", status="failed")
RUNS = [STUDY, TRAINING, FAILED]
SECRET = "wJalrWITNESSbPxRfiCY"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where nobody has set up a tracker; what libraries are told is forgotten after each test."""
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "WANDB_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", os.environ.copy())


@pytest.fixture
def root(tmp_path: Path) -> str:
    (tmp_path / "report.html").write_text("<html>1</html>")
    return str(tmp_path)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What exports have written to storage since the list was cleared."""
    places: list[str] = []
    write = storage.write_bytes

    def note(location: str, content: bytes, **options: Any) -> None:
        places.append(location)
        write(location, content, **options)

    monkeypatch.setattr(storage, "write_bytes", note)
    return places


def test_event_files_of_tensorboard(root: str, written: list[str]) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def points() -> list[tuple[int, float]]:
        events = accumulator.EventAccumulator(f"{root}/tensorboard/training/mae-0").Reload()
        assert set(events.Tags()["scalars"]) == {"train_loss", "validation_loss"}
        return [(event.step, event.value) for event in events.Scalars("train_loss")]

    tracking.export(["tensorboard"], root, "mill", lambda: RUNS)
    assert points() == [(1, 0.5), (2, 0.25)]
    written.clear()
    tracking.export(["tensorboard"], root, "mill", lambda: RUNS)
    assert not written
    tracking.export(["tensorboard"], root, "mill", lambda: [STUDY, GROWN])
    assert points() == [(1, 0.5), (2, 0.25), (3, 0.125)]
    assert not Path(root, "tensorboard/search").exists(), "a trial without an epoch has nothing to show"


def test_event_files_in_an_object_store(object_store: str) -> None:
    tracking.export(["tensorboard"], f"{object_store}/tracked", "mill", lambda: [TRAINING])
    tracking.export(["tensorboard"], f"{object_store}/tracked", "mill", lambda: [GROWN])
    ((name, location),) = listing.list_files(f"{object_store}/tracked/tensorboard", suffixes=[""])
    assert name.startswith("training/mae-0/events.out.tfevents.")
    assert b"train.learning_rate" in storage.read_bytes(location)


@pytest.mark.long
def test_runs_in_a_database_of_mlflow(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    tracking.export(["mlflow"], root, "mill", lambda: RUNS)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{root}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("mill").experiment_id

    def runs() -> dict[str, Any]:
        return {run.info.run_name: run for run in client.search_runs([experiment])}

    def points(run: Any, metric: str) -> list[tuple[int, float]]:
        return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric)]

    before = runs()
    assert set(before) == {"mill", "mae-0", "r0.3"}
    assert {name: run.info.status for name, run in before.items()} == {
        "mill": "FINISHED",
        "mae-0": "FINISHED",
        "r0.3": "FAILED",
    }
    training, parent = before["mae-0"], before["mill"].info.run_id
    assert training.data.params == {"model": "mae", "seed": "0", "train.learning_rate": "0.001"}
    assert training.data.tags["mlflow.parentRunId"] == parent
    assert points(training, "train_loss") == [(1, 0.5), (2, 0.25)]
    Path(root, "report.html").write_text("<html>2</html>")
    # As if an export had been killed: some points are there, and the run is not marked.
    client.log_metric(training.info.run_id, "train_loss", 0.125, step=3)
    for _ in range(2):
        tracking.export(["mlflow"], root, "mill", lambda: [STUDY, GROWN, FAILED])
    assert {name: run.info.run_id for name, run in runs().items()} == {
        name: run.info.run_id for name, run in before.items()
    }
    assert points(training, "train_loss") == [(1, 0.5), (2, 0.25), (3, 0.125)]
    assert [step for step, _ in points(training, "validation_loss")] == [1, 2, 3]
    assert [file.path for file in client.list_artifacts(parent)] == ["report.html"]
    assert Path(client.download_artifacts(parent, "report.html")).read_text() == "<html>2</html>"
    # Other settings are another run, and so is the same training in another root.
    tracking.export(["mlflow"], root, "mill", lambda: [STUDY, replace(TRAINING, settings={"train.learning_rate": 0.1})])
    assert len(client.search_runs([experiment])) == 4
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow/mlflow.db")
    storage.write_bytes(f"{root}/other/report.html", b"<html></html>")
    tracking.export(["mlflow"], f"{root}/other", "mill", lambda: [STUDY, TRAINING])
    assert len(client.search_runs([experiment])) == 6
    assert not Path(root, "other", "mlflow").exists()


@pytest.mark.long
def test_folders_of_wandb(root: str, written: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", SECRET.ljust(40, "x"))
    tracking.export(["wandb"], root, "mill", lambda: RUNS)
    runs = {run.run.display_name: records for records in wandb_runs(root) for run in records if run.HasField("run")}
    assert set(runs) == {"mill", "mae-0", "r0.3"}
    (made,) = [record.run for record in runs["mae-0"] if record.HasField("run")]
    assert (made.project, made.job_type) == ("mill", "training")
    config = {item.key: json.loads(item.value_json) for item in made.config.update}
    assert {name: config[name] for name in TRAINING.settings} == dict(TRAINING.settings)
    assert history(runs["mae-0"]) == [(1, 0.5), (2, 0.25)]
    (report,) = Path(root, "wandb").rglob("report.html")
    assert report.read_text() == "<html>1</html>"
    written.clear()
    tracking.export(["wandb"], root, "mill", lambda: RUNS)
    assert not written
    tracking.export(["wandb"], root, "mill", lambda: [STUDY, GROWN, FAILED])
    assert len(wandb_runs(root)) == 3
    assert [(1, 0.5), (2, 0.25), (3, 0.125)] in [history(records) for records in wandb_runs(root)]
    for file in Path(root).rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file


def test_a_tracker_that_is_not_there_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = tracking.importlib.util.find_spec
    monkeypatch.setattr(
        tracking.importlib.util, "find_spec", lambda name: None if name in ("wandb", "alembic") else find_spec(name)
    )
    tracking.require_trackers(["tensorboard"], "root")
    with pytest.raises(ConfigError) as caught:
        tracking.require_trackers(["mlflow", "wandb"], "s3://bucket/root")
    lines = str(caught.value).splitlines()
    assert [line.split(" needs ")[0] for line in lines[:2]] == ["track: 'mlflow'", "track: 'wandb'"]
    assert 'pip install "faithad[wandb]"' in lines[1]
    assert "MLFLOW_TRACKING_URI" in lines[2]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    with pytest.raises(ConfigError, match=r"^track: 'mlflow' needs [^\n]*$"):
        tracking.require_trackers(["mlflow"], "s3://bucket/root")


def test_a_tracker_that_fails_costs_one_line(
    root: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        calls.append(1)
        raise OSError(f"no answer from\nhttp://name:{SECRET}@127.0.0.1:5000")

    calls: list[int] = []
    monkeypatch.setitem(tracking.TRACKERS, "mlflow", tracking.Tracker(("json",), fail))
    for _ in range(2):
        tracking.export(["mlflow", "tensorboard"], root, "mill", lambda: RUNS)
    said = capsys.readouterr().out
    assert len(calls) == said.count("\n") == 1
    assert said.startswith("track: mlflow failed, and the run goes on without it: OSError: no answer from http://")
    assert SECRET not in said
    assert Path(root, "tensorboard").exists()


def test_a_damaged_table_costs_no_run(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    storage.write_text(f"{root}/epochs.parquet", "no table")
    tracking.export(["tensorboard"], root, "mill", lambda: parquet.read_table(f"{root}/epochs.parquet").to_pylist())
    assert capsys.readouterr().out.startswith(
        "track: tensorboard failed, and the run goes on without it: DamagedError:"
    )


@pytest.mark.long
def test_a_server_that_is_gone_costs_one_line(
    root: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://name:{SECRET}@127.0.0.1:9")
    tracking.export(["mlflow"], root, "mill", lambda: RUNS)
    said = "".join(capfd.readouterr())
    assert said.startswith("track: mlflow failed")
    assert said.count("\n") == 1
    assert SECRET not in said


def wandb_runs(root: str) -> list[list[Any]]:
    """The records of each run below a root."""
    return [list(read_records(file)) for file in sorted(Path(root, layout.WANDB).rglob("*.wandb"))]


def history(records: list[Any]) -> list[tuple[int, float]]:
    """The step and the training loss of each epoch."""
    rows = [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    return [(row["_step"], row["train_loss"]) for row in rows]


def read_records(file: Path) -> Iterator[Any]:
    """The records in a file of wandb: a LevelDB log, after a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, parts = file.read_bytes(), 7, b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:  # the rest of a block holds no header
            position += 32768 - position % 32768
            continue
        _, size, kind = struct.unpack("<IHB", content[position : position + 7])
        parts += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""
