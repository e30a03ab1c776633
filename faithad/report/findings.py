"""What a study's tables show, in small tables and counts, and what they cannot show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from faithad import schemas
from faithad.evaluation.alarms import too_few_clips
from faithad.model.table import MODELS
from faithad.report import published, style
from faithad.report.study_tables import StudyTables
from faithad.report.words import records
from faithad.vocabulary import FEW_RECORDINGS, FITTED, POOLINGS, count

TableRow = dict[str, Any]
# False detections an hour at which the page says how many labels are found.
FALSE_PER_HOUR = (1.0, 10.0, 100.0)


class Reasons(NamedTuple):
    """Why a section has nothing to show; None where it has."""

    detection: str | None
    f_score: str | None


def explained_clips(study: StudyTables) -> str | None:
    """Which clips were explained, where not all were: all results of maps are results of these clips."""
    explain = study.setting("audit.explain")
    if explain in (None, "all", "none"):
        return None
    highest = f"The {str(explain).removeprefix('top:')} clips with the highest scores"
    which = {"annotated": "Annotated clips", "alarms": "Clips with an alarm"}.get(str(explain), highest)
    return f"{which} alone were explained (audit.explain: {explain}). The figures say nothing of all others."


def missing_truth(study: StudyTables) -> Reasons:
    """Which results lack labels or annotations, and why."""
    test = study.manifest[study.manifest["split"] == "test"]
    labels = set(test["label"].dropna().astype(int))
    f_score = None
    if study.f_score.empty:
        f_score = (
            "No test clip has annotated intervals, so how well the maps locate anomalies in time cannot be measured."
            if not test["annotated"].any()
            else "No F-score was computed, although test clips carry annotated intervals."
        )
    detection = None
    if not labels:
        detection = "No test clip carries a label, so neither an ROC curve nor its area can be given."
    elif len(labels) == 1:
        kind = "anomalous" if labels == {1} else "normal"
        detection = f"All labelled test clips are {kind}, and an ROC curve needs both kinds."
    elif study.detection.empty:
        detection = "No area under the ROC curve was computed for the labelled test clips."
    return Reasons(detection, f_score)


def best(curves: pd.DataFrame, keys: list[str]) -> list[TableRow]:
    """The percentile with the highest mean for each combination of keys (the lowest such percentile in a tie)."""
    ordered = curves.sort_values([*keys, "mean", "percentile"], ascending=[*[True] * len(keys), False, True])
    return records(ordered.drop_duplicates(keys))


def overall(f_score: pd.DataFrame) -> pd.DataFrame:
    """The rows over all anomaly types."""
    return f_score[f_score["anomaly_type"] == "all"]


def in_scope(faithfulness: pd.DataFrame, mode: str) -> pd.DataFrame:
    """The rows of a mode: over annotated clips where there are any, as in the paper, else over all test clips."""
    rows = faithfulness[faithfulness["mode"] == mode]
    annotated = rows[rows["scope"] == "annotated"]
    return annotated if len(annotated) else rows


def controls(f_score: pd.DataFrame, lines: pd.DataFrame) -> dict[str, pd.Series]:
    """F-scores of the lines that methods are compared with, over percentiles, as means over the models.

    Args:
        f_score: the rows of the methods, which hold two of them.
        lines: of `summary/controls`.
    """
    by_percentile = overall(f_score).groupby("percentile")[["control_random", "control_every_second"]].mean()
    named = {
        style.RANDOM: by_percentile["control_random"],
        style.EVERY_SECOND: by_percentile["control_every_second"],
    }
    named |= lines_beside(
        lines[lines["metric"] == "f_score"], ("level", "level_change", "outlier", "frame_pca", "oracle")
    )
    return {name: values for name, values in named.items() if values.notna().all()}


def lines_beside(lines: pd.DataFrame, names: Sequence[str]) -> dict[str, pd.Series]:
    """Rows of `summary/controls` over percentiles, as means over the models; nothing of a line that has none."""
    of_percentiles = lines[lines["percentile"].notna()]
    by_line = {name: of_percentiles[of_percentiles["line"] == name] for name in names}
    return {style.LINES[name]: rows.groupby("percentile")["mean"].mean() for name, rows in by_line.items() if len(rows)}


def faithfulness_lines(curves: pd.DataFrame, lines: pd.DataFrame, metric: str) -> dict[str, pd.Series]:
    """The lines that faithfulness in mode `frame` is compared with, in the scope of the methods' rows."""
    of_metric = lines[(lines["metric"] == metric) & lines["scope"].isin(curves["scope"])]
    return lines_beside(of_metric, ("random", "outlier", "frame_pca", "oracle"))


