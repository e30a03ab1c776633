"""The report, read back as a browser would: parsed HTML, and the figures before they are drawn."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from faithad import schemas, storage
from faithad.attribution import methods as attribution
from faithad.errors import StudyError
from faithad.report import charts, findings, maps, render_report, style
from faithad.report.tables import MAX_EXAMPLES, StudyTables, read_study

WriteStudy = Callable[..., str]

VOID = {"meta", "br", "hr", "img", "link", "input"}
# What a name in a file may hold: markup, quotes, an expression of the template language, mathematics of matplotlib.
NASTY = "<script>alert(\"x\")<script> & 'board' {{ 7 * 7 }} $x_1$"

PAPER = [style.METHODS[name] for name in attribution.PAPER_METHODS]


class Page(HTMLParser):
    """Tags with their attributes, the text a reader sees, and whether every element was closed in turn."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def values(self, attribute: str) -> list[str]:
        return [value for _, attributes in self.tags if (value := attributes.get(attribute)) is not None]


def render(root: str) -> tuple[str, Page]:
    location = render_report(root)
    assert location == storage.join(root, "report.html")
    html = storage.read_text(location)
    return html, Page(html)


@pytest.fixture(scope="module")
def root(write_study: WriteStudy, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def study(root: str) -> StudyTables:
    return read_study(root)


@pytest.fixture(scope="module")
def rendered(root: str) -> tuple[str, Page]:
    return render(root)


def test_needs_nothing_else(rendered: tuple[str, Page]) -> None:
    html, page = rendered
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "img"}
    assert all(value.startswith(("data:", "#")) for value in page.values("src") + page.values("xlink:href"))
    outside = [value for value in page.values("href") if not value.startswith("#")]
    assert outside == ["https://arxiv.org/abs/2601.12660"]
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)\)", html))


def test_is_well_formed(rendered: tuple[str, Page]) -> None:
    html, page = rendered
    assert html.startswith("<!DOCTYPE html>")
    assert page.open == []
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    targets = re.findall(r"url\(#([^)]*)\)", html) + [value[1:] for value in page.values("href") if value[0] == "#"]
    assert set(targets + [value[1:] for value in page.values("xlink:href") if value[0] == "#"]) <= set(ids)


def test_same_tables_same_bytes(root: str, rendered: tuple[str, Page]) -> None:
    before = dict(mpl.rcParams)
    assert render(root)[0] == rendered[0]
    assert dict(mpl.rcParams) == before


def test_colors_follow_the_page(rendered: tuple[str, Page]) -> None:
    html, _ = rendered
    for name, (light, dark) in style.COLORS.items():
        assert html.count(light) == 1, f"{name} stands outside its variable"
        assert f"--{name}: {dark}" in html
        assert name == "violet" or f"var(--{name})" in html


def test_headline_says_what_was_run_and_found(rendered: tuple[str, Page]) -> None:
    text = rendered[1].text
    assert "demo-mill" in text
    assert "2019-12-03 to 2019-12-06" in text
    assert "72 clips, 8 anomalous" in text
    assert "The AE gives an anomalous clip a higher score than a normal one in 85 of 100 pairs" in text
    assert "(AUC 0.85, 95 % interval 0.79 to 0.90); the MAE in 83 (AUC 0.83, 95 % interval 0.77 to 0.88)" in text
    assert "Saliency on the MAE locates the annotated anomalies best: F-score 0.62" in text
    assert "Flagging every second of every clip would reach 0.48, so the map does tell where to look" in text
    assert "SmoothGrad on the MAE is the most faithful of the attributions" in text
    assert "takes away 13.8 % of the anomaly score" in text
    assert "89 went through, 0 were skipped and 1 failed; 3 pieces of recordings" in text
    assert "it is chosen by the very quantity that is scored" in text


def test_tables_of_the_page(rendered: tuple[str, Page]) -> None:
    text = rendered[1].text
    assert "MAE worst second 0.850 0.013 0.790 to 0.900 0.750 0.013 0.690 to 0.800 64 8" in text
    assert "MAE Saliency 94 0.624 0.013 0.564 to 0.674" in text
    assert "MAE Error map (control) 90 0.175 0.013" in text
    assert "false alarms per hour of normal operation" in text
    assert "3 samples are not finite numbers (NaN)" in text
    assert "AE Grad-CAM 3 of 216" in text


