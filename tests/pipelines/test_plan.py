"""Plans from stated rates: what they count, what they add up, what they say and refuse. Nothing is measured here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml

from faithad.clips.manifest import manifest_table
from faithad.config.audit import AuditRun
from faithad.config.sections import Report
from faithad.config.study import Study, parse_study
from faithad.errors import ConfigError, RecordingError, StudyError
from faithad.evaluation.disturbances import disturbed_clips, n_disturbed
from faithad.pipelines import cutting, headers, index
from faithad.pipelines.plan import measure, run
from faithad.pipelines.plan.estimate import (
    CONCLUDE_S,
    DEEP,
    FORWARD,
    INDEX_S,
    SANITY,
    Plan,
    estimate,
    total_s,
    written,
)
from faithad.pipelines.plan.run import make_plan
from faithad.pipelines.plan.sections import Counts, Machines, Rates, read_section, write_rates
from faithad.pipelines.plan.text import plan_text
from faithad.pipelines.training.disk import weights_bytes
from faithad.settings import FeatureSettings
from faithad.vocabulary import duration, size

CONFIGS = Path(__file__).parents[2] / "configs"
EXAMPLE = Path(__file__).parents[2] / "cluster" / "machines.yaml"

# Round numbers, so that each figure can be had by hand.
SCORE = {"seconds": 0.02, "bytes": 7}
EXPLAIN = {"seconds": 1.0, "bytes": 147}
RATES: dict[str, Any] = {
    "measured": "by nobody",
    "fixed": {"start": 8, "train": 4, "search": 3, "audit": 2, "tables and report": 7},
    "read": 0.01,
    "score": {"ae": SCORE, "mae": SCORE},
    "explain": {"ae": EXPLAIN, "mae": EXPLAIN},
    "learn": {"ae": 0.1, "mae": 0.1},
    "feature_bytes": 1100,
    "report_bytes": 1000,
}
CLIPS = Counts(train=400, validation=100, test=640, annotated=160, recordings=20)
# One epoch of the one training: what it learns from, and what it validates on.
EPOCH_S = (400 + 100 * FORWARD) * 0.1


def machines_with(cpus: float, gpus: float = 0, count: int = 1, **more: Any) -> Machines:
    return Machines.model_validate({"groups": [{"name": "box", "count": count, "cpus": cpus, "gpus": gpus, **more}]})


def plan_of(of: Study | AuditRun, machines: Machines, *, command: str = "", **changes: Any) -> Plan:
    command = command or ("study" if isinstance(of, Study) else "audit")
    rates = Rates.model_validate(RATES | changes)
    return Plan(command, of, FeatureSettings(), 0.05, ("mae", 0), CLIPS, machines, rates)


def study_of(**sections: Any) -> Study:
    values = {"name": "small", "root": "/nowhere", "seeds": [0], "data": {"train": ["train"], "test": ["test"]}}
    return parse_study(yaml.safe_dump(values | {"train": {"epochs": 10}} | sections), name="small")


def audit_of(**audit: Any) -> AuditRun:
    values = {"model": "model", "recordings": ["sounds"], "out": "out", "audit": {"clips_per_shard": 10} | audit}
    return AuditRun.model_validate(values)


def seconds_of(plan: Plan) -> dict[str, float]:
    return {stage.name: stage.seconds for stage in estimate(plan)}


def limits_of(plan: Plan) -> dict[str, str]:
    return {stage.name: stage.limit for stage in estimate(plan)}


# --- arithmetic -------------------------------------------------------------------------------------------------------


def test_a_study_on_one_core_is_the_sum_of_its_parts() -> None:
    plan = plan_of(study_of(models=["mae"], audit={"clips_per_shard": 10}), machines_with(1))
    seconds = seconds_of(plan)
    assert seconds == {
        "start": 8,
        "index": pytest.approx(20 * INDEX_S),
        "train": pytest.approx(500 * 0.01 + 10 * EPOCH_S + 4),
        "audit": pytest.approx(640 * (0.01 + 0.02) + 640 * (0.01 + 1.0) + 2),
        "tables and report": pytest.approx(640 * CONCLUDE_S + 7),
    }
    assert total_s(plan) == pytest.approx(sum(seconds.values()))
    limits = limits_of(plan)
    assert (limits["audit"], limits["train"]) == ("the cores", "one training")
    assert limits["start"] == limits["tables and report"] == "the start of processes"


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
    plan = plan_of(study_of(models=models, seeds=seeds), machines_with(cpus), threads=threads)
    assert seconds_of(plan)["train"] == pytest.approx(epochs * EPOCH_S + 500 * 0.01 / cpus + 4)


@pytest.mark.parametrize(
    ("explain", "explained"), [("all", 640), ("none", 0), ("alarms", 32), ("top:100", 100), ("top:1000", 640)]
)
def test_an_audit_scores_all_and_explains_some(explain: str, explained: int) -> None:
    plan = plan_of(audit_of(explain=explain), machines_with(1))
    assert seconds_of(plan)["audit"] == pytest.approx(640 * 0.03 + explained * 1.01 + 2)


def test_checks_are_so_many_more_explanations() -> None:
    """Of each model 24 deep clips; of the first seed's models, two of these are checked for sanity."""
    checked = {"protocol": "corrected", "evaluation": {"deep_clips": 24, "sanity_clips": 2}}
    plain, deep = (plan_of(study_of(models=["mae"], seeds=[0, 1], **more), machines_with(1)) for more in ({}, checked))
    more_s = seconds_of(deep)["audit"] - seconds_of(plain)["audit"]
    assert more_s == pytest.approx(2 * 24 * DEEP + 2 * SANITY)


