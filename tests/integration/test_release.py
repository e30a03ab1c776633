"""A model of an earlier release, put to work on recordings today."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from faithad.config.audit import load_audit_run
from faithad.pipelines.audit.run import run_audit
from tests.integration.audits import table

pytestmark = pytest.mark.long


def test_a_model_of_release_0_1_0_audits_recordings_as_it_did(
    mill: Path, released_study: Path, released_audit: Path, local_ray: None, tmp_path: Path
) -> None:
    """The mill is the one that the release was given, so scores and events are those that it found."""
    shutil.copytree(mill / "test", tmp_path / "week" / "test")
    changes = ["alarm.false_alarm_rate=0.3", "attribution.smooth_grad_samples=3", "attribution.gradient_shap_samples=3"]
    run = load_audit_run(
        None,
        model=str(released_study / "models" / "mae-0"),
        recordings=[str(tmp_path / "week")],
        out=str(tmp_path / "out"),
        overrides=[*changes, "attribution.integrated_gradients_steps=4"],
    )
    outcome = run_audit(run)
    assert (outcome.n_done, outcome.n_failed) == (20, 0)
    was, now = (table(out, "scores").set_index("clip_id") for out in (released_audit, tmp_path / "out"))
    assert len(now) == 20
    pd.testing.assert_frame_equal(now[was.columns], was.loc[now.index], rtol=1e-6)
    was, now = (table(out, "events.parquet").set_index("event_id") for out in (released_audit, tmp_path / "out"))
    assert len(now) == 4
    pd.testing.assert_frame_equal(now[was.columns], was.loc[now.index], rtol=1e-5)