def clip_counts(study: StudyTables) -> list[TableRow]:
    """Clips, recordings and hours per split."""
    by_split = {str(split): clips for split, clips in study.manifest.groupby("split")}
    return [
        {
            "split": split,
            "normal": int((clips["label"] == 0).sum()),
            "anomalous": int((clips["label"] == 1).sum()),
            "unlabelled": int(clips["label"].isna().sum()),
            "annotated": int(clips["annotated"].sum()),
            "clips": len(clips),
            "recordings": clips["recording"].nunique(),
            "hours": clips["duration_s"].sum() / 3_600,
        }
        for split in schemas.SPLITS
        if (clips := by_split.get(split)) is not None
    ]


def detection_rows(study: StudyTables) -> list[TableRow]:
    """One row per model and score: each metric with mean, std and interval, by type of anomaly, what was published."""
    rows = []
    for (model, score, pooling), group in study.detection.groupby(["model", "score", "pooling"]):
        of_types = {
            str(kind): {row["metric"]: row for row in records(part)} for kind, part in group.groupby("anomaly_type")
        }
        group = group[group["anomaly_type"] == "all"]
        rows.append(
            {
                "model": str(model),
                "pooling": _title(score, pooling),
                **{"auc": None, "pauc": None, **of_types["all"]},
                "by_type": {kind: metrics for kind, metrics in of_types.items() if kind != "all"},
                "n_normal": int(group["n_normal"].iloc[0]),
                "n_anomalous": int(group["n_anomalous"].iloc[0]),
                "published": published.DETECTION.get(str(model)) if pooling == "mean" else None,
            }
        )
    return _in_order(rows)  # stable: the whole clip stays first


def _title(score: str, pooling: str) -> str:
    """How a score is called; a fitted one by its own name."""
    if pooling == FITTED:
        return score
    return POOLINGS[pooling].title if pooling in POOLINGS else pooling


def alarm_rows(study: StudyTables) -> list[TableRow]:
    """What the alarm did at its threshold, as means over seeds; nothing where no threshold was set."""
    clip_s = study.setting("data.clip_s") or study.manifest["duration_s"].max()
    scores = study.scores[study.scores["alarm"].notna()]
    rows = []
    for model in style.in_model_order(set(scores["model"])):
        of_model = scores[scores["model"] == model]
        n_seeds = of_model["seed"].nunique()
        raised = of_model[of_model["alarm"].astype(bool)]
        normal, anomalous = (of_model[of_model["label"] == label] for label in (0, 1))
        false_alarms = (raised["label"] == 0).sum() / n_seeds
        hours = normal["duration_s"].sum() / 3_600 / n_seeds
        rows.append(
            {
                "model": model,
                "alarms": len(raised) / n_seeds,
                "of_short_clips": (raised["duration_s"] < clip_s).sum() / n_seeds,
                "clips": len(of_model) // n_seeds,
                "caught": (raised["label"] == 1).sum() / n_seeds,
                "anomalous": len(anomalous) // n_seeds,
                "false_alarms": false_alarms,
                "normal": len(normal) // n_seeds,
                "per_hour": false_alarms / hours if hours else None,
            }
        )
    return rows


def few_recordings(study: StudyTables) -> str | None:
    """A warning about the alarm where its normal clips come from few recordings: they are no independent sample."""
    clips = study.manifest[study.manifest["split"] == "validation"]
    n = clips["recording"].nunique()
    if not n or n >= FEW_RECORDINGS:
        return None
    return (
        f"The alarm rests on {count(len(clips), 'normal clip')} of {count(n, 'recording')}. Clips of one recording are "
        "alike, and the rate that is promised takes them as independent: other days may well be noisier"
    )


