from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from faithad import schemas
from faithad.errors import StudyError
from faithad.evaluation import controls, summary
from faithad.evaluation.detection import auc, pauc
from faithad.evaluation.statistics import bootstrap_intervals

PERCENTILES = [90.0, 98.0]
TYPES = ["board_stuck", "broken_board", None]
Row = dict[str, Any]


def manifest_row(number: int) -> Row:
    """Clip `number`: six clips per recording, every third clip anomalous, every second of those annotated."""
    anomalous = number % 3 == 0
    annotated = number % 6 == 0
    return {
        "clip_id": f"{(number * 7919) % 1000:03d}-{number}",
        "recording": f"recording {number // 6}",
        "uri": "anywhere",
        "onset_s": 10.0 * (number % 6),
        "duration_s": 10.0,
        "split": "test",
        "label": int(anomalous),
        "anomaly_type": TYPES[number // 6 % 3] if anomalous else None,
        "intervals": [{"onset_s": 1.0, "offset_s": 2.0 + number % 5}] if annotated else [],
        "annotated": annotated,
    }


CLIPS = [manifest_row(number) for number in range(60)]
OTHERS = [
    {**manifest_row(60), "split": "validation", "label": 0},
    {**manifest_row(61), "split": "train", "label": None},
    {**manifest_row(62), "label": None},
]
MANIFEST = pa.Table.from_pylist([*CLIPS, *OTHERS], schema=schemas.MANIFEST)
ANNOTATED = [row for row in CLIPS if row["annotated"]]


def score_rows() -> list[Row]:
    generator = np.random.default_rng(0)
    return [
        {
            "clip_id": clip["clip_id"],
            "model": model,
            "seed": seed,
            "score": float(generator.normal(clip["label"] or 0)),
            "worst_second_score": float(generator.normal(2 * (clip["label"] or 0))),
            "worst_onset_s": 0.0,
            "worst_mel_band": 0,
        }
        for model, seeds in (("ae", [0, 1, 2]), ("mae", [7]))
        for seed in seeds
        for clip in [*CLIPS, *OTHERS]
        # A clip that failed in one seed only.
        if (clip["clip_id"], seed) != (CLIPS[4]["clip_id"], 1)
    ]


def method_rows(clips: list[Row], values: dict[str, float], modes: tuple[str | None, ...] = (None,)) -> list[Row]:
    generator = np.random.default_rng(1)
    return [
        {
            "clip_id": clip["clip_id"],
            "model": model,
            "seed": seed,
            "method": method,
            "protocol": "paper",
            **({"mode": mode} if mode else {}),
            "percentile": percentile,
            **values,
            next(reversed(values)): float(generator.random()),
        }
        for model, seeds in (("ae", [0, 1]), ("mae", [1]))
        for seed in seeds
        for mode in modes
        for method in ("saliency", "error_map")
        for percentile in PERCENTILES
        for clip in clips
        if mode != "segment" or clip["annotated"]
        if (clip["clip_id"], seed, method) != (ANNOTATED[2]["clip_id"], 0, "saliency")
    ]


LOCALIZATION = method_rows(ANNOTATED, {"tp": 1, "fp": 0, "fn": 0, "precision": 0.0, "recall": 0.0, "f_score": 0.0})
FAITHFULNESS = method_rows(
    [*CLIPS, *OTHERS],
    {"replaced_fraction": 0.1, "error_before": 1.0, "error_after": 1.0, "faithfulness": 0.0},
    ("frame", "segment"),
)


def summarized(name: str, rows: list[Row], manifest: pa.Table = MANIFEST, n_frames: Any = 400) -> pa.Table:
    grids = n_frames if isinstance(n_frames, dict) else {"ae": n_frames, "mae": n_frames}
    experiment = summary.Experiment(manifest, protocol="paper", n_frames=grids, frames_per_s=40.0, n_draws=5)
    ((source, schema),) = summary.SUMMARIES[name].sources.items()
    return summary.summarize(name, {source: pa.Table.from_pylist(rows, schema=schema)}, experiment)


detection_summary, f_score_summary, faithfulness_summary = (
    partial(summarized, name) for name in ("detection", "f_score", "faithfulness")
)


def expected_means(rows: list[Row], clips: list[Row], value: str, key: Row) -> Row:
    """mean, std, interval and numbers of one curve point, clip by clip and seed by seed."""
    recording = {clip["clip_id"]: clip["recording"] for clip in clips}
    chosen = [
        row for row in rows if row["clip_id"] in recording and all(row[name] == part for name, part in key.items())
    ]
    per_seed = []
    for seed in sorted({row["seed"] for row in chosen}):
        of_seed = [row[value] for row in chosen if row["seed"] == seed]
        per_seed.append(sum(of_seed) / len(of_seed))
    mean = sum(per_seed) / len(per_seed)
    names = sorted({row["clip_id"] for row in chosen})
    per_clip = [np.mean([row[value] for row in chosen if row["clip_id"] == name]) for name in names]
    # The recordings of all clips in scope are drawn, also those without a value.
    padded = per_clip + [math.nan] * (len(clips) - len(names))
    groups = [recording[name] for name in names] + [c["recording"] for c in clips if c["clip_id"] not in names]
    (low,), (high,) = bootstrap_intervals(np.array(padded)[:, None], groups, seed=0)
    spread = (sum((x - mean) ** 2 for x in per_seed) / (len(per_seed) - 1)) ** 0.5 if len(per_seed) > 1 else None
    return {
        "mean": mean,
        "std": spread,
        "ci_low": None if math.isnan(low) else low,
        "ci_high": None if math.isnan(high) else high,
        "n_seeds": len(per_seed),
        "n_clips": len(names),
    }


def assert_estimate(row: Row, expected: Row) -> None:
    for name, value in expected.items():
        assert row[name] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value), name


