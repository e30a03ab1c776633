"""Whatever is read from outside, nothing in it is ever run: a trap in its place ends in an error that says so."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data  # noqa: F401  (registers the type that unpickles)
import torch
import yaml

from faithad import parquet, schemas, storage
from faithad.audit.exports import export_clips, export_events
from faithad.clips.labels.reference import read_reference
from faithad.clips.layouts import DataFolders
from faithad.clips.layouts.planer import find_planer
from faithad.clips.spectrograms import read_spectrogram
from faithad.clips.splits import read_split_csv
from faithad.config.audit import is_study, load_audit_run
from faithad.config.study import load_study
from faithad.errors import AnnotationError, CheckpointError, ConfigError, FaithadError, RecordingError, StudyError
from faithad.model.checkpoint import load_model, read_state
from faithad.report.audit_page import render_audit_report
from faithad.report.search_page import render_search_report
from faithad.report.study_page import render_report
from faithad.runs.tables import read_whole
from tests.report.audit.conftest import build_audit
from tests.report.study.conftest import build_study
from tests.report.test_search_page import write_search
from tests.security.traps import Trap


@pytest.mark.parametrize(
    "spring",
    [
        lambda trap, _: pickle.loads(trap.pickled),
        lambda trap, _: torch.load(io.BytesIO(trap.saved), weights_only=False),
        lambda trap, _: np.load(io.BytesIO(trap.array), allow_pickle=True),
        lambda trap, _: yaml.unsafe_load(trap.yaml),
        lambda trap, folder: _armed(trap, folder).to_pylist(),
        lambda trap, folder: _armed(trap, folder).to_pandas(),
    ],
    ids=["pickle", "torch", "numpy", "yaml", "arrow", "pandas"],
)
def test_the_traps_work(live_trap: Trap, tmp_path: Path, spring: Callable[[Trap, Path], Any]) -> None:
    spring(live_trap, tmp_path)
    assert live_trap.sprung


@pytest.mark.parametrize("content", ["pickled", "saved"])
def test_a_published_clip(trap: Trap, tmp_path: Path, content: str) -> None:
    for folder in ("training/2x6", "evaluation/normal", "evaluation/anomalies/board_stuck"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "MPD_19-12-02_0700_00001_1.pt").write_bytes(getattr(trap, content))
    _, rows, _ = find_planer(DataFolders(str(tmp_path)))
    assert len(rows) == 3
    for row in rows:
        with pytest.raises(RecordingError, match=r"would run code|cannot load it"):
            read_spectrogram(row.uri, shape=None)


@pytest.mark.parametrize("content", ["pickled", "saved"])
def test_a_model(trap: Trap, tmp_path: Path, content: str) -> None:
    for name in ("model.safetensors", "model.pt", "pytorch_model.bin", "model.pkl"):
        (tmp_path / name).write_bytes(getattr(trap, content))
    with pytest.raises(CheckpointError, match="no safetensors file"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("content", ["pickled", "saved"])
def test_the_state_of_a_training_or_a_trial(trap: Trap, tmp_path: Path, content: str) -> None:
    (tmp_path / "state.pt").write_bytes(getattr(trap, content))
    with pytest.raises(CheckpointError, match="is never run"):
        read_state(str(tmp_path / "state.pt"))


def test_a_configuration(trap: Trap, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    for text in (f"name: {trap.yaml}\nroot: runs\n", f"? {trap.yaml}\n: 1\n", trap.yaml):
        file.write_text(text)
        for read in (load_study, load_audit_run, is_study):
            with pytest.raises(ConfigError, match="not valid YAML"):
                read(str(file))
    file.write_text("name: mill\nroot: runs\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_study(str(file), overrides=[f"name={trap.yaml}"])


def test_annotations_and_tables_of_splits(trap: Trap, tmp_path: Path) -> None:
    for name in ("labels.csv", "labels.txt", "labels.json"):
        (tmp_path / name).write_bytes(trap.pickled)
        with pytest.raises(AnnotationError):
            read_reference(str(tmp_path / name))
    with pytest.raises(FaithadError):
        read_split_csv(str(tmp_path / "labels.csv"))


def test_settings_beside_the_tables(trap: Trap, tmp_path: Path) -> None:
    root = build_study(tmp_path / "study", seeds=(0,), n_recordings=4)
    storage.write_text(f"{root}/study.yaml", trap.yaml)
    with pytest.raises(StudyError, match="not valid YAML"):
        render_report(root)


@pytest.mark.parametrize("table", ["manifest", "summary/ledger", "summary/f_score", "audit/mae-0/*/*"])
def test_the_tables_of_a_study(trap: Trap, tmp_path: Path, table: str) -> None:
    root = build_study(tmp_path / "study", models=("mae",), seeds=(0,), n_recordings=4)
    _refused_one_by_one(tmp_path / "study", table, trap, lambda: render_report(root))


@pytest.mark.parametrize("table", ["manifest", "events", "ledger", "*/*"])
def test_the_tables_of_an_audit(trap: Trap, tmp_path: Path, table: str) -> None:
    out = build_audit(tmp_path / "out", hours=0.5, boards=2)
    _refused_one_by_one(tmp_path / "out", table, trap, lambda: render_audit_report(out))


@pytest.mark.parametrize(("table", "column"), [("manifest", "uri"), ("events", "event_id")])
def test_the_tables_that_exports_read(trap: Trap, tmp_path: Path, table: str, column: str) -> None:
    out = build_audit(tmp_path / "out", hours=0.5, boards=2)
    trap.arm(tmp_path / "out" / f"{table}.parquet", column)
    with pytest.raises(StudyError, match="could run code"):
        export_events(out, str(tmp_path / "to"), format="label-studio")
    with pytest.raises(StudyError, match="could run code"):
        export_clips(out, str(tmp_path / "to"), margin_s=1)


def test_the_table_of_a_search(trap: Trap, tmp_path: Path) -> None:
    root = write_search(tmp_path)
    trap.arm(tmp_path / "summary/search.parquet", "status")
    with pytest.raises(StudyError, match="could run code"):
        render_search_report(root)


def test_shards_that_the_pipelines_read(trap: Trap, tmp_path: Path) -> None:
    out = build_audit(tmp_path / "out", hours=0.5, boards=2)
    for shard in (tmp_path / "out" / "scores").iterdir():
        trap.arm(shard, "model")
    with pytest.raises(StudyError, match="could run code"):
        read_whole(str(out), "scores", schemas.SCORES)


def test_an_extension_type_is_refused_where_nobody_knows_it(trap: Trap, tmp_path: Path) -> None:
    """Read where `ray.data` was never imported, it would be unpickled by the worker that gets the table next."""
    table = tmp_path / "nested.parquet"
    content = pq.read_table(build_audit(tmp_path / "out", hours=0.5, boards=2) + "/manifest.parquet")
    nested = pa.StructArray.from_arrays([trap.column(content.num_rows)], ["inner"])
    pq.write_table(content.append_column("outer", nested), table)
    code = (
        f"import sys; from faithad import parquet; assert 'ray' not in sys.modules; parquet.read_table({str(table)!r})"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "could run code" in answer.stderr
    with pytest.raises(StudyError, match="outer could run code"):
        parquet.read_table(str(table))


def _armed(trap: Trap, folder: Path) -> Any:
    pq.write_table(pa.table({"name": ["x"]}), folder / "table.parquet")
    trap.arm(folder / "table.parquet", "name")
    return pq.read_table(folder / "table.parquet")


def _refused_one_by_one(folder: Path, pattern: str, trap: Trap, read: Callable[[], object]) -> None:
    """A trap in each column of text of each table in turn: the table is refused, or the column is not read at all."""
    refused = 0
    tables = sorted(folder.glob(f"{pattern}.parquet"))
    assert tables
    for table in tables:
        whole = table.read_bytes()
        schema = pq.read_schema(table)
        for column in (name for name in schema.names if str(schema.field(name).type) == "string"):
            trap.arm(table, column)
            try:
                read()
            except StudyError as error:
                assert f"reading its columns {column} could run code" in str(error)  # noqa: PT017
                refused += 1
            assert not trap.sprung, f"{table.name}, {column}"
            table.write_bytes(whole)
    assert refused
