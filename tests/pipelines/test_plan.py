"""Plans from stated rates: what they count, what they add up, what they say and refuse. Nothing is measured here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from faithad.clips.manifest import manifest_table
from faithad.config.audit import AuditRun
from faithad.config.study import Study, load_study, parse_study
from faithad.demo.making import make_mill
from faithad.errors import ConfigError, RecordingError, StudyError
from faithad.evaluation.disturbances import disturbed_clips, n_disturbed
from faithad.pipelines import headers, index
from faithad.pipelines.plan.counts import Counts, count_study
from faithad.pipelines.plan.estimate import CONCLUDE_S, FORWARD, HAND_OUT_S, INDEX_S, Case, estimate, total_s, written
from faithad.pipelines.plan.machines import Machines, read_section
from faithad.pipelines.plan.measure import readable_clips
from faithad.pipelines.plan.rates import Rates, rate_settings, write_rates
from faithad.pipelines.plan.run import plan_case
from faithad.pipelines.plan.text import duration, plan_text, size
from faithad.settings import FeatureSettings

CONFIGS = Path(__file__).parents[2] / "configs"
EXAMPLE = Path(__file__).parents[2] / "cluster" / "machines.yaml"

# Round numbers, so that each figure can be had by hand.
RATES: dict[str, Any] = {
    "measured": "by nobody",
    "settings": {},
    "read": 0.01,
    "cpu": {
        "score": {"ae": 0.02, "mae": 0.02},
        "explain": {"ae": 1.0, "mae": 1.0},
        "learn": {"ae": 0.1, "mae": 0.1},
        "threads": 1,
        "shard": 0.1,
    },
    "fixed": {"start": 8, "train": 4, "search": 3, "audit": 2, "tables and report": 7},
    "bytes": {
        "manifest": {"file": 0, "clip": 50},
        "report": {"file": 1000},
        "features": {"file": 100, "clip": 1000},
        "models": {"file": 5000},
        "scores": {"file": 10, "clip": 4},
        "ledger": {"file": 10, "clip": 3},
        "attributions": {"file": 200, "clip": 90, "maps": 700},
        "localization": {"file": 100, "clip": 20},
        "faithfulness": {"file": 100, "clip": 30},
        "spectrograms": {"file": 0, "clip": 0, "maps": 900},
    },
}
GPU = {"score": {"ae": 0.001, "mae": 0.001}, "explain": {"ae": 0.05, "mae": 0.05}, "learn": {"ae": 0.002, "mae": 0.002}}
CLIPS = Counts(train=400, validation=100, test=640, annotated=160, recordings=20, source="a list")
PLAIN_AUDIT = {"model": "model", "recordings": ["sounds"], "out": "out"}
# One epoch of the one training: what it learns from, and what it validates on.
EPOCH_S = (400 + 100 * FORWARD) * 0.1


def machines_with(cpus: float, gpus: float = 0, count: int = 1, **more: Any) -> Machines:
    return Machines.model_validate({"groups": [{"name": "box", "count": count, "cpus": cpus, "gpus": gpus, **more}]})


def case_of(of: Study | AuditRun, machines: Machines, *, searches: bool = False, **changes: Any) -> Case:
    rates = Rates.model_validate(RATES | changes)
    return Case(of, 0.05, FeatureSettings(), searches, ("mae", 0), clips=CLIPS, machines=machines, rates=rates)


def study_of(**sections: Any) -> Study:
    values = {"name": "small", "root": "/nowhere", "seeds": [0], "data": {"train": ["train"], "test": ["test"]}}
    return parse_study(yaml.safe_dump(values | {"train": {"epochs": 10}} | sections), name="small")


def audit_of(**audit: Any) -> AuditRun:
    return AuditRun.model_validate(PLAIN_AUDIT | {"audit": {"clips_per_shard": 10} | audit})


def seconds_of(case: Case) -> dict[str, float | None]:
    return {stage.name: stage.seconds for stage in estimate(case)}


# --- arithmetic -------------------------------------------------------------------------------------------------------


def test_a_study_on_one_core_is_the_sum_of_its_parts() -> None:
    case = case_of(study_of(models=["mae"], audit={"clips_per_shard": 10}), machines_with(1))
    seconds = seconds_of(case)
    assert seconds == {
        "start": 8,
        "index": pytest.approx(20 * INDEX_S),
        "train": pytest.approx(500 * 0.01 + 10 * EPOCH_S + 4),
        "audit": pytest.approx(640 * (0.01 + 1.0) + 64 * (0.1 + HAND_OUT_S) + 2),
        "tables and report": pytest.approx(640 * CONCLUDE_S + 7),
    }
    assert total_s(estimate(case)) == pytest.approx(sum(value or 0 for value in seconds.values()))
    limits = {stage.name: stage.limit for stage in estimate(case)}
    assert (limits["audit"], limits["train"]) == ("the cores", "one training on 1 thread")
    assert limits["tables and report"] == "the start of processes"


@pytest.mark.parametrize(
    ("cpus", "models", "seeds", "threads", "epochs"),
    [
        (2, ["ae", "mae"], [0], 1, 10),  # two side by side
        (1, ["ae", "mae"], [0], 1, 20),  # one after the other
        (2, ["ae"], [0, 1, 2], 1, 20),  # three in two rounds
        (2, ["mae"], [0], 2, 10),  # on the threads that were measured
        (4, ["mae"], [0], 2, 10),  # on more, which gains nothing
        (1, ["mae"], [0], 2, 20),  # on half as many as were measured
    ],
)
def test_trainings_share_the_cores(cpus: int, models: list[str], seeds: list[int], threads: int, epochs: int) -> None:
    cpu = RATES["cpu"] | {"threads": threads}
    case = case_of(study_of(models=models, seeds=seeds), machines_with(cpus), cpu=cpu)
    assert seconds_of(case)["train"] == pytest.approx(epochs * EPOCH_S + 500 * 0.01 / cpus + 4)


@pytest.mark.parametrize(
    ("explain", "explained", "shards"),
    [("all", 640, 64), ("none", 0, 0), ("alarms", 32, 32), ("top:100", 100, 50), ("top:1000", 640, 64)],
)
def test_an_audit_scores_all_and_explains_some(explain: str, explained: int, shards: int) -> None:
    case = case_of(audit_of(explain=explain), machines_with(1))
    expected = 640 * 0.03 + explained * 1.01 + (64 + shards) * (0.1 + HAND_OUT_S) + 2
    assert seconds_of(case)["audit"] == pytest.approx(expected)


def test_a_shard_is_never_divided() -> None:
    """64 shards on 60 cores take as long as two of them, one after the other."""
    case = case_of(study_of(models=["mae"], audit={"clips_per_shard": 10}), machines_with(60))
    assert seconds_of(case)["audit"] == pytest.approx(2 * (10 * 1.0 + 0.1) + 2)


def test_more_machines_are_faster_until_the_driver_cannot_keep_up() -> None:
    clips = CLIPS.model_copy(update={"test": 200_000})
    times, limits = {}, {}
    for cpus in (1, 10, 1000):
        case = case_of(audit_of(explain="none"), machines_with(cpus), read=0.002)
        (audit,) = (s for s in estimate(Case(**vars(case) | {"clips": clips})) if s.name == "audit")
        times[cpus], limits[cpus] = audit.seconds or 0.0, audit.limit
    assert 9 < times[1] / times[10] < 10.01
    assert times[1000] == pytest.approx(20_000 * HAND_OUT_S + 2)
    assert (limits[1], limits[1000]) == ("the cores", "the driver, which hands out shards one by one")


def test_a_search_is_as_many_trainings_and_their_judging() -> None:
    search = {"mask_ratios": [0.3, 0.5, 0.7], "patches": [4, 8]}
    case = case_of(study_of(seeds=[0, 1], search=search), machines_with(4), searches=True)
    judged = 10 * 200 * FORWARD * 0.1 + 640 * FORWARD * 0.1  # 200 disturbed clips each epoch, the test clips at the end
    trials_s = 3 * (10 * EPOCH_S + judged)  # 12 trials, 4 at a time
    assert seconds_of(case) == {
        "start": 8,
        "index": pytest.approx(20 * INDEX_S),
        "search": pytest.approx(trials_s + 1140 * 0.01 / 4 + 3),
    }
    assert set(written(case)) == {"manifest", "report", "features"}
    text = plan_text(case, source="stated")
    assert "Search 'small' on box" in text
    assert "Trials: 12, up to 4 at a time, each of 10 epochs at the most" in text
    drawn = study_of(seeds=[0, 1], search={"algorithm": "optuna", "trials": 9, "trials_at_once": 2})
    assert "Trials: 18, up to 2 at a time" in plan_text(case_of(drawn, machines_with(4), searches=True), source="-")
    assert "with --search it is that of `faithad search`" in plan_text(case_of(drawn, machines_with(4)), source="-")
    assert "search" not in plan_text(case_of(study_of(), machines_with(2)), source="-")


@pytest.mark.parametrize("n", [1, 7, 60, 100, 300])
def test_so_many_disturbed_clips_are_judged(n: int) -> None:
    clips = np.random.default_rng(0).normal(size=(n, 16, 41)).astype(np.float32)
    settings = FeatureSettings(n_mels=16, n_fft=4000, hop_samples=5000)
    made = disturbed_clips(clips, [str(k) for k in range(n)], settings=settings, seed=0)
    assert len(made.log_mels) == n_disturbed(n)


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
            "localization": 2 * (64 * 100 + 160 * 20),
            "faithfulness": 2 * (64 * 100 + 640 * 30),
            "spectrograms": 2 * 4 * 900,
        }
    )
    assert set(written(case_of(audit_of(explain="none"), machines_with(1)))) == {
        "manifest",
        "report",
        "scores",
        "ledger",
    }
    some = written(case_of(audit_of(explain="top:100"), machines_with(1)))
    assert some["scores"] == 64 * 10 + 640 * 4
    assert some["ledger"] == (64 + 50) * 10 + 740 * 3
    assert some["attributions"] == 50 * 200 + 100 * 90 + 20 * 700


def test_a_gpu_that_nobody_measured_is_not_guessed() -> None:
    study = study_of(train={"epochs": 10, "gpus_per_worker": 1}, audit={"gpus_per_actor": 1})
    case = case_of(study, machines_with(16, 1))
    seconds = seconds_of(case)
    assert (seconds["train"], seconds["audit"]) == (None, None)
    text = plan_text(case, source="stated")
    assert "The rates lack figures for train and audit on the CPUs or GPUs that the configuration asks for" in text
    assert re.search(r"^total +at least 1\d s", text, re.MULTILINE)
    known = case_of(study, machines_with(16, 1), gpu=GPU)
    assert seconds_of(known)["train"] == pytest.approx(2 * 10 * EPOCH_S / 50 + 500 * 0.01 / 16 + 4)
    shared = study_of(train={"epochs": 10, "gpus_per_worker": 0.5}, audit={"gpus_per_actor": 0.5})
    assert seconds_of(case_of(shared, machines_with(16, 1), gpu=GPU)) == pytest.approx(seconds_of(known))
    assert "GPUs that the configuration does not use" in plan_text(
        case_of(study_of(), machines_with(16, 1)), source="-"
    )
    assert "does not use" not in plan_text(known, source="-")


def test_the_text_says_what_costs_what_and_what_takes_longest() -> None:
    prices = {"dollars_per_hour": 3.6, "count": 2}
    case = case_of(study_of(models=["mae"], train={"epochs": 2}), machines_with(2, **prices))
    text = plan_text(case, source="stated")
    whole = total_s(estimate(case))
    assert f"Machines: ${2 * 3.6 * whole / 3600:,.2f}" in text
    assert "give storage.dollars_per_gb_month in the file" in text
    assert "1,140 from 20 recordings" in text
    assert "1 at a time, each of 2 epochs at the most; early stopping" in text
    twice = duration(total_s(estimate(case_of(case.of, machines_with(2, **prices | {"count": 4})))))
    assert (
        f"Bottleneck: audit, {duration(seconds_of(case)['audit'])} of {duration(whole)}, limited by the cores" in text
    )
    assert text.endswith(f"With twice the machines: {twice}.")
    trains_long = case_of(study_of(models=["mae"], train={"epochs": 1000}), machines_with(1))
    assert "Bottleneck: train" in plan_text(trains_long, source="stated")
    stored = Machines(groups=case.machines.groups, storage={"dollars_per_gb_month": 100.0})
    priced = plan_text(Case(**vars(case) | {"machines": stored}), source="stated")
    assert f"Storage: ${sum(written(case).values()) / 1e7:,.2f} a month." in priced
    assert "Prices are missing" not in priced


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
    settings = rate_settings(study_of(), study_of().feature_settings)
    rates = Rates.model_validate(RATES | {"settings": settings, "gpu": GPU, "clips": CLIPS.model_dump()})
    write_rates(rates, str(tmp_path / "rates.yaml"))
    assert read_section(Rates, str(tmp_path / "rates.yaml")) == rates
    write_rates(rates.model_copy(update={"read": 0.123456}), str(tmp_path / "rates.yaml"))
    assert read_section(Rates, str(tmp_path / "rates.yaml")).read == 0.1235


def test_rates_of_other_settings_are_refused(tmp_path: Path) -> None:
    config, rates = files_of(tmp_path)
    case, source = plan_case(config, rates=rates)
    assert "Study 'small' on this machine (" in plan_text(case, source=source)
    with pytest.raises(StudyError, match=r"attribution\.smooth_grad_samples: 25 there, 3 here"):
        plan_case(config, overrides=["attribution.smooth_grad_samples=3"], rates=rates)
    with pytest.raises(ConfigError, match="one of the two"):
        plan_case(config, rates=rates, save_rates=rates)


def test_what_a_file_of_machines_may_say(tmp_path: Path) -> None:
    example = read_section(Machines, str(EXAMPLE))
    assert (example.cpus, example.gpus, example.dollars_per_hour) == (68, 0, None)
    assert example.storage.dollars_per_gb_month is None
    assert str(example) == "1 x head (4 CPU, 16 GiB) and 4 x cpu-worker (16 CPU, 64 GiB)"
    config, rates = files_of(tmp_path)
    assert plan_case(config, rates=rates, machines=str(EXAMPLE))[0].machines == example


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
        read_section(Machines, str(wrong))
    assert str(caught.value).removeprefix(f"{wrong} ").split("\n  ") == WRONG_MACHINES[text]


def test_what_is_wrong_with_a_file_of_rates_is_told_as_of_a_study(tmp_path: Path) -> None:
    wrong = tmp_path / "rates.yaml"
    cpu = {"scorn": {"mae": 0.1}, "learn": {"mae": "fast"}}
    tables = {"scores": {"file": 1, "clip": 1, "clips": 2}}
    values = RATES | {"cpu": cpu, "bytes": tables}
    del values["read"]
    wrong.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError) as caught:
        read_section(Rates, str(wrong))
    assert str(caught.value).splitlines() == [
        f"{wrong} has 4 problems:",
        "  read: missing, give it a value",
        "  cpu.learn.mae: must be a number, found 'fast'",
        "  cpu.scorn: unknown key; did you mean 'score'?",
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


def test_clips_may_be_stated_where_the_recordings_are_not_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, rates = files_of(tmp_path, annotated=7)
    case, source = plan_case(config, rates=rates)
    assert (case.clips.train, case.clips.test, case.clips.annotated) == (40, 30, 7)
    assert source.startswith(rates)
    values = yaml.safe_load(Path(rates).read_text())
    del values["clips"]
    Path(rates).write_text(yaml.safe_dump(values))
    with pytest.raises(RecordingError, match=r"(?s)does not exist.*say in that file under `clips`"):
        plan_case(config, rates=rates)
    # Without the recordings, rates are measured on a demo mill, saved, and no plan is made.
    measured = read_section(Rates, rates)
    monkeypatch.setattr("faithad.pipelines.plan.run.measure", lambda *_: measured)
    saved = tmp_path / "saved.yaml"
    with pytest.raises(StudyError, match=r"not there to be counted.*say there under `clips`"):
        plan_case(config, save_rates=str(saved))
    assert read_section(Rates, str(saved)) == measured


def test_the_demo_mill_is_counted_before_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [f"root={tmp_path}/study", f"data.root={tmp_path}/mill", "data.synthetic.train_recordings=3",
                 "data.synthetic.test_recordings=4"]  # fmt: skip
    study = load_study(str(CONFIGS / "demo.yaml"), overrides=overrides)
    before, sample = count_study(study)
    assert (before.to_make, sample.num_rows) == (7, 0)
    assert study.data.synthetic is not None
    make_mill(study.data.root, **study.data.synthetic.model_dump(), workers=2)
    monkeypatch.setattr(index, "read_headers", lambda recordings, **_: map(headers.read_header, recordings))
    after, sample = count_study(study)
    assert (after.to_make, after.source) == (0, "the names and headers of the recordings")
    splits = manifest_table(index.find_clips(study.data, marks="")[0])["split"].to_pylist()
    assert sample["split"].to_pylist() == splits
    for clips in (before, after):
        assert (clips.train, clips.validation) == (splits.count("train"), splits.count("validation"))
        assert (clips.test, clips.annotated) == (24, sample["annotated"].to_pylist().count(True))
        assert clips.annotated > 0


@pytest.mark.parametrize(
    ("n_clips", "unreadable", "read", "kept"),
    [
        (20, set(), [8], [0, 1, 2, 3, 4, 5, 6, 7]),
        (20, {1, 2, 8}, [8, 2, 1], [0, 3, 4, 5, 6, 7, 9, 10]),
        (9, {0, 8}, [8, 1], [1, 2, 3, 4, 5, 6, 7]),
        (3, set(), [3], [0, 1, 2]),
    ],
)
def test_no_more_clips_are_read_for_rates_than_are_needed(
    n_clips: int, unreadable: set[int], read: list[int], kept: list[int]
) -> None:
    sizes: list[int] = []

    def readable(part: pa.Table) -> pa.Table:
        sizes.append(part.num_rows)
        return part.filter([clip not in unreadable for clip in part["clip"].to_pylist()])

    assert readable_clips(pa.table({"clip": range(n_clips)}), readable)["clip"].to_pylist() == kept
    assert sizes == read
