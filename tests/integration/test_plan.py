"""Plans from rates that are measured here, beside the real thing: what they count, what is written, and the time."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from faithad.config.study import Study
from faithad.pipelines.plan.estimate import Plan, estimate, total_s, written
from faithad.pipelines.plan.run import make_plan
from faithad.pipelines.plan.text import plan_text
from tests.integration.conftest import small_values

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.long]


class Planned(NamedTuple):
    """A plan of the small study, which `finished` is."""

    config: str
    rates: str
    plan: Plan


@pytest.fixture(scope="module")
def planned(mill: Path, finished: Study, tmp_path_factory: pytest.TempPathFactory) -> Planned:
    """Made after the study, so that both find the same processes in each run of the tests."""
    folder = tmp_path_factory.mktemp("plan")
    config, rates = folder / "small.yaml", folder / "rates.yaml"
    config.write_text(yaml.safe_dump(small_values(mill, folder / "study")))
    plan = make_plan(str(config), save_rates=str(rates))
    assert sorted(path.name for path in folder.iterdir()) == ["rates.yaml", "small.yaml"]  # planning does none of it
    return Planned(str(config), str(rates), plan)


def test_the_clips_are_those_of_the_manifest(planned: Planned) -> None:
    clips = planned.plan.clips
    assert (clips.train, clips.validation, clips.test, clips.annotated, clips.recordings) == (7, 1, 8, 3, 8)


def test_everything_is_as_large_as_planned(planned: Planned, finished: Study) -> None:
    def size(*patterns: str) -> int:
        files = [file for pattern in patterns for file in Path(finished.root).glob(pattern)]
        return sum(file.stat().st_size for file in files)

    expected = written(planned.plan)
    sizes = {"features": size("features/*/*"), "models": size("models/*/*", "training/*/*/*")}
    for name, n_bytes in sizes.items():
        assert n_bytes == pytest.approx(expected[name], rel=0.1), name
    assert size("audit/*/*/*.parquet") == pytest.approx(expected["tables"] + expected["maps"], rel=0.1)
    # A report shows what there is.
    assert size("report.html", "summary/*") == pytest.approx(expected["report"], rel=0.25)


def test_the_plan_is_roughly_right_about_the_time(planned: Planned, finished: Study) -> None:
    """By a factor of 3, on a machine on which others work, too: `tests/benchmarks/planning.py` asks for a quarter."""
    begun, ended = (Path(finished.root, "stages", f"{name}.json").stat().st_mtime for name in ("index", "report"))
    seconds = sum(stage.seconds for stage in estimate(planned.plan) if stage.name not in ("start", "index"))
    assert 1 / 3 < seconds / (ended - begun) < 3


def test_saved_rates_make_the_same_plan(planned: Planned) -> None:
    again = make_plan(planned.config, rates=planned.rates)
    assert again.rates.measured.startswith(planned.rates)
    assert total_s(again) == pytest.approx(total_s(planned.plan), rel=1e-2)
    assert "Bottleneck: " in plan_text(again)


@pytest.mark.slow
def test_an_audit_and_a_search_are_planned_as_well(
    planned: Planned, finished: Study, mill: Path, tmp_path: Path
) -> None:
    config = tmp_path / "audit.yaml"
    values = yaml.safe_load(Path(planned.config).read_text())
    audit = {"attribution": values["attribution"], "audit": {"explain": "top:2"}}
    locations = {"model": f"{finished.root}/models/mae-0", "recordings": [f"{mill}/test"], "out": f"{tmp_path}/out"}
    config.write_text(yaml.safe_dump(audit | locations))
    plan = make_plan(str(config))
    assert plan.clips.test == 8
    seconds = {stage.name: stage.seconds for stage in estimate(plan)}
    assert list(seconds) == ["start", "index", "audit", "tables and report"]
    assert seconds["audit"] > 0
    assert "Explained: 2 clips" in plan_text(plan)

    plan = make_plan(planned.config, search=True, overrides=["search.mask_ratios=[0.3, 0.5]"])
    assert len(plan.runs) == 4
    seconds = {stage.name: stage.seconds for stage in estimate(plan)}
    assert list(seconds) == ["start", "index", "search"]
    assert seconds["search"] > 0
    assert plan.rates.learn["mae"] > 0
    assert "4 trainings" in plan_text(plan)
