"""Several worker processes train the same network as one: by gloo, without Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """By number of workers."""
    folder = tmp_path_factory.mktemp("processes")
    one = _train(folder, ["ae", "mae", "diverging", "small"], workers=1)
    two = _train(folder, ["ae", "mae", "diverging", "small_compiled"], workers=2)
    return {1: one, 2: {**two, "small": two["small_compiled"]}, 4: _train(folder, ["mae"], workers=4)}


@pytest.mark.long
@pytest.mark.parametrize(("workers", "kind"), [(2, "ae"), (2, "mae"), (2, "diverging"), (2, "small"), (4, "mae")])
def test_worker_processes_train_the_same_network_as_one(
    trained: dict[int, dict[str, Any]], workers: int, kind: str
) -> None:
    """With dropout. The small one is compiled where there are two."""
    one, several = trained[1][kind], trained[workers][kind]
    assert several["diverged"] == one["diverged"]
    assert any(one["diverged"]) == (kind == "diverging")
    torch.testing.assert_close(torch.tensor(several["losses"]), torch.tensor(one["losses"]), rtol=1e-9, atol=0)
    assert list(several["weights"]) == list(one["weights"])
    for name, value in one["weights"].items():
        torch.testing.assert_close(several["weights"][name], value, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.long
def test_every_worker_notices_that_another_one_restored_a_different_state(
    trained: dict[int, dict[str, Any]],
) -> None:
    assert trained[2]["notices"] == [True, True]


def _train(folder: Path, kinds: list[str], *, workers: int) -> dict[str, Any]:
    out = folder / f"{workers}.pt"
    environment = {
        **os.environ,
        "WORLD_SIZE": str(workers),
        "INIT_METHOD": f"file://{folder}/rendezvous-{workers}",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    script = Path(__file__).parent / "train_with_workers.py"
    processes = [
        subprocess.Popen([sys.executable, script, out, *kinds], env={**environment, "RANK": str(rank)})
        for rank in range(workers)
    ]
    try:
        assert [process.wait(timeout=240) for process in processes] == [0] * workers
    finally:
        for process in processes:
            process.kill()
            process.wait()
    result: dict[str, Any] = torch.load(out, weights_only=True)
    return result
