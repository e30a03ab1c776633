"""The study's answer in a few plain sentences: the part of the report that one reads first."""

from __future__ import annotations

import math
from typing import Any

from faithad.report import style
from faithad.report.findings import (
    alarm_rows,
    best,
    detection_rows,
    in_scope,
    missing_runs,
    missing_truth,
    overall,
)
from faithad.report.health import health_view
from faithad.report.ledger import ledger_view
from faithad.report.study_tables import StudyTables
from faithad.report.verdicts import NORMALIZED, disagreement, telling, verdicts_of_training, worth
from faithad.report.words import UNKNOWN, interval, number, records
from faithad.vocabulary import CAUGHT_AT, FITTED, LEVEL, POOLINGS, count

# Of the shares of normal clips at which a detector is read, the one that few normal clips can tell.
_AT = "caught_5"
_MOST_MODELS = 3
_LOUDEST = POOLINGS["worst_second"]


def answers(study: StudyTables) -> list[str]:
    """What is caught at how many false alarms; the verdicts; detection, localization, faithfulness; what is missing."""
    reasons, ledger = missing_truth(study), ledger_view(study.ledger)
    done, skipped, failed = (f"{ledger.clips[status]:,}" for status in ("done", "skipped", "failed"))
    through = f"Of {count(ledger.total, 'clip')}, {done} went through, {skipped} were skipped and {failed} failed"
    absent = missing_runs(study)
    return [
        *practical(study),
        *(verdict.sentence for verdict in verdicts_of_training(study) if verdict.rows[0]["metric"] != NORMALIZED),
        *telling(study),
        *worth(study),
        *([agreement] if (agreement := disagreement(study)) else []),
        reasons.detection or _detection_answer(study),
        reasons.f_score or _localization_answer(study),
        _faithfulness_answer(study),
        *health_view(study.health).sentences[:1],
        f"{through}; {ledger.rejected}." if ledger.rejected else f"{through}.",
        *([f"Not in this report, because no scores were found: {', '.join(absent)}."] if absent else []),
    ]


def practical(study: StudyTables) -> list[str]:
    """How many anomalous clips are caught at how many false alarms: by the models, the one that catches most first, and
    by a level meter.
    """
    known = [row for row in detection_rows(study) if row.get("caught") or row.get(_AT)]
    rows = [row for row in known if row["model"] != LEVEL]
    # One score of each model: the one that alarms, else the first.
    by_model: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["model"] not in by_model or (row.get("caught") and not by_model[row["model"]].get("caught")):
            by_model[row["model"]] = row
    ranked = sorted(by_model.values(), key=lambda row: -((row.get(_AT) or row["caught"])["mean"]))
    hourly = {row["model"]: row["per_hour"] for row in alarm_rows(study)}
    sentences = [_caught(row, hourly.get(row["model"])) for row in ranked[:_MOST_MODELS]]
    meter = [row[_AT] for row in known if (row["model"], row["pooling"]) == (LEVEL, _LOUDEST.title)]
    usual = f"at a threshold that {CAUGHT_AT[_AT] * 100:g} % of the normal clips exceed"
    return sentences + [
        f"The level of the loudest second, which needs no model, catches {_share(row, '')} {usual}." for row in meter
    ]


def _caught(row: dict[str, Any], an_hour: float | None) -> str:
    """What one model catches with its alarm, and at a usual rate of false alarms."""
    name, sentences = f"the {style.model(row['model']).title}", []
    alarm, false_alarms, usual = row.get("caught"), row.get("false_alarms"), row.get(_AT)
    if alarm and false_alarms:
        hourly = "" if an_hour is None else f", {an_hour:.3g} times an hour"
        sentences.append(
            f"With its alarm, {name} catches {_share(alarm, 'of the anomalous clips')}; "
            f"{_share(false_alarms, 'of the normal ones alarm, too')}{hourly}"
        )
    if usual:
        threshold = f"At a threshold that {CAUGHT_AT[_AT] * 100:g} % of the normal clips exceed"
        named = "it" if sentences else name
        sentences.append(f"{threshold}, {named} catches {_share(usual, '' if sentences else 'of the anomalous clips')}")
    return f"{'. '.join(sentences)}."