@pytest.mark.parametrize("table", ["f_score", "faithfulness"])
def test_all_twelve_curves_are_drawn(study: StudyTables, table: str) -> None:
    if table == "f_score":
        curves, controls = findings.overall(study.f_score), findings.controls(study.f_score)
    else:
        curves, controls = findings.in_scope(study.faithfulness, "frame"), {}
    lines = charts.percentile_figure(curves, y_label="", controls=controls).axes[0].get_lines()
    drawn = {str(line.get_label()): line for line in lines}
    expected = {f"{model.title} {method.title}" for model in style.MODELS.values() for method in PAPER}
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
    assert len({method.color for method in style.METHODS.values()}) == len(style.METHODS)
    assert len({method.marker for method in style.METHODS.values()}) == len(style.METHODS)


def test_controls_are_grey_and_dashed(study: StudyTables) -> None:
    controls = findings.controls(study.f_score)
    assert set(controls) == {style.RANDOM, style.EVERY_SECOND}
    figure = charts.percentile_figure(findings.overall(study.f_score), y_label="", controls=controls)
    for line in figure.axes[0].get_lines():
        if line.get_label() in controls:
            assert line.get_color() == style.MUTED
            assert line.get_linestyle() == "--"


def test_method_table_agrees_with_the_core() -> None:
    assert {name: (row.title, row.signed) for name, row in style.METHODS.items()} == {
        name: (row.title, row.signed) for name, row in attribution.METHODS.items()
    }


def test_roc_figure_draws_seeds_and_mean(study: StudyTables) -> None:
    axes = charts.roc_figure(study.scores, column="score").axes[0]
    titled = [line.get_label() for line in axes.get_lines()]
    assert titled.count("AE") == titled.count("MAE") == 1
    assert len(titled) == 1 + 2 * (3 + 1)
    one_seed = study.scores[study.scores["seed"] == 0]
    assert len(charts.roc_figure(one_seed, column="score").axes[0].get_lines()) == 1 + 2


def test_score_figure_parts_the_days(study: StudyTables) -> None:
    run = study.scores[(study.scores["model"] == "ae") & (study.scores["seed"] == 0)]
    figure = charts.score_figure(run)
    assert [axes.get_xlabel() for axes in figure.axes] == ["2019-12-05", "2019-12-06"]
    drawn = {str(line.get_label()): 0 for line in figure.axes[0].get_lines()}
    for axes in figure.axes:
        for line in axes.get_lines():
            drawn[str(line.get_label())] += len(line.get_xdata())
    assert (drawn["normal"], drawn["anomalous"]) == (64, 8)
    assert drawn["threshold"] > 0
    assert len(charts.score_figure(run.head(1)).axes) == 1


def test_score_figure_ticks_stand_at_round_minutes(study: StudyTables) -> None:
    run = study.scores[(study.scores["model"] == "ae") & (study.scores["seed"] == 0)].head(16)
    labels = [label.get_text() for label in charts.score_figure(run).axes[0].get_xticklabels()]
    assert labels == [f"06:{minute}" for minute in range(40, 49)]


def test_large_studies_are_drawn_as_pixels(study: StudyTables) -> None:
    run = study.scores[(study.scores["model"] == "ae") & (study.scores["seed"] == 0)]
    figure = charts.score_figure(pd.concat([run] * 100))
    assert len(style.to_svg(figure, name="many", label="many")) < 300_000


@pytest.mark.parametrize("kind", ["level", "sequential", "diverging"])
def test_maps_are_centred_and_bracketed(kind: maps.Kind) -> None:
    grid = np.linspace(-1, 3, 20 * 80).reshape(20, 80)
    low, high = maps.color_limits(grid, kind)
    assert low < high
    assert kind != "diverging" or low == -high
    assert kind != "sequential" or low == 0
    scale = maps.ClipScale(40.0, in_seconds=True, sample_rate_hz=20_000.0)
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
    scale = maps.ClipScale(40.0, in_seconds=False, sample_rate_hz=None)
    for kind in ("level", "sequential", "diverging"):
        style.to_svg(maps.clip_figure(grid, grid.sum(axis=0), scale=scale, kind=kind), name="flat", label="flat")
    style.to_svg(maps.clip_figure(None, grid.sum(axis=0), scale=scale, kind="level"), name="none", label="none")


