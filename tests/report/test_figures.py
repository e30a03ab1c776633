"""Figures and tables for papers: the figures of the pages, in a column's width, with their fonts."""

from __future__ import annotations

import csv
import io
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from markupsafe import Markup
from PIL import Image
from typer.testing import CliRunner

from faithad import cli, parquet, schemas, storage
from faithad.errors import ConfigError, StudyError
from faithad.report import drawing, style
from faithad.report.audit_figures import audit_drawings
from faithad.report.audit_page import render_audit_report, time_line
from faithad.report.audit_tables import read_audit
from faithad.report.drawing import COLUMNS_IN, Drawing
from faithad.report.figures import write_figures
from faithad.report.paper_tables import paper_tables, write_tables
from faithad.report.study_figures import study_drawings
from faithad.report.study_page import render_report
from faithad.report.study_tables import StudyTables, read_study
from faithad.report.words import UNKNOWN
from tests.report.audit.conftest import build_audit
from tests.report.study.conftest import F_SCORES, build_study
from tests.report.study.test_verdicts import line, row
from tests.report.test_search_page import write_search

pytestmark = pytest.mark.long

DPI = 100
NASTY = "<script>$\\alpha_1$ & {b} 100 % | `x`"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_study(tmp_path_factory.mktemp("study"), n_examples=1)


@pytest.fixture(scope="module")
def study(root: str) -> StudyTables:
    return read_study(root)


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels cost time, and 600 to an inch show no more to a test."""
    monkeypatch.setattr(drawing, "_DPI", DPI)


def named(study: StudyTables, name: str) -> Drawing:
    return next(one for one in study_drawings(study) if one.name == name)


def streams(pdf: bytes) -> str:
    """All that a PDF holds, inflated as far as it is deflated."""
    parts = [pdf]
    for content in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL):
        try:
            parts.append(zlib.decompress(content))
        except zlib.error:
            continue
    return b"\n".join(parts).decode("latin-1")


def test_every_figure_of_the_page_is_written(root: str, study: StudyTables, monkeypatch: pytest.MonkeyPatch) -> None:
    on_page = drawn_on(render_report, root, monkeypatch)
    files = {one.name for one in study_drawings(study)}
    panels = {name for name in on_page if re.fullmatch(r"clip-\d+-\d+-\d+", name)}
    assert len(panels) == 2 * 8
    assert on_page - panels == {name for name in files if not name.startswith("clip-")}
    assert sum(name.startswith("clip-") for name in files) == 2  # one for each model


def test_every_figure_of_an_audit_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = build_audit(tmp_path, hours=0.5, boards=2)
    on_page = drawn_on(render_audit_report, out, monkeypatch)
    audit = read_audit(out)
    files = {one.name for one in audit_drawings(audit, time_line(audit))}
    panels = {name for name in on_page if re.fullmatch(r"event-\d+-\d+", name)}
    assert on_page - panels == {name for name in files if not name.endswith("-maps")}
    assert {f"event-{int(name.split('-')[1]) + 1}-maps" for name in panels} == files - on_page != set()


def drawn_on(render: Callable[[str], str], root: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of all figures on a page but the samples of its legends."""
    names: set[str] = set()

    def note(figure: Any, *, name: str, label: str) -> Markup:
        if figure.get_size_inches()[0] > 1:
            names.add(name)
        return Markup("<svg></svg>")

    for module in (style, drawing):
        monkeypatch.setattr(module, "to_svg", note)
    render(root)
    return names


def test_files_have_a_columns_width_and_their_fonts(study: StudyTables) -> None:
    one = named(study, "f-score")
    for width_in in COLUMNS_IN.values():
        pdf, svg, png = one.files(("pdf", "svg", "png"), width_in)
        (box,) = re.findall(rb"/MediaBox \[ 0 0 ([\d.]+) ", pdf)
        assert float(box) == pytest.approx(72 * width_in, abs=0.01)
        content = streams(pdf)
        assert "/FontFile2" in content
        assert "/Type3" not in content
        assert "/Subtype /Image" not in content
        assert [svg] == one.files(["svg"], width_in)
        svg = svg.decode()
        assert f'width="{72 * width_in:g}pt"' in svg
        assert "<text" not in svg
        assert one.label in svg
        picture = Image.open(io.BytesIO(png))
        assert picture.width == pytest.approx(DPI * width_in, abs=1)


