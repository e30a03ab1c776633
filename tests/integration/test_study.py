"""The study end to end on a small mill: its tables, its answers, its memory of what is done."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

import faithad
from faithad import parquet, schemas, storage
from faithad.config.study import Study
from faithad.errors import CheckpointError, RecordingError, StudyError
from faithad.evaluation.detection import auc
from faithad.model.checkpoint import load_model
from faithad.pipelines.shards.log_mels import read_log_mel
from faithad.pipelines.study import STAGES, run_study
from tests.attribution.captum_oracle import attribute
from tests.tables import differences

pytestmark = pytest.mark.usefixtures("local_ray")


def table(study: Study, *parts: str) -> pd.DataFrame:
    return parquet.read_table(storage.join(study.root, *parts)).to_pandas()


def test_every_table_has_its_schema_and_opens_without_us(finished: Study) -> None:
    shapes = {"ae": (16, 101), "mae": (16, 100)}
    for model, shape in shapes.items():
        expected = {
            "scores": schemas.SCORES,
            "attributions": schemas.attributions(*shape),
            "localization": schemas.LOCALIZATION,
            "faithfulness": schemas.FAITHFULNESS,
            "controls": schemas.CONTROLS,
            "spectrograms": schemas.spectrograms(*shape),
            "ledger": schemas.LEDGER,
        }
        for name, schema in expected.items():
            files = sorted(Path(finished.root, "audit", f"{model}-0", name).glob("*.parquet"))
            assert files
            for file in files:
                found = pq.read_schema(file)
                assert found.equals(schema), (model, name)
                assert (found.metadata or {}).get(b"shape") == (schema.metadata or {}).get(b"shape")
    for name, schema in {
        "manifest.parquet": schemas.MANIFEST,
        "models/mae-0/epochs.parquet": schemas.EPOCHS,
        "summary/detection.parquet": schemas.DETECTION_SUMMARY,
        "summary/f_score.parquet": schemas.F_SCORE_SUMMARY,
        "summary/faithfulness.parquet": schemas.FAITHFULNESS_SUMMARY,
        "summary/controls.parquet": schemas.CONTROLS_SUMMARY,
        "summary/comparison.parquet": schemas.COMPARISON,
        "summary/ledger.parquet": schemas.LEDGER,
        "clip_sounds.parquet": schemas.CLIP_SOUNDS,
    }.items():
        assert pq.read_schema(Path(finished.root, name)).equals(schema), name
    n = duckdb.sql(f"select count(*) from '{finished.root}/audit/*/attributions/*.parquet' where len(curve) >= 100")
    assert n.fetchall() == [(2 * 8 * 6,)]


def test_every_clip_is_there_once(finished: Study) -> None:
    manifest = table(finished, "manifest.parquet")
    assert len(manifest) == 16
    assert manifest["clip_id"].is_unique
    assert manifest.groupby("split").size().to_dict() == {"test": 8, "train": 7, "validation": 1}
    test = manifest[manifest["split"] == "test"]
    for model in finished.models:
        scores = table(finished, "audit", f"{model}-0", "scores")
        assert sorted(scores["clip_id"]) == sorted(test["clip_id"])
        faithfulness = table(finished, "audit", f"{model}-0", "faithfulness")
        # Frame mode for every test clip, segment mode for the annotated ones, 6 methods, 10 percentiles each.
        assert len(faithfulness) == (len(test) + test["annotated"].sum()) * 60
        assert not faithfulness.duplicated(["clip_id", "method", "mode", "percentile"]).any()
        assert len(table(finished, "audit", f"{model}-0", "localization")) == test["annotated"].sum() * 60
    ledger = table(finished, "summary", "ledger.parquet")
    assert sorted(ledger["clip_id"]) == sorted(manifest["clip_id"])
    assert set(ledger["status"]) == {"done"}


def test_an_audited_clip_equals_the_same_clip_alone(finished: Study) -> None:
    manifest = parquet.read_table(storage.join(finished.root, "manifest.parquet")).to_pylist()
    scores = table(finished, "audit", "mae-0", "scores").set_index("clip_id")
    attributions = table(finished, "audit", "mae-0", "attributions").set_index(["clip_id", "method"])
    trained = load_model(storage.join(finished.root, "models", "mae-0"))
    for clip in [clip for clip in manifest if clip["split"] == "test"][:3]:
        log_mel = torch.from_numpy(read_log_mel(clip, finished.feature_settings))
        x = trained.prepare(log_mel[None])[0]
        with torch.inference_mode():
            score = float((trained.network(x[None])[0] - x).square().double().mean())
        assert scores.loc[clip["clip_id"], "score"] == pytest.approx(score, rel=1e-5)
        maps = attribute(
            trained.network,
            x,
            methods=finished.attribution.methods,
            settings=finished.attribution.settings,
            seed=0,
            clip_id=clip["clip_id"],
        )
        for method, attribution_map in maps.items():
            row = attributions.loc[(clip["clip_id"], method)]
            np.testing.assert_allclose(row["curve"], attribution_map.sum(dim=0), rtol=1e-4, atol=1e-7)
            if row["map"] is not None:
                kept = np.asarray(row["map"], dtype=np.float32).reshape(16, 100) * row["map_scale"]
                np.testing.assert_allclose(kept, attribution_map, atol=2e-3 * float(attribution_map.abs().max()))


def test_maps_and_spectrograms_are_kept_for_as_many_clips_as_asked(finished: Study) -> None:
    for model in finished.models:
        kept = table(finished, "audit", f"{model}-0", "spectrograms")["clip_id"]
        assert len(kept) == finished.audit.maps
        attributions = table(finished, "audit", f"{model}-0", "attributions")
        assert set(attributions[attributions["map"].notna()]["clip_id"]) == set(kept)


def test_the_summary_is_what_the_rows_say(finished: Study) -> None:
    labels = table(finished, "manifest.parquet").set_index("clip_id")["label"]
    scores = table(finished, "audit", "ae-0", "scores")
    detection = table(finished, "summary", "detection.parquet").set_index(
        ["model", "pooling", "metric", "anomaly_type"]
    )
    expected = auc(scores["score"], labels[scores["clip_id"]].astype(int))
    assert detection.loc[("ae", "mean", "auc", "all"), "mean"] == pytest.approx(expected)

    localization = table(finished, "audit", "ae-0", "localization")
    f_score = table(finished, "summary", "f_score.parquet")
    one = f_score.query("model == 'ae' and method == 'saliency' and percentile == 95 and anomaly_type == 'all'")
    rows = localization.query("method == 'saliency' and percentile == 95")
    assert one["mean"].item() == pytest.approx(rows["f_score"].mean())


def test_a_finished_study_is_not_run_again(finished: Study) -> None:
    def times() -> dict[str, int]:
        return {
            str(path): path.stat().st_mtime_ns for path in Path(finished.root).rglob("*") if path.name != "study.yaml"
        }

    before = times()
    run_study(finished)
    assert times() == before


@pytest.mark.long
def test_a_finished_study_makes_again_what_was_damaged(
    finished: Study, small_study: Callable[..., Study], capsys: pytest.CaptureFixture[str]
) -> None:
    study = small_study()
    root = Path(study.root)
    shutil.copytree(finished.root, root)
    damaged = ["features/train/part-00001.parquet", "audit/mae-0/attributions/part-00002.parquet"]
    damaged += ["audit/ae-0/scores/part-00003.parquet"]
    damaged += ["models/mae-0/model.safetensors"]
    others = ["manifest.parquet", "summary/f_score.parquet", "stages/train-ae-0.json", "format.json", "report.html"]
    for name in [*damaged, *others]:
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: len(content) // 2])
    (root / "audit" / "mae-0" / "ledger" / "part-00000.parquet").unlink()
    with pytest.raises(StudyError, match="is damaged"):
        faithad.read_table(root, "scores")
    run_study(study)
    assert not differences(root, finished.root)
    said = capsys.readouterr().out
    assert [name for name in damaged if f"{root / name} is damaged" not in said] == []
    assert run_study(study).startswith("16 clips done.")
    assert "All stages were done already." in capsys.readouterr().out


def test_other_settings_are_refused_and_named_until_redo(
    finished: Study, small_study: Callable[..., Study], tmp_path: Path
) -> None:
    changed = finished.model_copy(
        update={"attribution": finished.attribution.model_copy(update={"smooth_grad_samples": 4})}
    )
    with pytest.raises(
        StudyError, match=r"'audit-ae-0'(.|\n)*attribution.smooth_grad_samples: 3 then, 4 now(.|\n)*--redo"
    ):
        run_study(changed)


def test_how_the_work_is_spread_changes_no_table(finished: Study, small_study: Callable[..., Study]) -> None:
    """Shards of another size, another number of actors, clips in another order: the same rows."""
    spread = small_study(audit={"maps": 2, "clips_per_shard": 1, "actors": 2, "micro_batch": 3})
    for folder in ("models", "features", "stages"):
        _copy(Path(finished.root, folder), Path(spread.root, folder))
    for name in ("manifest.parquet", "index_ledger.parquet"):
        _copy(Path(finished.root, name), Path(spread.root, name))
    for mark in Path(spread.root, "stages").glob("audit-*"):
        mark.unlink()
    STAGES["audit"](spread)
    for name, keys in {
        "scores": [],
        "attributions": ["method"],
        "localization": ["method", "percentile"],
        "faithfulness": ["method", "mode", "percentile"],
        "controls": ["line", "percentile"],
    }.items():
        here, there = (
            table(study, "audit", "mae-0", name).sort_values(["clip_id", *keys]).reset_index(drop=True)
            for study in (finished, spread)
        )
        for column in here.columns:
            if here[column].dtype.kind == "f":
                np.testing.assert_allclose(here[column], there[column], rtol=1e-5, atol=1e-9, err_msg=column)
            elif column in ("curve", "profile"):
                np.testing.assert_allclose(np.stack(here[column]), np.stack(there[column]), rtol=1e-4, atol=1e-7)
            elif column != "map":
                assert here[column].tolist() == there[column].tolist(), column


@pytest.mark.long
def test_a_study_explains_the_clips_that_it_is_asked_for(
    finished: Study, small_study: Callable[..., Study], tmp_path: Path
) -> None:
    """The three highest scores of all are found after all are scored; the rest of the study goes on with these."""
    study = small_study(models=["mae"], audit={"maps": 1, "explain": "top:3"})
    for name in ("models", "features", "stages", "manifest.parquet", "index_ledger.parquet"):
        _copy(Path(finished.root, name), Path(study.root, name))
    Path(study.root, "stages", "audit-mae-0.json").unlink()
    for stage in ("audit", "evaluate", "report"):
        STAGES[stage](study)
    scores = table(study, "audit", "mae-0", "scores")
    pd.testing.assert_frame_equal(
        *(
            found.sort_values("clip_id").reset_index(drop=True)
            for found in (scores, table(finished, "audit", "mae-0", "scores"))
        )
    )
    highest = set(scores.nlargest(3, "score")["clip_id"])
    for name in ("attributions", "faithfulness"):
        here, all_of_them = (table(each, "audit", "mae-0", name) for each in (study, finished))
        assert set(here["clip_id"]) == highest
        assert len(here) == all_of_them["clip_id"].isin(highest).sum()
    assert len(table(study, "audit", "mae-0", "spectrograms")) == 1
    assert set(table(study, "summary", "ledger.parquet")["status"]) == {"done"}


def test_stages_say_which_one_comes_first(small_study: Callable[..., Study]) -> None:
    study = small_study()
    with pytest.raises(StudyError, match="Run `faithad index`"):
        STAGES["train"](study)
    STAGES["index"](study)
    with pytest.raises(StudyError, match="Run `faithad train`"):
        STAGES["audit"](study)
    with pytest.raises(StudyError, match="Run `faithad audit`"):
        STAGES["evaluate"](study)
    with pytest.raises(StudyError, match="Run `faithad evaluate`"):
        STAGES["report"](study)


def test_a_checkpoint_that_does_not_fit_is_named(finished: Study, small_study: Callable[..., Study]) -> None:
    study = small_study(models=["mae"])
    for name in ("models", "features", "stages", "manifest.parquet", "index_ledger.parquet"):
        _copy(Path(finished.root, name), Path(study.root, name))
    Path(study.root, "stages", "audit-mae-0.json").unlink()
    ours = Path(study.root, "models", "mae-0", "model.safetensors")
    ours.write_bytes(Path(study.root, "models", "ae-0", "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="name is 'ae', asked for 'mae'"):
        STAGES["audit"](study)


def test_folders_without_recordings_are_named(small_study: Callable[..., Study], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    study = small_study(data={"root": str(tmp_path), "train": ["empty"], "test": ["absent"]})
    with pytest.raises(RecordingError, match=r"empty holds no recordings(.|\n)*absent does not exist"):
        run_study(study)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        for path in source.rglob("*"):
            if path.is_file():
                _copy(path, target / path.relative_to(source))
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
        os.utime(target)
