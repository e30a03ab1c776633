"""The study as a job of a real Ray head, by `ray job submit`: the log streams, the tables are there.

The head has no faithad of its own, so the job runs on the one that travels with it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import duckdb
import pytest
import yaml

from faithad.config.study import Study
from tests.integration.jobs.conftest import PROJECT, Answer, Head


@pytest.mark.long
def test_a_submitted_study_streams_its_log_and_writes_its_tables(head: Head, finished: Study, tmp_path: Path) -> None:
    changes = {
        "root": str(tmp_path / "study"),
        "data": finished.data.model_dump(mode="json", exclude_none=True),
        "features": finished.features.model_dump(),
        "models": ["mae"],
        "train": {"epochs": 1},
        "attribution": {"methods": ["saliency", "grad_cam"]},
    }
    overrides = [text for key, value in changes.items() for text in ("--set", f"{key}={_inline(value)}")]
    answer = head.ray_submit("jobs/full_study.py", "--config", "configs/demo.yaml", *overrides)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "train mae-0: best epoch 1 of 1" in answer.stdout
    assert f"16 clips done. Tables: {tmp_path / 'study'}" in answer.stdout
    rows = duckdb.sql(f"select method, count(*) from '{tmp_path}/study/audit/mae-0/attributions/*.parquet' group by 1")
    assert sorted(rows.fetchall()) == [("grad_cam", 8), ("saliency", 8)]
    assert (tmp_path / "study" / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(("mode", "token"), [("disabled", ""), ("token", "0" * 64)], ids=["none", "wrong"])
def test_without_the_token_nobody_submits_or_attaches(head: Head, mode: str, token: str) -> None:
    stranger = {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": token, "RAY_AUTH_TOKEN_PATH": ""}
    answer = head.ray_submit("-c", "print('ran')", folder=PROJECT / "jobs", **stranger)
    assert answer.returncode != 0
    assert re.search("401|403|Unauthorized|Forbidden", answer.stdout + answer.stderr)
    assert "ran" not in answer.stdout
    attached = _attach(head, **stranger)
    assert attached.returncode != 0
    assert "InvalidAuthToken" in attached.stderr


def test_with_the_token_one_attaches(head: Head) -> None:
    assert _attach(head).stdout == "attached\n"


def _attach(head: Head, **variables: str) -> Answer:
    code = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); print('attached')"
    return head.run(sys.executable, "-c", code, f"127.0.0.1:{head.port}", RAY_NUM_REDIS_GET_RETRIES="1", **variables)


def _inline(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).strip().removesuffix("...").strip()
