"""The search end to end: its table, its answer, its memory; what it sees, how it is spread, what it refuses.

Searches that are killed: tests/chaos/search_kills.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from faithad import parquet, schemas, storage
from faithad.config.study import Study, load_study, parse_study
from faithad.errors import StudyError
from faithad.evaluation.detection import auc, pauc
from faithad.model.checkpoint import load_model
from faithad.pipelines.search.plan import Trial, trial_location
from faithad.pipelines.search.run import search_study
from faithad.runs import layout
from faithad.scoring.trained_ensemble import TrainedEnsemble, load_any

pytestmark = pytest.mark.usefixtures("local_ray")

GRID: dict[str, Any] = {"mask_ratios": [0.3, 0.5], "patches": [4], "trials_at_once": 2}


# The index, and all features: what a search takes over from an earlier run.
READY = ("manifest.parquet", "index_ledger.parquet", "features", "stages/index.json", "stages/features.json")
CLIPS = ("search/features", "stages/search-clips.json")


def taken_over(names: tuple[str, ...], source: Study, target: Study) -> Study:
    """A study with some results of another one."""
    for name in names:
        there, here = Path(source.root, name), Path(target.root, name)
        here.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(there, here) if there.is_dir() else shutil.copy(there, here)
    return target


@pytest.fixture(scope="module")
def grid(finished: Study, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, str]:
    """A search over two cells with two seeds, and its last line."""
    changes = {"root": str(tmp_path_factory.mktemp("grid")), "seeds": [0, 1], "search": GRID, "track": ["tensorboard"]}
    values = yaml.safe_load(finished.to_yaml()) | changes
    study = taken_over(READY, finished, parse_study(yaml.safe_dump(values), name="small"))
    return study, search_study(study)


def table_of(study: Study) -> pd.DataFrame:
    return parquet.read_table(storage.join(study.root, "summary", "search.parquet")).to_pandas()


def test_the_table_has_a_row_for_each_trial_of_the_grid(grid: tuple[Study, str]) -> None:
    study, _ = grid
    assert pq.read_schema(Path(study.root, "summary", "search.parquet")).equals(schemas.SEARCH_SUMMARY)
    table = table_of(study)
    trials = [(0.3, 4, 0), (0.3, 4, 1), (0.5, 4, 0), (0.5, 4, 1)]
    assert list(zip(table["mask_ratio"], table["patch"], table["seed"], strict=True)) == trials
    assert set(table["status"]) == {"done"}
    assert set(table["epochs"]) == {2}
    assert (table["value"] == table["proxy_auc"]).all()
    labels = parquet.read_table(storage.join(study.root, layout.MANIFEST)).to_pandas().set_index("clip_id")["label"]
    for row, trial in zip(table.itertuples(), trials, strict=True):
        scores = parquet.read_table(trial_location(study.root, Trial(*trial), layout.TRIAL_SCORES)).to_pandas()
        wanted = labels[scores["clip_id"]].astype(int)
        assert row.auc == pytest.approx(auc(scores["score"], wanted))
        assert row.pauc == pytest.approx(pauc(scores["score"], wanted))


def test_each_trial_is_tracked(grid: tuple[Study, str]) -> None:
    study, _ = grid
    folder = Path(study.root, layout.TENSORBOARD, "search")
    assert [len(list((folder / name).glob("events.out.tfevents.*"))) for name in table_of(study)["trial"]] == [1] * 4


def test_the_best_cell_is_told_and_written_as_a_study_to_train(grid: tuple[Study, str]) -> None:
    study, line = grid
    cells = table_of(study).groupby(["mask_ratio", "patch"])["value"].agg(["mean", "std"])
    (ratio, patch), best = max(cells.iterrows(), key=lambda cell: (cell[1]["mean"], -cell[0][0]))
    told = f"mask_ratio {ratio:g}, patch {patch}: {best['mean']:.4f} ± {best['std']:.4f} over 2 seeds"
    assert line.startswith(f"Trials: 4 done. Best by proxy_auc: {told}.")
    places = {"Table": "summary/search.parquet", "Best study": "best.yaml", "Best model": "best"}
    places["Report"] = "search.html"
    assert line.endswith("  ".join(f"{name}: {study.root}/{place}" for name, place in places.items()))
    page = storage.read_text(f"{study.root}/search.html")
    assert "published test AUC (Table 2 of the paper)" in page
    chosen = load_study(f"{study.root}/best.yaml")
    assert (chosen.train.mask_ratio, chosen.train.patch) == (ratio, patch)
    assert chosen.models[0] == "mae"
    assert chosen.model_copy(update={"train": study.train, "models": study.models}) == study
    # The best of the cell's two trainings, as it came out of its trial.
    assert chosen.train.cpus_per_worker == study.search.cpus_per_trial
    model = load_model(f"{study.root}/best")
    trials = table_of(study).set_index(["mask_ratio", "patch"]).loc[(ratio, patch)].set_index("seed")
    assert model.seed == trials["value"].idxmax()
    epochs = parquet.read_table(f"{study.root}/best/epochs.parquet").to_pandas().set_index("epoch")
    assert epochs["validation_loss"][model.best_epoch] == trials["validation_loss"][model.seed]
    assert load_study(f"{study.root}/best/study.yaml") == chosen


def test_a_finished_search_answers_at_once_and_refuses_other_settings(grid: tuple[Study, str]) -> None:
    study, line = grid
    before = _times(study)
    assert search_study(study) == line
    # How trials are spread changes no result.
    spread = study.search.model_copy(update={"trials_at_once": 3, "cpus_per_trial": 2})
    assert search_study(study.model_copy(update={"search": spread})) == line
    other = study.model_copy(update={"train": study.train.model_copy(update={"epochs": 1})})
    with pytest.raises(StudyError, match=r"'search'(.|\n)*train\.epochs: 2 then, 1 now(.|\n)*--redo"):
        search_study(other)
    assert _times(study) == before


@pytest.mark.long
def test_a_search_grows_by_what_is_new_alone(grid: tuple[Study, str], small_study: Callable[..., Study]) -> None:
    before, _ = grid
    names = (*READY, *CLIPS, "search/trials", "stages/search.json", "best.yaml", "best")
    changes = {"mask_ratios": [0.3, 0.75], "patches": [4], "trials_at_once": 2}
    values = yaml.safe_load(before.to_yaml()) | {"root": small_study().root, "search": changes}
    study = taken_over(names, before, parse_study(yaml.safe_dump(values), name="small"))
    old = {path: time for path, time in _times(study).items() if path.is_file()}
    line = search_study(study)
    assert line.startswith("Trials: 4 done.")
    assert old.items() <= _times(study).items(), "no file of an earlier trial is written again"
    table = table_of(study).set_index("trial")
    assert table["present"].to_dict() == {
        f"r{ratio}-p4-s{seed}": ratio != 0.5 for ratio in (0.3, 0.5, 0.75) for seed in (0, 1)
    }
    earlier = table_of(before).set_index("trial")
    assert (table.loc[earlier.index, "value"] == earlier["value"]).all()
    cells = table[table["present"]].groupby("mask_ratio")["value"].mean()
    assert load_study(f"{study.root}/best.yaml").train.mask_ratio == cells.idxmax()
    assert load_model(f"{study.root}/best").seed in (0, 1)


def _times(study: Study) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in Path(study.root, "search").rglob("*")}


def with_labels(study: Study, change: Callable[[pd.Series], pd.Series]) -> None:
    """Change the labels of all test clips in the manifest."""
    manifest = parquet.read_table(storage.join(study.root, layout.MANIFEST)).to_pandas()
    manifest["label"] = change(manifest["label"])
    table = pa.Table.from_pandas(manifest, preserve_index=False)
    parquet.write_table(table, storage.join(study.root, layout.MANIFEST), schema=schemas.MANIFEST)


@pytest.mark.long
def test_test_labels_change_nothing_but_the_areas_under_the_curve(
    grid: tuple[Study, str], small_study: Callable[..., Study]
) -> None:
    """Every anomalous test clip is called normal and the other way round: the search comes to the same."""
    study, _ = grid
    turned = taken_over((*READY, *CLIPS), study, small_study(seeds=[0], search=GRID))
    with_labels(turned, lambda label: 1 - label)
    search_study(turned)
    table = table_of(study).query("seed == 0").reset_index(drop=True)
    found = table_of(turned)
    np.testing.assert_allclose(found["auc"], 1 - table["auc"])
    kept = ["trial", "status", "value", "proxy_auc", "best_epoch"]
    pd.testing.assert_frame_equal(found[kept], table[kept])
    np.testing.assert_allclose(found["validation_loss"], table["validation_loss"], rtol=1e-5)
    chosen = load_study(f"{turned.root}/best.yaml").train.mask_ratio
    assert chosen == table.set_index("mask_ratio")["value"].idxmax()


@pytest.mark.long
def test_optuna_draws_cells_and_asha_gives_trials_up(
    grid: tuple[Study, str], small_study: Callable[..., Study]
) -> None:
    search = {**GRID, "algorithm": "optuna", "trials": 3, "objective": "validation_loss", "trials_at_once": 1}
    search["space"] = {"train": {"weight_decay": {"log_uniform": [1e-4, 0.1]}}}
    search |= {"scores": ["paper", "robust"], "members": ["frame_pca"]}
    asha = {"scheduler": "asha", "grace_epochs": 1, "reduction_factor": 2}
    study = small_study(seeds=[0, 1], train={"epochs": 4}, search=search | asha)
    taken_over(READY, grid[0], study)
    with_labels(study, lambda label: label.where(label.isna()))
    line = search_study(study)
    table = table_of(study)
    assert len(table) == 6
    assert table[["auc", "pauc"]].isna().all(axis=None), "no clip has a label"
    assert not Path(study.root, "search", "features").exists()
    cells = table.groupby(["mask_ratio", "patch"])["seed"].apply(sorted)
    assert cells.tolist() == [[0, 1]] * 3
    assert table["mask_ratio"].between(0.3, 0.5).all()
    decays = table["settings"].map(lambda text: json.loads(text)["train.weight_decay"])
    assert decays.nunique() == 3
    chosen = load_study(f"{study.root}/best.yaml").train
    (decay,) = set(decays[table["mask_ratio"] == chosen.mask_ratio])
    assert chosen.weight_decay == decay
    assert load_study(f"{study.root}/best/study.yaml").train == chosen
    assert f"train.weight_decay {decay:g}: " in line
    # Of the two scores, `best/` has the one that caught more, and so has the study to train.
    scores = parquet.read_table(f"{study.root}/summary/search_scores.parquet").to_pandas()
    assert scores["chosen"].tolist() == [True, False]
    assert scores["caught"].is_monotonic_decreasing
    model, wanted = load_model(f"{study.root}/best"), load_study(f"{study.root}/best.yaml").score_of("mae")
    assert (model.score is None) == (wanted is None)
    assert model.score is None or model.score.choices == scores.loc[0, list(model.score.choices)].to_dict()
    assert model.alarm is not None
    # Whether it adds something to a linear model is told, and the better ensemble is there.
    ensembles = parquet.read_table(f"{study.root}/summary/search_members.parquet").to_pylist()
    assert {tuple(row["members"]) for row in ensembles} == {("frame_pca",), ("mae",), ("frame_pca", "mae")}
    (better,) = (row["members"] for row in ensembles if row["chosen"])
    ensemble = load_any(f"{study.root}/best_ensemble")
    assert isinstance(ensemble, TrainedEnsemble)
    assert list(ensemble.members) == better
    assert f"  Best ensemble: {study.root}/best_ensemble  " in line
    assert "Does mae add something to linear models?" in storage.read_text(f"{study.root}/search.html")
    assert search_study(study) == line, "nothing is compared again"
    stopped = table[table["status"] == "stopped"]
    assert 1 <= len(stopped) <= 5, "each trial after the first has to beat the better half of those before"
    assert (stopped["epochs"] < 4).all()
    assert (table.loc[table["status"] == "done", "epochs"] == 4).all()
    assert f"{len(stopped)} stopped. Best by validation_loss: " in line


@pytest.mark.slow
def test_a_trial_of_two_workers_is_that_of_one(
    finished: Study, grid: tuple[Study, str], small_study: Callable[..., Study]
) -> None:
    search = {"mask_ratios": [0.3], "patches": [4], "cpus_per_trial": 2}
    study = small_study(train={"epochs": 2, "workers": 2}, search=search)
    taken_over((*READY, *CLIPS), grid[0], study)
    search_study(study)
    epochs = parquet.read_table(storage.join(finished.root, "models", "mae-0", "epochs.parquet")).to_pandas()
    row = table_of(study).iloc[0]
    assert (row["status"], row["epochs"]) == ("done", 2)
    assert row["validation_loss"] == pytest.approx(epochs["validation_loss"].min(), rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": {"cpus_per_trial": 50}}, r"search\.cpus_per_trial 50(.|\n)*2 CPU, 0 GPU"),
        ({"search": {"gpus_per_trial": 1}}, r"search\.gpus_per_trial 1 in all(.|\n)*2 CPU, 0 GPU"),
    ],
)
def test_what_the_cluster_can_never_give_is_refused(
    finished: Study, small_study: Callable[..., Study], changes: dict[str, Any], message: str
) -> None:
    study = taken_over(READY, finished, small_study(**changes))
    with pytest.raises(StudyError, match=message):
        search_study(study)
