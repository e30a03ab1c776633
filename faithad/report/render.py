"""The page of a study: its figures and tables put into `study.html.j2`."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from markupsafe import Markup

from faithad import storage
from faithad.report import charts, findings, maps, page, style, timeline
from faithad.report.answers import answers
from faithad.report.search_page import search_section
from faithad.report.shards import Example
from faithad.report.tables import StudyTables, read_study
from faithad.runs import layout

_POOLED_COLUMNS = {"mean": "score", "worst_second": "worst_second_score"}


def render_report(root: str) -> str:
    """Write `report.html` below a study's root: one file that needs nothing else, the same for the same tables.

    Args:
        root: the study's root, a local path or a URI.

    Returns:
        The location of the report.

    Raises:
        StudyError: a stage that the report needs has not run; the text names it.
    """
    location = storage.join(root, layout.REPORT)
    storage.write_text(location, report_html(read_study(root), search=search_section(root)))
    return location


def report_html(study: StudyTables, *, search: dict[str, Any] | None = None) -> str:
    """The whole page; `search` as `search_section` gives it."""
    return page.fill("study.html.j2", _values(study) | {"search": search, "contents": _contents(search is not None)})


def _contents(searched: bool) -> list[tuple[str, str]]:
    """Anchors and titles of the page's sections."""
    sections = [
        ("run", "What was run"),
        ("detection", "Detection"),
        ("time", "Score over time"),
        ("localization", "Locating anomalies"),
        ("faithfulness", "Faithfulness"),
        ("clips", "Example clips"),
        ("training", "Training"),
    ]
    sections += [("search", "Search")] if searched else []
    return [*sections, ("ledger", "Ledger"), ("configuration", "Configuration")]


def _values(study: StudyTables) -> dict[str, Any]:
    reasons = findings.missing_truth(study)
    runs = study.scores[["model", "seed"]].drop_duplicates()
    detection = findings.detection_rows(study)
    sizes = {(row["n_normal"], row["n_anomalous"]) for row in detection}
    return {
        "study": study,
        "answers": answers(study),
        "period": findings.recording_period(study.manifest),
        "clip_counts": findings.clip_counts(study),
        "models": [style.model(name).title for name in style.in_model_order(set(runs["model"]))],
        "seeds": sorted(set(runs["seed"])),
        "baselines": bool(set(runs["model"]) - {"ae", "mae"}),
        "reasons": reasons,
        "detection": detection,
        "same_clips": sizes.pop() if len(sizes) == 1 else None,
        "few_models": charts.FEW_MODELS,
        "published": any(row["published"] for row in detection),
        "same_data": study.setting("data.layout") == "planer",
        "alarms": findings.alarm_rows(study),
        "roc": [] if reasons.detection else _roc(study),
        "timelines": _timelines(study),
        "timed": bool(study.scores["recorded_at"].notna().all()),
        "labelled": bool(study.scores["label"].notna().any()),
        "legends": _legends(study),
        "explained": findings.explained_clips(study),
        "f_score": None if reasons.f_score else _f_score(study),
        "faithfulness": [panel for mode in ("frame", "segment") if (panel := _faithfulness(study, mode))],
        "faithfulness_rows": findings.faithfulness_rows(study),
        "flat_curves": study.flat_curves[study.flat_curves["n_flat"] > 0].to_dict("records"),
        "clips": _clips(study),
        "in_seconds": study.setting("features.hop_samples") is not None,
        "in_khz": study.setting("features.sample_rate_hz") is not None,
        "training": _training(study),
        "ledger": page.ledger_values(study.ledger),
    }


def _roc(study: StudyTables) -> list[dict[str, Any]]:
    labelled = study.scores[study.scores["label"].notna()]
    return [
        {
            "title": f"Scored over the {findings.POOLINGS[pooling]}",
            "svg": style.to_svg(
                charts.roc_figure(labelled, column=column),
                name=f"roc-{pooling}",
                label=f"ROC curves of all models, score of the {findings.POOLINGS[pooling]}",
            ),
        }
        for pooling, column in _POOLED_COLUMNS.items()
        if labelled[column].notna().any()
    ]