@pytest.mark.parametrize("column", COLUMNS_IN)
def test_nothing_is_cut_off(study: StudyTables, column: str) -> None:
    """The outermost pixels of each figure are white."""
    for name in ("roc-mean", "f-score", "score-0", "steps-1"):
        (png,) = named(study, name).files(["png"], COLUMNS_IN[column])
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
        edges = [pixels[:, 0], pixels[:, -1], pixels[-1], pixels[0]]
        assert all((edge == 255).all() for edge in edges), name


def test_legends_name_every_line_once(study: StudyTables) -> None:
    one = named(study, "training-1")
    figure = one.draw(column_in=3.39)
    height_in = figure.get_size_inches()[1]
    drawing._add_legend(figure, one.legend)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["training", "validation", "kept"]
    box = legend.get_window_extent()
    grown_in = figure.get_size_inches()[1] - height_in
    assert box.y0 >= 0
    assert box.y1 / figure.dpi <= grown_in + 0.02
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1


def test_a_run_of_the_commands(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faithad.report.figures._drawings", lambda run: study_drawings(read_study(run))[:1])
    to = tmp_path / "figures"
    answer = CliRunner().invoke(cli.app, ["figures", root, "--to", str(to), "--format", "pdf,png"])
    assert answer.exit_code == 0, answer.output
    assert sorted(file.name for file in to.iterdir()) == [
        f"roc-mean-{column}.{suffix}" for column in ("double", "single") for suffix in ("pdf", "png")
    ]
    assert "1 figure, 3.39 in (single column) and 7.01 in (double column) wide, as pdf, png" in answer.output
    printed = CliRunner().invoke(cli.app, ["tables", root])
    assert "| Model | AUC | pAUC |" in printed.output
    written = CliRunner().invoke(cli.app, ["tables", root, "--to", str(to), "--format", "latex,csv,markdown"])
    assert "2 tables (detection, explanations) as latex, csv, markdown" in written.output
    assert len(list(to.glob("detection.*"))) == len(list(to.glob("explanations.*"))) == 3


@pytest.mark.parametrize("formats", [["eps"], ["pdf", ""]])
def test_formats_that_there_are_not(root: str, tmp_path: Path, formats: list[str]) -> None:
    with pytest.raises(ConfigError, match="the formats of figures are pdf, svg, png"):
        write_figures(root, str(tmp_path), formats=formats)
    with pytest.raises(ConfigError, match="the formats of tables are latex, csv, markdown"):
        write_tables(root, formats=formats)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_neither(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"neither a study nor an audit at .*: no study\.yaml and no audit\.yaml"):
        write_tables(str(tmp_path), formats=["csv"])


def test_the_papers_tables(root: str, tmp_path: Path) -> None:
    for file in Path(write_search(tmp_path, seeds=(0, 1))).rglob("summary/search.parquet"):
        (Path(root) / "summary/search.parquet").write_bytes(file.read_bytes())
    tables = {table.name: table for table in paper_tables(root)}
    (Path(root) / "summary/search.parquet").unlink()
    assert list(tables) == ["detection", "mask_ratio", "explanations"]
    plus = "\N{PLUS-MINUS SIGN}"
    assert tables["detection"].rows[0] == ["AE (whole clip)", f"0.850 {plus} 0.013", f"0.750 {plus} 0.013"]
    assert tables["mask_ratio"].header == ["Mask ratio", "Patch 4", "Patch 8"]
    assert [row[0] for row in tables["mask_ratio"].rows] == ["90 %", "75 %", "50 %", "30 %", "15 %"]
    explained = {(row[0], row[1]): row[2:] for row in tables["explanations"].rows}
    parabola = np.polynomial.Polynomial.fit((90, 95, 99), F_SCORES["mae"][0], 2)
    assert explained["F-score", "MAE"][0] == f"{parabola(94):.3f} (94)"
    # Frame mode falls by a tenth of its value at percentile 90 a percentile: 0.2 and 0.1 of it at 98 and 99.
    assert explained["Faithfulness, frames", "AE"][0] == f"{0.141 * 0.15:.3f}"
    places = [place for place in tables["explanations"].best if place[0] == 1]
    assert [tables["explanations"].header[column] for _, column in places] == ["Saliency"]


def test_verdicts_and_lines_without_a_model_are_tables(tmp_path: Path) -> None:
    root = build_study(tmp_path, n_examples=1)
    changes = {"question": "against_linear", "metric": "auc", "mode": None, "replacement": None}
    verdicts = [
        row("saliency", "yes"),
        row("grad_cam", "undecided: 4 recordings, 20 are needed"),
        row("mean", "yes", model_b="frame_pca", **changes),
    ]
    lines = [line("level", 0.5), line("random", 0.25, model="ae")]
    for name, rows, schema in (
        ("comparison", verdicts, schemas.COMPARISON),
        ("controls", lines, schemas.CONTROLS_SUMMARY),
    ):
        parquet.write_table(pa.Table.from_pylist(rows, schema=schema), f"{root}/summary/{name}.parquet", schema=schema)
    tables = {table.name: table for table in paper_tables(root)}
    assert list(tables) == ["detection", "explanations", "verdicts", "worth", "means"]
    assert tables["verdicts"].header == ["Question", "Saliency", "Grad-CAM"]
    assert tables["verdicts"].rows == [
        ["MAE explanations are more faithful than the AE's?", "yes (+0.100)", "undecided (+0.100)"]
    ]
    assert tables["worth"].rows == [["MAE", "Frame PCA", "AUC, whole clip", "+0.100", "+0.050 to +0.150", "yes"]]
    means = {(row[0], row[1]): row[2:] for row in tables["means"].rows}
    assert tables["means"].header[2:] == ["AE", "MAE"]
    assert means["F-score", "Level"] == [UNKNOWN, "0.500"]
    assert means["F-score", "Random frames"] == ["0.250", UNKNOWN]
    written = read_study(root).f_score
    saliency = written[(written["anomaly_type"] == "all") & (written["method"] == "saliency")]
    assert float(means["F-score", "Saliency"][0]) == pytest.approx(
        saliency[saliency["model"] == "ae"]["mean"].mean(), abs=5e-4
    )


def test_explanations_and_lines_are_of_the_protocol_of_the_verdicts(tmp_path: Path) -> None:
    root = build_study(tmp_path, n_examples=1)
    settings = f"{root}/study.yaml"
    storage.write_text(settings, storage.read_text(settings).replace("protocol: paper", "protocol: both"))
    corrected = {"protocol": "corrected"}
    for name, schema in (("f_score", schemas.F_SCORE_SUMMARY), ("faithfulness", schemas.FAITHFULNESS_SUMMARY)):
        location = f"{root}/summary/{name}.parquet"
        rows = parquet.read_table(location).to_pylist()
        rows += [row | corrected | {"mean": 0.125} for row in rows]
        parquet.write_table(pa.Table.from_pylist(rows, schema=schema), location, schema=schema)
    lines = [line("level", 0.5, model="ae"), line("level", 0.75, model="ae") | corrected]
    location = f"{root}/summary/controls.parquet"
    parquet.write_table(
        pa.Table.from_pylist(lines, schema=schemas.CONTROLS_SUMMARY), location, schema=schemas.CONTROLS_SUMMARY
    )
    tables = {table.name: table for table in paper_tables(root)}
    means = {(row[0], row[1]): row[2] for row in tables["means"].rows}
    assert means["F-score", "Saliency"] == means["Faithfulness, frames", "Saliency"] == "0.125"
    assert means["F-score", "Level"] == "0.750"
    assert "0.125" not in {cell for row in tables["explanations"].rows for cell in row}  # the paper's


def test_names_stay_text(tmp_path: Path) -> None:
    out = build_audit(tmp_path, hours=0.5, boards=1, recording=NASTY)
    latex = write_tables(out, formats=["latex"])
    assert r"\textless{}script\textgreater{}\$\textbackslash{}alpha\_1\$ \& \{b\} 100 \% |" in latex
    markdown = write_tables(out, formats=["markdown"])
    assert r"\<script\>$\\alpha\_1$ & \{b\} 100 % \| \`x\`" in markdown
    assert not re.search(r"(?<!\\)<", markdown)
    (table,) = paper_tables(out)
    assert list(csv.reader(io.StringIO(write_tables(out, formats=["csv"])))) == [table.header, *table.rows]
    assert NASTY in table.rows[0][2]
