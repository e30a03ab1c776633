"""A search's page and its section in a study's page, from tables as a search writes them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from faithad import parquet, schemas, storage
from faithad.errors import StudyError
from faithad.report import published
from faithad.report.search_page import render_search_report, search_section
from faithad.report.search_tables import cells, read_search
from faithad.report.search_views import heat_maps, scatter_figure

Render = Callable[..., tuple[str, Any]]
RATIOS, PATCHES = (0.15, 0.3, 0.5, 0.75, 0.9), (4, 8)


def write_search(
    root: Path,
    *,
    objective: str = "proxy_auc",
    algorithm: str = "grid",
    scheduler: str = "none",
    labelled: bool = True,
    seeds: tuple[int, ...] = (0, 1, 2),
    chosen: tuple[float, int] | None = (0.3, 4),
    name: str = "mill",
    diverged: dict[int, int] | None = None,
    rates: tuple[float, ...] = (0.001,),
) -> str:
    """A grid in which patch 8 is worse the more is hidden; one trial of (0.9, 8) was stopped and one failed.

    `diverged`: epochs that diverged, by the number of the trial. `rates`: learning rates of the trials, in turn.
    """
    rng, rows = np.random.default_rng(3), []
    drawn = [(ratio, PATCHES[number % 2]) for number, ratio in enumerate(np.sort(rng.uniform(0.15, 0.9, 14)))]
    pairs = drawn if algorithm == "optuna" else [(ratio, patch) for ratio in RATIOS for patch in PATCHES]
    chosen = drawn[3] if chosen and algorithm == "optuna" else chosen
    for ratio, patch in pairs:
        for seed in seeds if algorithm == "grid" else (0,):
            proxy = 0.9 - abs(ratio - 0.3) * 0.2 - (patch == 8) * ratio * 0.3 + rng.normal(0, 0.005)
            row: dict[str, Any] = {
                "trial": f"r{ratio}-p{patch}-s{seed}", "mask_ratio": ratio, "patch": patch, "seed": seed,
                "settings": json.dumps({"train.learning_rate": rates[len(rows) % len(rates)], "model.width": 2}),
                "status": "done", "objective": objective, "proxy_auc": proxy, "validation_loss": 20 * ratio,
                "auc": proxy - 0.05 if labelled else None, "pauc": proxy - 0.15 if labelled else None,
                "epochs": 40, "best_epoch": 31, "diverged_epochs": 0, "duration_s": 90.0, "present": True,
            }  # fmt: skip
            row["value"] = row["auc" if objective == "test_auc" else objective]
            rows.append(row)
    rows[-2] |= {"status": "stopped", "epochs": 10}
    rows[-1] |= {"status": "failed", "value": None, "proxy_auc": None, "auc": None, "pauc": None, "epochs": 0}
    for number, n_epochs in (diverged or {}).items():
        rows[number]["diverged_epochs"] = n_epochs
    table = pa.Table.from_pylist(rows, schema=schemas.SEARCH_SUMMARY)
    parquet.write_table(table, storage.join(str(root), "summary/search.parquet"), schema=schemas.SEARCH_SUMMARY)
    if chosen is not None:
        best = {"name": name, "search": {"algorithm": algorithm, "scheduler": scheduler, "objective": objective}}
        best["train"] = {"mask_ratio": float(chosen[0]), "patch": chosen[1], "learning_rate": rates[0]}
        storage.write_text(storage.join(str(root), "best.yaml"), yaml.safe_dump(best))
    return str(root)


def test_the_page_says_what_was_chosen_and_by_what(tmp_path: Path, render: Render) -> None:
    html, page = render(write_search(tmp_path), render_search_report)
    page.check_is_whole(html)
    found = cells(read_search(str(tmp_path)).trials, "value").loc[(0.3, 4)]
    chosen = f"mask ratio 0.3, patch 4, by proxy AUC {found['mean']:.3f} ± {found['std']:.3f} over 3 seeds"
    assert f"Chosen: {chosen}. No test label was used." in page.text
    assert "the chosen cell has the AUC" in page.text
    assert re.search(r"rank alike by 0\.9\d|rank alike by 1\.00", page.text)
    assert "30 trials: 28 to their end, 1 stopped early, 1 failed." in page.text
    assert "Seeds 3 (0, 1, 2)" in page.text
    assert "trained once" not in page.text
    assert "ASHA" not in page.text
    assert "published test AUC (Table 2 of the paper) Mask ratio patch 4 larger patch 15 % 0.821 0.569" in page.text
    assert "90 % 0.842 0.808" in page.text
    assert html.count('class="chosen"') == 2  # of the objective and of the test AUC, not of the published table


def test_whether_the_choice_is_better_than_the_paper_s_cell_is_told(tmp_path: Path, render: Render) -> None:
    root = write_search(tmp_path, chosen=(0.5, 4))
    counts = {"n_clips": 72, "n_recordings": 12, "n_left_out": 0, "n_seeds": 1}
    row = {"question": "best_cell", "scope": "all", "metric": "auc", "method": "mean", "protocol": "paper",
           "model_a": "mask_ratio 0.5, patch 4", "model_b": "mask_ratio 0.3, patch 4", "estimate": 0.0123,
           "smallest_effect": 0.08, "verdict": "undecided: 12 recordings, 20 are needed", **counts}  # fmt: skip
    table = pa.Table.from_pylist([row], schema=schemas.COMPARISON)
    parquet.write_table(table, f"{root}/summary/search_comparison.parquet", schema=schemas.COMPARISON)
    _, page = render(root, render_search_report)
    assert (
        "Is the chosen cell better than the paper's (mask_ratio 0.3, patch 4) on the labelled test clips? Undecided: "
        "12 recordings, 20 are needed; AUC +0.012, and 0.08 could have been found. With 1 seed this is about these "
        "networks."
    ) in page.text


def test_test_labels_are_owned_up_to(tmp_path: Path, render: Render) -> None:
    _, page = render(write_search(tmp_path, objective="test_auc"), render_search_report)
    assert "Test labels were used for the choice." in page.text
    assert "the choice was made with the same labels that measure it, so its test AUC is too high" in page.text
    assert "No test label was used" not in page.text
    assert page.text.count("Mask ratio") == 2  # no second map of the same values


def test_stopped_and_failed_trials_are_marked(tmp_path: Path, render: Render) -> None:
    search = read_search(write_search(tmp_path, scheduler="asha"))
    last = cells(search.trials, "value").loc[(0.9, 8)]
    assert (last["count"], last["stopped"], last["failed"]) == (2, 1, 1)
    kept = search.trials[(search.trials["mask_ratio"] == 0.9) & (search.trials["patch"] == 8)]["value"].dropna()
    assert last["mean"] == pytest.approx(kept.mean())
    assert last["std"] == pytest.approx(np.std(kept, ddof=1))
    text = render(str(tmp_path), render_search_report)[1].text
    assert "n 2 1 stopped 1 failed" in text
    assert "Which trials ASHA stops depends on when each of them reports" in text
    assert "Trials that were stopped early count with the value that they had" in text


def test_trials_that_diverged_are_marked(tmp_path: Path, render: Render) -> None:
    """Two of the chosen cell (0.3, 4), one of them twice; the one that failed is told as failed alone."""
    root = write_search(tmp_path, diverged={6: 1, 7: 2, -1: 1})
    found = cells(read_search(root).trials, "value")["diverged"]
    assert (found.loc[(0.3, 4)], found.sum()) == (2, 2)
    text = render(root, render_search_report)[1].text
    assert text.count("n 3 2 diverged") == 2  # by the objective and by the test AUC
    assert "over 3 seeds. 2 of its trainings diverged and went back to their best epoch. No test label" in text
    assert (
        "30 trials: 28 to their end, 1 stopped early, 1 failed; 2 diverged and went back to their best epoch." in text
    )
    assert "Trials that diverged count with their best epoch" in text
    assert re.search(r"best epoch diverged epochs minutes 0\.15 4 0 done .* 0\.3 4 0 done [0-9. ]+ 40 31 1 1\.5 ", text)
    calm = render(write_search(tmp_path / "calm", diverged={6: 1}), render_search_report)[1].text
    assert "1 of its trainings diverged and went back to its best epoch." in calm


def test_without_divergence_nothing_is_said_of_it(tmp_path: Path, render: Render) -> None:
    text = render(write_search(tmp_path), render_search_report)[1].text
    assert text.count("diverged") == 1  # the column of the trials


def test_stronger_colours_are_better_values(tmp_path: Path) -> None:
    maps = heat_maps(read_search(write_search(tmp_path, objective="validation_loss")), "validation loss")
    assert [one["published"] for one in maps] == [False, False, True]
    for one in maps:
        flat = [cell for row in one["rows"] for cell in row["cells"]]
        order = sorted(flat, key=lambda cell: cell["mean"], reverse=one["lower_is_better"])
        assert [cell["shade"] for cell in order] == sorted(cell["shade"] for cell in flat)
        assert max(cell["shade"] for cell in flat) <= 60
    loss = maps[0]["rows"]
    assert loss[0]["cells"][0]["shade"] > loss[-1]["cells"][0]["shade"]
    # Test AUCs, ours and the published ones, share their colours.
    areas = [cell for one in maps[1:] for row in one["rows"] for cell in row["cells"]]
    shades = [cell["shade"] for cell in sorted(areas, key=lambda cell: cell["mean"])]
    assert shades == sorted(shades)
    assert (shades[0], shades[-1]) == (8, 60)


def test_losses_are_ranked_the_other_way(tmp_path: Path, render: Render) -> None:
    text = render(write_search(tmp_path, objective="validation_loss"), render_search_report)[1].text
    assert re.search(r"rank alike by 0\.[3-9]", text)
    assert "losses of different mask ratios are not the same quantity" in text


@pytest.mark.parametrize("chosen", [None, (0.3, 4)])
def test_continuous_ratios_are_a_scatter(tmp_path: Path, render: Render, chosen: Any) -> None:
    html, page = render(write_search(tmp_path, algorithm="optuna", chosen=chosen), render_search_report)
    page.check_is_whole(html)
    assert ("No cell was chosen" in page.text) == (chosen is None)
    assert "proxy AUC of each trial" in page.text
    assert "published" not in page.text
    search = read_search(str(tmp_path))
    axes = scatter_figure(search, "value", "proxy AUC").axes[0]
    drawn = {str(line.get_label()): len(line.get_xdata()) for line in axes.get_lines()}
    assert drawn["patch 4, done"] + drawn["patch 8, done"] == (search.trials["status"] == "done").sum()
    assert drawn["patch 8, failed"] == drawn["patch 4, stopped"] == 1
    assert "diverged" not in drawn
    assert "crossed" not in page.text


def test_settings_that_differ_have_a_column_and_a_scatter(tmp_path: Path, render: Render) -> None:
    root = write_search(tmp_path, seeds=(0,), rates=(0.001, 0.05))
    search = read_search(root)
    assert search.chosen == (0.3, 4, 0.001)
    assert len(cells(search.trials, "value")) == 10
    html, page = render(root, render_search_report)
    page.check_is_whole(html)
    assert "Search over mask ratio, train.learning_rate and patch size" in page.text
    assert "Chosen: mask ratio 0.3, patch 4, train.learning_rate 0.001, by proxy AUC" in page.text
    assert "mask ratio patch train.learning_rate seed Status" in page.text
    assert "model.width" not in page.text, "all trials have the same"
    assert "published" not in page.text
    axes = scatter_figure(search, "value", "proxy AUC", "train.learning_rate").axes[0]
    assert (axes.get_xlabel(), axes.get_xscale()) == ("train.learning_rate", "log")
    (ring,) = [line for line in axes.get_lines() if line.get_label() == "chosen"]
    assert ring.get_xdata()[0] == 0.001
    assert heat_maps(read_search(write_search(tmp_path / "one rate")), "proxy AUC")


def test_the_chosen_score_is_told_beside_the_paper_s(tmp_path: Path, render: Render) -> None:
    root = write_search(tmp_path)
    names = [("inpainting", "band", "worst_window", "local", 0.62), ("reconstruction", "none", "mean", "none", 0.405)]
    rows = [
        {"trial": "r0.3-p4-s0", "residual": residual, "weighting": weighting, "pooling": pooling,
         "calibration": calibration, "caught": caught, "proxy_auc": caught + 0.3, "chosen": caught > 0.5}
        for residual, weighting, pooling, calibration, caught in names
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=schemas.SEARCH_SCORES)
    parquet.write_table(table, f"{root}/summary/search_scores.parquet", schema=schemas.SEARCH_SCORES)
    _, page = render(root, render_search_report)
    assert (
        "The score of best/ is inpainting, band, worst_window, local: of 2 scores, it catches most at the alarm's "
        "rate, 62% of the disturbed validation clips (AUC 0.920); the paper's score catches 40% of the disturbed "
        "validation clips (AUC 0.705). No label was used, and real disturbances may rank scores otherwise."
    ) in page.text


@pytest.mark.parametrize(
    ("of_both", "of_linear", "error", "answer"),
    [
        (0.8, 0.6, 0.05, "Yes: without it, frame_pca catches 60% (AUC 0.900); the difference is 20.0 points, its "
         "standard error 5.0."),
        (0.7, 0.6, 0.06, "Undecided, so it is left out: with it, frame_pca + mae catches 70% (AUC 0.900); the "
         "difference is 10.0 points, its standard error 6.0."),
        (0.7, 0.6, None, "Undecided, so it is left out: with it, frame_pca + mae catches 70% (AUC 0.900); the "
         "difference is 10.0 points, all clips come from one recording."),
        (0.5, 0.6, 0.0, "No: of the ensembles with it, frame_pca + mae catches 50% (AUC 0.900)."),
    ],
)  # fmt: skip
def test_whether_the_network_adds_something_is_told(
    tmp_path: Path, render: Render, of_both: float, of_linear: float, error: float | None, answer: str
) -> None:
    root = write_search(tmp_path)
    caught = {("frame_pca",): of_linear, ("frame_pca", "mae"): of_both, ("mae",): 0.1}
    chosen = ("frame_pca", "mae") if answer.startswith("Yes") else ("frame_pca",)
    rows = [
        {"trial": "r0.3-p4-s0", "members": list(members), "score": "robust" if "mae" in members else None,
         "caught": share, "proxy_auc": 0.9, "behind": max(caught.values()) - share, "behind_se": error,
         "n_normal": 40, "n_disturbed": 200, "chosen": members == chosen}
        for members, share in sorted(caught.items(), key=lambda each: -each[1])
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=schemas.SEARCH_MEMBERS)
    parquet.write_table(table, f"{root}/summary/search_members.parquet", schema=schemas.SEARCH_MEMBERS)
    html, page = render(root, render_search_report)
    page.check_is_whole(html)
    assert (
        f"best_ensemble/ has {' + '.join(chosen)}, of 3 ensembles: at the alarm's rate it catches {caught[chosen]:.0%} "
        f"of the 200 disturbed validation clips (AUC 0.900). Does mae add something to linear models? {answer} No "
        "label was used"
    ) in page.text
    assert "frame_pca + mae robust" in page.text
    assert "200 copies of 40 validation clips" in page.text


def test_diverged_trials_of_a_scatter_are_crossed(tmp_path: Path, render: Render) -> None:
    root = write_search(tmp_path, algorithm="optuna", diverged={3: 1, 5: 2, -1: 1})
    lines = scatter_figure(read_search(root), "value", "proxy AUC").axes[0].get_lines()
    (crossed,) = [line for line in lines if line.get_label() == "diverged"]
    assert len(crossed.get_xdata()) == 2
    assert "Crossed marks diverged" in render(root, render_search_report)[1].text


def test_without_labels_and_with_one_seed(tmp_path: Path, render: Render) -> None:
    html, page = render(write_search(tmp_path, labelled=False, seeds=(0,)), render_search_report)
    page.check_is_whole(html)
    assert "Seeds 1 (0)" in page.text
    assert "Each cell was trained once" in page.text
    assert "± their standard deviation" not in page.text
    assert "On the labelled test clips" not in page.text
    assert "test AUC, this search" not in page.text
    assert "nan" not in page.text.lower()
    assert math.isnan(cells(read_search(str(tmp_path)).trials, "value")["std"].iloc[0])


def test_names_are_escaped(tmp_path: Path, render: Render) -> None:
    html, page = render(write_search(tmp_path, name="<script>alert(1)</script>"), render_search_report)
    assert "<script" not in html
    assert "<script>alert(1)</script>" in page.text


def test_a_study_shows_its_search(tmp_path: Path) -> None:
    search = search_section(write_search(tmp_path))
    assert search is not None
    assert search["objective"] == "proxy AUC"
    assert "No test label was used" in search["answers"][0]
    assert search_section(str(tmp_path / "elsewhere")) is None


def test_no_search(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="faithad search"):
        render_search_report(str(tmp_path))
    empty = schemas.SEARCH_SUMMARY.empty_table()
    parquet.write_table(empty, storage.join(str(tmp_path), "summary/search.parquet"), schema=schemas.SEARCH_SUMMARY)
    with pytest.raises(StudyError, match="has no trial"):
        render_search_report(str(tmp_path))


def test_published_table() -> None:
    assert {ratio for ratio, _ in published.SEARCH} == set(RATIOS)
    assert max(published.SEARCH, key=lambda cell: published.SEARCH[cell]) == (0.3, published.SMALL_PATCH)
