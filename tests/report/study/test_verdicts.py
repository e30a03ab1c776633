"""The study's questions and what the page says to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from faithad import parquet, schemas, storage
from faithad.report import charts
from faithad.report.study_tables import StudyTables
from faithad.report.verdicts import disagreement, telling, verdicts, verdicts_against_chance

UNDECIDED = "undecided: 4 recordings, 20 are needed"
Row = dict[str, Any]


def row(method: str, verdict: str, **changes: Any) -> Row:
    """A row of summary/comparison: the MAE's faithfulness against the AE's."""
    return {
        "question": "masked_training", "scope": "annotated", "metric": "faithfulness", "mode": "frame",
        "replacement": "reconstruction", "percentile": None, "method": method, "model_a": "mae", "model_b": "ae",
        "protocol": "paper", "estimate": 0.1, "ci_low": 0.05, "ci_high": 0.15, "se": 0.02, "p_t": 0.001,
        "p_boot": 0.001, "p_flip": 0.001, "p_holm": 0.004, "n_clips": 46, "n_recordings": 40, "n_seeds": 5,
        "n_left_out": 0, "smallest_effect": 0.058, "verdict": verdict,
    } | changes  # fmt: skip


def line(name: str, mean: float, **changes: Any) -> Row:
    return {
        "model": "mae", "metric": "f_score", "line": name, "percentile": None, "protocol": "paper", "mean": mean,
        "scope": "annotated", "std": None, "ci_low": None, "ci_high": None, "n_seeds": 1, "n_clips": 46,
    } | changes  # fmt: skip


def with_rows(study: StudyTables, comparison: list[Row], controls: list[Row] | None = None) -> StudyTables:
    frames = (
        pa.Table.from_pylist(rows, schema=schema).to_pandas()
        for rows, schema in ((comparison, schemas.COMPARISON), (controls or [], schemas.CONTROLS_SUMMARY))
    )
    return replace(study, comparison=next(frames), controls=next(frames))


def test_the_sentence_names_every_answer(study: StudyTables) -> None:
    (verdict,) = verdicts(
        with_rows(
            study,
            [
                row("saliency", "undecided", smallest_effect=0.041),
                row("integrated_gradients", "yes"),
                row("gradient_shap", "yes"),
                row("smooth_grad", "no"),
                row("grad_cam", "undecided"),
                row("error_map", "no (equivalent)"),
                # What stands beside the primary rows is not in the sentence.
                row("error_map", "no", percentile=95.0),
                row("error_map", "no", scope="all"),
                row("error_map", "no", mode="segment"),
            ],
        )
    )
    assert verdict.sentence == (
        "MAE explanations are more faithful than the AE's: yes for Integrated Gradients and GradSHAP, no for "
        "SmoothGrad, no (equivalent) for Error map, undecided for 2 of 6 methods; 40 recordings with annotated clips, "
        "the study could have found a difference of 0.04 to 0.06."
    )
    assert [each["method"] for each in verdict.rows][:2] == ["error_map", "saliency"]


def test_too_few_recordings_and_seeds_are_said(study: StudyTables) -> None:
    rows = [row("saliency", UNDECIDED, n_recordings=4, n_seeds=1, smallest_effect=0.4)]
    (verdict,) = verdicts(with_rows(study, rows))
    assert verdict.sentence == (
        "MAE explanations are more faithful than the AE's: undecided (4 recordings, 20 are needed); 4 recordings with "
        "annotated clips. With 1 seed this is about these networks, not about the two ways of training, which needs 3."
    )


def test_without_annotations_all_clips_are_meant(study: StudyTables) -> None:
    (verdict,) = verdicts(with_rows(study, [row("saliency", "yes", scope="all")]))
    assert "yes for Saliency; 40 recordings with all test clips" in verdict.sentence


def test_a_model_against_the_best_curve_without_a_model(study: StudyTables) -> None:
    keys = {"question": "against_no_model", "metric": "f_score", "mode": None, "model_b": "level", "n_seeds": 1}
    controls = [line("level", 0.5), line("outlier", 0.4), line("random", 0.3), line("random", 0.9, percentile=95.0)]
    (verdict,) = verdicts(with_rows(study, [row("saliency", "no", **keys)], controls))
    assert verdict.sentence.startswith(
        "MAE explanations are better at locating anomalies than the level of the clip, which needs no model: no for "
        "Saliency; "
    )
    assert "ways of training" not in verdict.sentence
    assert verdict.marks == pytest.approx({"outliers": -0.1, "random frames": -0.2})


def test_how_far_the_lines_move_stands_beside_the_difference_of_two_models(study: StudyTables) -> None:
    """Random frames are more faithful under the MAE, too; the level has the same F-score under both."""
    faithful = {"metric": "faithfulness"}
    controls = [
        line("random", 0.15, **faithful), line("random", 0.1, model="ae", **faithful),
        line("oracle", 0.5, **faithful), line("oracle", 0.5, model="ae", **faithful),
        line("random", 0.9, scope="all", **faithful), line("outlier", 0.9, **faithful),
    ]  # fmt: skip
    (verdict,) = verdicts(with_rows(study, [row("saliency", "yes")], controls))
    assert verdict.marks == pytest.approx({"random frames": 0.05})


def test_each_model_has_a_figure_against_chance(study: StudyTables) -> None:
    chance = {"question": "against_chance", "model_b": "random"}
    rows = [row("saliency", "yes", **chance), row("saliency", "no", metric="f_score", mode=None, **chance)]
    controls = [line("random", 0.3), line("level", 0.5)]
    f_score, faithful = verdicts_against_chance(with_rows(study, rows, controls))
    assert f_score.title == "MAE explanations are better at locating anomalies than random frames?"
    assert f_score.marks == pytest.approx({"level": 0.2})
    assert faithful.title == "MAE explanations are more faithful than random frames?"


def test_a_method_tells_something_if_it_beats_chance_and_the_curve_without_a_model(study: StudyTables) -> None:
    keys = {"question": "against_no_model", "model_b": "outlier"}
    chance = {"question": "against_chance", "model_b": "random"}
    rows = [
        row("saliency", "yes", **chance), row("saliency", "yes", **keys),
        row("grad_cam", "no", **chance), row("grad_cam", "yes", **keys),
        row("error_map", "yes", **chance), row("error_map", "undecided", **keys),
    ]  # fmt: skip
    (sentence,) = telling(with_rows(study, rows))
    start = (
        "Explanations that tell what the score comes from, better than random frames and than the outliers of the clip"
    )
    assert sentence == f"{start}, which needs no model: Saliency of the MAE."
    (sentence,) = telling(with_rows(study, rows[2:4]))
    assert sentence == f"{start}, which needs no model: none of the MAE."
    rows[-1] = row("error_map", "yes", **keys)
    rows += [each | {"model_a": model} for model in ("ae", "frame_pca") for each in rows[2:4]]
    (sentence,) = telling(with_rows(study, rows))
    assert sentence.endswith(": all but Grad-CAM of the MAE; none of the AE and the Frame PCA.")


def test_where_protocols_disagree_is_said(study: StudyTables) -> None:
    corrected = {"protocol": "corrected"}
    both = with_rows(
        study,
        [
            row("saliency", "undecided", **corrected),
            row("grad_cam", "undecided: 4 recordings, 20 are needed", estimate=-0.1, **corrected),
            row("saliency", "yes", metric="normalized_faithfulness", **corrected),
        ],
    )
    paper = with_rows(
        study, [row("saliency", "yes"), row("grad_cam", "undecided"), row("saliency", "no", percentile=95)]
    )
    assert disagreement(both) is None
    assert disagreement(replace(both, paper_comparison=paper.comparison)) == (
        "The protocols disagree in 1 of 2 verdicts, and 1 of the differences have the other sign: masked training, "
        "faithfulness frame, annotated clips, MAE Saliency: yes under paper, undecided under corrected."
    )
    same = replace(both, paper_comparison=both.comparison[:1])
    assert disagreement(same) == "The protocols paper and corrected agree in all of 1 verdict."


def test_a_study_that_is_older_than_verdicts_has_none(study: StudyTables) -> None:
    assert verdicts(study) == []


def test_intervals_and_marks_are_drawn() -> None:
    rows = [row("saliency", "yes"), row("grad_cam", "undecided", ci_low=None, ci_high=0.3)]
    figure = charts.verdict_figure(rows, x_label="difference", marks={"outliers": -0.1})
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Saliency", "Grad-CAM"]
    spans = [tuple(line.get_xdata()) for line in axes.get_lines() if len(set(line.get_ydata())) == 1]
    assert (0.05, 0.15) in spans
    assert (0.1, 0.3) in spans
    (mark,) = [line for line in axes.get_lines() if line.get_label() == "outliers"]
    assert list(mark.get_xdata()) == [-0.1, -0.1]


@pytest.mark.long
def test_the_verdict_follows_what_is_caught(
    write_study: Callable[..., str], render: Callable[..., tuple[str, Any]], tmp_path: Path
) -> None:
    root = write_study(tmp_path, seeds=(0,), n_examples=1)
    table = pa.Table.from_pylist([row("saliency", UNDECIDED, ci_low=None)], schema=schemas.COMPARISON)
    parquet.write_table(table, storage.join(root, "summary/comparison.parquet"), schema=schemas.COMPARISON)
    html, page = render(root)
    page.check_is_whole(html)
    of_ae, of_mae, verdict = html[html.index('<ul class="answers">') :].split("<li>")[1:4]
    assert of_ae.startswith("At a threshold that 5 % of the normal clips exceed, the AE catches 43 % of the anomalous")
    assert "the MAE catches 43 % of the anomalous clips (37 to 48 %)." in of_mae
    assert verdict.startswith("MAE explanations are more faithful than the AE&#39;s: undecided (4 recordings, 20 are")
    assert "MAE explanations are more faithful than the AE's? Difference and 95 % interval of each method" in page.text
    assert f"Saliency 0.100 \N{EN DASH} 0.0040 0.06 46 {UNDECIDED}" in page.text
