"""Everything on an object store: configuration, recordings, models, tables, reports, and what a killed driver left.

A real S3 server that wants signatures; where it is and who may use it stands in the environment alone. Commands run in
processes of their own, as users run them, and join the Ray of this session as jobs of a cluster do; the environment of
a job (`ray job submit --runtime-env-json`) takes the settings to its workers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray
import yaml

from faithad import parquet, storage
from faithad.audit.exports import export_clips, export_events
from faithad.audit.reference import evaluate_audit
from faithad.config.study import Study, load_study
from faithad.pipelines.audit.run import Outcome
from tests.integration.audits import SETTINGS
from tests.integration.s3_server import BUCKET, S3Server, s3_server

pytestmark = pytest.mark.long

FAITHAD = Path(sys.executable).parent / "faithad"
# As a person writes it. In a URI it would be S%C3%A4ge%207, which is the same place.
PREFIX = "Säge 7"
HERE = f"s3://{BUCKET}/{PREFIX}"
Answer = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def server(mill: Path, week: Path, finished: Study, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The mill, the recordings of a week and a trained model, in an object store; the environment says where."""
    with (
        s3_server(tmp_path_factory.mktemp("s3") / "log") as server,
        pytest.MonkeyPatch.context() as environment,
    ):
        for name, value in server.environment.items():
            environment.setenv(name, value)
        server.upload(mill, PREFIX)
        server.upload(week, f"{PREFIX}/{week.name}")
        server.upload(Path(finished.root, "models", "mae-0"), f"{PREFIX}/model")
        yield server


@pytest.fixture(scope="module")
def study(server: S3Server, finished: Study) -> str:
    """Where the configuration of a study is, one of whose models the finished study has as well."""
    values = yaml.safe_load(finished.to_yaml())
    values |= {"root": f"{HERE}/study", "models": ["mae"]}
    values["data"]["root"] = HERE
    values["search"] = {"mask_ratios": [0.3, 0.5], "patches": [4], "trials_at_once": 1}
    storage.write_text(f"{HERE}/study.yaml", yaml.safe_dump(values))
    return f"{HERE}/study.yaml"


@pytest.fixture
def faithad(server: S3Server, local_ray: None) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command of ours; it is killed at the end of the test at the latest."""
    job = {"runtime_env": {"env_vars": server.environment}}
    joins = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job)}
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **changes: str) -> subprocess.Popen[str]:
        environment = os.environ | joins | {"RAY_AUTH_MODE": "token"} | changes
        pipe, command = subprocess.PIPE, [FAITHAD, *arguments]
        started.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def answer_of(process: subprocess.Popen[str], status: int = 0) -> list[str]:
    """The lines that a command said, once it has ended with this status."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == status, out + err
    return (out if status in (0, 3) else err).splitlines()


def kill_once(process: subprocess.Popen[str], is_due: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not is_due():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()


def frame(location: str) -> pd.DataFrame:
    """A table, without the columns that say where the recordings lie."""
    return parquet.read_table(location).to_pandas().drop(columns=["uri", "reason"], errors="ignore")


def test_a_study(faithad: Callable[..., Any], study: str, finished: Study, server: S3Server) -> None:
    said = answer_of(faithad("study", "--config", study))
    assert said[-1] == f"16 clips done. Tables: {HERE}/study  Report: {HERE}/study/report.html"
    pd.testing.assert_frame_equal(frame(f"{HERE}/study/manifest.parquet"), frame(f"{finished.root}/manifest.parquet"))
    for name in ("models/mae-0/epochs.parquet", "audit/mae-0/scores"):
        there, here = (frame(storage.join(root, name)) for root in (f"{HERE}/study", finished.root))
        # Another number of trainings gives each another number of threads, which sum up otherwise.
        compared = [column for column in here if column != "duration_s"]
        pd.testing.assert_frame_equal(there[compared], here[compared], rtol=1e-3)
    assert "</html>" in storage.read_text(f"{HERE}/study/report.html")
    states = server.objects(f"{PREFIX}/study/training/")
    models = [name for name in server.objects(f"{PREFIX}/study/models/") if name.endswith("model.safetensors")]
    assert [Path(name).name for name in states] == ["state.pt"] * len(models), "the last state of each training"


@pytest.mark.slow
def test_a_killed_search_goes_on(faithad: Callable[..., Any], study: str, server: S3Server) -> None:
    def records() -> dict[str, Any]:
        found = server.objects(f"{PREFIX}/study/search/trials/")
        return {key: written for key, written in found.items() if key.endswith("record.json")}

    kill_once(process := faithad("search", "--config", study), lambda: len(records()) > 0)
    before = records()
    assert len(before) == 1, "the kill came too late to show anything"
    said = answer_of(faithad("search", "--config", study))
    assert said[-1].startswith("Trials: 2 done. Best by proxy_auc: mask_ratio 0.")
    assert before.items() <= records().items(), "what was done is not done again"
    assert process.returncode < 0
    assert len(frame(f"{HERE}/study/summary/search.parquet")) == 2
    assert load_study(f"{HERE}/study/best.yaml").train.mask_ratio in (0.3, 0.5)
    assert "</html>" in storage.read_text(f"{HERE}/study/search.html")


@pytest.mark.slow
def test_a_killed_audit_goes_on(
    faithad: Callable[..., Any], server: S3Server, audited: tuple[Path, Outcome], tmp_path: Path
) -> None:
    calm, out = audited[0], f"{HERE}/out"
    changes = [f"{section}.{key}={value}" for section in SETTINGS for key, value in SETTINGS[section].items()]
    command = ["audit", "--model", f"{HERE}/model", "--recordings", f"{HERE}/week 7", "--out", out]
    command += [text for change in changes for text in ("--set", change)]

    def done() -> dict[str, Any]:
        return server.objects(f"{PREFIX}/out/ledger/")

    kill_once(faithad(*command), lambda: len(done()) > 0)
    before, n_shards = done(), len(list((calm / "ledger").iterdir()))
    assert 0 < len(before) < n_shards, "the kill came too late to show anything"
    assert answer_of(faithad(*command), status=3)[-1] == audited[1].line.replace(str(calm), out)
    assert len(done()) == n_shards
    assert before.items() <= done().items(), "what was done is not done again"
    for name in ("manifest.parquet", "ledger.parquet", "scores", "events.parquet", "faithfulness"):
        there, here = frame(f"{out}/{name}"), frame(f"{calm}/{name}")
        pd.testing.assert_frame_equal(there, here)

    other = faithad(*command, "--set", "remainder=drop")
    assert "remainder: 'overlap' then, 'drop' now" in "\n".join(answer_of(other, status=1))

    assert f"as a CSV table: labels.csv in {HERE}/labels" in export_events(out, f"{HERE}/labels", format="csv")
    assert "WAV files of" in export_clips(out, f"{HERE}/review", margin_s=1.0)
    assert server.objects(f"{PREFIX}/review/")
    assert "Events: " in evaluate_audit(out, f"{HERE}/labels")
