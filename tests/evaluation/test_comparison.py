"""MAE against AE, from tables of an audit: the numbers are those of `compare` on values that pandas gathers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from faithad import schemas
from faithad.evaluation.decisions import compare
from faithad.evaluation.summary import Experiment, summarize

PERCENTILES = [90.0, 95.0, 99.0]
METHODS = ["error_map", "saliency", "grad_cam"]
SEEDS = [0, 1, 2]
Row = dict[str, Any]

# Two clips in each of 24 recordings; the first of them is annotated.
CLIPS = [
    {
        "clip_id": f"clip {number:02d}",
        "recording": f"recording {number // 2}",
        "uri": "anywhere",
        "onset_s": 10.0 * (number % 2),
        "duration_s": 10.0,
        "split": "test",
        "label": 1 - number % 2,
        "anomaly_type": None,
        "intervals": [{"onset_s": 1.0, "offset_s": 3.0}] if number % 2 == 0 else [],
        "annotated": number % 2 == 0,
    }
    for number in range(48)
]
MANIFEST = pa.Table.from_pylist(CLIPS, schema=schemas.MANIFEST)


def method_rows(value: str, modes: tuple[str | None, ...], *, gain: float = 0.0) -> pd.DataFrame:
    """One row of an audit's table per clip, model, seed, method, mode and percentile. MAE has `gain` more than AE."""
    generator = np.random.default_rng(1)
    rows = [
        {"clip_id": clip["clip_id"], "model": model, "seed": seed, "method": method, "mode": mode, "percentile": p}
        for clip in CLIPS
        for model in ("ae", "mae")
        for seed in SEEDS
        for method in METHODS
        # The AE lacks a method.
        if (model, method) != ("ae", "grad_cam")
        for mode in modes
        if mode == "frame" or clip["annotated"]
        for p in PERCENTILES
        # One clip of one method has no value at one percentile, in any seed.
        if (clip["clip_id"], method, p) != ("clip 04", "saliency", 90.0)
    ]
    frame = pd.DataFrame(rows)
    frame[value] = generator.normal(0.5, 0.1, len(frame)) + gain * (frame["model"] == "mae")
    return frame


LOCALIZATION = method_rows("f_score", (None,), gain=0.2)
FAITHFULNESS = method_rows("faithfulness", ("frame", "segment"), gain=-0.2)


def table(frame: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    """The frame with 0 in the columns that no comparison reads."""
    return pa.Table.from_pylist([dict.fromkeys(schema.names, 0) | row for row in frame.to_dict("records")], schema)


def comparison(localization: pd.DataFrame, faithfulness: pd.DataFrame, manifest: pa.Table = MANIFEST) -> pd.DataFrame:
    experiment = Experiment(manifest, protocol="paper", n_frames={"ae": 401, "mae": 400}, frames_per_s=40.0)
    sources = {
        "localization": table(localization.drop(columns="mode"), schemas.LOCALIZATION),
        "faithfulness": table(faithfulness, schemas.FAITHFULNESS),
    }
    summary = summarize("comparison", sources, experiment)
    assert summary.schema == schemas.COMPARISON
    return summary.to_pandas()


@pytest.fixture(scope="module")
def compared() -> pd.DataFrame:
    return comparison(LOCALIZATION, FAITHFULNESS)


def test_every_question_is_asked_of_every_method_that_both_models_have(compared: pd.DataFrame) -> None:
    asked = compared[["metric", "mode", "scope", "percentile"]].drop_duplicates()
    expected = [
        (metric, mode, scope, percentile)
        for percentile in (None, 95.0)
        for metric, mode, scope in [
            ("f_score", None, "annotated"),
            ("faithfulness", "frame", "annotated"),
            ("faithfulness", "frame", "all"),
            ("faithfulness", "segment", "annotated"),
        ]
    ]
    assert list(asked.astype(object).where(asked.notna(), None).itertuples(index=False, name=None)) == expected
    assert compared.groupby(list(asked), dropna=False)["method"].apply(list).tolist() == [["error_map", "saliency"]] * 8
    assert set(compared["question"]) == {"masked_training"}
    assert set(compared["protocol"]) == {"paper"}
    assert (compared["model_a"] + compared["model_b"] == "maeae").all()
    assert (compared["replacement"].isna() == (compared["metric"] == "f_score")).all()


def test_numbers_are_those_of_the_values_that_pandas_gathers(compared: pd.DataFrame) -> None:
    manifest = pd.DataFrame(CLIPS)
    for keys, rows in compared.groupby(["metric", "mode", "scope", "percentile"], dropna=False):
        metric, mode, scope, percentile = keys
        frame = LOCALIZATION if metric == "f_score" else FAITHFULNESS[FAITHFULNESS["mode"] == mode]
        clips = manifest[manifest["annotated"]] if scope == "annotated" else manifest
        if not np.isnan(percentile):
            frame = frame[frame["percentile"] == percentile]
        frame = frame[frame["clip_id"].isin(clips["clip_id"])]
        n_percentiles = frame["percentile"].nunique()
        means = frame.groupby(["method", "model", "seed", "clip_id"])[metric].agg(["mean", "size"])
        means = means[means["size"] == n_percentiles]["mean"].unstack("clip_id").reindex(columns=clips["clip_id"])
        for row in rows.to_dict("records"):
            mae, ae = means.loc[row["method"], "mae"], means.loc[row["method"], "ae"]
            difference = (mae.mean() - ae.mean()).to_numpy()
            of_seeds = [part.mean(axis=1).to_numpy()[:, None] for part in (mae, ae)]
            (expected,) = compare(difference[:, None], clips["recording"], (of_seeds[0], of_seeds[1]))
            for name in ("estimate", "ci_low", "ci_high", "se", "p_t", "p_boot", "p_flip", "smallest_effect"):
                assert row[name] == pytest.approx(getattr(expected, name), rel=1e-9), name
            for name in ("n_clips", "n_recordings", "n_seeds", "n_left_out"):
                assert row[name] == getattr(expected, name), name
            assert row["n_left_out"] == (row["method"] == "saliency" and np.isnan(percentile))
            assert expected.p_holm <= row["p_holm"] <= 2 * expected.p_holm
            assert row["verdict"] == ("yes" if metric == "f_score" else "no")


def test_one_model_alone_has_no_question_to_answer() -> None:
    alone = comparison(LOCALIZATION[LOCALIZATION["model"] == "mae"], FAITHFULNESS[FAITHFULNESS["model"] == "mae"])
    assert alone.empty


def test_one_seed_gives_a_verdict_about_these_networks() -> None:
    compared = comparison(LOCALIZATION[LOCALIZATION["seed"] == 1], FAITHFULNESS[:0])
    assert set(compared["n_seeds"]) == {1}
    assert set(compared["verdict"]) == {"yes"}


def test_without_annotations_only_all_clips_are_compared() -> None:
    blind = [{**clip, "annotated": False, "intervals": []} for clip in CLIPS]
    frames = FAITHFULNESS[FAITHFULNESS["mode"] == "frame"]
    compared = comparison(LOCALIZATION[:0], frames, pa.Table.from_pylist(blind, schema=schemas.MANIFEST))
    assert set(compared["scope"]) == {"all"}


def test_the_order_of_rows_changes_nothing(compared: pd.DataFrame) -> None:
    shuffled = comparison(LOCALIZATION.sample(frac=1, random_state=0), FAITHFULNESS.sample(frac=1, random_state=0))
    pd.testing.assert_frame_equal(shuffled, compared)
