"""What the page says of deep clips, of cost, and of whether a network is worth it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from faithad import parquet, schemas
from faithad.report.checks import cost_figure, cost_rows, turned
from faithad.report.study_tables import StudyTables, read_study
from faithad.report.verdicts import worth
from tests.report.study.test_verdicts import row, with_rows

Row = dict[str, Any]
PAPER = {"protocol": "paper", "std": 0.1, "ci_low": 0.2, "ci_high": 0.4, "n_seeds": 2, "n_clips": 24}


def linear(method: str, verdict: str, **changes: Any) -> Row:
    keys = {"question": "against_linear", "mode": None, "replacement": None, "model_b": "frame_pca"}
    return row(method, verdict, **(keys | changes))


@pytest.fixture(scope="module")
def checked(write_study: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A study with the tables of its checks, and one row of normalised faithfulness."""
    root = write_study(tmp_path_factory.mktemp("checked"), seeds=(0,), n_examples=1)
    mae = PAPER | {"model": "mae", "method": "saliency", "mean": 0.3}
    tables = {
        "replacements": [
            mae | {"metric": "faithfulness", "replacement": name, "rank_agreement": tau}
            for name, tau in (("reconstruction", None), ("training_mean", 0.867), ("inpainting", None))
        ]
        + [mae | {"metric": "deletion", "replacement": "reconstruction", "rank_agreement": None, "mean": 0.7}],
        "seconds_summary": [
            mae | {"metric": metric, "ranked": ranked, "scope": scope, "chance": 0.21, "mean": mean, "method": name}
            for name, metric, ranked, scope, mean in (
                ("error_map", "auroc", "pooled", "annotated", 0.871),
                ("error_map", "auroc", "pooled", "all", 0.861),
                ("error_map", "average_precision", "pooled", "annotated", 0.671),
                ("level", "auroc", "per_clip", "annotated", 0.831),
            )
        ],
        "psds_summary": [
            mae
            | {"mean": 0.456, "false_per_hour": [1.0, 10.0, 100.0], "found": [0.123, 0.234, 0.789], "n_reference": 7}
        ],
        "bands": [mae | {"scope": "all", "mean": 0.654}, mae | {"scope": "all", "method": "outlier", "mean": 0.432}],
        "sanity": [
            mae | {"check": check, "at": at, "passed": passed, "mean": mean}
            for check, at, passed, mean in (
                ("randomisation", 25.0, None, 0.9),
                ("randomisation", 100.0, True, 0.123),
                ("completeness", None, False, 0.018),
                ("seconds", None, None, 0.25),
            )
        ],
        "comparison": [linear("mean", "yes", metric="auc", scope="all"), linear("saliency", "no", metric="f_score")],
    }
    for name, rows in tables.items():
        schema = getattr(schemas, name.upper())
        name = name.removesuffix("_summary")
        parquet.write_table(pa.Table.from_pylist(rows, schema), f"{root}/summary/{name}.parquet", schema=schema)
    location = f"{root}/summary/faithfulness.parquet"
    normalized = mae | {"mode": "frame", "scope": "annotated", "metric": "normalized_faithfulness"}
    rows = [normalized | {"percentile": 90.0, "mean": 0.4}, normalized | {"percentile": 95.0, "mean": 0.6}]
    new = pa.Table.from_pylist(rows, schemas.FAITHFULNESS_SUMMARY)
    table = pa.concat_tables([parquet.read_table(location).cast(new.schema), new])
    parquet.write_table(table, location, schema=new.schema)
    return root


@pytest.mark.long
def test_the_page_shows_all_checks(checked: str, render: Callable[..., tuple[str, Any]]) -> None:
    html, page = render(checked)
    page.check_is_whole(html)
    section = page.text[page.text.index("Checks of the explanations on 24 clips") :]
    assert "MAE Saliency 0.300 0.300 0.300 0.700 \N{EN DASH}" in section
    assert "MAE Saliency 0.654" in section
    assert "MAE outliers (no model) 0.432" in section
    assert "MAE Saliency 0.123 (pass) 0.018 (fail) \N{EN DASH} \N{EN DASH} \N{EN DASH} 0.25" in section
    assert "with Kendall's tau 0.87" in section
    assert "the protocol corrected takes about 180, a clip that is checked here about 280 more" in section
    assert "Seconds a clip and normalised faithfulness of each model and method" in page.text
    assert "Normalised faithfulness against percentile for each model and method" in page.text
    assert "MAE Frame PCA AUC, whole clip 0.100" in page.text
    assert "MAE Frame PCA F-score, Saliency 0.100" in page.text
    assert "MAE against Frame PCA: difference and 95 % interval of each score and method" in page.text
    dash = "\N{EN DASH}"
    assert f"MAE Error map 0.871 0.200 to 0.400 {dash} 0.861 0.671 0.200 to 0.400 {dash} {dash}" in page.text
    assert f"MAE level (beside the methods) {dash} {dash} 0.831 {dash}" in page.text
    assert "the share of annotated seconds, here 0.21." in page.text
    assert "MAE 0.456 0.100 0.200 to 0.400 0.123 0.234 0.789" in page.text


def test_cost_and_worth_are_drawn_beside_each_other(checked: str) -> None:
    rows = cost_rows(read_study(checked))
    assert [(row["model"], row["method"], row["seconds"]) for row in rows] == [("mae", "saliency", 0.25)]
    assert rows[0]["faithfulness"] == pytest.approx(0.5)
    (point,) = [line for line in cost_figure(rows).axes[0].get_lines() if line.get_label() == "MAE Saliency"]
    assert (point.get_xdata()[0], point.get_ydata()[0]) == (0.25, pytest.approx(0.5))


def test_whether_the_network_is_worth_it_is_said_for_each_linear_model(study: StudyTables) -> None:
    rows = [
        linear("mean", "yes", metric="auc", scope="all"),
        linear("worst_second", "undecided: 4 recordings, 20 are needed", metric="auc", scope="all"),
        linear("saliency", "no", metric="f_score"),
        linear("grad_cam", "no", metric="f_score"),
        linear("saliency", "yes", metric="f_score", model_b="frame_ridge"),
    ]
    assert worth(with_rows(study, rows)) == [
        "Is the MAE worth it? Compared with the Frame PCA, it detects anomalies better: undecided for 1 way of "
        "pooling, yes for 1 way of pooling; it locates them better: no for 2 methods. Compared with the Frame ridge, "
        "it locates them better: yes for 1 method.",
    ]


def test_a_difference_that_turns_with_the_replacement_is_told(study: StudyTables) -> None:
    rows = [
        row("saliency", "undecided", estimate=0.1),
        row("saliency", "undecided", estimate=-0.1, replacement="inpainting"),
        row("grad_cam", "undecided", estimate=0.1),
        row("grad_cam", "undecided", estimate=0.2, replacement="training_mean"),
    ]
    (sentence,) = turned(with_rows(study, rows).comparison)
    assert sentence == "Whether the MAE is more faithful than the AE turns with the replacement for Saliency."
    assert turned(with_rows(study, rows[2:]).comparison) == []


def test_a_study_without_checks_has_no_such_section(study: StudyTables) -> None:
    from faithad.report.checks import checks_section

    nothing = {name: getattr(study, name)[:0] for name in ("replacements", "bands", "sanity")}
    assert checks_section(replace(study, **nothing)) is None
