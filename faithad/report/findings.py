"""What a study's tables say, in small tables and counts, and what they cannot say.

Everything here is drawn from the summaries; only the alarms and the counts come from rows of clips.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pandas as pd

from faithad.report import published, style
from faithad.report.tables import StudyTables

Row = dict[str, Any]

POOLINGS = {"mean": "whole clip", "worst_second": "worst second"}
UNKNOWN = "\N{EN DASH}"


def number(value: float | None, digits: int = 3) -> str:
    """A dash stands for what is not known."""
    return UNKNOWN if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def interval(row: Row, digits: int = 3) -> str:
    """The row's 95 % interval, or a dash."""
    low, high = row.get("ci_low"), row.get("ci_high")
    known = low is not None and high is not None and math.isfinite(low) and math.isfinite(high)
    return f"{low:.{digits}f} to {high:.{digits}f}" if known else UNKNOWN


def count(n: int, singular: str, plural: str | None = None) -> str:
    return f"{n:,} {singular if n == 1 else plural or singular + 's'}"


def seconds(value: float | None) -> str:
    """A time or a length, to the millisecond and never in powers of ten: long recordings have large numbers."""
    return UNKNOWN if value is None or not math.isfinite(value) else f"{round(value, 3):,.12g} s"


def duration(seconds: float) -> str:
    """20 s, 3.5 min, 48.0 h."""
    if seconds < 120:
        return f"{round(seconds, 1):g} s"
    return f"{seconds / 60:.1f} min" if seconds < 2 * 3_600 else f"{seconds / 3_600:.1f} h"


def records(frame: pd.DataFrame) -> list[Row]:
    """The rows as mappings; what is missing is None, whatever the column's type."""
    rows = frame.astype(object)
    return [
        {str(key): value for key, value in row.items()} for row in rows.where(rows.notna(), None).to_dict("records")
    ]


class Reasons(NamedTuple):
    """Why a section has nothing to show; None where it has."""

    detection: str | None
    f_score: str | None


def explained_clips(study: StudyTables) -> str | None:
    """Which clips were explained, where not all were: what is told of maps is told of these."""
    explain = study.setting("audit.explain")
    if explain in (None, "all", "none"):
        return None
    highest = f"The {str(explain).removeprefix('top:')} clips with the highest scores"
    which = "Clips with an alarm" if explain == "alarms" else highest
    return f"{which} alone were explained (audit.explain: {explain}). The figures say nothing of all others."


def missing_truth(study: StudyTables) -> Reasons:
    """What cannot be told for want of labels or annotations."""
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


def best(curves: pd.DataFrame, keys: list[str]) -> list[Row]:
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


def controls(f_score: pd.DataFrame) -> dict[str, pd.Series]:
    """F-scores that need no model, over percentiles."""
    by_percentile = overall(f_score).groupby("percentile")[["control_random", "control_every_second"]].mean()
    named = {
        style.RANDOM: by_percentile["control_random"],
        style.EVERY_SECOND: by_percentile["control_every_second"],
    }
    return {name: values for name, values in named.items() if values.notna().all() and len(values)}


def clip_counts(study: StudyTables) -> list[Row]:
    """Clips, recordings and hours per split."""
    rows = []
    for split in ("train", "validation", "test"):
        clips = study.manifest[study.manifest["split"] == split]
        if clips.empty:
            continue
        rows.append(
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
        )
    return rows


def recording_period(manifest: pd.DataFrame) -> str | None:
    """First and last day of the recordings, as far as their names tell it."""
    times = manifest["recorded_at"].dropna()
    if times.empty:
        return None
    first, last = f"{times.min():%Y-%m-%d}", f"{times.max():%Y-%m-%d}"
    return first if first == last else f"{first} to {last}"


