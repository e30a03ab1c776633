"""MAE against AE, from tables of an audit: the numbers are those of `compare` on values that pandas gathers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from faithad import schemas
from faithad.evaluation.controls import control_f_scores
from faithad.evaluation.decisions import compare
from faithad.evaluation.summary import SUMMARIES, Experiment, summarize

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
EXPERIMENT = Experiment(MANIFEST, protocol="paper", n_frames={"ae": 401, "mae": 400}, frames_per_s=40.0)


# No clip is checked deeply, and none is scored.
NOT_DEEP = {"checks": schemas.CHECKS.empty_table(), "scores": schemas.SCORES.empty_table()}


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


def control_rows() -> pd.DataFrame:
    """The level finds much, its change and the outliers find little; one clip lacks the level."""
    generator = np.random.default_rng(2)
    rows = [
        {"clip_id": clip["clip_id"], "model": model, "seed": seed, "line": line, "percentile": p, "value": mean}
        for clip in CLIPS
        if clip["annotated"]
        for model in ("ae", "mae")
        for line, mean in (("level", 0.6), ("level_change", 0.2), ("outlier", 0.3))
        if (clip["clip_id"], line) != ("clip 06", "level")
        for p in PERCENTILES
        for seed in SEEDS
    ]
    frame = pd.DataFrame(rows).assign(protocol="paper")
    # No line depends on the seed of a model.
    keys = ["clip_id", "line", "percentile"]
    noise = {key: generator.normal(0, 0.05) for key in frame[keys].drop_duplicates().itertuples(index=False, name=None)}
    frame["value"] += [noise[key] for key in frame[keys].itertuples(index=False, name=None)]
    return frame


CONTROLS = control_rows()
LOCALIZATION = method_rows("f_score", (None,), gain=0.2)
FAITHFULNESS = method_rows("faithfulness", ("frame", "segment"), gain=-0.2)


def table(frame: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    """The frame with 0 in the columns that no comparison reads."""
    names = {"protocol": "paper", "metric": "f_score", "normalized": None}
    rows = [dict.fromkeys(schema.names, 0) | names | row for row in frame.to_dict("records")]
    return pa.Table.from_pylist(rows, schema)


def summary(
    name: str,
    localization: pd.DataFrame = LOCALIZATION,
    faithfulness: pd.DataFrame = FAITHFULNESS,
    controls: pd.DataFrame = CONTROLS,
    manifest: pa.Table = MANIFEST,
) -> pd.DataFrame:
    sources = {
        "localization": table(localization.drop(columns="mode"), schemas.LOCALIZATION),
        "faithfulness": table(faithfulness, schemas.FAITHFULNESS),
        "controls": table(controls, schemas.CONTROLS),
        **NOT_DEEP,
    }
    made = summarize(name, sources, replace(EXPERIMENT, manifest=manifest))
    assert made.schema == SUMMARIES[name].schema
    return made.to_pandas()


def comparison(*tables: pd.DataFrame, manifest: pa.Table = MANIFEST) -> pd.DataFrame:
    """The question whether the MAE is better than the AE."""
    rows = summary("comparison", *tables, manifest=manifest)
    return rows[rows["question"] == "masked_training"].reset_index(drop=True)


@pytest.fixture(scope="module")
def compared() -> pd.DataFrame:
    return comparison()


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


def test_an_interval_ends_at_the_largest_difference() -> None:
    """Where one of five recordings differs much and the others hardly do, that of the bootstrap-t ends far beyond."""
    recording = {clip["clip_id"]: clip["recording"] for clip in CLIPS if clip["annotated"]}
    first, *others = list(dict.fromkeys(recording.values()))[:5]
    few = LOCALIZATION[LOCALIZATION["clip_id"].map(recording).isin([first, *others])]
    gain = (few["clip_id"].map(recording) == first) & (few["model"] == "mae")
    compared = comparison(few.assign(f_score=np.where(gain, 1.0, 0.001 * few["f_score"])), FAITHFULNESS[:0])
    assert set(compared["ci_high"]) == {1.0}
    assert (compared["ci_low"] > -1).all()
    assert compared["verdict"].str.startswith("undecided: ").all()


def test_without_annotations_only_all_clips_are_compared() -> None:
    blind = [{**clip, "annotated": False, "intervals": []} for clip in CLIPS]
    frames = FAITHFULNESS[FAITHFULNESS["mode"] == "frame"]
    manifest = pa.Table.from_pylist(blind, schema=schemas.MANIFEST)
    compared = comparison(LOCALIZATION[:0], frames, CONTROLS[:0], manifest=manifest)
    assert set(compared["scope"]) == {"all"}


def test_the_order_of_rows_changes_nothing(compared: pd.DataFrame) -> None:
    shuffled = comparison(LOCALIZATION.sample(frac=1, random_state=0), FAITHFULNESS.sample(frac=1, random_state=0))
    pd.testing.assert_frame_equal(shuffled, compared)


def area(frame: pd.DataFrame, names: list[str], value: str) -> pd.Series:
    """The mean over all percentiles of each clip that has all of them."""
    means = frame.groupby([*names, "clip_id"])[value].agg(["mean", "size"])
    return means[means["size"] == means["size"].max()]["mean"]


def test_methods_are_compared_with_chance_and_with_the_best_curve_without_a_model() -> None:
    rows = summary("comparison")
    rows = rows[(rows["metric"] == "f_score") & rows["percentile"].isna()]
    intervals = {clip["clip_id"]: [(1.0, 3.0)] for clip in CLIPS if clip["annotated"]}
    recordings = {clip["clip_id"]: clip["recording"] for clip in CLIPS}
    keys = ["model", "method", "percentile", "clip_id"]
    of_methods = area(LOCALIZATION.groupby(keys, as_index=False)["f_score"].mean(), ["model", "method"], "f_score")
    level = area(CONTROLS[(CONTROLS["line"] == "level") & (CONTROLS["seed"] == 0)], ["model"], "value")
    for model, n_frames in EXPERIMENT.n_frames.items():
        random, _ = control_f_scores(intervals, n_frames, 40.0, PERCENTILES, seed=0)
        lines = {
            ("against_chance", "random"): pd.Series(random.mean(axis=1), index=list(intervals)),
            ("against_no_model", "level"): level.loc[model],
        }
        for (question, line), values in lines.items():
            asked = rows[(rows["question"] == question) & (rows["model_a"] == model)].set_index("method")
            assert set(asked["model_b"]) == {line}
            assert list(asked.index) == sorted(METHODS if model == "mae" else METHODS[:2])
            for method, row in asked.iterrows():
                difference = (of_methods.loc[model, method] - values).dropna()
                (expected,) = compare(difference.to_numpy()[:, None], [recordings[name] for name in difference.index])
                assert row["estimate"] == pytest.approx(expected.estimate)
                assert row["p_flip"] == pytest.approx(expected.p_flip)
                assert row["n_clips"] == expected.n_clips
    verdicts = rows[rows["question"] == "against_no_model"].set_index(["model_a", "method"])["verdict"]
    assert verdicts["mae", "error_map"] == "yes"
    assert verdicts["ae", "error_map"] == "no"


def test_an_audit_that_is_older_than_the_curves_without_a_model_is_compared_with_chance() -> None:
    assert set(summary("comparison", controls=CONTROLS[:0])["question"]) == {"masked_training", "against_chance"}


def test_the_lines_beside_an_f_score() -> None:
    rows = summary("controls")
    level = CONTROLS[(CONTROLS["line"] == "level") & (CONTROLS["model"] == "ae") & (CONTROLS["seed"] == 0)]
    of_level = rows[(rows["line"] == "level") & (rows["model"] == "ae")].set_index("percentile")
    assert of_level.loc[90.0, "mean"] == pytest.approx(level[level["percentile"] == 90]["value"].mean())
    whole = rows[(rows["line"] == "level") & (rows["model"] == "ae") & rows["percentile"].isna()]
    assert whole["mean"].item() == pytest.approx(level.groupby("clip_id")["value"].mean().mean())
    assert whole["n_clips"].item() == 23
    assert (whole["ci_low"] < whole["mean"]).item()
    intervals = {clip["clip_id"]: [(1.0, 3.0)] for clip in CLIPS if clip["annotated"]}
    random, always = control_f_scores(intervals, 401, 40.0, PERCENTILES, seed=0)
    of_ae = rows[rows["model"] == "ae"].set_index(["line", "percentile"])["mean"]
    assert of_ae["random", 95.0] == pytest.approx(random[:, 1].mean())
    assert of_ae["always", 95.0] == pytest.approx(always.mean())
    assert of_ae["oracle", 95.0] == 1.0
    assert set(rows["line"]) == {"level", "level_change", "outlier", "random", "always", "oracle"}
    assert len(rows) == 2 * 6 * (len(PERCENTILES) + 1)


def test_corrected_compares_faithfulness_with_its_lines_by_its_own_rows() -> None:
    """Random frames are as good as the methods are on average, the outlier curve is far better."""
    generator = np.random.default_rng(3)
    frames = FAITHFULNESS.assign(protocol="corrected", normalized=FAITHFULNESS["faithfulness"] / 2)
    frames.loc[(frames["mode"] == "segment") | (frames["clip_id"] == "clip 08"), "normalized"] = None
    frames["normalized"] = frames["normalized"].astype(object).where(frames["normalized"].notna(), None)
    one_method = frames[(frames["method"] == "error_map") & (frames["mode"] == "frame")]
    lines = pd.concat(
        [
            one_method.assign(metric=metric, line=line, value=mean + generator.normal(0, 0.05, len(one_method)))
            for metric in ("faithfulness", "normalized_faithfulness")
            for line, mean in (("random", 0.1), ("outlier", 0.9))
        ]
    )
    sources = {
        "localization": table(LOCALIZATION.drop(columns="mode"), schemas.LOCALIZATION),
        "faithfulness": pa.concat_tables([table(part, schemas.FAITHFULNESS) for part in (FAITHFULNESS, frames)]),
        "controls": pa.concat_tables([table(part, schemas.CONTROLS) for part in (CONTROLS, lines)]),
        **NOT_DEEP,
    }
    rows = summarize("comparison", sources, replace(EXPERIMENT, protocol="corrected")).to_pandas()
    assert set(rows["protocol"]) == {"corrected"}
    assert set(rows["metric"]) == {"faithfulness", "normalized_faithfulness"}
    rows = rows[rows["percentile"].isna() & (rows["method"] == "error_map")].set_index(
        ["metric", "mode", "scope", "question", "model_a"]
    )
    key = ("faithfulness", "frame", "all")
    assert rows.loc[(*key, "against_chance", "ae"), "verdict"] == "yes"
    assert rows.loc[(*key, "against_no_model", "ae"), ["model_b", "verdict"]].tolist() == ["outlier", "no"]
    means = [
        part[part["model"] == "mae"].groupby(["seed", "clip_id"])["value"].mean()
        for part in (
            frames[(frames["method"] == "error_map") & (frames["mode"] == "frame")].rename(
                columns={"faithfulness": "value"}
            ),
            lines[(lines["line"] == "random") & (lines["metric"] == "faithfulness")],
        )
    ]
    assert rows.loc[(*key, "against_chance", "mae"), "estimate"] == pytest.approx(
        (means[0].groupby("clip_id").mean() - means[1].groupby("clip_id").mean()).mean()
    )
    normalized = rows.loc[("normalized_faithfulness", "frame", "all", "masked_training", "mae")]
    assert (normalized["n_clips"], normalized["n_left_out"]) == (len(CLIPS) - 1, 1)
    paper = summarize("comparison", sources, EXPERIMENT).to_pandas()
    pd.testing.assert_frame_equal(paper, summary("comparison"))
    shown = summarize("controls", sources, replace(EXPERIMENT, protocol="corrected")).to_pandas()
    outlier = shown[(shown["line"] == "outlier") & (shown["model"] == "ae") & shown["percentile"].isna()]
    assert outlier.groupby(["metric", "scope"])["mean"].first().round(1).to_dict() == {
        (metric, scope): 0.9 for metric in ("faithfulness", "normalized_faithfulness") for scope in ("annotated", "all")
    }