@pytest.mark.long
def test_the_spectra_of_recordings_are_measured_where_models_need_them(tmp_path: Path) -> None:
    """Of recordings of a minute a spectrum takes six clips, which are read whenever a run meets the recording."""
    for k in range(4):
        (tmp_path / f"{k}").mkdir()
        soundfile.write(tmp_path / f"{k}" / "minute.wav", np.random.default_rng(k).normal(0, 0.1, 1_200_000), 20_000)
    study = study_of(data={"root": str(tmp_path), "train": ["0", "1", "2"], "test": ["3"]})
    clips = manifest_table(index.find_clips(study.data, marks=str(tmp_path / "marks")).clips)
    read_s = {}
    for reference in ("none", "recording"):
        features = FeatureSettings(reference=reference)
        plan = replace(plan_of(study, machines_with(1), command="search"), features=features)
        read_s[reference] = measure._time_clips(plan, clips, {}, str(tmp_path / reference))["read"]
    # Each of the six clips of a recording has a sixth of its spectrum.
    assert 2 < 6 * (read_s["recording"] / read_s["none"] - 1) < 20
    (tmp_path / "3" / "minute.wav").write_text("Dear mill, the recorder is broken. " * 100)
    with pytest.raises(StudyError, match="Not one of 6 test clips can be read"):
        measure._time_clips(plan, clips, {}, str(tmp_path / "gone"))


def test_a_shard_is_never_divided() -> None:
    """64 shards on 60 cores take as long as two of them, one after the other."""
    plan = plan_of(study_of(models=["mae"], audit={"clips_per_shard": 10}), machines_with(60))
    assert seconds_of(plan)["audit"] == pytest.approx(2 * 10 * (0.02 + 1.0) + 2)


def test_more_machines_are_faster() -> None:
    clips = CLIPS.model_copy(update={"test": 200_000})
    plans = {
        cpus: replace(plan_of(audit_of(explain="none"), machines_with(cpus)), clips=clips) for cpus in (1, 10, 1000)
    }
    times = {cpus: seconds_of(plan)["audit"] for cpus, plan in plans.items()}
    assert times == {cpus: pytest.approx(200_000 * 0.03 / cpus + 2) for cpus in times}
    assert {limits_of(plan)["audit"] for plan in plans.values()} == {"the cores"}


def test_gpus_train_and_audit_while_the_cores_read() -> None:
    study = study_of(models=["mae"], train={"epochs": 10, "gpus_per_worker": 1}, audit={"gpus_per_actor": 0.5})
    plan = plan_of(study, machines_with(16, 1), threads=4)
    seconds = seconds_of(plan)
    assert seconds["train"] == pytest.approx(10 * EPOCH_S + 500 * 0.01 / 16 + 4)
    assert seconds["audit"] == pytest.approx(640 * (0.02 + 1.0) / 2 + 2)  # two actors share the GPU
    assert limits_of(plan)["audit"] == "the GPUs"
    with pytest.raises(StudyError, match=r"0.5 GPU"):
        estimate(plan_of(study_of(audit={"gpus_per_actor": 0.5}), machines_with(16)))