def detection_rows(study: StudyTables) -> list[Row]:
    """One row per (model, pooling): AUC and pAUC, each with mean, std and interval, and what was published."""
    rows: list[Row] = []
    for (model, pooling), group in study.detection.groupby(["model", "pooling"]):
        metrics = {row["metric"]: row for row in records(group)}
        rows.append(
            {
                "key": str(model),
                "model": style.model(str(model)).title,
                "pooling": POOLINGS.get(str(pooling), str(pooling)),
                "auc": metrics.get("auc"),
                "pauc": metrics.get("pauc"),
                "n_normal": int(group["n_normal"].iloc[0]),
                "n_anomalous": int(group["n_anomalous"].iloc[0]),
                "published": published.DETECTION.get(str(model)) if pooling == "mean" else None,
            }
        )
    models = style.in_model_order({row["key"] for row in rows})
    return sorted(rows, key=lambda row: models.index(row["key"]))  # stable: the whole clip stays first


def alarm_rows(study: StudyTables) -> list[Row]:
    """What the alarm did at its threshold, as means over seeds; nothing where no threshold was set."""
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
                "model": style.model(model).title,
                "alarms": len(raised) / n_seeds,
                "clips": len(of_model) // n_seeds,
                "caught": (raised["label"] == 1).sum() / n_seeds,
                "anomalous": len(anomalous) // n_seeds,
                "false_alarms": false_alarms,
                "normal": len(normal) // n_seeds,
                "per_hour": false_alarms / hours if hours else None,
            }
        )
    return rows


def f_score_rows(study: StudyTables) -> list[Row]:
    """Best percentile of each (model, method), and the F-score of each anomaly type at that percentile."""
    rows = []
    for row in _in_order(best(overall(study.f_score), ["model", "method"])):
        same = study.f_score
        for key in ("model", "method", "percentile"):
            same = same[same[key] == row[key]]
        by_type = dict(zip(same["anomaly_type"], same["mean"], strict=True))
        rows.append(row | {"by_type": by_type})
    return rows


def anomaly_types(study: StudyTables) -> list[tuple[str, int]]:
    """(type, annotated clips) of each anomaly type that has F-scores."""
    rows = study.f_score[study.f_score["anomaly_type"] != "all"]
    sizes = rows.groupby("anomaly_type")["n_clips"].max()
    return [(str(kind), int(n_clips)) for kind, n_clips in sizes.items()]


def faithfulness_rows(study: StudyTables) -> list[Row]:
    """Best percentile of each (model, method) in both modes."""
    modes = {mode: best(in_scope(study.faithfulness, mode), ["model", "method"]) for mode in ("frame", "segment")}
    found: dict[tuple[str, str], Row] = {}
    for mode, rows in modes.items():
        for row in rows:
            keys = {"model": row["model"], "method": row["method"]}
            found.setdefault((row["model"], row["method"]), keys)[mode] = row
    return _in_order(list(found.values()))


def _in_order(rows: list[Row]) -> list[Row]:
    models = style.in_model_order({row["model"] for row in rows})
    methods = style.in_method_order({row["method"] for row in rows})
    return sorted(rows, key=lambda row: (models.index(row["model"]), methods.index(row["method"])))


def ledger_counts(ledger: pd.DataFrame) -> dict[str, int]:
    """Clips by status; rows without a clip (rejected recordings, remainders) under `rejected`."""
    clips = ledger[ledger["clip_id"].notna()]["status"].value_counts()
    counts = {status: int(clips.get(status, 0)) for status in ("done", "skipped", "failed")}
    return counts | {"rejected": int(ledger["clip_id"].isna().sum())}


def missing_runs(study: StudyTables) -> list[str]:
    """(model, seed) pairs that the configuration asks for and that have no scores."""
    present = {(str(model), int(seed)) for model, seed in study.scores[["model", "seed"]].drop_duplicates().to_numpy()}
    models, seeds = study.setting("models"), study.setting("seeds")
    if not isinstance(models, list) or not isinstance(seeds, list):
        return []
    return [f"{model}-{seed}" for model in models for seed in seeds if (model, seed) not in present]
