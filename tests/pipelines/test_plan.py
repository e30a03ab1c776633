"""Plans from stated rates: what they count, what they add up, what they say and refuse. Nothing is measured here."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from faithad import schemas, storage
from faithad.clips.manifest import manifest_table
from faithad.config.audit import AuditRun
from faithad.config.study import Study, load_study, parse_study
from faithad.demo.making import make_mill
from faithad.errors import ConfigError, RecordingError, StudyError
from faithad.pipelines import headers, index
from faithad.pipelines.index import find_clips
from faithad.pipelines.plan.changes import with_workers
from faithad.pipelines.plan.clips import Clips, clips_of_study
from faithad.pipelines.plan.estimate import Case, estimate, total_s, written
from faithad.pipelines.plan.machines import Machines, machines_of, read_machines
from faithad.pipelines.plan.rates import Rates, rate_settings, read_rates, write_rates
from faithad.pipelines.plan.run import plan, plan_case
from faithad.pipelines.plan.text import duration, plan_text, size

CONFIGS = Path(__file__).parents[2] / "configs"
EXAMPLE = Path(__file__).parents[2] / "cluster" / "machines.yaml"

# Round numbers, so that each figure can be had by hand.
RATES: dict[str, Any] = {
    "measured": "by nobody",
    "settings": {},
    "cpu": {
        "read": 0.01,
        "shard": 0.1,
        "score": {"ae": 0.02, "mae": 0.02},
        "explain": 1.0,
        "annotated": 0.5,
        "train": {"ae": {1: 0.1, 2: 0.06}, "mae": {1: 0.1, 2: 0.06}},
        "validation": {"ae": {1: 0.04}, "mae": {1: 0.04}},
    },
    "scheduling": {"driver": 0, "reader": 0, "actor": 0},
    "fixed": {"program": 3, "ray": 5, "process": 0, "stages": {"train": 4, "audit": 2, "evaluate": 1, "report": 6}},
    "driver": {"synth": 0, "index": 0.5, "conclude": 0.001},
    "bytes": {
        "manifest": {"file": 0, "clip": 50},
        "report": {"file": 1000, "clip": 0},
        "features": {"file": 100, "clip": 1000},
        "models": {"file": 5000, "clip": 0},
        "scores": {"file": 10, "clip": 4},
        "ledger": {"file": 10, "clip": 3},
        "attributions": {"file": 200, "clip": 90, "maps": 700},
        "localization": {"file": 100, "clip": 0, "annotated": 20},
        "faithfulness": {"file": 100, "clip": 30, "annotated": 30},
        "spectrograms": {"file": 0, "clip": 0, "maps": 900},
    },
}
CLIPS = Clips(
    train=400, validation=100, test=640, annotated=160, recordings=20, to_make=0, source="a list",
    sample=schemas.MANIFEST.empty_table(),
)  # fmt: skip
PLAIN_AUDIT = {"model": "model", "recordings": ["sounds"], "out": "out"}


def machines_with(cpus: float, gpus: float = 0, count: int = 1, **more: Any) -> Machines:
    return Machines.model_validate({"groups": [{"name": "box", "count": count, "cpus": cpus, "gpus": gpus, **more}]})


def case_of(of: Study | AuditRun, machines: Machines, **changes: Any) -> Case:
    runs = tuple(of.runs) if isinstance(of, Study) else (("mae", 0),)
    return Case(of, runs, alarm_rate=0.05, clips=CLIPS, machines=machines, rates=Rates.model_validate(RATES | changes))


def study_of(**sections: Any) -> Study:
    values = {"name": "small", "root": "/nowhere", "seeds": [0], "data": {"train": ["train"], "test": ["test"]}}
    return parse_study(yaml.safe_dump(values | {"train": {"epochs": 10}} | sections), name="small")


def seconds_of(case: Case) -> dict[str, float | None]:
    return {stage.name: stage.wall_s for stage in estimate(case)}


def test_a_study_on_one_core_is_the_sum_of_its_parts() -> None:
    case = case_of(study_of(models=["mae"], audit={"clips_per_shard": 10}), machines_with(1))
    found = seconds_of(case)
    assert found["start"] == 8
    assert found["index"] == 20 * 0.5
    assert found["train"] == pytest.approx(500 * 0.01 + 10 * (400 * 0.1 + 100 * 0.04) + 4)
    # 64 shards; a quarter of the clips has reference intervals.
    assert found["audit"] == pytest.approx(640 * (0.01 + 0.02 + 1.0 + 0.5 / 4) + 64 * 0.1 + 2)
    assert found["tables and report"] == pytest.approx(640 * 0.001 + 7)
    assert total_s(estimate(case)) == pytest.approx(sum(value or 0 for value in found.values()))
    (audit,) = (stage for stage in estimate(case) if stage.name == "audit")
    assert audit.cpu_s == pytest.approx(found["audit"] - 2)
    assert (audit.gpu_s, audit.limit) == (0, "the cores")


def test_trainings_share_the_cores() -> None:
    """Two on two cores take as long as one on one; one on two cores takes what was measured with two threads."""
    each = 10 * (400 * 0.1 + 100 * 0.04)
    features = 500 * 0.01
    assert seconds_of(case_of(study_of(), machines_with(2)))["train"] == pytest.approx(each + features / 2 + 4, abs=0.1)
    assert seconds_of(case_of(study_of(), machines_with(1)))["train"] == pytest.approx(2 * each + features + 4, abs=0.1)
    alone = case_of(study_of(models=["mae"]), machines_with(2))
    assert seconds_of(alone)["train"] == pytest.approx(10 * (400 * 0.06 + 100 * 0.04) + features / 2 + 4, abs=0.1)
    (train,) = (stage for stage in estimate(alone) if stage.name == "train")
    assert train.limit == "one training on 2 threads"
    three = case_of(study_of(seeds=[0, 1, 2], models=["ae"]), machines_with(2))
    assert seconds_of(three)["train"] == pytest.approx(2 * each + features / 2 + 4, abs=0.1)


@pytest.mark.parametrize(
    ("explain", "explained"), [("all", 640), ("none", 0), ("alarms", 32), ("top:100", 100), ("top:1000", 640)]
)
def test_so_many_clips_are_explained(explain: str, explained: int) -> None:
    run = AuditRun.model_validate(PLAIN_AUDIT | {"audit": {"explain": explain, "clips_per_shard": 10}})
    case = case_of(run, machines_with(1))
    assert case.n_explained == explained
    n_shards = 64 + (min(64, explained) and -(-explained // -(-explained // 64)))
    expected = 640 * 0.03 + explained * (0.03 + 1.125) + n_shards * 0.1 + 2
    assert seconds_of(case)["audit"] == pytest.approx(expected)


def test_the_bytes_of_every_table() -> None:
    case = case_of(study_of(models=["ae", "mae"], audit={"clips_per_shard": 10, "maps": 4}), machines_with(1))
    assert written(case) == pytest.approx(
        {
            "manifest": 1140 * 50,
            "report": 1000,
            "features": (58 + 50) * 100 + 500 * 1000,
            "models": 2 * 5000,
            "scores": 2 * (64 * 10 + 640 * 4),
            "ledger": 2 * (64 * 10 + 640 * 3),
            "attributions": 2 * (64 * 200 + 640 * 90 + 4 * 700),
            "localization": 2 * (64 * (1 - 0.75**10) * 100 + 160 * 20),
            "faithfulness": 2 * (64 * 100 + 640 * 30 + 160 * 30),
            "spectrograms": 2 * 4 * 900,
        }
    )
    scored = case_of(AuditRun.model_validate(PLAIN_AUDIT | {"audit": {"explain": "none"}}), machines_with(1))
    assert set(written(scored)) == {"manifest", "report", "scores", "ledger"}


def test_a_gpu_that_nobody_measured_is_not_guessed() -> None:
    study = study_of(train={"epochs": 10, "gpus_per_worker": 1}, audit={"gpus_per_actor": 1})
    case = case_of(study, machines_with(16, 1))
    found = seconds_of(case)
    assert (found["train"], found["audit"]) == (None, None)
    text = plan_text(case, source="stated")
    assert "asks for GPUs for train and audit, and the rates say nothing of one" in text
    assert re.search(r"^total +at least 2\d s", text, re.MULTILINE)
    gpu = {"score": {"ae": 0.001, "mae": 0.001}, "explain": 0.05, "train": {"ae": {1: 0.002}, "mae": {1: 0.002}},
           "validation": {"ae": {1: 0.001}, "mae": {1: 0.001}}}  # fmt: skip
    known = case_of(study, machines_with(16, 1), gpu=gpu)
    assert seconds_of(known)["train"] == pytest.approx(
        2 * 10 * (400 * 0.002 + 100 * 0.001) + 500 * 0.01 / 16 + 4, abs=0.1
    )
    assert sum(stage.gpu_s for stage in estimate(known)) > 0
    unused = plan_text(case_of(study_of(), machines_with(16, 1)), source="stated")
    assert "GPUs that the configuration does not use" in unused
    assert "these rates do not say" in unused


def test_more_workers_are_faster_until_something_else_holds_them_up() -> None:
    run = AuditRun.model_validate(PLAIN_AUDIT | {"audit": {"explain": "none", "clips_per_shard": 10, "actors": 3}})
    cpu = {"read": 0.002, "shard": 0.1, "score": {"mae": 0.02}}
    rates = {"cpu": cpu, "scheduling": {"driver": 0.02, "reader": 0.01, "actor": 0.01}}
    clips = replace(CLIPS, test=200_000, annotated=0)
    times, limits = {}, {}
    for workers in (1, 10, 1000):
        case = replace(with_workers(case_of(run, machines_with(4), **rates), workers), clips=clips)
        (audit,) = (stage for stage in estimate(case) if stage.name == "audit")
        times[workers], limits[workers] = audit.wall_s or 0.0, audit.limit
    assert 9 < times[1] / times[10] < 10.01
    assert 20_000 * 0.02 < times[1000] < 20_000 * 0.021  # shards, and what the driver takes for each
    assert (limits[1], limits[1000]) == ("the cores", "the driver, which hands out shards one by one")


def test_the_text_says_what_costs_what_and_what_would_help() -> None:
    case = case_of(study_of(models=["mae"], train={"epochs": 2}), machines_with(2, dollars_per_hour=3.6, count=2))
    text = plan_text(case, source="stated")
    whole = total_s(estimate(case))
    assert f"Machines: ${2 * 3.6 * whole / 3600:,.2f}" in text
    assert "give storage.dollars_per_gb_month in the file" in text
    assert "1,140 from 20 recordings" in text
    assert "Memory" not in text
    tight = case_of(study_of(), machines_with(4, memory=3.5), memory_gib=0.8)
    assert "Memory: up to 3.3 of the 3.5 GiB of box." in plan_text(tight, source="stated")
    two = case_of(study_of(), machines_with(4, memory=3.5, count=2), memory_gib=0.8)
    assert "Memory: up to 3.3 of the 3.5 GiB of each box." in plan_text(two, source="stated")
    narrow = case_of(study_of(), machines_with(4, memory=3), memory_gib=0.8)
    assert "TOO LITTLE: set audit.actors" in plan_text(narrow, source="stated")
    assert "1 at a time, each of 2 epochs at the most; early stopping" in text
    assert "Bottleneck: audit" in text
    assert "What would help most, and change no result: twice as many of these machines" in text
    assert re.search(r"^ +1,000 .*%", text, re.MULTILINE)
    held_up = case_of(study_of(models=["mae"], train={"epochs": 1000}), machines_with(1))
    assert "Bottleneck: train" in plan_text(held_up, source="stated")


@pytest.mark.parametrize(
    ("search", "said"),
    [({"patches": [4], "mask_ratios": [0.3, 0.5]}, "4 trainings"), ({"algorithm": "optuna", "trials": 9}, "18 train")],
)
def test_a_search_is_said_not_to_be_planned(search: dict[str, Any], said: str) -> None:
    """A file for `faithad search` is a study's, too, and what is planned is the study."""
    case = case_of(study_of(seeds=[0, 1], search=search), machines_with(2))
    text = plan_text(case, source="stated")
    assert (
        f"plan of `faithad study` on the file. Its section `search` is not planned: `faithad search` has {said}" in text
    )
    assert "search" not in plan_text(case_of(study_of(), machines_with(2)), source="stated")


