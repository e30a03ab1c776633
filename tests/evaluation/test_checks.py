"""Summaries of the deep clips' checks, against pandas and scipy clip by clip."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from faithad import schemas
from faithad.evaluation.checks import CURVES, spearman
from faithad.evaluation.decisions import placements
from faithad.evaluation.summary import Experiment, summarize

CLIPS = [
    {"clip_id": f"clip {k:02d}", "recording": f"recording {k // 2}", "uri": "x", "onset_s": 10.0 * (k % 2),
     "duration_s": 10.0, "split": "test", "label": 1 - k % 2, "anomaly_type": None, "intervals": [],
     "annotated": k % 2 == 0}
    for k in range(48)
]  # fmt: skip
EXPERIMENT = Experiment(
    pa.Table.from_pylist(CLIPS, schema=schemas.MANIFEST), protocol="corrected", n_frames={}, frames_per_s=40.0
)
METHODS, SEEDS, PERCENTILES = ["error_map", "saliency"], [0, 1, 2], [90.0, 95.0]
SHARES = [0.0, 50.0, 100.0]
Row = dict[str, Any]


def made() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Rows of `checks`, `faithfulness` and `attributions`, of the first 40 clips; not all were deep."""
    generator = np.random.default_rng(0)
    checks: list[Row] = []
    faithfulness: list[Row] = []
    attributions: list[Row] = []
    for clip, model, seed in itertools.product(CLIPS[:40], ("ae", "mae"), SEEDS):
        keys = {"clip_id": clip["clip_id"], "model": model, "seed": seed, "protocol": "corrected"}
        better = 0.4 * (model == "mae")
        drops = generator.normal(size=10)
        for group, drop in enumerate(drops):
            checks.append({**keys, "method": None, "check": "band_drop", "at": group, "value": drop})
            mass = generator.normal() if model == "ae" else drop + 0.1 * generator.normal()
            checks.append({**keys, "method": "saliency", "check": "band_mass", "at": group, "value": mass})
            checks.append({**keys, "method": "outlier", "check": "band_mass", "at": group, "value": generator.normal()})
        for method in METHODS:
            shape = np.linspace(0, 1, 20) + generator.normal(0, 0.2, 20)
            attributions.append({**keys, "method": method, "curve": shape, "degenerate": seed == 2})
            for share in SHARES:
                checks.append({**keys, "method": method, "check": "deletion", "at": share, "value": 1 - share / 200})
            for p in PERCENTILES:
                row = {**keys, "method": method, "mode": "frame", "percentile": p}
                faithfulness.append({**row, "faithfulness": generator.normal(0.5 + better, 0.1), "normalized": None})
                for check in ("training_mean", "inpainting"):
                    value = generator.normal(0.5 + better * (check == "inpainting"), 0.1) + 0.1 * (method == "saliency")
                    checks.append({**keys, "method": method, "check": check, "at": p, "value": value})
            if seed == 0:
                for at, rho in ((25.0, 0.9), (50.0, 0.6), (75.0, 0.7 if method == "saliency" else 0.5), (100.0, 0.3)):
                    checks.append({**keys, "method": method, "check": "randomisation", "at": at, "value": rho})
                value = 0.02 if (clip["clip_id"], model) == ("clip 03", "ae") else 0.001
                checks.append({**keys, "method": method, "check": "completeness", "at": None, "value": value})
    # One that was explained and not checked.
    faithfulness.append({**faithfulness[0], "clip_id": "clip 41", "faithfulness": 9.0})
    return pd.DataFrame(checks), pd.DataFrame(faithfulness), pd.DataFrame(attributions)


