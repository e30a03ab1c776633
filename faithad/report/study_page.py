"""The page of a study: its figures and tables put into `study.html.j2`."""

from __future__ import annotations

import re
from typing import Any

from markupsafe import Markup

from faithad import storage
from faithad.evaluation.statistics import n_normal_needed
from faithad.model.table import MODELS
from faithad.report import charts, findings, maps, page, style, timeline
from faithad.report.answers import answers
from faithad.report.checks import checks_section
from faithad.report.health import health_view
from faithad.report.ledger import ledger_view
from faithad.report.reading import Example
from faithad.report.search_page import search_section
from faithad.report.study_tables import StudyTables, read_study
from faithad.report.verdicts import verdicts, verdicts_against_chance, worth_rows
from faithad.report.words import period, records
from faithad.runs import layout
from faithad.runs.prune import MAPS, SPECTROGRAMS, pruned
from faithad.vocabulary import CAUGHT_AT, ERROR_POOLINGS, FITTED, listed

_SECTIONS = {
    "run": "What was run",
    "verdicts": "Verdicts",
    "detection": "Detection",
    "time": "Score over time",
    "localization": "Locating anomalies",
    "faithfulness": "Faithfulness",
    "checks": "Checks",
    "clips": "Example clips",
    "training": "Training",
    "search": "Search",
    "health": "Health of the sound",
    "ledger": "Ledger",
    "configuration": "Configuration",
}

# Sections that are left out where there is nothing to show.
_OPTIONAL = ("verdicts", "checks", "search", "health")


def render_report(root: str) -> str:
    """Write `report.html` below a study's root: one file that needs nothing else, the same for the same tables.

    Args:
        root: the study's root, a local path or a URI.

    Returns:
        The location of the report.

    Raises:
        StudyError: a stage that the report needs has not run; the message names it.
    """
    removed = listed([kind for kind in pruned(root) if kind in (MAPS, SPECTROGRAMS)])
    values = _values(read_study(root)) | {"search": search_section(root), "pruned": removed}
    values["contents"] = [
        (name, title) for name, title in _SECTIONS.items() if values.get(name, True) or name not in _OPTIONAL
    ]
    return page.write(storage.join(root, layout.REPORT), "study.html.j2", values)


def _values(study: StudyTables) -> dict[str, Any]:
    reasons = findings.missing_truth(study)
    runs = study.scores[["model", "seed"]].drop_duplicates()
    detection, shares = findings.detection_rows(study), [*CAUGHT_AT, "caught", "false_alarms"]
    sizes = {(row["n_normal"], row["n_anomalous"]) for row in detection}
    explained = set(study.faithfulness["model"]) | set(study.f_score["model"])
    return {
        "study": study,
        "answers": answers(study),
        "verdicts": _verdicts(study),
        "worth": worth_rows(study),
        "worth_figures": _worth_figures(study),
        "corrected": study.setting("protocol") if study.setting("protocol") in ("corrected", "both") else None,
        "period": period(study.manifest["recorded_at"]),
        "clip_counts": findings.clip_counts(study),
        "models": style.in_model_order(runs["model"]),
        "seeds": sorted(set(runs["seed"])),
        "baselines": bool(set(runs["model"]) - {"ae", "mae"}),
        "classical": any(name in MODELS and not MODELS[name].reconstructs for name in runs["model"]),
        "reasons": reasons,
        "detection": detection,
        "shares": shares if study.detection["metric"].isin(shares).any() else [],
        "caught_at": {name: f"{rate * 100:g} %" for name, rate in CAUGHT_AT.items()},
        "needed": {name: n_normal_needed(rate) for name, rate in CAUGHT_AT.items()},
        "fitted": sorted(set(study.detection.loc[study.detection["pooling"] == FITTED, "score"])),
        "same_clips": sizes.pop() if len(sizes) == 1 else None,
        "few_models": charts.FEW_MODELS,
        "published": any(row["published"] for row in detection),
        "same_data": study.setting("data.layout") == "planer",
        "alarms": findings.alarm_rows(study),
        "few_normals": findings.few_normals(study),
        "few_recordings": findings.few_recordings(study),
        "roc": [] if reasons.detection else _roc(study),
        "timelines": _timelines(study),
        "timed": bool(study.scores["recorded_at"].notna().all()),
        "labelled": bool(study.scores["label"].notna().any()),
        "legends": _legends(study, explained),
        "explained": findings.explained_clips(study),
        "f_score": None if reasons.f_score else _f_score(study),
        "faithfulness": [panel for mode in ("frame", "segment") if (panel := _faithfulness(study, mode))],
        "seconds": findings.second_rows(study),
        "psds": findings.psds_rows(study),
        "seconds_chance": findings.seconds_chance(study),
        "faithfulness_rows": findings.faithfulness_rows(study),
        "normalized": _normalized(study),
        "checks": checks_section(study),
        "flat_curves": study.flat_curves[study.flat_curves["n_flat"] > 0].to_dict("records"),
        "clips": _clips(study),
        "in_khz": study.setting("features.sample_rate_hz") is not None,
        "training": _training(study),
        "health": health if (health := health_view(study.health)).sentences else None,
        "ledger": ledger_view(study.ledger),
    }


