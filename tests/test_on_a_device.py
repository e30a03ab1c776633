"""What explaining and training ask of a device that is not the CPU, shown without one: see compute_on_a_device.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from faithad.attribution.methods import METHODS

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def outcome() -> Any:
    script = Path(__file__).with_name("compute_on_a_device.py")
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


def test_all_maps_are_computed_where_the_clips_are(outcome: Any) -> None:
    assert outcome["all"]["maps"] == {name: [2, 16, 40, "elsewhere"] for name in METHODS}


def test_the_host_never_waits_for_a_value(outcome: Any) -> None:
    assert [each["to_host"] for each in (outcome["all"], outcome["one_clip"], outcome["two_clips"])] == [0, 0, 0]


def test_points_of_all_clips_and_methods_share_passes(outcome: Any) -> None:
    # The clips themselves, the points that need gradients, and, with occlusion, those that do not.
    assert (outcome["one_clip"]["passes"], outcome["two_clips"]["passes"], outcome["all"]["passes"]) == (2, 2, 3)


def test_a_clip_costs_few_launches_and_small_copies_of_its_own(outcome: Any) -> None:
    # 25 noisy samples drawn one by one would be over 100 launches; noise drawn by the host 6 MB.
    one, two = outcome["one_clip"], outcome["two_clips"]
    assert two["launches"] - one["launches"] < 150
    # The keys of two kinds of noise, the nodes and weights of the path.
    assert two["from_host"] - one["from_host"] == 4


def test_an_epoch_sends_its_plan_at_once_and_waits_for_nothing(outcome: Any) -> None:
    learnt = outcome["learnt"]
    assert (learnt["losses"], learnt["norms"]) == ([[4, "elsewhere"]], [["elsewhere"]])
    # Which clips, and which masks.
    assert (learnt["to_host"], learnt["from_host"]) == (0, 2)
