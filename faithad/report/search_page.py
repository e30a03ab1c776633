"""The search over mask ratio, patch size and further settings: a section of a study's page, and a page of its own.

A grid of ratios and patches becomes a heat map beside the published one; continuous ratios and further settings become
scatters. The first sentence says which objective chose, and whether it saw test labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from faithad import storage
from faithad.evaluation.decisions import SEEDS_NEEDED
from faithad.report import page, search_views
from faithad.report.reading import look_up
from faithad.report.search_tables import (
    SUMMARY,
    SearchTables,
    cell_name,
    cells,
    further_settings,
    read_search,
    went_back,
)
from faithad.report.words import number, records
from faithad.runs import layout
from faithad.vocabulary import count, duration, listed

MAX_TRIALS = 200
OBJECTIVES = {"proxy_auc": "proxy AUC", "validation_loss": "validation loss", "test_auc": "test AUC"}
_MEANING = {
    "proxy_auc": "how well synthetic disturbances, put into validation normals, stand out there; no test label was "
    "seen",
    "validation_loss": "the loss on validation normals; no test label was seen. It is the error at hidden cells: how "
    "many are hidden changes how hard they are to tell, so losses of different mask ratios are not the same quantity",
    "test_auc": "the AUC of the labelled test clips, as in the published experiment: the choice was made with the same "
    "labels that measure it, so its test AUC is too high",
}


def render_search_report(root: str) -> str:
    """Write `search.html` below a study's root, from `summary/search.parquet`; no audit needs to have run.

    Args:
        root: the study's root, a local path or a URI.

    Returns:
        The location of the page.

    Raises:
        StudyError: no search has run there.
    """
    search = read_search(root)
    section, trials = _section(search), search.trials
    contents = [("search", "Search"), ("trials", "Trials")]
    seeds = sorted(set(trials["seed"]))
    values = {
        "name": look_up(search.best, "name") or "Search",
        "contents": contents + [("configuration", "Configuration")] * bool(search.best),
        "answers": section["answers"],
        "search": section | {"answers": []},  # said once, at the top
        "facts": {
            "Objective": section["objective"],
            "Trials": f"{len(trials):,}",
            "Seeds": f"{len(seeds)} ({', '.join(str(seed) for seed in seeds)})",
            "Training": f"{duration(float(trials['duration_s'].sum()))} in all",
        },
        "strong": {name: " strong" if name == search.objective else "" for name in OBJECTIVES},
        "settings": further_settings(trials),
        "trials": records(trials.head(MAX_TRIALS)),
        "more": max(0, len(trials) - MAX_TRIALS),
        "settings_text": search.best_text,
    }
    return page.write(storage.join(root, layout.SEARCH_REPORT), "search.html.j2", values)


def search_section(root: str) -> dict[str, Any] | None:
    """What the section of a study's page shows; None where no search has run."""
    return _section(read_search(root)) if storage.exists(storage.join(root, SUMMARY)) else None


def _section(search: SearchTables) -> dict[str, Any]:
    title = OBJECTIVES.get(search.objective, search.objective)
    further = further_settings(search.trials)
    return {
        "answers": _answers(search, title),
        "over": f"{listed(['mask ratio', *further], separator=', ')} and patch size",
        "objective": title,
        "meaning": _MEANING.get(search.objective),
        "maps": search_views.heat_maps(search, title) if search.is_grid else [],
        "scatter": None if search.is_grid else search_views.scatter(search, title),
        "chosen": search.chosen is not None,
        "ensembles": search.ensembles,
        "trained_once": _trained_once(search),
        "marks": bool((search.trials["status"] != "done").any()),
        "diverged": bool(went_back(search.trials).any()),
    }


def _answers(search: SearchTables, title: str) -> list[str]:
    trials, by_cell = search.trials, cells(search.trials, "value")
    sentences = ["No cell was chosen: there is no best.yaml."]
    if search.chosen is not None and search.chosen in by_cell.index:
        cell = by_cell.loc[search.chosen]
        n_diverged = int(cell["diverged"])
        diverged = f". {n_diverged} of its trainings {_went_back(n_diverged)}" if n_diverged else ""
        seen = "Test labels were used for the choice" if search.objective == "test_auc" else "No test label was used"
        sentences = [f"Chosen: {cell_name(trials, search.chosen)}, by {title} {_with_spread(cell)}{diverged}. {seen}."]
    if _trained_once(search):
        sentences.append(
            "Each cell was trained once: how much its value varies from one training to the next is not known, so "
            "cells that differ by little cannot be told apart. More seeds would show it."
        )
    sentences += [_on_test(search)] if trials["auc"].notna().any() else []
    sentences += [_against_the_paper(search.verdict)] if search.verdict else []
    sentences += [_on_scores(search.scores)] if search.scores else []
    sentences += [on_members(search.ensembles)] if search.ensembles else []
    statuses, n_diverged = trials["status"].value_counts(), int(went_back(trials).sum())
    diverged = f"; {n_diverged} {_went_back(n_diverged)}" if n_diverged else ""
    if look_up(search.best, "search.scheduler") == "asha":
        sentences.append("Which trials ASHA stops depends on when each of them reports: another run may stop others.")
    sentences.append(
        f"{count(len(trials), 'trial')}: {statuses.get('done', 0)} to their end, {statuses.get('stopped', 0)} stopped "
        f"early, {statuses.get('failed', 0)} failed{diverged}."
    )
    return sentences


