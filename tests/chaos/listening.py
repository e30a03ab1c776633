"""Who can reach the workers that share a training on a Ray of its own, watched while a study runs."""

from __future__ import annotations

from pathlib import Path

from tests.security.test_own_ray import LOOPBACK, study_watched
from tests.security.traps import Trap


def test_workers_that_share_a_training_listen_on_loopback(tmp_path: Path) -> None:
    with study_watched(Trap(tmp_path / "trap"), tmp_path, workers=2) as seen:
        assert seen.status == 0, seen.said
        assert any("ray::RayTrainWorker" in names for names in seen.names.values())
        assert {address for _, address, _ in seen.listening} <= LOOPBACK