def test_faithfulness_equals_its_definition() -> None:
    table = faithfulness_summary(FAITHFULNESS)
    assert table.schema == schemas.FAITHFULNESS_SUMMARY
    rows = table.to_pylist()
    test_clips = [*CLIPS, OTHERS[2]]
    assert len(rows) == 2 * 2 * 2 * (2 + 1)
    for row in rows:
        clips = [clip for clip in test_clips if clip["annotated"]] if row["scope"] == "annotated" else test_clips
        key = {name: row[name] for name in ("model", "method", "mode", "percentile")}
        assert_estimate(row, expected_means(FAITHFULNESS, clips, "faithfulness", key))
        assert row["protocol"] == "paper"
    assert {(row["scope"], row["mode"]) for row in rows} == {
        ("annotated", "frame"),
        ("annotated", "segment"),
        ("all", "frame"),
    }
    assert {row["n_clips"] for row in rows if row["scope"] == "all"} == {61}


def test_f_score_equals_its_definition() -> None:
    table = f_score_summary(LOCALIZATION)
    assert table.schema == schemas.F_SCORE_SUMMARY
    rows = table.to_pylist()
    assert {row["anomaly_type"] for row in rows} == {"all", "board_stuck", "broken_board"}
    assert len(rows) == 2 * 2 * 2 * 3
    for row in rows:
        clips = [clip for clip in ANNOTATED if row["anomaly_type"] in ("all", clip["anomaly_type"])]
        key = {name: row[name] for name in ("model", "method", "percentile")}
        assert_estimate(row, expected_means(LOCALIZATION, clips, "f_score", key))
        intervals = {clip["clip_id"]: [(i["onset_s"], i["offset_s"]) for i in clip["intervals"]] for clip in clips}
        random, every_second = controls.control_f_scores(intervals, 400, 40.0, PERCENTILES, seed=0, n_draws=5)
        assert row["control_every_second"] == pytest.approx(every_second.mean())
        assert row["control_random"] == pytest.approx(random[:, PERCENTILES.index(row["percentile"])].mean())


def test_controls_stand_beside_the_clips_that_were_measured() -> None:
    one = ANNOTATED[0]
    rows = [row for row in LOCALIZATION if row["clip_id"] == one["clip_id"]]
    expected = controls.every_second_f_score([(1.0, one["intervals"][0]["offset_s"])], 400, 40.0)
    for row in f_score_summary(rows).to_pylist():
        assert row["control_every_second"] == pytest.approx(expected)
        assert row["n_clips"] == 1
        assert row["ci_low"] is row["ci_high"] is None


def test_controls_are_drawn_on_the_grid_of_each_model() -> None:
    apart = {(row["model"], row["method"], row["percentile"]): row for row in _all_types({"ae": 401, "mae": 400})}
    for n_frames, model in ((401, "ae"), (400, "mae")):
        for row in _all_types(n_frames):
            if row["model"] == model:
                assert row == apart[row["model"], row["method"], row["percentile"]]


def _all_types(n_frames: Any) -> list[Row]:
    table = f_score_summary(LOCALIZATION, n_frames=n_frames)
    return table.filter(pc.field("anomaly_type") == "all").to_pylist()


