"""The comparison as a page, and as tables (Parquet and CSV)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
from matplotlib.figure import Figure

from faithad import parquet, storage
from faithad.errors import ConfigError
from faithad.report import page, style
from faithad.report.audit_tables import read_audit
from faithad.report.compare import audits, drifts, runs, studies
from faithad.report.compare.runs import Row
from faithad.report.drawing import Drawing
from faithad.report.reading import is_study
from faithad.report.study_tables import read_study
from faithad.report.words import percent
from faithad.runs import layout
from faithad.vocabulary import count, listed

MAX_EVENTS, MAX_RECORDERS = 200, 8
_TICKS = 4  # of a chart's axis of time
_ORDER = {"new": 0, "gone": 1, "both": 2, "unheard": 3}


def compare_runs(locations: Sequence[str], to: str | None = None) -> str:
    """Compare each run with the first one, the reference, and write `compare.html` and the tables.

    Args:
        locations: roots of studies, or folders of audits.
        to: folder or URI; by default a new one next to the first run.

    Returns:
        The result, in words.

    Raises:
        ConfigError: fewer than two runs, or studies and audits mixed.
        StudyError: one of them is neither, or has not finished.
    """
    if len(locations) < 2:
        raise ConfigError("Give at least two runs to compare: the others are compared with the first one.")
    of_studies = {location: is_study(location) for location in locations}
    if len(set(of_studies.values())) > 1:
        of_kind = {kind: [place for place, is_one in of_studies.items() if is_one is kind] for kind in (True, False)}
        raise ConfigError(
            f"Studies are compared with studies and audits with audits, but {listed(of_kind[True])} is a study and "
            f"{listed(of_kind[False])} an audit."
        )
    to = to or runs.default_folder(locations)
    names = runs.run_names(locations)
    values, tables = (_studies if all(of_studies.values()) else _audits)(locations, names)
    for name, rows in tables.items():
        place = layout.TABLES[f"compared/{name}"]
        table = pa.Table.from_pylist(rows, schema=place.schema)
        location = storage.join(to, str(place.in_comparison))
        parquet.write_table(table, location, schema=place.schema)
        out = pa.BufferOutputStream()
        pacsv.write_csv(table, out)
        storage.write_bytes(location.removesuffix("parquet") + "csv", out.getvalue().to_pybytes())
    written = page.write(storage.join(to, layout.COMPARISON), "compare.html.j2", values)
    return "\n".join([*values["answers"], f"Comparison: {written}"])


def _audits(locations: Sequence[str], names: Sequence[str]) -> tuple[dict[str, Any], dict[str, list[Row]]]:
    compared = [audits.ComparedAudit(name, read_audit(place)) for name, place in zip(names, locations, strict=True)]
    settings = {run.name: {**run.audit.settings, layout.MODEL: _card(run.audit.model)} for run in compared}
    tables: dict[str, list[Row]] = {
        "settings": list(runs.differing_settings(settings)),
        "numbers": [row for run in compared for row in audits.numbers(run)],
        **{name: [] for name in ("clips", "events", "drift")},
    }
    reference, answers = compared[0], []
    pairs: list[dict[str, Any]] = []
    for run in compared[1:]:
        recorder_drifts = drifts.drifts(run, reference)
        whole = drifts.whole_recordings(run, reference, recorder_drifts)
        gone = drifts.whole_recordings(reference, run)
        clips = list(audits.paired_clips(run, reference))
        events = audits.events(run, reference, {*whole, *gone})
        tables["clips"] += clips
        tables["events"] += events
        tables["drift"] += drifts.drift_rows(run, reference, recorder_drifts)
        answers += [
            *drifts.drift_sentences(run, recorder_drifts),
            *drifts.whole_sentences(whole),
            *drifts.whole_sentences(gone),
            *_misfits(run, reference),
            _event_sentence(run, reference, events),
            *_alarm_sentence(run, reference, clips),
        ]
        listed_events = sorted((row for row in events if not row["whole_recording"]), key=_place)
        pairs.append(
            {
                "name": run.name,
                "clips": clips,
                "events": listed_events[:MAX_EVENTS],
                "more": max(0, len(listed_events) - MAX_EVENTS),
                "whole": len(events) - len(listed_events),
                "drift": [row._asdict() for row in recorder_drifts],
                "charts": _charts(run, reference, recorder_drifts, number=len(pairs)),
            }
        )
    return _values("audits", names, tables, answers, pairs), tables


def _studies(locations: Sequence[str], names: Sequence[str]) -> tuple[dict[str, Any], dict[str, list[Row]]]:
    compared = [
        studies.ComparedStudy(name, place, read_study(place)) for name, place in zip(names, locations, strict=True)
    ]
    tables: dict[str, list[Row]] = {
        "settings": list(runs.differing_settings({run.name: run.study.settings for run in compared})),
        "numbers": [row for run in compared for row in studies.numbers(run)],
        "clips": [],
    }
    answers: list[str] = []
    pairs: list[dict[str, Any]] = []
    for run in compared[1:]:
        clips = list(studies.paired_clips(run, compared[0]))
        tables["clips"] += clips
        answers += studies.sentences(run, compared[0], clips)
        pairs.append({"name": run.name, "clips": clips, "events": [], "drift": [], "charts": []})
    return _values("studies", names, tables, answers, pairs), tables


def _values(
    kind: str, names: Sequence[str], tables: dict[str, list[Row]], answers: list[str], pairs: list[dict[str, Any]]
) -> dict[str, Any]:
    settings = _by_run(tables["settings"], "setting", names, lambda row: row["value"])
    sections = {
        "drift": ("Drift", any(pair["drift"] for pair in pairs)),
        "events": ("Events", any(pair["events"] for pair in pairs)),
        "clips": ("The same clips", any(pair["clips"] for pair in pairs)),
        "numbers": ("Numbers", True),
        "settings": ("What was set otherwise", bool(settings)),
    }
    differ = f"Set otherwise: {listed(list(settings), most=6)}." if settings else "All settings are the same."
    return {
        "kind": kind,
        "names": names,
        "reference": names[0],
        "answers": [*answers, differ],
        "contents": [(anchor, title) for anchor, (title, is_there) in sections.items() if is_there],
        "there": {anchor for anchor, (_, is_there) in sections.items() if is_there},
        "settings": settings,
        "numbers": _by_run(tables["numbers"], "name", names, lambda row: row),
        "pairs": pairs,
    }


def _by_run(rows: list[Row], key: str, names: Sequence[str], value: Callable[[Row], Any]) -> dict[str, list[Any]]:
    """For each key the value of each run, None where a run has none."""
    values: dict[str, dict[str, Any]] = {}
    for row in rows:
        values.setdefault(row[key], {})[row["run"]] = value(row)
    return {name: [of_runs.get(run) for run in names] for name, of_runs in values.items()}


def _card(card: dict[str, Any]) -> dict[str, Any]:
    """The model's card without the long lists of its alarm, which follow from the other values."""
    alarm = {key: value for key, value in (card.get("alarm") or {}).items() if key not in ("by_length", "tail")}
    return {**card, "alarm": alarm}