def _share(row: dict[str, Any], what: str) -> str:
    """A share of something with its interval, in percent."""
    text = f"{row['mean'] * 100:.0f} % {what}".rstrip()
    known = row["ci_low"] is not None and row["ci_high"] is not None
    return f"{text} ({row['ci_low'] * 100:.0f} to {row['ci_high'] * 100:.0f} %)" if known else text


def _detection_answer(study: StudyTables) -> str:
    rows = study.detection[(study.detection["metric"] == "auc") & (study.detection["anomaly_type"] == "all")]
    level = records(rows[(rows["model"] == LEVEL) & (rows["pooling"] == "worst_second")])
    rows = rows[rows["model"] != LEVEL]
    fitted = rows[rows["pooling"] == FITTED]
    # The score of the study, where the table also has the paper's.
    is_paper = (rows["pooling"] == "mean") & ~rows["model"].isin(fitted["model"])
    ranked = records(rows[is_paper | (rows["pooling"] == FITTED)].sort_values("mean", ascending=False))
    if not ranked:
        return "No area under the ROC curve was computed over whole clips."
    first, *others = ranked
    text = (
        f"The {style.model(first['model']).title} gives an anomalous clip a higher score than a normal one in "
        f"{first['mean'] * 100:.0f} of 100 pairs (AUC {_with_interval(first)})"
    )
    for row in others[:2]:
        text += f"; the {style.model(row['model']).title} in {row['mean'] * 100:.0f} (AUC {_with_interval(row)})"
    if others[2:]:
        rest = (f"{style.model(row['model']).title} {number(row['mean'], 2)}" for row in others[2:])
        text += f"; then by AUC {', '.join(rest)}"
    for row in level:
        share = f"{row['mean'] * 100:.0f} (AUC {_with_interval(row)})"
        text += f"; the level of the loudest second, which needs no model, in {share}"
    guessing = [style.model(row["model"]).title for row in ranked if row["ci_low"] is not None and row["ci_low"] <= 0.5]
    if guessing:
        text += f". For the {' and the '.join(guessing)} the interval does not rule out guessing, which is 0.5"
    return text + "."


def _with_interval(row: dict[str, Any]) -> str:
    around = interval(row, digits=2)
    return number(row["mean"], 2) if around == UNKNOWN else f"{number(row['mean'], 2)}, 95 % interval {around}"


def _localization_answer(study: StudyTables) -> str:
    rows = best(overall(study.f_score), ["model", "method"])
    if not rows:
        return "No F-score over all anomaly types was computed."
    top = max(rows, key=lambda row: float(row["mean"]))
    text = (
        f"{style.method(top['method']).title} on the {style.model(top['model']).title} locates the annotated anomalies "
        f"best: F-score {_with_interval(top)}, at percentile {top['percentile']:g}, "
        f"over {count(top['n_clips'], 'clip')}"
    )
    control = top["control_every_second"]
    if control is None or not math.isfinite(control):
        return text + "."
    low = top["ci_low"] if top["ci_low"] is not None and math.isfinite(top["ci_low"]) else top["mean"]
    if top["mean"] <= control:
        verdict = "so no map beats that simple rule"
    elif low <= control:
        verdict = "and the interval leaves open whether the map is any better"
    else:
        verdict = "so the map does tell where to look"
    return f"{text}. Flagging every second of every clip would reach {number(control, 2)}, {verdict}."


def _faithfulness_answer(study: StudyTables) -> str:
    rows = best(in_scope(study.faithfulness, "frame"), ["model", "method"])
    others = [row for row in rows if row["method"] != "error_map"]
    if not others:
        return "No faithfulness of an attribution was computed."
    top = max(others, key=lambda row: float(row["mean"]))
    text = (
        f"{style.method(top['method']).title} on the {style.model(top['model']).title} is the most faithful of the "
        f"attributions: replacing its peak frames by their reconstruction takes away {top['mean'] * 100:.1f} % of the "
        f"anomaly score (frame mode, percentile {top['percentile']:g})"
    )
    same = [row for row in rows if row["method"] == "error_map" and row["model"] == top["model"]]
    if not same:
        return text + "."
    return (
        f"{text}. The error map, which is the score itself laid out over time and so no independent explanation, takes "
        f"away {same[0]['mean'] * 100:.1f} %."
    )