def _verdicts(study: StudyTables) -> list[dict[str, Any]]:
    return [
        {
            "title": verdict.title,
            "svg": style.to_svg(
                charts.verdict_figure(verdict.rows, x_label=verdict.x_label, marks=verdict.marks),
                name=f"verdict-{index}",
                label=f"{verdict.title} Difference and 95 % interval of each method",
            ),
            "rows": verdict.rows,
        }
        for index, verdict in enumerate([*verdicts(study), *verdicts_against_chance(study)])
    ]


def _worth_figures(study: StudyTables) -> list[dict[str, Any]]:
    """One figure for each network and linear model."""
    pairs: dict[str, list[dict[str, Any]]] = {}
    for row in worth_rows(study):
        title = f"{style.model(row['model_a']).title} against {style.model(row['model_b']).title}"
        pairs.setdefault(title, []).append(row)
    return [
        {
            "title": title,
            "svg": style.to_svg(
                charts.verdict_figure(rows, x_label="AUC or F-score, minus that of the linear model", marks={}),
                name=f"worth-{index}",
                label=f"{title}: difference and 95 % interval of each score and method",
            ),
        }
        for index, (title, rows) in enumerate(pairs.items())
    ]


def _roc(study: StudyTables) -> list[dict[str, Any]]:
    labelled = study.scores[study.scores["label"].notna()]
    poolings = [(name, column, f"over the {title}") for name, (column, title, *_) in ERROR_POOLINGS.items()]
    if (study.detection["pooling"] == FITTED).any():
        poolings = [(FITTED, "score", "as the study says"), ("mean", "paper_score", "over the whole clip")]
    return [
        {
            "title": f"Scored {title}",
            "svg": style.to_svg(
                charts.roc_figure(labelled, column=column),
                name=f"roc-{pooling}",
                label=f"ROC curves of all models, scored {title}",
            ),
        }
        for pooling, column, title in poolings
        if labelled[column].notna().any()
    ]


def _timelines(study: StudyTables) -> list[dict[str, Any]]:
    """One chart per model, of its first seed and of the score that alarms: a threshold belongs to one trained model."""
    lines = []
    pooling = ERROR_POOLINGS.get(str(study.setting("alarm.pooling")), ERROR_POOLINGS["mean"])
    for index, name in enumerate(style.in_model_order(study.scores["model"])):
        of_model = study.scores[study.scores["model"] == name]
        run = of_model[of_model["seed"] == of_model["seed"].min()]
        # A model that scores whole clips alarms by these scores, whatever the study says.
        used = pooling if run[pooling.column].notna().all() else ERROR_POOLINGS["mean"]
        # That of whole clips comes last: short ones may have thresholds of their own.
        threshold = next(iter(run.sort_values("duration_s", ascending=False)["threshold"].dropna()), None)
        figure = timeline.score_figure(timeline.time_line(run, used.column), threshold)
        title = style.model(name).title
        svg = style.to_svg(figure, name=f"score-{index}", label=f"Anomaly score of each test clip, {title}")
        pooled = "" if used is ERROR_POOLINGS["mean"] else f", score of the {used.title}"
        lines.append(
            {"title": f"{title}, seed {run['seed'].iloc[0]}{pooled}", "svg": svg, "threshold": threshold is not None}
        )
    return lines


def _legends(study: StudyTables, explained: set[str]) -> dict[str, list[list[tuple[str, Markup]]]]:
    """The lines of the legend above each section's figures; every section has its own, for ids are unique on a page."""
    methods = style.in_method_order({*study.faithfulness["method"], *study.f_score["method"]})
    models = [style.model(name) for name in style.in_model_order(study.scores["model"])]
    legends: dict[str, list[list[tuple[str, Markup]]]] = {
        "roc": [[_swatch("roc", look.title, look.color, dashes=look.dashes) for look in models]]
    }
    for section in ("f-score", "faithfulness"):
        colors = [_swatch(section, look.title, look.color, marker=look.marker) for look in map(style.method, methods)]
        lines = [
            _swatch(section, look.title, style.INK, dashes=look.dashes, filled=look.filled, marker="o")
            for look in map(style.model, style.in_model_order(explained))
        ]
        legends[section] = [colors, lines]
    drawn = {"f-score": set(findings.controls(study.f_score, study.figure_controls))}
    drawn["faithfulness"] = {
        title
        for curves, controls, metric in (
            (study.faithfulness, study.figure_controls, "faithfulness"),
            (study.normalized, study.controls, "normalized_faithfulness"),
        )
        for title in findings.faithfulness_lines(findings.in_scope(curves, "frame"), controls, metric)
    }
    for section, titles in drawn.items():
        legends[section][1] += [
            _swatch(section, title, style.MUTED, dashes=dashes)
            for title, dashes in style.CONTROL_DASHES.items()
            if title in titles
        ]
    return legends


def _swatch(section: str, title: str, color: str, **look: Any) -> tuple[str, Markup]:
    name = f"{section}-{re.sub('[^a-z0-9]+', '-', title.lower())}"
    return title, style.to_svg(style.swatch(color, **look), name=name, label=title)


