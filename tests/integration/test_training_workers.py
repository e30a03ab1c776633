"""Ray Train with several workers and with requests that no cluster of this size can meet."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from faithad import storage
from faithad.config import Study
from faithad.errors import StudyError
from faithad.model.checkpoint import load_model
from faithad.pipelines.study import STAGES

pytestmark = pytest.mark.usefixtures("local_ray")


def indexed(finished: Study, small_study: Callable[..., Study], **train: object) -> Study:
    """The small study with its index and features done, ready to train."""
    study = small_study(models=["mae"], train={"epochs": 2, **train})
    for name in ("manifest.parquet", "index_ledger.parquet", "features", "stages/index.json", "stages/features.json"):
        source, target = Path(finished.root, name), Path(study.root, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    return study


def test_two_workers_train_what_one_trains_but_for_dropout(finished: Study, small_study: Callable[..., Study]) -> None:
    study = indexed(finished, small_study, workers=2, cpus_per_worker=1)
    STAGES["train"](study)
    one, two = (
        storage.read_table(storage.join(s.root, "models", "mae-0", "epochs.parquet")).to_pandas()
        for s in (finished, study)
    )
    np.testing.assert_allclose(two["train_loss"], one["train_loss"], rtol=0.05)
    np.testing.assert_allclose(two["validation_loss"], one["validation_loss"], rtol=0.05)
    assert two["best"].any()
    trained = load_model(storage.join(study.root, "models", "mae-0"), expect={"n_mels": 16, "n_frames": 100})
    assert trained.best_epoch in (1, 2)
    scores = storage.read_table(storage.join(study.root, "models", "mae-0", "validation_scores.parquet"))
    assert scores.num_rows == 1
    assert not Path(study.root, "training", "mae-0").exists(), "what Ray Train kept is gone once the model stands"


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"workers": 2, "cpus_per_worker": 50}, r"2 workers with 50 CPU each.*3 CPU, 0 GPU.*Lower train\.workers"),
        ({"gpus_per_worker": 1}, r"1 workers with 1 CPU and 1 GPU each.*train\.gpus_per_worker"),
    ],
)
def test_what_the_cluster_can_never_give_is_refused(
    finished: Study, small_study: Callable[..., Study], train: dict[str, object], message: str
) -> None:
    with pytest.raises(StudyError, match=message):
        STAGES["train"](indexed(finished, small_study, **train))
