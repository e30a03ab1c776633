"""Ranking of seconds against scikit-learn, and the rows of `summary/seconds` clip by clip."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn import metrics

from faithad import schemas
from faithad.evaluation.checks import CURVES
from faithad.evaluation.seconds import average_precision, highest_per_second, resampled_precision
from faithad.evaluation.summary import Experiment, summarize

FRAMES_PER_S = 4.0


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_is_scikit_learn_s(seed: int, ties: bool) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.permutation([1] * 4 + [0] * 16)
    scores = labels + generator.normal(size=20)
    scores = scores.round() if ties else scores
    assert average_precision(scores, labels) == pytest.approx(metrics.average_precision_score(labels, scores))
    groups = generator.integers(0, 5, 20)
    drawn = generator.multinomial(5, [0.2] * 5, size=30)
    for counts, value in zip(drawn, resampled_precision(scores, labels, groups, drawn), strict=True):
        copies = np.repeat(np.arange(20), counts[groups])
        if not labels[copies].any():
            assert np.isnan(value)
        else:
            assert value == pytest.approx(metrics.average_precision_score(labels[copies], scores[copies]))


def test_a_second_has_its_highest_frame_and_the_last_one_the_frame_on_the_end() -> None:
    assert highest_per_second(np.arange(13.0), FRAMES_PER_S).tolist() == [3.0, 7.0, 12.0]


def clip(number: int, **values: Any) -> dict[str, Any]:
    return {
        "clip_id": f"clip {number}", "recording": f"recording {number // 2}", "uri": "", "onset_s": 0.0,
        "duration_s": 3.0, "split": "test", "label": 0, "intervals": [], "annotated": False, **values,
    }  # fmt: skip


# Two annotated clips, one that is annotated throughout, one that is anomalous and not annotated, and normal ones.
MARKED = {"label": 1, "annotated": True}
CLIPS = [
    clip(0, intervals=[(0.0, 1.0)], **MARKED),
    clip(1, intervals=[(1.5, 2.5)], **MARKED),
    clip(2, intervals=[(0.0, 3.0)], **MARKED),
    clip(3, label=1),
    *[clip(number) for number in range(4, 9)],
]


def curves(generator: np.random.Generator, key: str, names: tuple[str, ...]) -> list[dict[str, Any]]:
    return [
        {"clip_id": row["clip_id"], "model": "ae", "seed": seed, key: name, "degenerate": False,
         "curve": generator.exponential(size=13).astype(np.float32)}
        for name in names for seed in (0, 1) for row in CLIPS
    ]  # fmt: skip


@pytest.mark.parametrize("n_frames", [13, 11])
def test_rows_are_their_definition(n_frames: int) -> None:
    generator = np.random.default_rng(0)
    methods = curves(generator, "method", ("error_map", "saliency"))
    methods[0]["curve"] = np.ones(13, dtype=np.float32)  # flat: left out
    lines = curves(generator, "line", ("level",))
    sources = {
        "attributions": pa.Table.from_pylist(methods, schema=CURVES),
        "lines": pa.Table.from_pylist([{**row} for row in lines], schema=schemas.LINES),
    }
    manifest = pa.Table.from_pylist(CLIPS, schema=schemas.MANIFEST)
    experiment = Experiment(manifest, "paper", n_frames={"ae": n_frames}, frames_per_s=FRAMES_PER_S)
    rows = {
        (row["method"], row["metric"], row["ranked"], row["scope"]): row
        for row in summarize("seconds", sources, experiment).to_pylist()
    }
    of_annotated = [(m, k, r, "annotated") for m in ("error_map", "level", "saliency")
                    for k in ("auroc", "average_precision") for r in ("pooled", "per_clip")]  # fmt: skip
    assert set(rows) == {*of_annotated, *(("error_map", k, "pooled", "all") for k in ("auroc", "average_precision"))}

    ends = [4, 8, n_frames]
    of_metric = {"auroc": metrics.roc_auc_score, "average_precision": metrics.average_precision_score}
    for (name, metric, ranked, scope), row in rows.items():
        values: list[list[float]] = [[], []]
        truth: list[list[int]] = [[], []]
        per_clip: list[list[float]] = [[], []]
        for each in lines if name == "level" else methods:
            of_clip = next(row for row in CLIPS if row["clip_id"] == each["clip_id"])
            known = of_clip["annotated"] or (scope == "all" and of_clip["label"] == 0)
            judged = each["curve"][:n_frames].astype(np.float64)
            if each.get("method", "level") != name or not known or np.ptp(judged) == 0:
                continue
            if scope == "annotated":
                judged = (judged - judged.mean()) / judged.std()
            highest = [judged[end - (4 if end < n_frames else n_frames - 8) : end].max() for end in ends]
            marked = [int(any(a < second + 1 and b > second for a, b in of_clip["intervals"])) for second in range(3)]
            values[each["seed"]] += highest
            truth[each["seed"]] += marked
            if 0 < sum(marked) < 3:
                per_clip[each["seed"]].append(of_metric[metric](marked, highest))
        pooled = [of_metric[metric](*pair) for pair in zip(truth, values, strict=True)]
        expected = pooled if ranked == "pooled" else [np.mean(part) for part in per_clip]
        assert row["mean"] == pytest.approx(np.mean(expected)), (name, metric, ranked, scope)
        assert row["std"] == pytest.approx(np.std(expected, ddof=1))
        assert row["n_clips"] == (2 if ranked == "per_clip" else 8 if scope == "all" else 3)
        assert row["n_seeds"] == 2
        if metric == "auroc":
            assert row["chance"] == 0.5
        elif ranked == "pooled":
            assert row["chance"] == pytest.approx(np.mean([np.mean(part) for part in truth]))


def test_without_annotations_there_is_nothing_to_rank() -> None:
    generator = np.random.default_rng(0)
    sources = {
        "attributions": pa.Table.from_pylist(curves(generator, "method", ("error_map",)), schema=CURVES),
        "lines": schemas.LINES.empty_table(),
    }
    manifest = pa.Table.from_pylist([clip(number) for number in range(9)], schema=schemas.MANIFEST)
    experiment = Experiment(manifest, "paper", n_frames={"ae": 13}, frames_per_s=FRAMES_PER_S)
    assert summarize("seconds", sources, experiment).num_rows == 0