def _f_score(study: StudyTables) -> dict[str, Any]:
    curves = findings.overall(study.f_score)
    figure = charts.percentile_figure(
        curves, y_label="F-score", controls=findings.controls(study.f_score, study.figure_controls)
    )
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
    lines = findings.faithfulness_lines(curves, study.figure_controls, "faithfulness") if mode == "frame" else {}
    figure = charts.percentile_figure(curves, y_label="share of the score taken away", controls=lines)
    label = f"Faithfulness against percentile for each model and method, {mode} mode"
    return {
        "mode": mode,
        "scope": "annotated" if (curves["scope"] == "annotated").all() else "test",
        "n_clips": int(curves["n_clips"].max()),
        "svg": style.to_svg(figure, name=f"faithfulness-{mode}", label=label),
    }


def _normalized(study: StudyTables) -> Markup | None:
    curves = findings.in_scope(study.normalized, "frame")
    if curves.empty:
        return None
    lines = findings.faithfulness_lines(curves, study.controls, "normalized_faithfulness")
    figure = charts.percentile_figure(curves, y_label="from random frames (0) to the best (1)", controls=lines)
    label = "Normalised faithfulness against percentile for each model and method"
    return style.to_svg(figure, name="normalized", label=label)


def _clips(study: StudyTables) -> list[dict[str, Any]]:
    """The example clips, each with the panels of every model."""
    clips = {row["clip_id"]: row for row in records(study.manifest)}
    views: dict[str, dict[str, Any]] = {}
    for example in study.examples:
        clip = clips[example.clip_id]
        view = views.setdefault(example.clip_id, _describe(clip) | {"models": []})
        view["models"].append(_describe_run(study, example, clip, name=f"clip-{len(views)}-{len(view['models'])}"))
    return list(views.values())


def _describe(clip: dict[str, Any]) -> dict[str, Any]:
    label = {0: "normal", 1: "anomalous"}.get(clip["label"], "no label")
    onset, clock = clip["onset_s"], clip["recorded_at"]
    return {
        "recording": clip["recording"],
        "span": f"{onset:g} to {onset + clip['duration_s']:g} s",
        "clock": f"{clock:%Y-%m-%d %H:%M:%S}" if clock else None,
        "label": f"{label}: {clip['anomaly_type']}" if clip["anomaly_type"] else label,
        "intervals": [f"{onset:g} to {offset:g} s" for onset, offset in _intervals(clip)],
    }


def _intervals(clip: dict[str, Any]) -> list[tuple[float, float]]:
    intervals = () if clip["intervals"] is None else clip["intervals"]
    return [(float(part["onset_s"]), float(part["offset_s"])) for part in intervals]


def _describe_run(study: StudyTables, example: Example, clip: dict[str, Any], *, name: str) -> dict[str, Any]:
    same = study.scores["clip_id"] == example.clip_id
    same &= (study.scores["model"] == example.model) & (study.scores["seed"] == example.seed)
    score = next(iter(records(study.scores[same])), None)
    n_frames = example.log_mel.shape[1]
    return {
        "title": f"{style.model(example.model).title}, seed {example.seed}",
        "score": score and score["score"],
        "threshold": score and score["threshold"],
        "alarm": score and score["alarm"],
        "panels": maps.clip_panels(
            example,
            maps.clip_scale(study.setting, n_frames, float(clip["duration_s"])),
            name=name,
            subject="this clip",
            methods=style.in_method_order(example.curves),
            intervals=_intervals(clip),
            percentiles=_peak_percentiles(study, example.model),
            words=("Input", "Reconstruction"),
        ),
    }


def _peak_percentiles(study: StudyTables, model: str) -> dict[str, float]:
    """The percentile at which each method's peaks are marked: its best F-score's, else its best faithfulness's."""
    curves = findings.overall(study.f_score)
    if curves.empty:
        curves = findings.in_scope(study.faithfulness, "frame")
    return {row["method"]: row["percentile"] for row in findings.best(curves[curves["model"] == model], ["method"])}


def _training(study: StudyTables) -> list[dict[str, Any]]:
    trainings = []
    for index, name in enumerate(style.in_model_order(study.epochs["model"])):
        epochs = study.epochs[study.epochs["model"] == name]
        runs = [
            {
                "seed": seed,
                "epochs": len(run),
                "minutes": run["duration_s"].sum() / 60,
                "kept": next(iter(records(run[run["best"]].tail(1))), None),
            }
            for seed, run in epochs.groupby("seed")
        ]
        title = style.model(name).title
        figure = charts.training_figure(epochs)
        svg = style.to_svg(figure, name=f"training-{index}", label=f"Losses over epochs, {title}")
        steps = charts.steps_figure(epochs)
        label = f"Learning rate and norm of the gradient over epochs, {title}"
        steps_svg = style.to_svg(steps, name=f"steps-{index}", label=label) if steps else None
        trainings.append({"title": title, "svg": svg, "steps_svg": steps_svg, "runs": runs})
    return trainings