def _timelines(study: StudyTables) -> list[dict[str, Any]]:
    """One chart per model, of its first seed and of the score that alarms: a threshold belongs to one trained model."""
    found = []
    wanted = _POOLED_COLUMNS.get(str(study.setting("alarm.pooling")), "score")
    for index, name in enumerate(style.in_model_order(set(study.scores["model"]))):
        of_model = study.scores[study.scores["model"] == name]
        seed = int(of_model["seed"].min())
        run = of_model[of_model["seed"] == seed]
        column = wanted if run[wanted].notna().all() else "score"
        title = style.model(name).title
        label = f"Anomaly score of each test clip, {title}"
        svg = style.to_svg(timeline.score_figure(run, column=column), name=f"score-{index}", label=label)
        pooled = ", score of the worst second" if column == "worst_second_score" else ""
        title = f"{title}, seed {seed}{pooled}"
        found.append({"title": title, "svg": svg, "threshold": run["threshold"].notna().any()})
    return found


def _legends(study: StudyTables) -> dict[str, list[list[tuple[str, Markup]]]]:
    """The lines of the legend above each section's figures; every section has its own, for ids are unique on a page."""
    methods = style.in_method_order(set(study.faithfulness["method"]) | set(study.f_score["method"]))
    models = [style.model(name) for name in style.in_model_order(set(study.scores["model"]))]
    explained = [
        style.model(name)
        for name in style.in_model_order(set(study.faithfulness["model"]) | set(study.f_score["model"]))
    ]
    legends: dict[str, list[list[tuple[str, Markup]]]] = {
        "roc": [[_swatch("roc", look.title, look.color, dashes=look.dashes) for look in models]]
    }
    for section in ("f-score", "faithfulness"):
        colors = [_swatch(section, look.title, look.color, marker=look.marker) for look in map(style.method, methods)]
        lines = [
            _swatch(section, look.title, style.INK, dashes=look.dashes, filled=look.filled, marker="o")
            for look in explained
        ]
        legends[section] = [colors, lines]
    controls = style.CONTROL_DASHES.items()
    legends["f-score"][1] += [_swatch("f-score", title, style.MUTED, dashes=dashes) for title, dashes in controls]
    return legends


def _swatch(section: str, title: str, color: str, **look: Any) -> tuple[str, Markup]:
    name = f"{section}-{re.sub('[^a-z0-9]+', '-', title.lower())}"
    return title, style.to_svg(style.swatch(color, **look), name=name, label=title)


def _f_score(study: StudyTables) -> dict[str, Any]:
    curves = findings.overall(study.f_score)
    figure = charts.percentile_figure(curves, y_label="F-score", controls=findings.controls(study.f_score))
    return {
        "svg": style.to_svg(figure, name="f-score", label="F-score against percentile for each model and method"),
        "rows": findings.f_score_rows(study),
        "types": findings.anomaly_types(study),
        "n_clips": int(curves["n_clips"].max()) if len(curves) else 0,
    }


def _faithfulness(study: StudyTables, mode: str) -> dict[str, Any] | None:
    curves = findings.in_scope(study.faithfulness, mode)
    if curves.empty:
        return None
    figure = charts.percentile_figure(curves, y_label="share of the score taken away")
    label = f"Faithfulness against percentile for each model and method, {mode} mode"
    return {
        "mode": mode,
        "scope": "annotated" if (curves["scope"] == "annotated").all() else "test",
        "n_clips": int(curves["n_clips"].max()),
        "svg": style.to_svg(figure, name=f"faithfulness-{mode}", label=label),
    }


def _clips(study: StudyTables) -> list[dict[str, Any]]:
    """The example clips, each with the panels of every model."""
    rows = {row["clip_id"]: row for row in findings.records(study.manifest)}
    found: dict[str, dict[str, Any]] = {}
    for example in study.examples:
        clip = rows[example.clip_id]
        entry = found.setdefault(example.clip_id, _describe(clip) | {"models": []})
        entry["models"].append(_describe_run(study, example, clip, name=f"clip-{len(found)}-{len(entry['models'])}"))
    return list(found.values())


def _describe(clip: findings.Row) -> dict[str, Any]:
    label = {0: "normal", 1: "anomalous"}.get(clip["label"], "no label")
    onset, clock = clip["onset_s"], clip["recorded_at"]
    return {
        "recording": clip["recording"],
        "span": f"{onset:g} to {onset + clip['duration_s']:g} s",
        "clock": f"{clock:%Y-%m-%d %H:%M:%S}" if clock else None,
        "label": f"{label}: {clip['anomaly_type']}" if clip["anomaly_type"] else label,
        "intervals": [f"{onset:g} to {offset:g} s" for onset, offset in _intervals(clip)],
    }


