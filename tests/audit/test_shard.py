"""One shard and one model, without Ray: what is scored, what is explained, and what a baseline leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch

from faithad import schemas
from faithad.audit.clip_rows import TABLES
from faithad.audit.model import AuditModel, require_baselines
from faithad.audit.shard import audit_clips, table_schemas, to_table
from faithad.config.sections import Attribution, Audit
from faithad.errors import ConfigError
from faithad.features import Normalization
from faithad.model.alarm import AlarmThreshold
from faithad.model.checkpoint import TrainedModel
from faithad.model.classical import fit_classical
from faithad.model.table import MODELS, build_network
from faithad.runs import layout
from faithad.settings import FeatureSettings

SMALL = FeatureSettings(n_fft=4000, hop_samples=2000, n_mels=16)
FRAMES = 100
SPECTROGRAMS = torch.randn(6, 16, 101, generator=torch.Generator().manual_seed(0))
ATTRIBUTION = Attribution(methods=("error_map", "saliency"))


def prepared(name: str, *, pooling: str = "mean", threshold: float = 1.0, **audit: Any) -> AuditModel:
    torch.manual_seed(0)
    if name == "isolation_forest":
        network: torch.nn.Module = fit_classical(name, SPECTROGRAMS[..., :FRAMES], seed=0)
    else:
        network = build_network(name, 16, FRAMES)
    alarm = AlarmThreshold("quantile", pooling, 0.05, threshold, 18.0, 100)
    trained = TrainedModel(network.eval(), Normalization.identity(16), SMALL, name, 0, alarm, 1, "hash")
    settings = Audit(percentiles=(90, 95), **audit)
    return AuditModel.prepare(trained, attribution=ATTRIBUTION, audit=settings, device=torch.device("cpu"))


def clips(n: int = 6) -> list[dict[str, Any]]:
    keys = {"recording": "a.wav", "duration_s": 10.0, "intervals": None, "annotated": False}
    return [{**keys, "clip_id": f"{k:016x}", "onset_s": 10.0 * k, "keep_maps": k == 0} for k in range(n)]


def audit(model: AuditModel, positions: Sequence[int], *, explain: bool) -> dict[str, list[dict[str, Any]]]:
    rows = clips()
    found = audit_clips(model, [rows[k] for k in positions], SPECTROGRAMS[list(positions)], explain=explain)
    for table, schema in table_schemas(model.trained).items():
        to_table(found[table], schema)
    return found


@pytest.mark.parametrize("name", [name for name, row in MODELS.items() if row.explained])
def test_scores_and_explanations_of_a_clip_do_not_depend_on_its_neighbours_nor_on_threads(name: str) -> None:
    model = prepared(name)
    together = audit(model, range(6), explain=True)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        alone = [audit(model, [k], explain=True) for k in reversed(range(6))]
    finally:
        torch.set_num_threads(threads)
    for table in TABLES:
        schema = table_schemas(model.trained)[table]
        one_by_one = [row for found in reversed(alone) for row in found[table]]
        assert to_table(together[table], schema).equals(to_table(one_by_one, schema)), table
    assert len(together["spectrograms"]) == 1
    assert [row["map"] is None for row in together["attributions"]] == [False] * 2 + [True] * 10


def test_scores_alone_are_the_same_scores() -> None:
    model = prepared("ae")
    scored, explained = (audit(model, range(6), explain=explain) for explain in (False, True))
    assert scored["scores"] == explained["scores"]
    assert scored["ledger"] == explained["ledger"]
    assert not any(scored[table] for table in layout.EXPLANATIONS)
    assert all(explained[table] for table in layout.EXPLANATIONS if table not in ("localization", "controls", "checks"))


def test_a_score_that_is_no_number_is_a_failure_with_a_reason() -> None:
    model = prepared("ae")
    spoilt = SPECTROGRAMS.clone()
    spoilt[2, 3, 50] = torch.inf
    found = audit_clips(model, clips(), spoilt, explain=True)
    assert [row["status"] for row in found["ledger"]] == ["done", "done", "failed", "done", "done", "done"]
    assert "not a finite number" in found["ledger"][2]["reason"]
    for table in ("scores", "attributions", "faithfulness"):
        assert {row["clip_id"] for row in found[table]} == {row["clip_id"] for k, row in enumerate(clips()) if k != 2}


@pytest.mark.parametrize("name", ["ae", "mae"])
def test_curves_without_a_model_stand_beside_those_of_annotated_clips(name: str) -> None:
    """The second clip is loud in its fourth second, which is annotated, and nowhere else."""
    rows, spectrograms = clips(2), torch.zeros(2, 16, 101)
    rows[1] |= {"annotated": True, "intervals": [{"onset_s": 3.0, "offset_s": 4.0}]}
    spectrograms[1, :, 31:39] = 10.0
    model = prepared(name)
    without = audit_clips(model, rows, spectrograms, explain=True)["controls"]
    model = replace(model, training=Normalization(torch.zeros(16), torch.ones(16)))
    tables = audit_clips(model, rows, spectrograms, explain=True)
    found = tables["controls"]
    # Whatever the annotations are, the curves are kept.
    kept = {(row["clip_id"], row["line"]): row["curve"] for row in tables["lines"]}
    assert set(kept) == {(row["clip_id"], line) for row in rows for line in ("level", "level_change", "outlier")}
    level = kept[rows[1]["clip_id"], "level"]
    assert [frame for frame, value in enumerate(level) if value > level.min()] == list(range(31, 39))
    assert len(level) == model.trained.n_frames
    assert to_table(tables["lines"], schemas.LINES).num_rows == 6
    assert without == [row for row in found if row["line"] != "outlier"]
    assert to_table(found, schemas.CONTROLS).num_rows == 3 * 2
    assert {row["clip_id"] for row in found} == {rows[1]["clip_id"]}
    f_scores = {(row["line"], row["percentile"]): row["value"] for row in found}
    # At percentile 95, five of eight equal frames or more are peaks; at 90 quiet frames are peaks, too.
    assert f_scores["level", 95.0] == f_scores["outlier", 95.0] == 1.0
    assert f_scores["level", 90.0] == f_scores["outlier", 90.0] == pytest.approx(2 / 11)
    # The level changes at the first loud frame and after the last; all other frames tie with the threshold.
    assert f_scores["level_change", 95.0] == pytest.approx(2 / 11)
    assert audit_clips(model, rows, spectrograms, explain=False)["controls"] == []


@pytest.mark.parametrize(("scale", "unit"), [("db", 10.0), ("log10", 1.0)])
def test_the_level_of_a_clip_and_of_its_loudest_second(scale: Literal["db", "log10"], unit: float) -> None:
    model = prepared("dense_ae")
    trained = replace(model.trained, features=replace(SMALL, scale=scale))
    spectrograms = unit * SPECTROGRAMS
    rows = [row | {"duration_s": duration_s} for row, duration_s in zip(clips(), [10.0] * 5 + [4.5], strict=True)]
    found = audit_clips(replace(model, trained=trained), rows, spectrograms, explain=False)["scores"]
    for row, clip, n_frames in zip(found, SPECTROGRAMS.double().numpy(), [FRAMES] * 5 + [46], strict=True):
        frames = [sum(10.0 ** clip[band, frame] for band in range(16)) for frame in range(n_frames)]
        starts = [*range(0, FRAMES, 10)] if n_frames == FRAMES else [0, 10, 20, 30, n_frames - 10]
        seconds = [np.mean(frames[start : start + 10]) for start in starts]
        assert row["level_db"] == pytest.approx(10 * np.log10(np.mean(frames)), abs=1e-4)
        assert row["loudest_second_db"] == pytest.approx(10 * np.log10(max(seconds)), abs=1e-4)


@pytest.mark.parametrize("value", [-5000.0, 5000.0])
def test_a_clip_whose_power_is_no_number_has_no_level_and_harms_no_other(value: float) -> None:
    model = prepared("dense_ae")
    spectrograms = SPECTROGRAMS.clone()
    spectrograms[2] = value
    found = audit_clips(model, clips(), spectrograms, explain=False)
    assert [row["status"] for row in found["ledger"]] == ["done"] * 6
    known = [(row["level_db"] is not None, row["loudest_second_db"] is not None) for row in found["scores"]]
    assert known == [(clip != 2, clip != 2) for clip in range(6)]


def test_a_baseline_network_is_scored_by_its_error() -> None:
    model = prepared("dense_ae")
    found = audit(model, range(6), explain=False)["scores"]
    x = SPECTROGRAMS[..., :FRAMES]
    with torch.inference_mode():
        expected = (model.trained.network(x) - x).square().mean(dim=(1, 2))
    assert [row["score"] for row in found] == pytest.approx(expected.tolist(), rel=1e-5)
    assert all(row["worst_second_score"] > row["score"] for row in found)


@pytest.mark.parametrize("name", ["ae", "isolation_forest"])
def test_windows_of_alarmed_clips_are_their_mean_errors(name: str) -> None:
    """With 10 frames a second a window of 0.25 s is 2 frames. A detector of whole clips has none."""
    scores = [row["score"] for row in audit(prepared(name, threshold=0.0), range(6), explain=False)["scores"]]
    model = prepared(name, threshold=sorted(scores)[2])
    assert model.trained.alarm is not None
    model.trained.alarm = replace(model.trained.alarm, window_thresholds=(7.0,))
    found = audit(model, range(6), explain=False)["scores"]
    assert [row["windows"] is not None for row in found] == [row["alarm"] and name == "ae" for row in found]
    assert sum(row["alarm"] for row in found) == 3
    x = SPECTROGRAMS[..., :FRAMES]
    for k, row in enumerate(found):
        if row["windows"] is not None:
            with torch.inference_mode():
                squared = (model.trained.network(x[k : k + 1]) - x[k]).square()[0]
            assert row["windows"].tolist() == pytest.approx(squared.view(16, 50, 2).mean(dim=(0, 2)).tolist(), rel=1e-4)
            assert row["window_threshold"] == 7.0


@pytest.mark.parametrize(("pooling", "alarms"), [("mean", True), ("worst_second", None)])
def test_a_classical_detector_gives_a_score_and_no_place(pooling: str, alarms: bool | None) -> None:
    """It has no worst second either, so an alarm of that score is not raised, nor not raised."""
    found = audit(prepared("isolation_forest", pooling=pooling, threshold=0.1), range(6), explain=False)["scores"]
    for row in found:
        assert 0 < row["score"] < 1
        assert [row[key] for key in ("worst_second_score", "worst_onset_s", "worst_mel_band")] == [None] * 3
        assert row["alarm"] is alarms
        assert (row["threshold"] is None) is (alarms is None)


def test_a_model_without_training_clips_is_not_explained_from_them() -> None:
    trained, attribution = prepared("ae").trained, Attribution(baseline="normals")
    require_baselines(trained, Attribution())
    with pytest.raises(ConfigError, match=r"the model 'ae' keeps no training clips .* earlier version. Train it again"):
        require_baselines(trained, attribution)
    trained.normals = SPECTROGRAMS[..., :FRAMES]
    require_baselines(trained, attribution)
    require_baselines(prepared("isolation_forest").trained, attribution)  # is not explained


def test_a_shard_of_which_nothing_could_be_read_has_no_rows() -> None:
    assert audit_clips(prepared("ae"), [], torch.zeros(0, 16, 101), explain=True) == {table: [] for table in TABLES}