def as_table(frame: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    """The frame with 0 in the columns that no summary reads, or null where that may be."""
    unread = {column.name: None if column.nullable else 0 for column in schema}
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return pa.Table.from_pylist([unread | row for row in rows], schema)


@pytest.fixture(scope="module")
def sources() -> dict[str, pa.Table]:
    checks, faithfulness, attributions = made()
    curves = [{name: row[name] for name in CURVES.names} for row in attributions.to_dict("records")]
    scores = pd.DataFrame(
        [
            {"clip_id": clip["clip_id"], "model": model, "seed": seed, "raised_by": None,
             "score": clip["label"] * gain + noise, "worst_second_score": noise}
            for model, gain in (("mae", 3.0), ("frame_pca", 0.5), ("frame_ridge", 3.0))
            for seed in (SEEDS if model == "mae" else SEEDS[:1])
            for clip, noise in zip(CLIPS, np.random.default_rng(seed).normal(size=len(CLIPS)), strict=True)
        ]
    )  # fmt: skip
    return {
        "checks": as_table(checks, schemas.CHECKS),
        "faithfulness": as_table(faithfulness, schemas.FAITHFULNESS),
        "attributions": pa.Table.from_pylist(curves, CURVES),
        "localization": schemas.LOCALIZATION.empty_table(),
        "controls": schemas.CONTROLS.empty_table(),
        "scores": as_table(scores, schemas.SCORES),
    }


def test_replacements(sources: dict[str, pa.Table]) -> None:
    rows = (
        summarize("replacements", sources, EXPERIMENT)
        .to_pandas()
        .set_index(["model", "method", "metric", "replacement"])
    )
    checks, faithfulness, _ = made()
    assert len(rows) == 2 * 2 * (3 + 1)
    for (model, method, check), group in checks[checks["check"].isin(["training_mean", "inpainting"])].groupby(
        ["model", "method", "check"]
    ):
        assert rows.loc[(model, method, "faithfulness", check), "mean"] == pytest.approx(group["value"].mean())
    own = faithfulness[faithfulness["clip_id"] != "clip 41"].groupby(["model", "method"])["faithfulness"].mean()
    for (model, method), mean in own.items():
        row = rows.loc[(model, method, "faithfulness", "reconstruction")]
        assert (row["mean"], row["n_clips"]) == (pytest.approx(mean), 40)
        assert np.isnan(row["rank_agreement"])
        assert rows.loc[(model, method, "deletion", "reconstruction"), "mean"] == pytest.approx(0.75)
        other = rows.loc[(model, slice(None), "faithfulness", "training_mean"), "mean"]
        tau = stats.kendalltau(own[model].to_numpy(), other.to_numpy()).statistic
        assert rows.loc[(model, method, "faithfulness", "training_mean"), "rank_agreement"] == pytest.approx(tau)


def test_bands(sources: dict[str, pa.Table]) -> None:
    rows = summarize("bands", sources, EXPERIMENT).to_pandas()
    checks, *_ = made()
    for scope, wanted in (("annotated", {clip["clip_id"] for clip in CLIPS if clip["annotated"]}), ("all", None)):
        chosen = checks if wanted is None else checks[checks["clip_id"].isin(wanted)]
        for model, method in itertools.product(("ae", "mae"), ("saliency", "outlier")):
            of_model = chosen[chosen["model"] == model]
            of_method = of_model[of_model["method"].isna() | (of_model["method"] == method)]
            rhos = []
            for _, clip in of_method.sort_values("at").groupby(["clip_id", "seed"]):
                pair = (clip[clip["check"] == check]["value"] for check in ("band_drop", "band_mass"))
                rhos.append(stats.spearmanr(*pair).statistic)
            (row,) = rows[(rows["model"] == model) & (rows["method"] == method) & (rows["scope"] == scope)].to_dict(
                "records"
            )
            assert row["mean"] == pytest.approx(np.mean(rhos))
            assert row["n_clips"] == len(chosen["clip_id"].unique())


def test_sanity(sources: dict[str, pa.Table]) -> None:
    rows = summarize("sanity", sources, EXPERIMENT).to_pandas()
    of = rows.set_index(["check", "model", "method"])
    last = of[(of["at"] == 100)]
    # Where the correlation rises on the way, a low end is not enough.
    assert last.loc["randomisation"]["passed"].groupby("method").unique().map(list).to_dict() == {
        "error_map": [True],
        "saliency": [False],
    }
    assert of.loc["randomisation"]["passed"].isna().sum() == 2 * 2 * 3
    assert of.loc["completeness"].loc["mae"]["passed"].tolist() == [True, True]
    assert of.loc["completeness"].loc["ae"]["passed"].tolist() == [False, False]  # one clip is enough
    *_, attributions = made()
    curves = attributions[(attributions["model"] == "ae") & (attributions["method"] == "saliency")]
    pairs = curves[curves["seed"] < 2].groupby("clip_id")["curve"].apply(lambda two: stats.spearmanr(*two).statistic)
    row = of.loc[("seeds", "ae", "saliency")]
    assert row["mean"] == pytest.approx(pairs.mean())
    assert row["n_clips"] == 40
    assert pd.isna(row["passed"])


def test_deep_clips_and_linear_models_have_questions(sources: dict[str, pa.Table]) -> None:
    rows = summarize("comparison", sources, EXPERIMENT).to_pandas()
    masked = rows[(rows["question"] == "masked_training") & (rows["scope"] == "all") & rows["percentile"].isna()]
    rhos = masked[masked["metric"] == "band_rho"].set_index("method")
    assert rhos["verdict"].to_dict() == {"saliency": "yes"}
    replaced = masked[(masked["metric"] == "faithfulness") & (masked["method"] == "saliency")].set_index("replacement")
    assert replaced["verdict"]["reconstruction"] == replaced["verdict"]["inpainting"] == "yes"
    assert replaced["verdict"]["training_mean"] != "yes"
    line = rows[(rows["question"] == "against_no_model") & (rows["metric"] == "band_rho") & (rows["model_a"] == "mae")]
    assert set(line["model_b"]) == {"outlier"}
    assert set(line["verdict"]) == {"yes"}
    detection = rows[rows["metric"] == "auc"]
    assert set(detection["question"]) == {"against_linear"}
    scores = sources["scores"].to_pandas()
    labels = {clip["clip_id"]: clip["label"] for clip in CLIPS}
    scores["label"] = scores["clip_id"].map(labels)
    areas = {}
    for model, column in itertools.product(("mae", "frame_pca", "frame_ridge"), ("score", "worst_second_score")):
        runs = scores[scores["model"] == model].groupby("seed")
        areas[model, column] = np.mean([roc_auc_score(run["label"], run[column]) for _, run in runs])
    columns = {"mean": "score", "worst_second": "worst_second_score"}
    assert len(detection) == 4
    for row in detection.to_dict("records"):
        a, b = (areas[row[name], columns[row["method"]]] for name in ("model_a", "model_b"))
        assert row["estimate"] == pytest.approx(a - b)
    verdicts = detection.set_index(["model_b", "method"])["verdict"].to_dict()
    assert verdicts["frame_pca", "mean"] == "yes"
    assert verdicts["frame_ridge", "worst_second"] != "yes"
    # A study whose score is not the paper's compares its own score.
    fitted = replace(EXPERIMENT, scores=dict.fromkeys(("mae", "frame_pca", "frame_ridge"), "robust"))
    again = summarize("comparison", sources, fitted).to_pandas()
    assert set(again[again["metric"] == "auc"]["method"]) == {"fitted", "worst_second"}


def test_placements_have_the_mean_and_the_spread_of_the_auc() -> None:
    """Against the variance of DeLong et al. 1988, written out."""
    generator = np.random.default_rng(0)
    labels = np.repeat([0.0, 1.0], [30, 12])
    scores = generator.normal(size=42).round(1) + labels
    values = placements(scores, labels)
    assert values.mean() == pytest.approx(roc_auc_score(labels, scores))
    wins = [[1.0 if a > b else 0.5 if a == b else 0.0 for b in scores[labels == 0]] for a in scores[labels == 1]]
    of_anomalous, of_normal = np.mean(wins, axis=1), np.mean(wins, axis=0)
    variance = of_anomalous.var() / 12 + of_normal.var() / 30
    assert values.var() / 42 == pytest.approx(variance)
    unscored = placements(np.append(scores, np.nan), np.append(labels, 1.0))
    np.testing.assert_array_equal(unscored[:-1], values)
    assert np.isnan(unscored[-1])
    assert np.isnan(placements(scores, np.ones(42))).all()


def test_spearman_is_scipy_s() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 5, 30)).round(1)
    expected = [stats.spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(spearman(a, b), expected, rtol=1e-12)
    assert np.isnan(spearman(np.ones(4), np.arange(4)))