def test_a_search_is_as_many_trainings_and_their_judging() -> None:
    search = {"mask_ratios": [0.3, 0.5, 0.7], "patches": [4, 8]}
    plan = plan_of(study_of(seeds=[0, 1], search=search), machines_with(4), command="search")
    judged = 10 * 200 * FORWARD * 0.1 + 640 * FORWARD * 0.1  # 200 disturbed clips each epoch, the test clips at the end
    trials_s = 3 * (10 * EPOCH_S + judged)  # 12 trials, 4 at a time
    assert seconds_of(plan) == {
        "start": 8,
        "index": pytest.approx(20 * INDEX_S),
        "search": pytest.approx(trials_s + 1140 * 0.01 / 4 + 3),
    }
    text = plan_text(plan)
    assert "Search of 'small' on 1 x box (4 CPU)" in text
    assert "12 trainings, up to 4 at a time, each of 10 epochs at the most" in text
    assert "Not in this plan" not in text
    compared = study_of(search=search | {"scores": "all"})
    not_planned = "Not in this plan: search.scores and search.members, which are compared once, after the trials."
    assert not_planned in plan_text(plan_of(compared, machines_with(4), command="search"))
    assert "Not in this plan" not in plan_text(plan_of(compared, machines_with(4)))
    drawn = study_of(seeds=[0, 1], search={"algorithm": "optuna", "trials": 9, "trials_at_once": 2})
    assert "18 trainings, up to 2 at a time" in plan_text(plan_of(drawn, machines_with(4), command="search"))


@pytest.mark.parametrize("n", [1, 7, 60, 100, 300])
def test_so_many_disturbed_clips_are_judged(n: int) -> None:
    clips = np.random.default_rng(0).normal(size=(n, 16, 41)).astype(np.float32)
    settings = FeatureSettings(n_mels=16, n_fft=4000, hop_samples=5000)
    made = disturbed_clips(clips, [str(k) for k in range(n)], settings=settings, seed=0)
    assert len(made.log_mels) == n_disturbed(n)


def test_the_bytes_of_everything_that_is_written() -> None:
    study = study_of(models=["ae", "mae"], audit={"clips_per_shard": 10, "maps": 4})
    cells, weights = FeatureSettings().n_mels * FeatureSettings().n_frames, weights_bytes(study, "mae")
    # Beside each model the state of its training, of four times its size.
    files = {"report": 1000, "features": 500 * 1100, "models": 2 * 5 * weights}
    tables, maps = 2 * 640 * (7 + 147), cells * (6 * 2 + 2 * 4)
    assert written(plan_of(study, machines_with(1))) == pytest.approx(files | {"tables": tables, "maps": 2 * 4 * maps})
    searched = written(plan_of(study, machines_with(1), command="search"))
    assert searched == {"report": 1000, "features": 1140 * 1100, "models": 3 * 5 * weights}
    scored = 640 * 7
    # 32 events of 14 s by the alarm's rate, 20 of which are also heard as the model expects them.
    sounds = (32 + 20) * (14 * 2_000 + 560 * 80 * 2)
    assert written(plan_of(audit_of(explain="none", maps=-1), machines_with(1))) == {
        "report": 1000,
        "tables": scored,
        "maps": 0,
        "sounds": sounds,
    }
    silent = audit_of(explain="none").model_copy(update={"report": Report(sound="none")})
    assert "sounds" not in written(plan_of(silent, machines_with(1)))
    some = written(plan_of(audit_of(explain="top:100"), machines_with(1)))
    assert some["tables"] == scored + 100 * 147
    assert some["maps"] == 20 * maps
    assert written(plan_of(audit_of(explain="top:100", maps=-1), machines_with(1)))["maps"] == 100 * maps


def test_the_text_says_what_costs_what_and_what_takes_longest() -> None:
    prices = {"dollars_per_hour": 3.6, "count": 2}
    plan = plan_of(study_of(models=["mae"], train={"epochs": 2}), machines_with(2, **prices))
    text, whole = plan_text(plan), total_s(plan)
    assert f"Machines: ${2 * 3.6 * whole / 3600:,.2f}" in text
    assert "give storage.dollars_per_gb_month in the file" in text
    assert "640 test (160 with reference intervals), from 20 recordings." in text
    assert "1 training, up to 1 at a time, each of 2 epochs at the most; early stopping" in text
    slowest = f"audit, {duration(seconds_of(plan)['audit'])} of {duration(whole)}"
    assert text.endswith(f"Bottleneck: {slowest}, limited by the cores.")
    trains_long = plan_of(study_of(models=["mae"], train={"epochs": 1000}), machines_with(1))
    assert "Bottleneck: train" in plan_text(trains_long)
    stored = Machines(groups=plan.machines.groups, storage={"dollars_per_gb_month": 100.0})
    priced = plan_text(replace(plan, machines=stored))
    assert f"Storage: ${sum(written(plan).values()) / 1e7:,.2f} a month." in priced
    assert "Prices are missing" not in priced
    alarms = plan_text(plan_of(audit_of(), machines_with(1)))
    assert "Explained: 32 clips by each explained model (audit.explain: alarms)." in alarms
    assert "5.0% of the clips are expected to alarm" in alarms


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
    rates = Rates.model_validate(RATES | {"settings": {"models": ["ae", "mae"]}, "clips": CLIPS.model_dump()})
    write_rates(rates, str(tmp_path / "rates.yaml"))
    assert read_section(Rates, str(tmp_path / "rates.yaml")) == rates
    write_rates(rates.model_copy(update={"read": 0.123456}), str(tmp_path / "rates.yaml"))
    assert read_section(Rates, str(tmp_path / "rates.yaml")).read == 0.1235


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """The demo's configuration for a mill that is not made, and a file of rates that were saved for it."""
    config, rates = tmp_path / "study.yaml", tmp_path / "rates.yaml"
    data = {"root": str(tmp_path / "mill"), "train": ["train"], "test": ["test"], "annotations": "annotations.csv"}
    values = yaml.safe_load((CONFIGS / "demo.yaml").read_text()) | {"root": str(tmp_path / "study"), "data": data}
    config.write_text(yaml.safe_dump(values))
    manifest = manifest_table([])
    with monkeypatch.context() as patch:
        patch.setattr("faithad.pipelines.plan.run._find_clips", lambda plan: manifest)
        patch.setattr("faithad.pipelines.plan.run.count_clips", lambda manifest: CLIPS)
        patch.setattr("faithad.pipelines.plan.run.measure", lambda plan, manifest: Rates.model_validate(RATES))
        measured = make_plan(str(config), save_rates=str(rates))
    assert (measured.clips, measured.rates.read) == (CLIPS, 0.01)
    return str(config), str(rates)