def _intervals(clip: findings.Row) -> list[tuple[float, float]]:
    intervals = clip["intervals"]
    return [] if intervals is None else [(float(part["onset_s"]), float(part["offset_s"])) for part in intervals]


def _describe_run(study: StudyTables, example: Example, clip: findings.Row, *, name: str) -> dict[str, Any]:
    scores = study.scores
    of_run = scores[(scores["model"] == example.model) & (scores["seed"] == example.seed)]
    row = next(iter(findings.records(of_run[of_run["clip_id"] == example.clip_id])), None)
    scale = _clip_scale(study, example, float(clip["duration_s"]))
    return {
        "title": f"{style.model(example.model).title}, seed {example.seed}",
        "score": row and row["score"],
        "threshold": row and row["threshold"],
        "alarm": row and row["alarm"],
        "panels": _panels(study, example, scale, _intervals(clip), name),
    }


def _clip_scale(study: StudyTables, example: Example, duration_s: float) -> maps.ClipScale:
    rate, hop = study.setting("features.sample_rate_hz"), study.setting("features.hop_samples")
    if isinstance(rate, int | float) and isinstance(hop, int | float):
        return maps.ClipScale(rate / hop, in_seconds=True, sample_rate_hz=float(rate))
    known = float(rate) if isinstance(rate, int | float) else None
    return maps.ClipScale(example.log_mel.shape[1] / duration_s, in_seconds=False, sample_rate_hz=known)


def _panels(
    study: StudyTables, example: Example, scale: maps.ClipScale, intervals: list[tuple[float, float]], name: str
) -> list[dict[str, Any]]:
    limits = maps.color_limits(example.log_mel, "level")
    pictures = [("Input", example.log_mel), ("Reconstruction", example.reconstruction)]
    panels: list[dict[str, Any]] = []
    for title, grid in pictures:
        level = grid.mean(axis=0)
        figure = maps.clip_figure(grid, level, scale=scale, kind="level", limits=limits, intervals=intervals)
        panels.append({"title": title, "note": "mean level below", "figure": figure})
    percentiles = {row["method"]: row["percentile"] for row in _peak_percentiles(study, example.model)}
    for method_name in style.in_method_order(set(example.curves)):
        look, curve = style.method(method_name), example.curves[method_name]
        flat = method_name in example.degenerate
        percentile = percentiles.get(method_name)
        peaks = None if flat or percentile is None else curve >= np.percentile(curve, percentile)
        figure = maps.clip_figure(example.maps.get(method_name), curve, scale=scale, intervals=intervals, peaks=peaks,
                                  kind="diverging" if look.signed else "sequential", color=look.color)  # fmt: skip
        note = "flat curve" if flat else "" if percentile is None else f"top {100 - percentile:g} %"
        panels.append({"title": look.title, "note": note, "figure": figure})
    for index, panel in enumerate(panels):
        panel["svg"] = style.to_svg(panel.pop("figure"), name=f"{name}-{index}", label=f"{panel['title']} of this clip")
    return panels


def _peak_percentiles(study: StudyTables, model: str) -> list[findings.Row]:
    """The percentile at which each method's peaks are marked: its best F-score's, else its best faithfulness's."""
    curves = findings.overall(study.f_score)
    if curves.empty:
        curves = findings.in_scope(study.faithfulness, "frame")
    return findings.best(curves[curves["model"] == model], ["method"])


def _training(study: StudyTables) -> list[dict[str, Any]]:
    found = []
    for index, (name, epochs) in enumerate(study.epochs.groupby("model")):
        title = style.model(str(name)).title
        kept = epochs[epochs["best"]].groupby("seed").tail(1).sort_values("seed")
        runs = [
            {
                "seed": int(str(seed)),
                "epochs": len(run),
                "minutes": run["duration_s"].sum() / 60,
                "kept": next(iter(findings.records(kept[kept["seed"] == seed])), None),
            }
            for seed, run in epochs.groupby("seed")
        ]
        figure = charts.training_figure(epochs)
        svg = style.to_svg(figure, name=f"training-{index}", label=f"Losses over epochs, {title}")
        found.append({"title": title, "svg": svg, "runs": runs})
    return found
