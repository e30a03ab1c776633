"""A plan from rates that are measured here, beside the real thing: what it counts, what is written, and the time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from faithad.config.study import Study, load_study
from faithad.pipelines.plan.estimate import Case, estimate, total_s, written
from faithad.pipelines.plan.rates import read_rates
from faithad.pipelines.plan.run import plan_case
from faithad.pipelines.plan.text import plan_text
from faithad.pipelines.study import run_study
from tests.integration.conftest import small_values

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


class Planned(NamedTuple):
    """A plan, and then the study itself."""

    config: str
    rates: str
    case: Case
    study: Study
    real_s: float


@pytest.fixture(scope="module")
def planned(mill: Path, local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Planned:
    folder = tmp_path_factory.mktemp("plan")
    config, rates = folder / "small.yaml", folder / "rates.yaml"
    config.write_text(yaml.safe_dump(small_values(mill, folder / "study") | {"models": ["mae"]}))
    case, _ = plan_case(str(config), save_rates=str(rates))
    study = load_study(str(config))
    assert not Path(study.root).exists()  # nothing of it is done by planning
    started = time.monotonic()
    run_study(study)
    return Planned(str(config), str(rates), case, study, time.monotonic() - started)


def test_the_clips_are_those_of_the_manifest(planned: Planned) -> None:
    clips = planned.case.clips
    assert (clips.train, clips.validation, clips.test, clips.annotated, clips.recordings) == (7, 1, 8, 3, 8)


def test_every_table_is_as_large_as_planned(planned: Planned) -> None:
    def size(*patterns: str) -> int:
        files = [file for pattern in patterns for file in Path(planned.study.root).glob(pattern)]
        return sum(file.stat().st_size for file in files)

    tables = ("scores", "attributions", "localization", "faithfulness", "spectrograms", "ledger")
    found = {name: size(f"audit/*/{name}/*.parquet") for name in tables}
    found |= {"features": size("features/train/*", "features/validation/*"), "models": size("models/*/*")}
    found["manifest"] = size("manifest.parquet")
    expected = written(planned.case)
    for name, n_bytes in found.items():
        # A manifest of so few clips is all header, and file names are of any length.
        assert n_bytes == pytest.approx(expected[name], rel=0.25 if name == "manifest" else 0.1), name


def test_the_plan_is_right_about_the_time(planned: Planned) -> None:
    """On a machine on which others work, too, so only roughly: `tests/benchmarks/planning.py` asks for a quarter."""
    stages = [stage for stage in estimate(planned.case) if stage.name != "start"]  # Ray runs, and so does this program
    assert total_s(stages) == pytest.approx(planned.real_s, rel=0.6)


def test_saved_rates_make_the_same_plan(planned: Planned) -> None:
    again, source = plan_case(planned.config, rates=planned.rates)
    assert source.startswith(planned.rates)
    assert again.clips.source == "the study's manifest"
    same = Case(again.of, again.runs, 0.05, again.clips, planned.case.machines, read_rates(planned.rates))
    assert total_s(estimate(same)) == pytest.approx(total_s(estimate(planned.case)), rel=1e-2)
    assert "Bottleneck: " in plan_text(again, source=source)