def test_rates_of_other_settings_are_refused(saved: tuple[str, str]) -> None:
    config, rates = saved
    for change, line in {
        "attribution.smooth_grad_samples=3": r"attribution\.smooth_grad_samples: 8 then, 3 now",
        "models=[mae]": r"models: \['ae', 'mae'\] then, \['mae'\] now",
        "audit.gpus_per_actor=1": r"audit\.gpus_per_actor: 0\.0 then, 1\.0 now",
    }.items():
        with pytest.raises(StudyError, match=line):
            make_plan(config, overrides=[change], rates=rates)
    with pytest.raises(StudyError, match="command: 'study' then, 'search' now"):
        make_plan(config, search=True, rates=rates)
    with pytest.raises(ConfigError, match="one of the two"):
        make_plan(config, rates=rates, save_rates=rates)


def test_clips_may_be_stated_where_the_recordings_are_not_at_hand(saved: tuple[str, str]) -> None:
    config, rates = saved
    with pytest.raises(RecordingError, match="does not exist"):
        make_plan(config, rates=rates)
    values = yaml.safe_load(Path(rates).read_text())
    Path(rates).write_text(yaml.safe_dump(values | {"clips": {"train": 40, "test": 30, "recordings": 10}}))
    plan = make_plan(config, rates=rates, machines=str(EXAMPLE))
    assert (plan.clips.train, plan.clips.test, plan.clips.annotated) == (40, 30, 0)
    assert plan.machines == read_section(Machines, str(EXAMPLE))
    text = plan_text(plan)
    assert "Study of 'demo' on 1 x head (4 CPU) and 4 x cpu-worker (16 CPU)" in text
    assert f"Rates: {rates}, by nobody." in text


ALLOWED = "allowed: name, count, cpus, gpus, dollars_per_hour"
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
    values = RATES | {"learn": {"mae": "fast"}, "score": {"mae": {"second": 1, "seconds": 1}}, "scorn": {}}
    wrong.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError) as caught:
        read_section(Rates, str(wrong))
    assert str(caught.value).splitlines() == [
        f"{wrong} has 3 problems:",
        "  score.mae.second: unknown key; did you mean 'seconds'?",
        "  learn.mae: must be a number, found 'fast'",
        "  scorn: unknown key; did you mean 'score'?",
    ]


def test_the_demo_mill_is_made_to_be_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [f"root={tmp_path}/study", f"data.root={tmp_path}/mill", "data.synthetic.train_recordings=3",
                 "data.synthetic.test_recordings=4"]  # fmt: skip
    monkeypatch.setattr(cutting, "read_headers", lambda recordings, **_: map(headers.read_header, recordings))
    rates = tmp_path / "rates.yaml"
    settings = {"settings": run._rate_settings(run._open(str(CONFIGS / "demo.yaml"), overrides, False))}
    write_rates(Rates.model_validate(RATES | settings), str(rates))
    clips = make_plan(str(CONFIGS / "demo.yaml"), overrides=overrides, rates=str(rates)).clips
    assert (clips.train + clips.validation, clips.test, clips.recordings) == (18, 24, 7)
    assert 0 < clips.annotated < 24
    assert not (tmp_path / "study").exists()