def test_panels_of_the_example_clips(rendered: tuple[str, Page], study: StudyTables) -> None:
    html, page = rendered
    assert len(study.examples) == 2 * 2
    assert {example.log_mel.shape for example in study.examples} == {(20, 80), (20, 81)}
    assert html.count("data:image/png;base64,") == 4 * 8
    assert "annotated 5 to 7 s of the clip" in page.text
    example = next(one for one in study.examples if one.model == "mae")
    assert set(example.maps) == set(attribution.PAPER_METHODS)
    np.testing.assert_allclose(np.abs(example.maps["grad_cam"]).max(), 1, atol=1e-3)


def test_reads_at_most_a_few_clips(write_study: WriteStudy, tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path, n_examples=30, seeds=(0, 1), models=("ae",)))
    assert len(study.examples) == MAX_EXAMPLES
    assert {example.seed for example in study.examples} == {0}
    kinds = study.manifest.set_index("clip_id").loc[[example.clip_id for example in study.examples], "anomaly_type"]
    assert set(kinds) == {"stuck board", "broken board", "uneven or thick board"}


def test_everything_from_files_is_escaped(write_study: WriteStudy, tmp_path: Path) -> None:
    html, page = render(write_study(tmp_path, recording=NASTY, seeds=(0,), models=("ae",)))
    assert "<script" not in html
    assert "script" not in {tag for tag, _ in page.tags}
    # As a recording's name, as a reason in the ledger, as a value of the configuration.
    assert f"test/{NASTY}_19-12-05_0644_00001.wav, 20 to 30 s" in page.text
    assert f"shorter than one clip: {NASTY}" in page.text
    pre = html[html.index("<pre>") : html.index("</pre>")]
    assert "&lt;script&gt;alert" in pre


def test_unknown_names_are_drawn_and_escaped(root: str, study: StudyTables) -> None:
    curves = findings.overall(study.f_score).replace({"method": {"grad_cam": NASTY}, "model": {"ae": "$b"}})
    figure = charts.percentile_figure(curves, y_label="F-score")
    assert f"$b {NASTY}" in {line.get_label() for line in figure.axes[0].get_lines()}
    assert "<script" not in style.to_svg(figure, name="unknown", label=NASTY)


def test_without_annotations(write_study: WriteStudy, tmp_path: Path) -> None:
    _, page = render(write_study(tmp_path, annotated=False, models=("mae",), n_examples=1))
    assert page.text.count("No test clip has annotated intervals") == 2
    assert "ROC curves." in page.text
    assert "mean over 72 test clips" in page.text
    assert "segment mode" not in page.text
    assert "Brackets" not in page.text


def test_without_labels_times_and_feature_settings(write_study: WriteStudy, tmp_path: Path) -> None:
    options = {"labelled": False, "annotated": False, "timed": False, "features": False}
    _, page = render(write_study(tmp_path, models=("mae",), seeds=(3,), **options))
    assert page.text.count("No test clip carries a label") == 2
    assert "Score along the recordings" in page.text
    assert "in frames; mel bands upwards, by number" in page.text
    assert "Seed 3" in page.text


def test_one_seed_has_no_std(write_study: WriteStudy, tmp_path: Path) -> None:
    _, page = render(write_study(tmp_path, seeds=(0,), models=("ae",), n_examples=1))
    assert "AE whole clip 0.850 \N{EN DASH} 0.790 to 0.900" in page.text
    assert "mean over seeds" not in page.text
    assert "nan" not in page.text.lower().replace("(nan)", "")


def test_guessing_is_called_guessing(write_study: WriteStudy, tmp_path: Path) -> None:
    root = write_study(tmp_path, n_recordings=3, seeds=(0,), n_examples=0)
    location = storage.join(root, "summary/detection.parquet")
    rows = [row | {"mean": 0.56, "ci_low": 0.33, "ci_high": 0.77} for row in storage.read_table(location).to_pylist()]
    storage.write_table(pa.Table.from_pylist(rows), location, schema=schemas.DETECTION_SUMMARY)
    assert "For the AE and the MAE the interval does not rule out guessing" in render(root)[1].text


