"""A study's numbers in the layout of the paper's tables (`faithad tables`), as LaTeX, CSV or Markdown.

    detection       Table 1: AUC and pAUC of each model
    mask_ratio      Table 2: test AUC of the MAE by mask ratio and patch; needs a search
    explanations    in place of table 3: F-score and faithfulness of each model and method
    verdicts        is one model's method better than another's, than random frames, than a curve without a model?
    worth           is a network better than a linear model?
    means           F-score and faithfulness of the explanations, and of the lines, over all percentiles

How table 3 of the paper is laid out is not known here. What it would hold, the paper draws as curves over the
percentile (figures 4 and 5). `explanations` is laid out as the authors tabulate faithfulness for a second data set
(README of their repository): models one below the other, methods side by side, the mean of the two highest percentiles,
the best method of each model in bold. F-scores are given at the best percentile, as in the paper's text.

An audit of recordings has its events as a table, and how they agree with labels where it was evaluated.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import pandas as pd

from faithad import storage
from faithad.errors import ConfigError
from faithad.report import event_views, findings, style, verdicts
from faithad.report.audit_tables import AuditTables, read_audit
from faithad.report.reading import is_study
from faithad.report.search_tables import SUMMARY, SearchTables, cells, read_search
from faithad.report.study_tables import StudyTables, read_study
from faithad.report.trust import trust_of
from faithad.report.words import UNKNOWN, number, records
from faithad.vocabulary import count

_PLUS_MINUS = "\N{PLUS-MINUS SIGN}"


class PaperTable(NamedTuple):
    """A table of text.

    Attributes:
        name: of its file.
        caption: what it shows.
        header: of its columns.
        rows: its cells.
        best: (row, column) of the cells to emphasise.
    """

    name: str
    caption: str
    header: list[str]
    rows: list[list[str]]
    best: frozenset[tuple[int, int]] = frozenset()


def write_tables(run: str, *, formats: Sequence[str], to: str | None = None) -> str:
    """The tables of a study or an audit.

    Args:
        run: the root of a study, or the folder of an audit.
        formats: of FORMATS.
        to: folder or URI for one file per table and format; None: the tables themselves are returned.

    Returns:
        The tables, or what was written, in words.

    Raises:
        ConfigError: there is no such format.
        StudyError: there is no finished study or audit.
    """
    unknown = [format for format in formats if format not in FORMATS]
    if unknown or not formats:
        raise ConfigError(f"--format {','.join(unknown)}: the formats of tables are {', '.join(FORMATS)}.")
    tables = paper_tables(run)
    if to is None:
        return "\n".join(FORMATS[format][1](table) for format in formats for table in tables)
    for format in formats:
        suffix, text = FORMATS[format]
        for table in tables:
            storage.write_text(storage.join(to, f"{table.name}.{suffix}"), text(table))
    names = ", ".join(table.name for table in tables)
    return f"{count(len(tables), 'table')} ({names}) as {', '.join(formats)}: {to}"


def paper_tables(run: str) -> list[PaperTable]:
    """The tables of a study, or of an audit; those for which there is nothing are left out."""
    if not is_study(run):
        audit = read_audit(run)
        return [_events(audit), *([_agreement(audit)] if audit.agreement else [])]
    study = read_study(run)
    tables = [_detection(study)] if len(study.detection) else []
    if storage.exists(storage.join(run, SUMMARY)):
        search = read_search(run)
        tables += [_mask_ratio(search)] if search.is_grid else []
    tables += [_explanations(study)] if len(study.faithfulness) else []
    return [*tables, *(table for table in (_verdicts(study), _worth(study), _means(study)) if table.rows)]


def _detection(study: StudyTables) -> PaperTable:
    rows = findings.detection_rows(study)
    several = {row["model"] for row in rows if row["pooling"] != "whole clip"}
    titles = [
        style.model(row["model"]).title + (f" ({row['pooling']})" if row["model"] in several else "") for row in rows
    ]
    caption = (
        f"Detection on the test clips{_seeds(study)}: area under the ROC curve, whole (AUC) and below a false-positive "
        "rate of 0.1 (pAUC)."
    )
    cells = [[title, _mean(row["auc"]), _mean(row["pauc"])] for title, row in zip(titles, rows, strict=True)]
    best = _highest([[row[metric] and row[metric]["mean"] for row in rows] for metric in ("auc", "pauc")])
    return PaperTable(
        "detection", caption, ["Model", "AUC", "pAUC"], cells, frozenset((row, 1 + column) for column, row in best)
    )


def _mask_ratio(search: SearchTables) -> PaperTable:
    areas = cells(search.trials, "auc")
    patches = sorted(set(search.trials["patch"]))
    ratios = sorted(set(search.trials["mask_ratio"]), reverse=True)
    by_cell = dict(zip(areas.index, records(areas), strict=True))
    rows = [[by_cell.get((ratio, patch)) for patch in patches] for ratio in ratios]
    best = _highest([[cell and cell["mean"] for row in rows for cell in row]])
    seeds = count(search.trials["seed"].nunique(), "seed")
    return PaperTable(
        "mask_ratio",
        f"Test AUC of the MAE by mask ratio and patch size, mean over {seeds}. A choice by these numbers would use the "
        "test labels.",
        ["Mask ratio", *(f"Patch {patch}" for patch in patches)],
        [[f"{ratio * 100:g} %", *map(_mean, row)] for ratio, row in zip(ratios, rows, strict=True)],
        frozenset((place // len(patches), 1 + place % len(patches)) for _, place in best),
    )


def _explanations(study: StudyTables) -> PaperTable:
    """Models one below the other, methods side by side; the best method of each row is emphasised."""
    curves = {
        "F-score": findings.overall(study.f_score),
        "Faithfulness, frames": findings.in_scope(study.faithfulness, "frame"),
        "Faithfulness, segments": findings.in_scope(study.faithfulness, "segment"),
    }
    methods = style.in_method_order({method for frame in curves.values() for method in frame["method"]})
    rows, values = [], []
    for title, frame in curves.items():
        highest = sorted(set(frame["percentile"]))[-2:]
        for model in style.in_model_order(frame["model"]):
            of_model = frame[frame["model"] == model]
            if title == "F-score":
                best_rows = {row["method"]: row for row in findings.best(of_model, ["method"])}
                texts = {name: f"{number(row['mean'])} ({row['percentile']:g})" for name, row in best_rows.items()}
                means = {name: row["mean"] for name, row in best_rows.items()}
            else:
                of_highest = of_model[of_model["percentile"].isin(highest)]
                means = of_highest.groupby("method")["mean"].mean().to_dict()
                texts = {name: number(mean) for name, mean in means.items()}
            rows.append([title, style.model(model).title, *(texts.get(method, UNKNOWN) for method in methods)])
            values.append([means.get(method) for method in methods])
    at = " and ".join(f"{percentile:g}" for percentile in sorted(set(study.faithfulness["percentile"]))[-2:])
    return PaperTable(
        "explanations",
        f"Explanations: F-score at the best percentile, in brackets; faithfulness as the mean of percentiles {at}. The "
        "error map is the upper control of faithfulness.",
        ["Measure", "Model", *(style.method(method).title for method in methods)],
        rows,
        frozenset((row, 2 + column) for row, column in _highest(values)),
    )


def _verdicts(study: StudyTables) -> PaperTable:
    """Questions one below the other, methods side by side."""
    answers = [*verdicts.verdicts(study), *verdicts.verdicts_against_chance(study)]
    methods = style.in_method_order({row["method"] for answer in answers for row in answer.rows})
    rows = []
    for answer in answers:
        texts = {row["method"]: f"{_verdict(row)} ({row['estimate']:+.3f})" for row in answer.rows}
        rows.append([answer.title, *(texts.get(method, UNKNOWN) for method in methods)])
    caption = "Verdicts, with the mean difference over all percentiles. A verdict of yes or no needs 20 recordings."
    return PaperTable("verdicts", caption, ["Question", *(style.method(method).title for method in methods)], rows)


def _worth(study: StudyTables) -> PaperTable:
    rows = [
        [
            *(style.model(row[model]).title for model in ("model_a", "model_b")),
            row["by"],
            f"{row['estimate']:+.3f}",
            f"{row['ci_low']:+.3f} to {row['ci_high']:+.3f}",
            _verdict(row),
        ]
        for row in verdicts.worth_rows(study)
    ]
    header = ["Network", "Linear model", "Measure", "Difference", "95 % interval", "Better?"]
    return PaperTable("worth", "Networks against linear models.", header, rows)


def _means(study: StudyTables) -> PaperTable:
    """Measures, methods and lines one below the other, models side by side."""
    models = style.in_model_order(study.controls["model"])
    frames = {
        "f_score": ("F-score", findings.overall(study.judged_f_score)),
        "faithfulness": ("Faithfulness, frames", findings.in_scope(study.judged_faithfulness, "frame")),
    }
    rows = []
    for metric, (title, frame) in frames.items():
        of_methods = frame.groupby(["method", "model"])["mean"].mean()
        methods = style.in_method_order(set(frame["method"]))
        rows += [
            [title, style.method(method).title, *(_known(of_methods.get((method, model))) for model in models)]
            for method in methods
        ]
        scope = "annotated" if metric == "f_score" else next(iter(frame["scope"]), "all")
        of_lines = {model: verdicts.line_means(study.controls, model, metric, scope) for model in models}
        rows += [
            [title, line.capitalize(), *(_known(of_lines[model].get(name)) for model in models)]
            for name, line in style.LINES.items()
            if any(name in means for means in of_lines.values())
        ]
    caption = "Explanations and the lines beside them: means over all percentiles, as the verdicts are judged."
    header = ["Measure", "Explanation or line", *(style.model(model).title for model in models)]
    return PaperTable("means", caption, header, rows if models else [])


def _known(value: float | None) -> str:
    return UNKNOWN if value is None or pd.isna(value) else number(value)


def _verdict(row: dict[str, Any]) -> str:
    return str(row["verdict"]).partition(":")[0]


def _events(audit: AuditTables) -> PaperTable:
    trust = trust_of(audit.events, audit.judged)
    views = [event_views.describe(audit, position, trust[position]) for position in range(len(audit.events))]
    rows = [
        [
            str(view["id"]),
            view["when"] or UNKNOWN,
            "; ".join(f"{part['recording']}, {part['span']}" for part in view["places"]),
            view["duration"],
            view["times"],
            view["bands"],
            view["method"] or "largest error",
            view["trust"].grade,
        ]
        for view in views
    ]
    header = ["No.", "When", "Recording", "Duration", "Strength", "Frequencies", "Explained by", "Trust"]
    return PaperTable("events", "Events of the audit, by time.", header, rows)


def _agreement(audit: AuditTables) -> PaperTable:
    header = ["What is matched", "True", "Of", "Precision", "Labels found", "Of", "Recall"]
    rows = [
        [
            "events" if row["detections"] == "events" else "seconds that carry them",
            *(f"{row[name]:,}" for name in ("n_true", "n_detections")),
            number(row["precision"]),
            *(f"{row[name]:,}" for name in ("n_found", "n_reference")),
            number(row["recall"]),
        ]
        for row in audit.agreement
    ]
    return PaperTable("labels", "Agreement of the audit with labels.", header, rows)


def _seeds(study: StudyTables) -> str:
    n_seeds = study.scores["seed"].nunique()
    return f", mean {_PLUS_MINUS} standard deviation over {n_seeds} seeds" if n_seeds > 1 else ""


def _mean(row: dict[str, Any] | None) -> str:
    """A mean with its standard deviation over seeds, as far as they are known."""
    if row is None:
        return UNKNOWN
    spread = row.get("std")
    return number(row["mean"]) + ("" if spread is None or pd.isna(spread) else f" {_PLUS_MINUS} {number(spread)}")


def _highest(groups: Iterable[Sequence[float | None]]) -> list[tuple[int, int]]:
    """For each group that has a value, its number and the position of the highest one."""
    known = [[(value, -place) for place, value in enumerate(group) if value is not None] for group in groups]
    return [(number, -max(values)[1]) for number, values in enumerate(known) if values]


def _latex(table: PaperTable) -> str:
    cells = [
        [f"\\textbf{{{_tex(cell)}}}" if (row, column) in table.best else _tex(cell) for column, cell in enumerate(line)]
        for row, line in enumerate(table.rows)
    ]
    lines = [" & ".join(line) + r" \\" for line in [[_tex(name) for name in table.header], *cells]]
    return "\n".join(
        [
            "% Needs the package booktabs.",
            r"\begin{table}[t]",
            r"\centering",
            f"\\caption{{{_tex(table.caption)}}}",
            f"\\label{{tab:{table.name.replace('_', '-')}}}",
            f"\\begin{{tabular}}{{{'l' * len(table.header)}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    _PLUS_MINUS: r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    UNKNOWN: "--",
} | {sign: f"\\{sign}" for sign in "&%$#_{}"}


def _tex(text: str) -> str:
    return "".join(_TEX.get(sign, sign) for sign in " ".join(text.split()))


def _csv(table: PaperTable) -> str:
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([table.header, *table.rows])
    return out.getvalue()


def _markdown(table: PaperTable) -> str:
    cells = [
        [f"**{_md(cell)}**" if (row, column) in table.best else _md(cell) for column, cell in enumerate(line)]
        for row, line in enumerate(table.rows)
    ]
    lines = [[_md(name) for name in table.header], ["---"] * len(table.header), *cells]
    return "\n".join([f"{_md(table.caption)}\n", *(f"| {' | '.join(line)} |" for line in lines), ""])


def _md(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(text.split()))


# name: suffix of its files, and how a table is written in it.
FORMATS: dict[str, tuple[str, Callable[[PaperTable], str]]] = {
    "latex": ("tex", _latex),
    "csv": ("csv", _csv),
    "markdown": ("md", _markdown),
}
