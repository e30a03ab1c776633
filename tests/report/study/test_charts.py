"""The figures of a study's page before they are drawn, and what becomes of them when they are."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from faithad.attribution import methods as attribution
from faithad.model.table import MODELS
from faithad.report import charts, findings, maps, published, style, timeline
from faithad.report.study_tables import StudyTables

# What a name in a file may hold: markup, quotes, an expression of the template language, mathematics of matplotlib.
NASTY = "<script>alert(\"x\")<script> & 'board' {{ 7 * 7 }} $x_1$"

PAPER = [style.method(name) for name in attribution.PAPER_METHODS]


def drawn_scores(run: pd.DataFrame) -> Figure:
    return timeline.score_figure(timeline.time_line(run, "score"), run["threshold"].iloc[0])


@pytest.mark.parametrize("table", ["f_score", "faithfulness"])
def test_all_twelve_curves_are_drawn(study: StudyTables, table: str) -> None:
    if table == "f_score":
        curves, controls = findings.overall(study.f_score), findings.controls(study.f_score, study.figure_controls)
    else:
        curves, controls = findings.in_scope(study.faithfulness, "frame"), {}
    lines = charts.percentile_figure(curves, y_label="", controls=controls).axes[0].get_lines()
    drawn = {str(line.get_label()): line for line in lines}
    expected = {f"{style.model(name).title} {method.title}" for name in ("ae", "mae") for method in PAPER}
    assert len(expected) == 12
    assert set(drawn) == expected | set(controls)
    assert len(lines) == 12 + len(controls)
    row = curves[(curves["model"] == "mae") & (curves["method"] == "grad_cam")].sort_values("percentile")
    np.testing.assert_allclose(drawn["MAE Grad-CAM"].get_ydata(), row["mean"])
    np.testing.assert_allclose(drawn["MAE Grad-CAM"].get_xdata(), range(90, 100))


def test_curves_are_told_apart(study: StudyTables) -> None:
    figure = charts.percentile_figure(findings.overall(study.f_score), y_label="")
    lines = {str(line.get_label()): line for line in figure.axes[0].get_lines()}
    for method in PAPER:
        assert lines[f"AE {method.title}"].get_color() == lines[f"MAE {method.title}"].get_color() == method.color
        assert lines[f"AE {method.title}"].get_linestyle() == "--"
        assert lines[f"MAE {method.title}"].get_linestyle() == "-"
    looks = [style.method(name) for name in attribution.METHODS]
    assert len({look.color for look in looks}) == len({look.marker for look in looks}) == len(looks)
    models = [style.model(name) for name in MODELS]
    assert len({(look.color, look.dashes) for look in models}) == len(models)


def test_controls_are_grey_and_dashed(study: StudyTables) -> None:
    controls = findings.controls(study.f_score, study.figure_controls)
    assert set(controls) == {style.RANDOM, style.EVERY_SECOND}
    figure = charts.percentile_figure(findings.overall(study.f_score), y_label="", controls=controls)
    for line in figure.axes[0].get_lines():
        if line.get_label() in controls:
            assert line.get_color() == style.MUTED
            assert line.get_linestyle() == "--"


def test_the_lines_of_faithfulness_are_means_over_the_models_in_the_methods_scope(study: StudyTables) -> None:
    curves = findings.in_scope(study.faithfulness, "frame")
    keys = {"metric": "faithfulness", "scope": "annotated", "percentile": 95.0}
    lines = pd.DataFrame(
        [
            keys | {"line": "random", "model": "ae", "mean": 0.1},
            keys | {"line": "random", "model": "mae", "mean": 0.2},
            keys | {"line": "random", "model": "ae", "mean": 0.9, "scope": "all"},
            keys | {"line": "random", "model": "ae", "mean": 0.9, "percentile": None},
            keys | {"line": "outlier", "model": "ae", "mean": -0.3},
            keys | {"line": "outlier", "model": "ae", "mean": 0.9, "metric": "normalized_faithfulness"},
        ]
    )  # fmt: skip
    controls = findings.faithfulness_lines(curves, lines, "faithfulness")
    assert {name: values.to_dict() for name, values in controls.items()} == {
        "random frames": {95.0: pytest.approx(0.15)}, "outliers": {95.0: -0.3},
    }  # fmt: skip
    axes = charts.percentile_figure(curves, y_label="", controls=controls).axes[0]
    assert axes.get_ylim()[0] < -0.3  # whole, not cut at 0


def test_a_new_method_or_model_needs_no_look_of_its_own(study: StudyTables, monkeypatch: pytest.MonkeyPatch) -> None:
    new_methods = {
        f"new_{number}": replace(attribution.METHODS["saliency"], title=f"New {number}") for number in range(5)
    }
    monkeypatch.setattr(style, "METHODS", {**attribution.METHODS, **new_methods})
    monkeypatch.setattr(style, "MODELS", {**MODELS, "deep": replace(MODELS["mae"], name="deep", title="Deep")})
    looks = [style.method(name) for name in style.METHODS]
    assert [look.title for look in looks[-5:]] == [f"New {number}" for number in range(5)]
    assert len({(look.color, look.marker) for look in looks}) == len(looks)
    assert not looks[-1].signed
    models = [style.model(name) for name in style.MODELS]
    assert len({(look.color, look.dashes) for look in models}) == len(models)
    curves = findings.overall(study.f_score).replace({"method": {"grad_cam": "new_3"}, "model": {"ae": "deep"}})
    lines = {line.get_label(): line for line in charts.percentile_figure(curves, y_label="").axes[0].get_lines()}
    assert lines["Deep New 3"].get_color() == style.method("new_3").color
    assert style.in_model_order(["gone", "deep", "mae"]) == ["mae", "deep", "gone"]


def test_roc_figure_draws_seeds_and_mean(study: StudyTables) -> None:
    axes = charts.roc_figure(study.scores, column="score").axes[0]
    titled = [line.get_label() for line in axes.get_lines()]
    assert titled.count("AE") == titled.count("MAE") == 1
    assert len(titled) == 1 + 2 * (3 + 1)
    one_seed = study.scores[study.scores["seed"] == 0]
    assert len(charts.roc_figure(one_seed, column="score").axes[0].get_lines()) == 1 + 2


def test_score_figure_parts_the_days(study: StudyTables) -> None:
    run = study.scores[(study.scores["model"] == "ae") & (study.scores["seed"] == 0)]
    figure = drawn_scores(run)
    assert [axes.get_xlabel() for axes in figure.axes] == ["2019-12-05", "2019-12-06"]
    drawn = {str(line.get_label()): 0 for line in figure.axes[0].get_lines()}
    for axes in figure.axes:
        for line in axes.get_lines():
            drawn[str(line.get_label())] += len(line.get_xdata())
    assert (drawn["normal"], drawn["anomalous"]) == (64, 8)
    assert drawn["threshold"] > 0
    assert len(drawn_scores(run.head(1)).axes) == 1


def test_score_figure_ticks_stand_at_round_minutes(study: StudyTables) -> None:
    run = study.scores[(study.scores["model"] == "ae") & (study.scores["seed"] == 0)].head(16)
    labels = [label.get_text() for label in drawn_scores(run).axes[0].get_xticklabels()]
    assert labels == [f"06:{minute}" for minute in range(40, 49)]


def test_large_studies_are_drawn_as_pixels(study: StudyTables) -> None:
    run = study.scores[(study.scores["model"] == "ae") & (study.scores["seed"] == 0)]
    figure = drawn_scores(pd.concat([run] * 100))
    assert len(style.to_svg(figure, name="many", label="many")) < 300_000


@pytest.mark.parametrize("kind", ["level", "sequential", "diverging"])
def test_maps_are_centred_and_bracketed(kind: maps.Kind) -> None:
    grid = np.linspace(-1, 3, 20 * 80).reshape(20, 80)
    low, high = maps.color_limits(grid, kind)
    assert low < high
    assert kind != "diverging" or low == -high
    assert kind != "sequential" or low == 0
    scale = maps.ClipScale(40.0, sample_rate_hz=20_000.0)
    figure = maps.clip_figure(grid, grid.sum(axis=0), scale=scale, kind=kind, intervals=[(0.5, 1.25)])
    picture, below = figure.axes
    assert picture.get_xlim() == (0, 2)
    edges = {float(x) for line in picture.get_lines() for x in line.get_xdata()}
    assert edges == {0.5, 1.25}
    assert [patch.get_x() for patch in below.patches] == [0.5]
    # One kilohertz is 1000 mel, ten are 3073: band 0 stands at the first of 21 equal steps.
    places, names = scale.frequency_ticks(20)
    assert places[names.index("1")] == pytest.approx(1_000 / 3_073 * 21 - 1, abs=0.01)


def test_silent_clips_can_be_drawn() -> None:
    grid = np.zeros((20, 80))
    scale = maps.ClipScale(40.0, sample_rate_hz=None)
    for kind in ("level", "sequential", "diverging"):
        style.to_svg(maps.clip_figure(grid, grid.sum(axis=0), scale=scale, kind=kind), name="flat", label="flat")
    style.to_svg(maps.clip_figure(None, grid.sum(axis=0), scale=scale, kind="level"), name="none", label="none")


def test_unknown_names_are_drawn_and_escaped(root: str, study: StudyTables) -> None:
    curves = findings.overall(study.f_score).replace({"method": {"grad_cam": NASTY}, "model": {"ae": "$b"}})
    figure = charts.percentile_figure(curves, y_label="F-score")
    assert f"$b {NASTY}" in {line.get_label() for line in figure.axes[0].get_lines()}
    assert "<script" not in style.to_svg(figure, name="unknown", label=NASTY)


def test_bands_and_published_curves_are_on_the_page_alone(study: StudyTables) -> None:
    curves = findings.overall(study.f_score)
    paper = published.curves("f_score", "frame")
    figure = charts.percentile_figure(curves, y_label="F-score", published=paper)
    bands = {band.get_gid(): band for band in figure.axes[0].collections}
    assert len(bands) == 12
    rows = curves[(curves["model"] == "mae") & (curves["method"] == "grad_cam")].sort_values("percentile")
    (path,) = bands["class:band grad-cam mae"].get_paths()
    assert {tuple(point) for point in path.vertices.round(6)} >= {
        (percentile, end)
        for name in ("ci_low", "ci_high")
        for percentile, end in zip(rows["percentile"], rows[name].round(6), strict=True)
    }
    lines = {line.get_gid(): line.get_ydata() for line in figure.axes[0].get_lines()}
    of_paper = paper[(paper["model"] == "mae") & (paper["method"] == "saliency")].set_index("percentile")["value"]
    assert list(lines["class:published saliency mae"]) == of_paper.tolist()
    assert of_paper[98] == pytest.approx(0.63, abs=0.005)
    svg = style.to_svg(figure, name="f", label="f")
    assert 'class="band grad-cam mae"' in svg
    for_paper = charts.percentile_figure(curves, y_label="F-score", published=paper, column_in=3.39)
    assert not for_paper.axes[0].collections
    assert len(for_paper.axes[0].get_lines()) == 12


def test_classes_of_names_are_told_apart() -> None:
    names = ["grad_cam", "Grad CAM", "grad-cam", 'x"><script>', "é", "è"]
    classes = [style.class_name(name) for name in names]
    assert len(set(classes)) == len(names)
    assert all(re.fullmatch("[a-z0-9-]+", name) for name in classes)


def test_published_figures_are_of_models_that_there_are() -> None:
    paper = published.curves("faithfulness", "segment")
    assert set(paper["method"]) == set(attribution.PAPER_METHODS)
    assert set(paper["model"]) <= set(MODELS)
    assert set(published.DETECTION) <= set(MODELS)
    for areas in published.DETECTION.values():
        for figure in (*areas.auc, *areas.pauc):
            assert 0.4 < figure.value < 1


def test_roc_leaves_out_models_without_the_score(study: StudyTables) -> None:
    scores = study.scores.assign(
        worst_second_score=study.scores["worst_second_score"].where(study.scores["model"] == "ae")
    )
    axes = charts.roc_figure(scores, column="worst_second_score").axes[0]
    assert {line.get_label() for line in axes.get_lines() if not line.get_label().startswith("_")} == {"chance", "AE"}


def test_pictures_keep_their_colours() -> None:
    """The palette and the fewer digits of `to_svg` change nothing that a reader sees."""
    grid = np.random.default_rng(0).normal(size=(20, 80))
    scale = maps.ClipScale(40.0, sample_rate_hz=20_000.0)
    svg = style.to_svg(maps.clip_figure(grid, grid.sum(axis=0), scale=scale, kind="diverging"), name="p", label="p")
    encoded = re.search(r"data:image/png;base64,([^\"]+)", svg)
    assert encoded is not None
    picture = Image.open(io.BytesIO(base64.b64decode(encoded[1])))
    assert picture.mode == "P"
    low, high = maps.color_limits(grid, "diverging")
    colors = mpl.colormaps["RdBu_r"].resampled(64)(((grid - low) / (high - low)).clip(0, 1), bytes=True)[..., :3]
    np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), colors)