def _trained_once(search: SearchTables) -> bool:
    return bool(cells(search.trials, "value")["count"].max() == 1)


def _went_back(n: int) -> str:
    return f"diverged and went back to {'its' if n == 1 else 'their'} best epoch"


def _on_test(search: SearchTables) -> str:
    """How good the choice is on the test clips, compared with the best possible choice."""
    areas = cells(search.trials, "auc")["mean"].dropna()
    best = areas.idxmax()
    text = "On the labelled test clips "
    if search.chosen in areas.index:
        text += f"the chosen cell has the AUC {number(areas[search.chosen])}; "
    text += f"the highest of all cells is {number(areas[best])} ({cell_name(search.trials, best)})"
    agreement = _agreement(search)
    if search.objective != "test_auc" and agreement is not None:
        text += f". Over the cells, objective and test AUC rank alike by {agreement:.2f} (Spearman; 1: the same order)"
    return text + "."


def _on_scores(scores: Sequence[dict[str, Any]]) -> str:
    """Which score `best/` has, and what it caught compared with the paper's."""

    def caught(row: dict[str, Any]) -> str:
        return f"{row['caught']:.0%} of the disturbed validation clips (AUC {number(row['proxy_auc'])})"

    best, names = scores[0], ("residual", "weighting", "pooling", "calibration")
    text = f"The score of best/ is {', '.join(best[name] for name in names)}: of {count(len(scores), 'score')}, it "
    text += f"catches most at the alarm's rate, {caught(best)}"
    paper = [row for row in scores if tuple(row[name] for name in names) == ("reconstruction", "none", "mean", "none")]
    if paper and not paper[0]["chosen"]:
        text += f"; the paper's score catches {caught(paper[0])}"
    return f"{text}. No label was used, and real disturbances may rank scores otherwise."


def on_members(ensembles: Sequence[dict[str, Any]]) -> str:
    """Which members `best_ensemble/` has, and whether the search's network adds something to linear models.

    Args:
        ensembles: rows of `summary/search_members`.
    """

    def caught(row: dict[str, Any]) -> str:
        return f"{' + '.join(row['members'])} catches {row['caught']:.0%} (AUC {number(row['proxy_auc'])})"

    linear, with_network = (next(row for row in ensembles if (row["score"] is None) is none) for none in (True, False))
    chosen = linear if linear["chosen"] else with_network
    (network,) = next(row["members"] for row in ensembles if row["score"] and len(row["members"]) == 1)
    error, difference = linear["behind_se"], f"the difference is {100 * linear['behind']:.1f} points"
    if ensembles[0] is linear:
        answer = f"No: of the ensembles with it, {caught(with_network)}"
    elif chosen is with_network:
        answer = f"Yes: without it, {caught(linear)}; {difference}, its standard error {100 * error:.1f}"
    else:
        doubt = "all clips come from one recording" if error is None else f"its standard error {100 * error:.1f}"
        answer = f"Undecided, so it is left out: with it, {caught(with_network)}; {difference}, {doubt}"
    return (
        f"best_ensemble/ has {' + '.join(chosen['members'])}, of {count(len(ensembles), 'ensemble')}: at the alarm's "
        f"rate it catches {chosen['caught']:.0%} of the {count(chosen['n_disturbed'], 'disturbed validation clip')} "
        f"(AUC {number(chosen['proxy_auc'])}). Does {network} add something to linear models? {answer}. No label was "
        "used, and real sounds may rank ensembles otherwise."
    )


def _against_the_paper(verdict: dict[str, Any]) -> str:
    text = (
        f"Is the chosen cell better than the paper's ({verdict['model_b']}) on the labelled test clips? "
        f"{verdict['verdict'].capitalize()}; AUC {verdict['estimate']:+.3f}"
    )
    if verdict["smallest_effect"] is not None:
        text += f", and {number(verdict['smallest_effect'], 2)} could have been found"
    if verdict["n_seeds"] < SEEDS_NEEDED:
        text += f". With {count(verdict['n_seeds'], 'seed')} this is about these networks"
    return text + "."


def _agreement(search: SearchTables) -> float | None:
    """Rank correlation of objective and test AUC over cells, the better the higher in both; None for under 4 cells."""
    both = pd.DataFrame({key: cells(search.trials, key)["mean"] for key in ("value", "auc")}).dropna()
    if len(both) < 4 or both.nunique().min() < 2:
        return None
    rho = float(both["value"].rank().corr(both["auc"].rank()))
    return -rho if search.objective == "validation_loss" else rho


def _with_spread(cell: pd.Series) -> str:
    spread = f" ± {number(cell['std'])}" if math.isfinite(cell["std"]) else ""
    return f"{number(cell['mean'])}{spread} over {count(int(cell['count']), 'seed')}"