def test_missing_runs_are_named(write_study: WriteStudy, tmp_path: Path) -> None:
    root = write_study(tmp_path, seeds=(0, 1), n_examples=0)
    storage.delete(storage.join(root, "audit/mae-1"))
    assert "no scores were found: mae-1." in render(root)[1].text


def test_long_ledgers_are_cut(write_study: WriteStudy, tmp_path: Path) -> None:
    _, page = render(write_study(tmp_path, n_rejected=70, models=("ae",), seeds=(0,), n_examples=0))
    assert page.text.count("_rejected_") == 49
    assert page.text.index("3 samples are not finite") < page.text.index("_rejected_")
    assert "and 21 more rows in summary/ledger.parquet" in page.text


def test_no_clip_came_through(write_study: WriteStudy, tmp_path: Path) -> None:
    root = write_study(tmp_path, models=("ae",), seeds=(0,), n_examples=0)
    for name in ("scores", "attributions"):
        location = storage.join(root, f"audit/ae-0/{name}/part-0.parquet")
        table = storage.read_table(location)
        storage.write_table(table.slice(0, 0), location, schema=table.schema)
    for name in ("detection", "f_score", "faithfulness"):
        location = storage.join(root, f"summary/{name}.parquet")
        table = storage.read_table(location)
        storage.write_table(table.slice(0, 0), location, schema=table.schema)
    _, page = render(root)
    assert "No area under the ROC curve was computed" in page.text
    assert "No faithfulness was computed" in page.text
    assert "No spectrograms were kept" in page.text


@pytest.mark.parametrize(
    ("gone", "stage"),
    [
        (["study.yaml"], "index"),
        (["manifest.parquet"], "index"),
        (["models", "audit"], "train"),
        (["audit"], "audit"),
        (["summary"], "evaluate"),
        (["summary/detection.parquet"], "evaluate"),
        (["summary/f_score.parquet"], "evaluate"),
        (["summary/faithfulness.parquet"], "evaluate"),
        (["summary/ledger.parquet"], "evaluate"),
    ],
)
def test_missing_stage_is_named(write_study: WriteStudy, tmp_path: Path, gone: list[str], stage: str) -> None:
    root = write_study(tmp_path, n_recordings=3, models=("ae",), seeds=(0,), n_examples=0)
    for path in gone:
        storage.delete(storage.join(root, path))
    with pytest.raises(StudyError, match=f"faithad {stage}"):
        render_report(root)
    assert not storage.exists(storage.join(root, "report.html"))


def test_models_trained_elsewhere(write_study: WriteStudy, tmp_path: Path) -> None:
    root = write_study(tmp_path, n_recordings=3, models=("ae",), seeds=(0,), n_examples=0)
    storage.delete(storage.join(root, "models"))
    assert "the models were trained elsewhere" in render(root)[1].text


@pytest.mark.parametrize("text", ["- a\n- list\n", "a: [1", ""])
def test_damaged_configuration(write_study: WriteStudy, tmp_path: Path, text: str) -> None:
    root = write_study(tmp_path, n_recordings=3, models=("ae",), seeds=(0,), n_examples=0)
    storage.write_text(storage.join(root, "study.yaml"), text)
    with pytest.raises(StudyError, match=re.escape("study.yaml")):
        render_report(root)


def test_other_protocols_stay_out(write_study: WriteStudy, tmp_path: Path) -> None:
    root = write_study(tmp_path, n_recordings=3, models=("ae",), seeds=(0,), n_examples=0)
    location = storage.join(root, "summary/detection.parquet")
    rows = storage.read_table(location).to_pylist()
    rows += [row | {"protocol": "corrected", "mean": 0.111} for row in rows]
    storage.write_table(pa.Table.from_pylist(rows), location, schema=schemas.DETECTION_SUMMARY)
    assert set(read_study(root).detection["protocol"]) == {"paper"}


def test_reading_imports_neither_torch_nor_ray() -> None:
    code = "import sys, faithad.report; sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_fixture_keeps_the_schemas(root: str) -> None:
    """The tables of these tests are those of a real study."""
    scores = pq.read_schema(Path(root) / "audit/ae-0/scores/part-0.parquet")
    assert scores.remove_metadata().equals(schemas.SCORES)