def few_normals(study: StudyTables) -> str | None:
    """The false alarms per hour that were asked for, if the validation clips can only promise more of them."""
    asked = study.setting("alarm.false_alarms_per_hour")
    if asked is None or study.setting("alarm.rule") != "conformal":
        return None
    n = int((study.manifest["split"] == "validation").sum())
    clip_s = study.setting("data.clip_s") or study.manifest["duration_s"].max()
    promised = 3_600 / clip_s / (n + 1)
    return too_few_clips(asked, promised, n, clip_s) if promised > asked else None


def f_score_rows(study: StudyTables) -> list[TableRow]:
    """Best percentile of each (model, method), and the F-score of each anomaly type at that percentile."""
    keys = ["model", "method", "percentile"]
    by_type = {key: rows.set_index("anomaly_type")["mean"].to_dict() for key, rows in study.f_score.groupby(keys)}
    rows = best(overall(study.f_score), ["model", "method"])
    return _in_order([row | {"by_type": by_type[tuple(row[key] for key in keys)]} for row in rows])


def anomaly_types(study: StudyTables) -> list[tuple[str, int]]:
    """(type, annotated clips) of each anomaly type that has F-scores."""
    rows = study.f_score[study.f_score["anomaly_type"] != "all"]
    sizes = rows.groupby("anomaly_type")["n_clips"].max()
    return [(str(kind), int(n_clips)) for kind, n_clips in sizes.items()]


def second_rows(study: StudyTables) -> list[TableRow]:
    """Of each model and method or line: how well its curve ranks the seconds, by metric and by what is ranked."""
    rows = []
    for (model, name), group in study.seconds.groupby(["model", "method"]):
        cells: dict[str, TableRow] = {}
        for row in records(group):
            ranked = "all" if row["scope"] == "all" else row["ranked"]
            cells.setdefault(ranked, {})[row["metric"]] = row
        title = style.LINES.get(name, style.method(name).title)
        rows.append({"model": model, "method": name, "title": title, "is_line": name in style.LINES, "cells": cells})
    return sorted(_in_order(rows), key=lambda row: row["is_line"])


def psds_rows(study: StudyTables) -> list[TableRow]:
    """Of each model, how many labels are found at a few rates of false detections, and over all of them."""
    rows = []
    for row in records(study.psds):
        of_rate = dict(zip(row["false_per_hour"], row["found"], strict=True))
        rows.append(row | {"found_at": {rate: of_rate.get(rate) for rate in FALSE_PER_HOUR}})
    return _in_order(rows)


def seconds_chance(study: StudyTables) -> float | None:
    """The share of annotated seconds in the annotated clips, which a random order has as its average precision."""
    rows = study.seconds[(study.seconds["metric"] == "average_precision") & (study.seconds["ranked"] == "pooled")]
    rows = rows[rows["scope"] == "annotated"]
    return float(rows["chance"].iloc[0]) if len(rows) else None


def faithfulness_rows(study: StudyTables) -> list[TableRow]:
    """Best percentile of each (model, method) in both modes."""
    rows: dict[tuple[str, str], TableRow] = {}
    for mode in ("frame", "segment"):
        for row in best(in_scope(study.faithfulness, mode), ["model", "method"]):
            keys = {"model": row["model"], "method": row["method"]}
            rows.setdefault((row["model"], row["method"]), keys)[mode] = row
    return _in_order(list(rows.values()))


def _in_order(rows: list[TableRow]) -> list[TableRow]:
    """Rows by model and method, in the order of their tables; rows of one model and method keep their order."""
    models = style.in_model_order(row["model"] for row in rows)
    methods = style.in_method_order(row.get("method", "") for row in rows)
    return sorted(rows, key=lambda row: (models.index(row["model"]), methods.index(row.get("method", ""))))


def missing_runs(study: StudyTables) -> list[str]:
    """(model, seed) pairs that the configuration asks for and that have no scores. A seedless model has one seed."""
    present = {(str(model), int(seed)) for model, seed in study.scores[["model", "seed"]].drop_duplicates().to_numpy()}
    models, seeds = study.setting("models"), study.setting("seeds")
    if not isinstance(models, list) or not isinstance(seeds, list):
        return []
    seedless = {model for model in models if model in MODELS and MODELS[model].seedless}
    runs = [(model, seed) for model in models for seed in (seeds[:1] if model in seedless else seeds)]
    return [f"{model}-{seed}" for model, seed in runs if (model, seed) not in present]