def test_many_workers_are_not_said_to_lack_cores() -> None:
    """Once each has but a shard or two, what takes the time is their start."""
    run = AuditRun.model_validate(PLAIN_AUDIT | {"audit": {"explain": "none", "clips_per_shard": 10}})
    fixed = RATES["fixed"] | {"process": 20}
    text = plan_text(case_of(run, machines_with(4), fixed=fixed), source="stated")
    limits = dict(re.findall(r"^ +([\d,]+) .*%   (.*)$", text, re.MULTILINE))
    assert limits["1"] == "the cores"
    assert limits["64"].startswith("the start of processes")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "not known"), (0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"),
     (3599.7, "1 h 00 min"), (367_000, "101 h 57 min")],
)  # fmt: skip
def test_durations_are_for_people(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_sizes_are_for_people() -> None:
    assert [size(n) for n in (0, 999, 1_000, 123_456, 5e9, 2e15)] == [
        "0 B",
        "999 B",
        "1 kB",
        "123 kB",
        "5 GB",
        "2,000.0 TB",
    ]


# --- files ------------------------------------------------------------------------------------------------------------


def test_rates_come_back_from_their_file(tmp_path: Path) -> None:
    rates = Rates.model_validate(RATES | {"settings": rate_settings(study_of(), study_of().feature_settings)})
    write_rates(rates, str(tmp_path / "rates.yaml"))
    assert read_rates(str(tmp_path / "rates.yaml")) == rates


def test_rates_of_other_settings_are_refused(tmp_path: Path) -> None:
    config, rates = files_of(tmp_path)
    assert "Study 'small' on this machine (" in plan(config, overrides=[], machines=None, rates=rates, save_rates=None)
    with pytest.raises(StudyError, match=r"attribution\.smooth_grad_samples: 25 there, 3 here"):
        plan(config, overrides=["attribution.smooth_grad_samples=3"], machines=None, rates=rates, save_rates=None)
    with pytest.raises(ConfigError, match="one of the two"):
        plan(config, overrides=[], machines=None, rates=rates, save_rates=rates)


def test_what_a_file_of_machines_may_say(tmp_path: Path) -> None:
    example = read_machines(str(EXAMPLE))
    assert (example.cpus, example.gpus, example.dollars_per_hour) == (68, 0, None)
    assert example.storage.dollars_per_gb_month is None
    assert str(example) == "1 x head (4 CPU, 16 GiB) and 4 x cpu-worker (16 CPU, 64 GiB)"


ALLOWED = "allowed: name, count, cpus, gpus, memory, dollars_per_hour"
WRONG_MACHINES = {
    "": ["must hold keys and values (groups: ...), found nothing: it is empty"],
    "[]": ["must hold keys and values (groups: ...), found list"],
    "{}": ["has 1 problem:", "groups: missing, give it a value"],
    "groups: []": ["has 1 problem:", "groups: give 1 or more, found []"],
    "groups: [{name: a, cpus: 4, dollars_per_hour: -3}, {name: b, cpus: 4, dollars_per_hour: -3}]": [
        "has 2 problems:",
        "groups.0.dollars_per_hour: must be at least 0, found -3",
        "groups.1.dollars_per_hour: must be at least 0, found -3",
    ],
    "groups: [{name: a, cpus: 4, cpu: 4, price: 3}, {cpus: 1}]\nstorage: {size: 1}": [
        "has 4 problems:",
        "groups.0.cpu: unknown key; did you mean 'cpus'?",
        f"groups.0.price: unknown key; {ALLOWED}",
        "groups.1.name: missing, give it a value",
        "storage.size: unknown key; allowed: dollars_per_gb_month",
    ],
}


@pytest.mark.parametrize("text", WRONG_MACHINES)
def test_what_is_wrong_with_a_file_of_machines_is_told_as_of_a_study(tmp_path: Path, text: str) -> None:
    wrong = tmp_path / "machines.yaml"
    wrong.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_machines(str(wrong))
    assert str(caught.value).removeprefix(f"{wrong} ").split("\n  ") == WRONG_MACHINES[text]


def test_what_is_wrong_with_a_file_of_rates_is_told_as_of_a_study(tmp_path: Path) -> None:
    wrong = tmp_path / "rates.yaml"
    cpu = {"reed": 0.1, "train": {"mae": {1: "fast"}}}
    tables = {"scores": {"file": 1, "clip": 1, "clips": 2}}
    wrong.write_text(yaml.safe_dump(RATES | {"cpu": cpu, "bytes": tables, "scheduling": {"driver": 0, "reader": 0}}))
    with pytest.raises(ConfigError) as caught:
        read_rates(str(wrong))
    assert str(caught.value).splitlines() == [
        f"{wrong} has 4 problems:",
        "  cpu.train.mae.1: must be a number, found 'fast'",
        "  cpu.reed: unknown key; did you mean 'read'?",
        "  scheduling.actor: missing, give it a value",
        "  bytes.scores.clips: unknown key; did you mean 'clip'?",
    ]


def test_rates_that_cannot_be_saved_are_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, rates = files_of(tmp_path)
    before = Path(rates).read_text()

    def measured(*_: Any, **__: Any) -> None:
        raise InterruptedError

    monkeypatch.setattr("faithad.pipelines.plan.run.measure", measured)
    for place, problem in ((f"{rates}/r.yaml", "cannot be written"), (str(tmp_path), "is a folder")):
        with pytest.raises(StudyError, match=problem) as caught:
            plan_case(config, save_rates=place)
        assert f"{place!r} " in str(caught.value)
    for place in (rates, str(tmp_path / "new" / "r.yaml")):
        with pytest.raises(InterruptedError):
            plan_case(config, save_rates=place)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new", "rates.yaml", "study.yaml"]
    assert Path(rates).read_text() == before


def test_the_machines_of_a_ray() -> None:
    two = machines_of([{"CPU": 4.0}, {"CPU": 16.0, "GPU": 1.0}, {"CPU": 16.0, "GPU": 1.0}])
    assert (two.cpus, two.gpus, two.count) == (36, 2, 3)
    assert machines_of([{"CPU": 3.0}]).cpus == 3


# --- counting ---------------------------------------------------------------------------------------------------------


def files_of(folder: Path, **clips: int) -> tuple[str, str]:
    """A configuration whose recordings are not there, and rates that say how many clips there will be."""
    values = {
        "name": "small",
        "root": str(folder / "study"),
        "data": {"root": str(folder), "train": ["a"], "test": ["b"]},
    }
    config, rates = folder / "study.yaml", folder / "rates.yaml"
    config.write_text(yaml.safe_dump(values))
    study = load_study(str(config))
    stated = {"train": 40, "validation": 4, "test": 30, "recordings": 10} | clips
    settings = {"settings": rate_settings(study, study.feature_settings), "clips": stated}
    write_rates(Rates.model_validate(RATES | settings), str(rates))
    return str(config), str(rates)


def test_clips_may_be_stated_where_the_recordings_are_not_at_hand(tmp_path: Path) -> None:
    config, rates = files_of(tmp_path, annotated=7)
    case, source = plan_case(config, rates=rates)
    assert (case.clips.train, case.clips.test, case.clips.annotated) == (40, 30, 7)
    assert source.startswith(rates)
    values = yaml.safe_load(Path(rates).read_text())
    del values["clips"]
    Path(rates).write_text(yaml.safe_dump(values))
    with pytest.raises(RecordingError, match=r"(?s)does not exist.*say in that file under `clips`"):
        plan_case(config, rates=rates)


def test_the_demo_mill_is_counted_before_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [f"root={tmp_path}/study", f"data.root={tmp_path}/mill", "data.synthetic.train_recordings=3",
                 "data.synthetic.test_recordings=4"]  # fmt: skip
    study = load_study(str(CONFIGS / "demo.yaml"), overrides=overrides)
    before = clips_of_study(study)
    assert (before.to_make, before.sample.num_rows) == (7, 0)
    assert study.data.synthetic is not None
    make_mill(study.data.root, **study.data.synthetic.model_dump(), workers=2)
    monkeypatch.setattr(index, "read_headers", lambda recordings, **_: map(headers.read_header, recordings))
    after = clips_of_study(study)
    assert after.to_make == 0
    assert after.sample.num_rows
    found = manifest_table(find_clips(study.data, marks="")[0])
    storage.write_table(found, str(tmp_path / "manifest.parquet"), schema=schemas.MANIFEST)
    for clips in (before, after):
        assert clips.train == found["split"].to_pylist().count("train")
        assert clips.validation == found["split"].to_pylist().count("validation")
        assert (clips.test, clips.annotated) == (24, found["annotated"].to_pylist().count(True))
        assert clips.annotated > 0