def test_detection_equals_its_definition() -> None:
    rows = score_rows()
    table = detection_summary(rows)
    assert table.schema == schemas.DETECTION_SUMMARY
    found = [row for row in table.to_pylist() if row["anomaly_type"] == "all" and row["metric"] in ("auc", "pauc")]
    assert len(found) == 2 * 2 * 2
    assert set(table["score"].to_pylist()) == {"paper"}
    label = {clip["clip_id"]: clip["label"] for clip in CLIPS}
    for row in found:
        column = {"mean": "score", "worst_second": "worst_second_score"}[row["pooling"]]
        area = {"auc": auc, "pauc": pauc}[row["metric"]]
        per_seed = []
        for seed in sorted({r["seed"] for r in rows if r["model"] == row["model"]}):
            chosen = [r for r in rows if (r["model"], r["seed"]) == (row["model"], seed) and r["clip_id"] in label]
            per_seed.append(area([r[column] for r in chosen], [label[r["clip_id"]] for r in chosen]))
        assert row["mean"] == pytest.approx(np.mean(per_seed))
        assert row["std"] == (pytest.approx(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else None)
        assert row["ci_low"] < row["mean"] < row["ci_high"]
        assert (row["n_seeds"], row["n_normal"], row["n_anomalous"]) == (len(per_seed), 40, 20)


def test_a_model_without_scores_of_seconds_has_one_pooling() -> None:
    """A one-class SVM beside an AE: null in all columns that speak of cells, and one seed of three."""
    rows = [row for row in score_rows() if row["model"] == "ae"]
    nothing = dict.fromkeys(("worst_second_score", "worst_onset_s", "worst_mel_band"))
    svm = [{**row, "model": "one_class_svm", **nothing} for row in rows if row["seed"] == 2]
    found = detection_summary([*svm, *rows])
    alone = detection_summary(rows)
    assert found.filter(pc.field("model") == "ae").equals(alone)
    svm_rows = found.filter(pc.field("model") == "one_class_svm").to_pylist()
    assert {row["pooling"] for row in svm_rows} == {"mean"}
    same = detection_summary([row for row in rows if row["seed"] == 2]).filter(pc.field("pooling") == "mean")
    assert [{**row, "model": "ae"} for row in svm_rows] == same.to_pylist()
    assert all(row["n_seeds"] == 1 and row["std"] is None for row in svm_rows)
    assert detection_summary(svm).num_rows == len(svm_rows)


def test_what_is_caught_at_so_many_false_alarms_and_by_the_alarm() -> None:
    """By definition, for each type of anomaly; the alarms are those of the worst second."""
    rows = [{**row, "threshold": 0.7, "alarm": row["worst_second_score"] > 0.7} for row in score_rows()]
    kinds = {clip["clip_id"]: "knock" if k % 2 else "hum" for k, clip in enumerate(CLIPS)}
    clips = [{**clip, "anomaly_type": kinds[clip["clip_id"]] if clip["label"] else None} for clip in CLIPS]
    manifest = pa.Table.from_pylist([*clips, *OTHERS], schema=schemas.MANIFEST)
    found = detection_summary(rows, manifest).to_pylist()
    assert {row["anomaly_type"] for row in found} == {"all", "hum", "knock"}
    for row in found:
        column = {"mean": "score", "worst_second": "worst_second_score"}[row["pooling"]]
        of_seeds = []
        for seed in sorted({r["seed"] for r in rows if r["model"] == row["model"]}):
            of_seed = {r["clip_id"]: r for r in rows if (r["model"], r["seed"]) == (row["model"], seed)}
            normal = [of_seed[clip["clip_id"]] for clip in clips if clip["label"] == 0 and clip["clip_id"] in of_seed]
            anomalous = [
                of_seed[clip["clip_id"]]
                for clip in clips
                if clip["label"] == 1
                and row["anomaly_type"] in ("all", clip["anomaly_type"])
                and clip["clip_id"] in of_seed
            ]
            if row["metric"] in ("caught", "false_alarms"):
                assert row["pooling"] == "worst_second"
                counted = anomalous if row["metric"] == "caught" else normal
                of_seeds.append(np.mean([r["alarm"] for r in counted]))
            elif row["metric"].startswith("caught"):
                rate = int(row["metric"][-1]) / 100
                rank = math.ceil(round((1 - rate) * (len(normal) + 1), 9))
                if rank <= len(normal):
                    limit = sorted(r[column] for r in normal)[rank - 1]
                    of_seeds.append(np.mean([r[column] > limit for r in anomalous]))
        if row["metric"] in ("caught_1", "caught_2"):  # of 40 normal clips
            assert (row["mean"], row["ci_low"], row["n_normal_needed"]) == (
                None,
                None,
                {"1": 99, "2": 49}[row["metric"][-1]],
            )
        elif row["metric"].startswith(("caught", "false")):
            assert row["mean"] == pytest.approx(np.mean(of_seeds))
            assert row["ci_low"] <= row["mean"] <= row["ci_high"]
    keys = [(row["model"], row["pooling"], row["anomaly_type"], row["metric"]) for row in found]
    assert len(set(keys)) == len(keys) == 2 * 3 * (2 * 5 + 2)


def test_the_official_score_of_dcase_is_a_harmonic_mean_over_sections_and_domains() -> None:
    """AUC by machine, section and domain of the normal clips, pAUC by machine and section (Dohi et al. 2022)."""
    places = [("fan", "00", "source"), ("fan", "00", "target"), ("fan", "01", "source"), ("pump", "00", "target")]
    clips = [{**clip, **dict(zip(("machine", "section", "domain"), places[k % 4], strict=True))}
             for k, clip in enumerate(CLIPS)]  # fmt: skip
    rows = score_rows()
    found = detection_summary(rows, pa.Table.from_pylist([*clips, *OTHERS], schema=schemas.MANIFEST)).to_pylist()
    official = {(row["model"], row["pooling"]): row for row in found if row["metric"] == "dcase"}
    assert set(official) == {(model, pooling) for model in ("ae", "mae") for pooling in ("mean", "worst_second")}
    assert {row["anomaly_type"] for row in official.values()} == {"all"}
    for (model, pooling), row in official.items():
        column = {"mean": "score", "worst_second": "worst_second_score"}[pooling]
        of_seeds = []
        for seed in sorted({r["seed"] for r in rows if r["model"] == model}):
            score = {r["clip_id"]: r[column] for r in rows if (r["model"], r["seed"]) == (model, seed)}
            areas = []
            for machine, section in (("fan", "00"), ("fan", "01"), ("pump", "00")):
                here = [
                    c for c in clips if (c["machine"], c["section"]) == (machine, section) and c["clip_id"] in score
                ]
                bad = [score[c["clip_id"]] for c in here if c["label"]]
                for domain in (None, *sorted({c["domain"] for c in here})):
                    good = [score[c["clip_id"]] for c in here if not c["label"] and domain in (None, c["domain"])]
                    area = pauc if domain is None else auc
                    areas.append(area([*good, *bad], [0] * len(good) + [1] * len(bad)))
            of_seeds.append(len(areas) / sum(1 / area for area in areas))
        assert row["mean"] == pytest.approx(np.mean(of_seeds))
        assert row["ci_low"] < row["mean"] < row["ci_high"]


def test_a_fitted_score_stands_beside_the_papers() -> None:
    rows = [{**row, "paper_score": row["score"], "score": row["worst_second_score"]} for row in score_rows()]
    fitted = [{**row, "worst_second_score": None} for row in rows]
    experiment = summary.Experiment(
        MANIFEST, protocol="paper", n_frames={}, frames_per_s=40.0, scores=dict.fromkeys(("ae", "mae"), "robust")
    )
    table = summary.summarize("detection", {"scores": pa.Table.from_pylist(fitted, schema=schemas.SCORES)}, experiment)
    expected = detection_summary(score_rows()).to_pylist()
    names = {"worst_second": ("robust", "fitted"), "mean": ("paper", "mean")}
    renamed = [{**row, "score": names[row["pooling"]][0], "pooling": names[row["pooling"]][1]} for row in expected]

    def key(row: Row) -> tuple[str, ...]:
        return row["model"], row["score"], row["anomaly_type"], row["metric"]

    assert sorted(table.to_pylist(), key=key) == sorted(renamed, key=key)


def test_the_level_stands_beside_the_models_whatever_their_names_and_alarms() -> None:
    rows = score_rows()
    generator = np.random.default_rng(1)
    levels = {row["clip_id"]: generator.normal(size=2).tolist() for row in rows}
    metered = [
        {**row, "threshold": 0.0, "alarm": row["score"] > 0.0, "level_db": level, "loudest_second_db": loudest}
        for row in rows
        for level, loudest in [levels[row["clip_id"]]]
    ]
    found = detection_summary(metered).to_pylist()
    of_level = [row for row in found if row["model"] == "level"]
    alarmed = [{**row, "level_db": None, "loudest_second_db": None} for row in metered]
    assert [row for row in found if row["model"] != "level"] == detection_summary(alarmed).to_pylist()
    assert {row["pooling"] for row in of_level} == {"mean", "worst_second"}
    assert {row["metric"] for row in of_level} == {"auc", "pauc", "caught_1", "caught_2", "caught_5"}
    assert {row["n_seeds"] for row in of_level} == {1}
    labels = [clip["label"] for clip in CLIPS]
    for place, pooling in enumerate(("mean", "worst_second")):
        (area,) = [
            row["mean"]
            for row in of_level
            if (row["pooling"], row["metric"], row["anomaly_type"]) == (pooling, "auc", "all")
        ]
        assert area == pytest.approx(auc([levels[clip["clip_id"]][place] for clip in CLIPS], labels))


def test_interval_of_one_seed_from_resampled_recordings() -> None:
    rows = [row for row in score_rows() if row["model"] == "mae"]
    wanted = (pc.field("metric") == "auc") & (pc.field("pooling") == "mean") & (pc.field("anomaly_type") == "all")
    row = detection_summary(rows).filter(wanted).to_pylist()[0]
    score = {r["clip_id"]: r["score"] for r in rows}
    by_recording: dict[str, list[Row]] = {}
    for clip in CLIPS:
        by_recording.setdefault(clip["recording"], []).append(clip)
    generator = np.random.default_rng(1)
    areas = []
    for _ in range(1000):
        drawn = [clip for name in generator.choice(sorted(by_recording), 10) for clip in by_recording[name]]
        areas.append(auc([score[clip["clip_id"]] for clip in drawn], [clip["label"] for clip in drawn]))
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(tuple(np.percentile(areas, [2.5, 97.5])), abs=0.015)


@pytest.mark.parametrize(
    ("summarize", "rows"),
    [(detection_summary, score_rows()), (f_score_summary, LOCALIZATION), (faithfulness_summary, FAITHFULNESS)],
)
class TestEverySummary:
    def test_order_of_rows_changes_nothing(self, summarize: Any, rows: list[Row]) -> None:
        generator = np.random.default_rng(3)
        shuffled = [rows[index] for index in generator.permutation(len(rows))]
        manifest = MANIFEST.take(generator.permutation(MANIFEST.num_rows))
        assert summarize(shuffled, manifest).equals(summarize(rows))

    def test_shards_change_nothing(self, summarize: Any, rows: list[Row]) -> None:
        shards = pa.concat_tables([MANIFEST.slice(0, 10), MANIFEST.slice(10)])
        assert summarize(rows, shards).equals(summarize(rows))

    def test_no_rows_give_an_empty_table(self, summarize: Any, rows: list[Row]) -> None:
        assert summarize([]).num_rows == 0
        assert summarize([], MANIFEST.slice(0, 0)).num_rows == 0
        assert summarize([]).schema == summarize(rows).schema

    def test_clip_of_another_index_is_refused(self, summarize: Any, rows: list[Row]) -> None:
        with pytest.raises(StudyError, match="clip stranger, which the manifest does not"):
            summarize([*rows, {**rows[0], "clip_id": "stranger"}])

    def test_row_given_twice_is_refused(self, summarize: Any, rows: list[Row]) -> None:
        with pytest.raises(StudyError, match="several rows for one clip"):
            summarize([*rows, rows[0]])

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_values_that_are_not_finite_are_refused(self, summarize: Any, rows: list[Row], value: float) -> None:
        columns = {"score", "f_score", "faithfulness"} & set(rows[0])
        with pytest.raises(StudyError, match="NaN or infinite"):
            summarize([{**rows[0], columns.pop(): value}, *rows[1:]])


def test_study_without_labels_has_no_detection_but_faithfulness() -> None:
    blind = [{**clip, "label": None, "annotated": False, "intervals": None, "anomaly_type": None} for clip in CLIPS]
    manifest = pa.Table.from_pylist(blind, schema=schemas.MANIFEST)
    known = {clip["clip_id"] for clip in blind}
    assert detection_summary([row for row in score_rows() if row["clip_id"] in known], manifest).num_rows == 0
    assert f_score_summary(LOCALIZATION, manifest).num_rows == 0
    frame = [row for row in FAITHFULNESS if row["mode"] == "frame" and row["clip_id"] in known]
    found = faithfulness_summary(frame, manifest)
    assert found["scope"].unique().to_pylist() == ["all"]
    assert found.num_rows == 2 * 2 * 2


def test_seed_that_scored_one_class_only_is_refused() -> None:
    normal = {clip["clip_id"] for clip in CLIPS if clip["label"] == 0}
    rows = [row for row in score_rows() if row["seed"] != 7 or row["clip_id"] in normal]
    with pytest.raises(StudyError, match="40 normal and 0 anomalous"):
        detection_summary(rows)


def test_model_without_labelled_scores_is_left_out() -> None:
    rows = [row for row in score_rows() if row["model"] == "ae" or row["clip_id"] == OTHERS[2]["clip_id"]]
    assert detection_summary(rows)["model"].unique().to_pylist() == ["ae"]
