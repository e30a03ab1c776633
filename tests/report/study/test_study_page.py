"""A study's page, read back as a browser would."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from faithad import parquet, schemas, storage
from faithad.attribution import methods as attribution
from faithad.errors import StudyError
from faithad.report import style
from faithad.report.findings import alarm_rows, few_normals, few_recordings, missing_runs
from faithad.report.study_page import render_report
from faithad.report.study_tables import MAX_EXAMPLES, StudyTables, read_study
from tests.report.study.conftest import write_sounds

pytestmark = pytest.mark.long

WriteStudy = Callable[..., str]
Render = Callable[..., tuple[str, Any]]

# What a name in a file may hold: markup, quotes, an expression of the template language, mathematics of matplotlib.
NASTY = "<script>alert(\"x\")<script> & 'board' {{ 7 * 7 }} $x_1$"


@pytest.fixture(scope="module")
def rendered(root: str, render: Render) -> tuple[str, Any]:
    return render(root)


def test_is_whole_and_needs_nothing_else(rendered: tuple[str, Any]) -> None:
    html, page = rendered
    page.check_is_whole(html)


def test_same_tables_same_bytes(root: str, rendered: tuple[str, Any], render: Render) -> None:
    before = dict(mpl.rcParams)
    assert render(root)[0] == rendered[0]
    assert dict(mpl.rcParams) == before


def test_colors_follow_the_page(rendered: tuple[str, Any]) -> None:
    html, _ = rendered
    for name, (light, dark) in style.COLORS.items():
        assert html.count(light) == 1, f"{name} stands outside its variable"
        assert f"--{name}: {dark}" in html
        assert name == "violet" or f"var(--{name})" in html


def test_headline_says_what_was_run_and_found(rendered: tuple[str, Any]) -> None:
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
    assert "it picks the moments with the largest error, and the error is what is scored" in text


def test_tables_of_the_page(rendered: tuple[str, Any]) -> None:
    text = rendered[1].text
    dash = "\N{EN DASH}"
    assert f"MAE worst second 0.850 0.013 0.790 to 0.900 {dash} 0.750 0.013 0.690 to 0.800 {dash}" in text
    whole = "MAE whole clip 0.830 0.013 0.770 to 0.880 best seed 0.902 later rerun 0.830 0.730"
    assert f"{whole} 0.013 0.670 to 0.780 later rerun 0.747" in text
    assert "Over 64 normal and 8 anomalous test clips." in text
    assert "MAE Saliency 94 0.624 0.013 0.564 to 0.674" in text
    assert "MAE Error map (control) 90 0.175 0.013" in text
    assert "false alarms per hour of normal operation" in text
    assert "3 samples are not finite numbers (NaN)" in text
    assert "AE Grad-CAM 3 of 216" in text


def test_panels_of_the_example_clips(rendered: tuple[str, Any], study: StudyTables) -> None:
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


def test_everything_from_files_is_escaped(write_study: WriteStudy, tmp_path: Path, render: Render) -> None:
    html, page = render(write_study(tmp_path, recording=NASTY, seeds=(0,), models=("ae",)))
    assert "<script" not in html
    assert "script" not in {tag for tag, _ in page.tags}
    # As a recording's name, as a reason in the ledger, as a value of the configuration.
    assert f"test/{NASTY}_19-12-05_0644_00001.wav, 20 to 30 s" in page.text
    assert f"shorter than one clip: {NASTY}" in page.text
    pre = html[html.index("<pre>") : html.index("</pre>")]
    assert "&lt;script&gt;alert" in pre


def test_a_page_with_sound_runs_one_script(write_study: WriteStudy, tmp_path: Path, render: Render) -> None:
    root = write_study(tmp_path, seeds=(0,), models=("mae",))
    write_sounds(root)
    html, page = render(root)
    page.check_is_whole(html)
    assert len(page.scripts) == 1
    assert html.count("data:audio/ogg;base64,") == 1
    assert "No sound: gone <b>" in page.text
    assert "This page holds the sound of 1 clip, which may include voices" in page.text
    # Without them neither a script nor a word of it.
    (tmp_path / "clip_sounds.parquet").unlink()
    html, page = render(root)
    page.check_is_whole(html)
    assert not page.scripts
    assert "This page holds the sound" not in page.text


def test_without_annotations(write_study: WriteStudy, tmp_path: Path, render: Render) -> None:
    _, page = render(write_study(tmp_path, annotated=False, models=("mae",), n_examples=1))
    assert page.text.count("No test clip has annotated intervals") == 2
    assert "ROC curves." in page.text
    assert "mean over 72 test clips" in page.text
    assert "segment mode" not in page.text
    assert "Brackets" not in page.text


def test_without_labels_times_and_feature_settings(write_study: WriteStudy, tmp_path: Path, render: Render) -> None:
    options = {"labelled": False, "annotated": False, "timed": False, "features": False}
    _, page = render(write_study(tmp_path, models=("mae",), seeds=(3,), **options))
    assert page.text.count("No test clip carries a label") == 2
    assert "Score along the recordings" in page.text
    assert "in seconds; mel bands upwards, by number" in page.text
    assert "Seed 3" in page.text


def test_one_seed_has_no_std(write_study: WriteStudy, tmp_path: Path, render: Render) -> None:
    _, page = render(write_study(tmp_path, seeds=(0,), models=("ae",), n_examples=1))
    assert "AE whole clip 0.850 \N{EN DASH} 0.790 to 0.900" in page.text
    assert "mean over seeds" not in page.text
    assert "nan" not in page.text.lower().replace("(nan)", "")


def test_a_level_meter_stands_beside_what_the_models_find(
    write_study: WriteStudy, tmp_path: Path, render: Render
) -> None:
    root = write_study(tmp_path, n_recordings=3, seeds=(0,), models=("ae",), n_examples=0)
    location = storage.join(root, "summary/detection.parquet")
    rows = parquet.read_table(location).to_pylist()
    level = [row | {"model": "level", "score": "level", "mean": row["mean"] + 0.1} for row in rows]
    parquet.write_table(pa.Table.from_pylist([*rows, *level]), location, schema=schemas.DETECTION_SUMMARY)
    page = render(root)[1]
    assert "The AE gives an anomalous clip a higher score than a normal one in 85 of 100 pairs" in page.text
    assert "; the level of the loudest second, which needs no model, in 97 (AUC 0.97" in page.text
    assert "The level of the loudest second, which needs no model, catches 53 %" in page.text
    assert "Level, no model whole clip 0.950" in page.text
    assert "the level is the mel power of the whole clip, or of its loudest second" in page.text


def test_guessing_is_called_guessing(write_study: WriteStudy, tmp_path: Path, render: Render) -> None:
    root = write_study(tmp_path, n_recordings=3, seeds=(0,), n_examples=0)
    location = storage.join(root, "summary/detection.parquet")
    rows = [row | {"mean": 0.56, "ci_low": 0.33, "ci_high": 0.77} for row in parquet.read_table(location).to_pylist()]
    parquet.write_table(pa.Table.from_pylist(rows), location, schema=schemas.DETECTION_SUMMARY)
    assert "For the AE and the MAE the interval does not rule out guessing" in render(root)[1].text


def test_a_studys_own_score_stands_beside_the_papers(write_study: WriteStudy, tmp_path: Path, render: Render) -> None:
    root = write_study(tmp_path, seeds=(0,), models=("ae",), n_examples=0)
    location = storage.join(root, "summary/detection.parquet")
    paper = [row for row in parquet.read_table(location).to_pylist() if row["pooling"] == "mean"]
    better = {"score": "robust", "pooling": "fitted", "mean": 0.97}
    own = [row | better for row in paper]
    own += [own[-1] | {"metric": metric, "mean": 0.25} for metric in ("caught", "false_alarms")]
    own += [own[-1] | {"metric": "caught_1", "mean": None, "n_normal_needed": 99}]
    own += [own[0] | {"metric": "dcase", "mean": 0.678}]
    own += [row | {"anomaly_type": kind, "mean": 0.64} for row in own[:3] for kind in ("knock", "saw")]
    parquet.write_table(pa.Table.from_pylist([*paper, *own]), location, schema=schemas.DETECTION_SUMMARY)
    scores = storage.join(root, "audit/ae-0/scores/part-0.parquet")
    table = parquet.read_table(scores)
    place = table.column_names.index("paper_score")
    parquet.write_table(table.set_column(place, "paper_score", table["score"]), scores, schema=schemas.SCORES)
    _, page = render(root)
    assert "in 97 of 100 pairs" in page.text
    assert "AE robust needs 99 \N{EN DASH} needs 49 \N{EN DASH} 97 %" in page.text
    share = f"25 % {paper[-1]['ci_low'] * 100:.0f} to {paper[-1]['ci_high'] * 100:.0f} %"
    assert f"97 % {share[5:]} {share} {share}" in page.text
    assert "AE whole clip needs 99 \N{EN DASH} needs 49 \N{EN DASH} 43 %" in page.text
    assert "saw, AUC 0.640" in page.text
    assert "of all machines, sections and domains: AE, robust, 0.678 (" in page.text
    assert "Scored as the study says" in page.text
    assert "Scored over the worst second" not in page.text


def test_missing_runs_are_named(write_study: WriteStudy, tmp_path: Path, render: Render) -> None:
    root = write_study(tmp_path, seeds=(0, 1), n_examples=0)
    storage.delete(storage.join(root, "audit/mae-1"))
    assert "no scores were found: mae-1." in render(root)[1].text


def test_a_model_without_chance_is_trained_with_the_first_seed_only(study: StudyTables) -> None:
    scores = pd.DataFrame({"model": ["one_class_svm", "ae", "ae"], "seed": [3, 3, 5]})
    settings = {"models": ["one_class_svm", "ae"], "seeds": [3, 5]}
    assert missing_runs(replace(study, scores=scores, settings=settings)) == []
    assert missing_runs(replace(study, scores=scores[2:], settings=settings)) == ["one_class_svm-3", "ae-3"]


def test_long_ledgers_are_cut(write_study: WriteStudy, tmp_path: Path, render: Render) -> None:
    _, page = render(write_study(tmp_path, n_rejected=70, models=("ae",), seeds=(0,), n_examples=0))
    assert page.text.count("_rejected_") == 49
    assert page.text.index("3 samples are not finite") < page.text.index("_rejected_")
    assert "and 21 more rows in summary/ledger.parquet" in page.text


def test_no_clip_came_through(write_study: WriteStudy, tmp_path: Path, render: Render) -> None:
    root = write_study(tmp_path, models=("ae",), seeds=(0,), n_examples=0)
    for name in ("scores", "attributions"):
        location = storage.join(root, f"audit/ae-0/{name}/part-0.parquet")
        table = parquet.read_table(location)
        parquet.write_table(table.slice(0, 0), location, schema=table.schema)
    for name in ("detection", "f_score", "faithfulness"):
        location = storage.join(root, f"summary/{name}.parquet")
        table = parquet.read_table(location)
        parquet.write_table(table.slice(0, 0), location, schema=table.schema)
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


def test_models_trained_elsewhere(write_study: WriteStudy, tmp_path: Path, render: Render) -> None:
    root = write_study(tmp_path, n_recordings=3, models=("ae",), seeds=(0,), n_examples=0)
    storage.delete(storage.join(root, "models"))
    assert "the models were trained elsewhere" in render(root)[1].text


@pytest.mark.parametrize("text", ["- a\n- list\n", "a: [1", "", "day: 2026-02-99", "[" * 5_000])
def test_damaged_configuration(write_study: WriteStudy, tmp_path: Path, text: str) -> None:
    root = write_study(tmp_path, n_recordings=3, models=("ae",), seeds=(0,), n_examples=0)
    storage.write_text(storage.join(root, "study.yaml"), text)
    with pytest.raises(StudyError, match=re.escape("study.yaml")):
        render_report(root)


def test_other_protocols_stay_out(write_study: WriteStudy, tmp_path: Path) -> None:
    root = write_study(tmp_path, n_recordings=3, models=("ae",), seeds=(0,), n_examples=0)
    location = storage.join(root, "summary/detection.parquet")
    rows = parquet.read_table(location).to_pylist()
    rows += [row | {"protocol": "corrected", "mean": 0.111} for row in rows]
    parquet.write_table(pa.Table.from_pylist(rows), location, schema=schemas.DETECTION_SUMMARY)
    assert set(read_study(root).detection["protocol"]) == {"paper"}


def test_reading_imports_neither_torch_nor_ray() -> None:
    code = "import sys, faithad.report; sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_fixture_keeps_the_schemas(root: str) -> None:
    """The tables of these tests are those of a real study."""
    scores = pq.read_schema(Path(root) / "audit/ae-0/scores/part-0.parquet")
    assert scores.remove_metadata().equals(schemas.SCORES)


BASELINES = ("dense_ae", "cae", "skip_cae", "one_class_svm", "isolation_forest")


def test_baselines_stand_beside_the_published_figures(write_study: WriteStudy, tmp_path: Path, render: Render) -> None:
    html, page = render(write_study(tmp_path, models=("mae", *BASELINES), seeds=(0, 1), n_examples=1))
    page.check_is_whole(html)
    dash = "\N{EN DASH}"
    svm = "One-class SVM whole clip 0.830 0.013 0.770 to 0.880 0.797 0.730 0.013 0.670 to 0.780 0.721 Isolation"
    assert svm in page.text
    assert "One-class SVM worst second" not in page.text
    assert f"Dense AE worst second 0.850 0.013 0.790 to 0.900 {dash}" in page.text
    assert "they do not say what these models should reach on the recordings of this study" in page.text
    assert "then by AUC" in page.text
    assert page.text.count("best epoch") == 0
    # Only explained models have curves, and legends name none of the others.
    legend = html[html.index('<section id="localization">') : html.index('<section id="clips">')]
    assert "Isolation forest" not in legend


def test_a_study_of_classical_models_alone(write_study: WriteStudy, tmp_path: Path, render: Render) -> None:
    html, page = render(write_study(tmp_path, models=("isolation_forest",), seeds=(0,)))
    page.check_is_whole(html)
    assert html.count("ROC curves of all models") == 1
    assert "No faithfulness of an attribution was computed." in page.text
    assert "the models were trained elsewhere" in page.text


def test_the_score_that_alarms_is_drawn(write_study: WriteStudy, tmp_path: Path, render: Render) -> None:
    root = write_study(tmp_path, models=("ae", "one_class_svm"), seeds=(0,), n_examples=0)
    location = storage.join(root, "study.yaml")
    storage.write_text(location, storage.read_text(location) + "alarm: {pooling: worst_second}\n")
    text = render(root)[1].text
    assert "AE, seed 0, score of the worst second" in text
    assert "One-class SVM, seed 0 Anomaly score" in text


def test_a_study_shows_its_search(write_study: WriteStudy, tmp_path: Path, render: Render) -> None:
    root = write_study(tmp_path, n_recordings=3, models=("mae",), seeds=(0,), n_examples=0)
    assert "Search over mask ratio" not in render(root)[1].text
    trials = [
        {"trial": f"r{ratio}-p4-s0", "mask_ratio": ratio, "patch": 4, "seed": 0, "status": "done", "value": ratio,
         "objective": "proxy_auc", "proxy_auc": ratio, "epochs": 3, "best_epoch": 2,
         "diverged_epochs": 0, "duration_s": 1.0, "present": True, "settings": "{}"}
        for ratio in (0.3, 0.5)
    ]  # fmt: skip
    table = pa.Table.from_pylist(trials, schema=schemas.SEARCH_SUMMARY)
    parquet.write_table(table, storage.join(root, "summary/search.parquet"), schema=schemas.SEARCH_SUMMARY)
    storage.write_text(storage.join(root, "best.yaml"), "train: {mask_ratio: 0.5, patch: 4}\n")
    html, page = render(root)
    page.check_is_whole(html)
    assert "Search over mask ratio and patch size" in page.text
    assert "Chosen: mask ratio 0.5, patch 4, by proxy AUC 0.500 over 1 seed. No test label was used." in page.text
    assert "#search" in page.values("href")


@pytest.mark.parametrize(
    ("explain", "told"),
    [("all", None), ("alarms", "Clips with an alarm alone"), ("top:5", "The 5 clips with the highest scores alone")],
)
def test_says_which_clips_were_explained(
    write_study: WriteStudy, tmp_path: Path, render: Render, explain: str, told: str | None
) -> None:
    root = write_study(tmp_path, models=("mae",), seeds=(0,), n_recordings=4)
    settings = yaml.safe_load((tmp_path / "study.yaml").read_text()) | {"audit": {"explain": explain}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(settings))
    text = render(root)[1].text
    assert text.count("alone were explained") == (2 if told else 0)
    assert told is None or told in text


def test_an_alarm_that_rests_on_few_recordings_is_told(study: StudyTables) -> None:
    said = few_recordings(study)
    assert said is not None
    assert said.startswith("The alarm rests on 3 normal clips of 3 recordings. Clips of one recording are alike")
    others = [study.manifest.assign(recording=f"{k} " + study.manifest["recording"]) for k in range(4)]
    assert few_recordings(replace(study, manifest=pd.concat(others))) is None


def test_what_few_validation_clips_promise_instead_is_said(study: StudyTables) -> None:
    n = int((study.manifest["split"] == "validation").sum())
    assert few_normals(study) is None
    for per_hour, needed in [(0.5, 719), (360, None)]:
        asked = study.settings | {"alarm": {"rule": "conformal", "false_alarms_per_hour": per_hour}}
        said = few_normals(replace(study, settings=asked))
        if needed is None:
            assert said is None
        else:
            assert said is not None
            assert said.startswith(f"0.5 an hour were asked for, which needs {needed} normal clips; {n} clips can ")


def test_alarms_of_short_clips_are_counted(study: StudyTables) -> None:
    """Their threshold is that of whole clips."""
    assert [row["of_short_clips"] for row in alarm_rows(study)] == [0, 0]
    scores = study.scores.copy()
    alarmed = scores.index[(scores["alarm"] == True) & (scores["model"] == "ae")]  # noqa: E712
    scores.loc[alarmed[:3], "duration_s"] = 3.5
    n_seeds = scores["seed"].nunique()
    rows = {row["model"]: row["of_short_clips"] for row in alarm_rows(replace(study, scores=scores))}
    assert rows == {"ae": pytest.approx(3 / n_seeds), "mae": 0}