def _place(row: Row) -> tuple[Any, ...]:
    return _ORDER[row["status"]], str(row["started_at"] or ""), row["recording"], row["onset_s"]


def _misfits(run: audits.ComparedAudit, reference: audits.ComparedAudit) -> list[str]:
    """What the run says of recordings that do not fit the model, and the reference does not."""
    return [f"In {run.name}, {text}" for text in run.audit.misfits if text not in reference.audit.misfits]


def _event_sentence(run: audits.ComparedAudit, reference: audits.ComparedAudit, events: list[Row]) -> str:
    in_part = [row for row in events if not row["whole_recording"]]
    n = {status: sum(row["status"] == status for row in in_part) for status in _ORDER}
    if not any(n[status] for status in ("new", "gone", "both")):
        alone = {one.name: len(one.audit.events) for one in (reference, run)}
        each = " and ".join(f"{count(n_events, 'event')} in {name}" for name, n_events in alone.items())
        return f"There are {each}, none of them in sound that both heard."
    text = f"In sound that both heard, {count(n['new'], 'event')} of {run.name} {'is' if n['new'] == 1 else 'are'} new"
    text += f", {n['gone']:,} of {reference.name} {'is' if n['gone'] == 1 else 'are'} gone, {n['both']:,} in both"
    return f"{text}; {n['unheard']:,} more are in other sound." if n["unheard"] else f"{text}."


