"""The page of a study: its figures and tables put into `study.html.j2`."""

from __future__ import annotations

import base64
import re
from typing import Any

from markupsafe import Markup

from faithad import storage
from faithad.evaluation.statistics import n_normal_needed
from faithad.model.table import MODELS
from faithad.report import charts, findings, maps, page, study_figures, style
from faithad.report.answers import answers
from faithad.report.checks import checks_section
from faithad.report.health import health_view
from faithad.report.ledger import ledger_view
from faithad.report.reading import Example
from faithad.report.search_page import search_section
from faithad.report.study_tables import StudyTables, read_study
from faithad.report.verdicts import worth_rows
from faithad.report.words import period, records
from faithad.runs import layout
from faithad.runs.prune import MAPS, SPECTROGRAMS, pruned
from faithad.vocabulary import CAUGHT_AT, FITTED, listed

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

# Where there is a sound to play.
_SCRIPTS = ("clips.js",)
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
    scripts = _SCRIPTS if values["n_sounds"] else ()
    values["contents"] = [
        (name, title) for name, title in _SECTIONS.items() if values.get(name, True) or name not in _OPTIONAL
    ]
    return page.write(storage.join(root, layout.REPORT), "study.html.j2", values, scripts=scripts)


def _values(study: StudyTables) -> dict[str, Any]:
    reasons = findings.missing_truth(study)
    runs, normalized = study.scores[["model", "seed"]].drop_duplicates(), study_figures.normalized_drawing(study)
    detection, shares = findings.detection_rows(study), [*CAUGHT_AT, "caught", "false_alarms"]
    sizes = {(row["n_normal"], row["n_anomalous"]) for row in detection}
    clips = _clips(study)
    return {
        "study": study,
        "answers": answers(study),
        "verdicts": _verdicts(study),
        "worth": worth_rows(study),
        "worth_figures": _titled(study_figures.worth_drawings(study)),
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
        "roc": _titled(study_figures.roc_drawings(study)),
        "timelines": _titled(study_figures.time_drawings(study)),
        "timed": bool(study.scores["recorded_at"].notna().all()),
        "labelled": bool(study.scores["label"].notna().any()),
        "legends": _legends(study),
        "explained": findings.explained_clips(study),
        "f_score": None if reasons.f_score else _f_score(study),
        "faithfulness": _faithfulness(study),
        "seconds": findings.second_rows(study),
        "psds": findings.psds_rows(study),
        "seconds_chance": findings.seconds_chance(study),
        "faithfulness_rows": findings.faithfulness_rows(study),
        "normalized": normalized and normalized.svg(),
        "checks": checks_section(study),
        "flat_curves": study.flat_curves[study.flat_curves["n_flat"] > 0].to_dict("records"),
        "clips": clips,
        "n_sounds": sum(1 for clip in clips if clip["sound"]),
        "in_khz": study.setting("features.sample_rate_hz") is not None,
        "training": _training(study),
        "health": health if (health := health_view(study.health)).sentences else None,
        "ledger": ledger_view(study.ledger),
    }


def _verdicts(study: StudyTables) -> list[dict[str, Any]]:
    return [
        {"title": verdict.title, "svg": drawing.svg(), "rows": verdict.rows}
        for verdict, drawing in study_figures.verdict_drawings(study)
    ]


def _titled(drawings: list[study_figures.Titled]) -> list[dict[str, Any]]:
    return [
        {"title": titled.title, "svg": titled.drawing.svg(), "threshold": titled.has_threshold} for titled in drawings
    ]


def _legends(study: StudyTables) -> dict[str, list[list[tuple[str, Markup, str]]]]:
    """The lines of the legend above each section's figures, with the class of what they show; every section has its
    own, for ids are unique on a page.
    """
    legends = {
        "roc": study_figures.roc_legend(study),
        "f-score": study_figures.f_score_legend(study),
        "faithfulness": study_figures.faithfulness_legend(study),
    }
    return {
        section: [[_swatch(section, entry) for entry in line] for line in lines] for section, lines in legends.items()
    }