def _alarm_sentence(run: audits.ComparedAudit, reference: audits.ComparedAudit, rows: list[Row]) -> list[str]:
    row = next((row for row in rows if row["metric"] == "alarm"), None)
    if row is None:
        return []
    shared = audits.shared_clips(run, reference)
    shares = [percent(float(shared[column].mean())) for column in ("alarm_b", "alarm_a")]
    more = {"yes": f"{run.name} alarms more often", "no": f"{run.name} alarms less often"}
    verdict = more.get(row["verdict"], f"whether that differs: {row['verdict']}")
    clips = count(row["n_clips"], "clip")
    alarmed = f"{shares[0]} alarm in {reference.name} and {shares[1]} in {run.name}"
    return [f"Of {clips} that both heard, {alarmed}: {verdict}."]


def _charts(
    run: audits.ComparedAudit,
    reference: audits.ComparedAudit,
    recorder_drifts: list[drifts.RecorderDrift],
    *,
    number: int,
) -> list[dict[str, Any]]:
    """The charts of recorders that have drifted, or else of the first recorders."""
    series = drifts.recorder_series(run, reference)
    first = sorted(
        series, key=lambda name: not any(drift.matters for drift in recorder_drifts if drift.recorder == name)
    )
    charts = []
    for place, recorder in enumerate(first[:MAX_RECORDERS]):
        of_recorder = {drift.quantity: drift for drift in recorder_drifts if drift.recorder == recorder}
        for quantity, drift in of_recorder.items():
            what = "level, dB of full scale" if quantity == "level_dbfs" else "median score"
            draw = partial(series_figure, series[recorder], quantity, what, drift.since if drift.matters else None)
            label = f"{recorder}: {what} of each recording"
            svg = Drawing(f"drift-{number}-{place}-{quantity}", label, draw).svg()
            charts.append({"title": label, "svg": svg})
    return charts


@mpl.rc_context(style.RC)
def series_figure(series: pd.DataFrame, quantity: str, y_label: str, since: pd.Timestamp | None) -> Figure:
    """A dot for each recording, in colour those that the reference lacks; a line where it changed.

    Args:
        series: see `drifts.recorder_series`.
        quantity: the column to draw.
        y_label: what it is called.
        since: when it changed; None: no line.
    """
    figure, axes = style.new_axes(5.6, 2.4, None)
    is_new, start = series["is_new"].to_numpy(), series["start"]
    for chosen, color, label in ((~is_new, style.MUTED, "reference"), (is_new, style.COLORS["blue"][0], "new")):
        axes.plot(np.flatnonzero(chosen), series[quantity].to_numpy()[chosen], linestyle="none", marker="o",
                  markersize=3, color=color, markeredgewidth=0, label=label)  # fmt: skip
    axes.set_xlabel("recordings, one after the other")
    if start.notna().all():
        # By their number, as pauses between weeks are longer than weeks.
        ticks = np.unique(np.linspace(0, len(series) - 1, _TICKS).round().astype(int))
        axes.set_xticks(ticks, [f"{start.iloc[tick]:%d %b %H:%M}" for tick in ticks])
        if since is not None:
            axes.axvline(float((start < since).sum()) - 0.5, color=style.EVENT, linewidth=1, label="change")
    axes.set_ylabel(y_label)
    return figure