def _swatch(section: str, entry: style.LegendEntry) -> tuple[str, Markup, str]:
    name = f"{section}-{re.sub('[^a-z0-9]+', '-', entry.title.lower())}"
    shows = style.class_name(entry.shows) if entry.shows else ""
    return entry.title, style.to_svg(style.swatch(entry), name=name, label=entry.title), shows


def _f_score(study: StudyTables) -> dict[str, Any]:
    curves = findings.overall(study.f_score)
    return {
        "svg": study_figures.f_score_drawing(study).svg(),
        "rows": findings.f_score_rows(study),
        "types": findings.anomaly_types(study),
        "n_clips": int(curves["n_clips"].max()) if len(curves) else 0,
    }


def _faithfulness(study: StudyTables) -> list[dict[str, Any]]:
    panels = []
    for mode, drawing in study_figures.faithfulness_drawings(study).items():
        curves = findings.in_scope(study.faithfulness, mode)
        scope = "annotated" if (curves["scope"] == "annotated").all() else "test"
        panels.append({"mode": mode, "scope": scope, "n_clips": int(curves["n_clips"].max()), "svg": drawing.svg()})
    return panels


def _clips(study: StudyTables) -> list[dict[str, Any]]:
    """The example clips, each with the panels of every model."""
    views: dict[str, dict[str, Any]] = {}
    for example in study.examples:
        clip = study_figures.clip_of(study, example)
        view = views.setdefault(example.clip_id, _describe(clip) | _sound(study, example.clip_id) | {"models": []})
        view["models"].append(_describe_run(study, example, name=f"clip-{len(views)}-{len(view['models'])}"))
    return list(views.values())


def _sound(study: StudyTables, clip_id: str) -> dict[str, Any]:
    """The sound of a clip, or why there is none; None where the study asks for no sound."""
    row = study.sounds.get(clip_id)
    if row is None or row["opus"] is None:
        return {"sound": None, "no_sound": row and row["reason"]}
    sound = f"data:audio/ogg;base64,{base64.b64encode(row['opus']).decode('ascii')}"
    return {"sound": sound, "no_sound": None, "gain_db": round(row["gain_db"])}


def _describe(clip: dict[str, Any]) -> dict[str, Any]:
    label = {0: "normal", 1: "anomalous"}.get(clip["label"], "no label")
    onset, clock = clip["onset_s"], clip["recorded_at"]
    return {
        "recording": clip["recording"],
        "duration_s": clip["duration_s"],
        "span": f"{onset:g} to {onset + clip['duration_s']:g} s",
        "clock": f"{clock:%Y-%m-%d %H:%M:%S}" if clock else None,
        "label": f"{label}: {clip['anomaly_type']}" if clip["anomaly_type"] else label,
        "intervals": [f"{onset:g} to {offset:g} s" for onset, offset in study_figures.intervals_of(clip)],
    }


def _describe_run(study: StudyTables, example: Example, *, name: str) -> dict[str, Any]:
    same = study.scores["clip_id"] == example.clip_id
    same &= (study.scores["model"] == example.model) & (study.scores["seed"] == example.seed)
    score = next(iter(records(study.scores[same])), None)
    return {
        "title": f"{style.model(example.model).title}, seed {example.seed}",
        "score": score and score["score"],
        "threshold": score and score["threshold"],
        "alarm": score and score["alarm"],
        "panels": maps.panel_views(study_figures.clip_panels(study, example), name=name, subject="this clip"),
    }


def _training(study: StudyTables) -> list[dict[str, Any]]:
    trainings = []
    for name, losses, steps in study_figures.training_drawings(study):
        runs = [
            {
                "seed": seed,
                "epochs": len(run),
                "minutes": run["duration_s"].sum() / 60,
                "kept": next(iter(records(run[run["best"]].tail(1))), None),
            }
            for seed, run in study.epochs[study.epochs["model"] == name].groupby("seed")
        ]
        svgs = {"svg": losses.svg(), "steps_svg": steps and steps.svg()}
        trainings.append({"title": style.model(name).title, "runs": runs} | svgs)
    return trainings
