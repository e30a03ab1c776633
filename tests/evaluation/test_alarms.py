from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from faithad import schemas
from faithad.audit.choice import highest
from faithad.audit.raised_alarm import say_alarm
from faithad.config.sections import Alarm
from faithad.errors import ConfigError, StudyError
from faithad.evaluation import alarms
from faithad.evaluation.alarms import fit_alarm, with_window_thresholds
from faithad.model.alarm import AlarmThreshold
from faithad.vocabulary import POOLINGS, AlarmPooling, rounded

repeatable = settings(max_examples=25, deadline=None, derandomize=True)


def fitted(scores: list[float] | np.ndarray, *, rule: str = "quantile", rate: float = 0.05) -> AlarmThreshold:
    return fit_alarm(scores, rule=rule, pooling="mean", false_alarm_rate=rate, clip_s=10.0)


@repeatable
@given(st.lists(st.integers(0, 50).map(float), min_size=1, max_size=60), st.integers(1, 99))
def test_quantile_from_the_definition(scores: list[float], percent: int) -> None:
    rate = percent / 100
    allowed = [value for value in scores if sum(other > value for other in scores) <= rate * len(scores) + 1e-9]
    assert fitted(scores, rate=rate).threshold == min(allowed)


@repeatable
@given(st.integers(1, 40), st.integers(1, 99), st.integers(0, 5))
def test_conformal_promise_holds_for_every_place_of_the_new_clip(n: int, percent: int, seed: int) -> None:
    """Of n + 1 exchangeable scores, each left out once, at most a share `rate` exceeds the threshold of the others."""
    scores = np.random.default_rng(seed).permutation(n + 1).astype(float)
    if (n + 1) * percent < 100:
        with pytest.raises(StudyError, match="cannot promise"):
            fitted(scores[:-1], rule="conformal", rate=percent / 100)
        return
    exceeded = [
        scores[left] > fitted(np.delete(scores, left), rule="conformal", rate=percent / 100).threshold
        for left in range(n + 1)
    ]
    assert 100 * sum(exceeded) <= percent * (n + 1)


def test_gamma_finds_the_quantile_of_a_gamma_distribution() -> None:
    scores = np.random.default_rng(0).gamma(4.0, 2.0, 20_000)
    # Gamma(4, 2) is chi-squared with 8 degrees of freedom: its 95 % quantile, from tables, is 15.507.
    assert fitted(scores, rule="gamma").threshold == pytest.approx(15.507, rel=0.02)


def test_false_alarms_per_hour_follow_from_the_length_of_clips() -> None:
    found = fitted([1.0, 2.0, 3.0], rate=0.01)
    assert found.false_alarms_per_hour == pytest.approx(3.6)
    assert found.n_validation == 3


@pytest.mark.parametrize("rule", ["quantile", "gamma", "conformal"])
def test_windows_are_above_where_a_clip_of_that_worst_window_would_alarm(rule: str) -> None:
    """Each model by itself: the alarm that is fitted to its worst windows has the same threshold."""
    windows = np.random.default_rng(0).gamma(4.0, 2.0, (60, 2))
    alarm = fitted(windows.sum(axis=1), rule=rule, rate=0.1)
    table = pa.table({"score": windows.sum(axis=1), "worst_windows": windows.tolist()})
    found = with_window_thresholds(alarm, table)
    assert found.window_thresholds == tuple(fitted(of, rule=rule, rate=0.1).threshold for of in windows.T)
    assert replace(found, window_thresholds=()) == alarm
    assert with_window_thresholds(alarm, table.select(["score"])) == alarm  # of release 0.1.0
    nothing = pa.table({"worst_windows": pa.nulls(60, pa.list_(pa.float64()))})
    assert with_window_thresholds(alarm, nothing) == alarm  # of a model that gives one score for a clip


def test_which_score_alarms() -> None:
    mean, worst = (AlarmThreshold("quantile", pooling, 0.05, 2.0, 18.0, 9) for pooling in ("mean", "worst_second"))
    assert not mean.raised_by(2.0, 9.0)
    assert mean.raised_by(2.1, 0.0)
    assert worst.raised_by(0.0, 2.1)
    assert not worst.raised_by(9.0, 2.0)


@pytest.mark.parametrize(("n", "rank"), [(12, 12), (178, 178), (179, 179), (400, 399)])
def test_false_alarms_per_hour(n: int, rank: int) -> None:
    """2 an hour are 1 in 180 clips of 10 s: 179 normal clips can promise that, fewer clips only more alarms."""
    scores = np.random.default_rng(n).permutation(n) + 1.0
    alarm = fit_alarm(scores, rule="conformal", pooling="mean", false_alarms_per_hour=2, clip_s=10.0)
    assert alarm.threshold == rank
    assert alarm.expected_rate == pytest.approx((n + 1 - rank) / (n + 1))
    assert alarm.asked_per_hour == (2 if n < 179 else None)
    said = alarms.too_few_clips(2, 360 * alarm.expected_rate, n, 10.0)
    assert said.startswith("2 an hour were asked for, which needs 179 normal clips; ")
    assert said.endswith(f"{n} clips can promise no fewer than {360 * (n + 1 - rank) / (n + 1):.3g}")
    by_rate = {"rule": "gamma", "pooling": "mean", "clip_s": 10.0}
    same = fit_alarm(scores, **by_rate, false_alarm_rate=2 / 360)
    assert fit_alarm(scores, **by_rate, false_alarms_per_hour=2).threshold == pytest.approx(same.threshold)
    for per_hour in (0.0, 360.0):
        with pytest.raises(ConfigError, match=r"per_hour is .*; it must be above 0, and below 360"):
            fit_alarm(scores, rule="gamma", pooling="mean", false_alarms_per_hour=per_hour, clip_s=10.0)


def test_one_of_two_settings() -> None:
    per_hour = Alarm(false_alarms_per_hour=2)
    assert (per_hour.rule, per_hour.false_alarm_rate, per_hour.rate(10.0)) == ("conformal", None, 2 / 360)
    assert Alarm.model_validate(per_hour.model_dump()) == per_hour
    assert Alarm(rule="gamma", false_alarms_per_hour=2).rule == "gamma"
    assert Alarm().as_in_marks() == {"rule": "quantile", "pooling": "mean", "false_alarm_rate": 0.05}
    with pytest.raises(ValidationError, match="leave one of the two out"):
        Alarm(false_alarms_per_hour=2, false_alarm_rate=0.05)
    with pytest.raises(ValidationError, match="false_alarms_per_hour is not given either"):
        Alarm(false_alarm_rate=None)


@pytest.mark.parametrize("rule", ["quantile", "conformal"])
def test_the_number_of_false_alarms_lies_where_it_is_said_to(rule: str) -> None:
    """In 95 of 100 cases, also where few clips set the threshold."""
    rng = np.random.default_rng(0)
    for n, m in [(12, 52), (30, 1_000), (200, 360)]:
        expected = fitted(rng.random(n), rule=rule, rate=0.1).expected_rate
        low, high = alarms.expected_share(expected, n, m)
        rates = np.array([(rng.random(m) > fitted(rng.random(n), rule=rule, rate=0.1).threshold).mean()
                          for _ in range(1_000)])  # fmt: skip
        assert 0.93 <= ((low <= rates) & (rates <= high)).mean() <= 0.99
        assert rates.mean() == pytest.approx(expected, rel=0.1)
    low, high = alarms.expected_share(1 / 13, 12, 52)
    assert (low, high) == (0.0, pytest.approx(0.29, abs=0.02))
    assert alarms.expected_share(0.05, 199, 0)[1] == pytest.approx(alarms.expected_share(0.05, 199, 10**6)[1], rel=1e-3)


def test_pieces_have_thresholds_by_the_same_rule() -> None:
    rng = np.random.default_rng(0)
    scores = rng.gamma(4.0, size=60)
    pieces = {1.0: 2 * scores, 2.0: scores[:30], 3.0: scores[:29], 5.0: np.r_[scores, np.nan]}
    options = {"pooling": "mean", "clip_s": 10.0}
    for rule in ("quantile", "gamma", "conformal"):
        whole = fitted(scores, rule=rule)
        alarm = fit_alarm(scores, rule=rule, false_alarm_rate=0.05, **options, pieces=pieces)
        assert alarm.threshold == whole.threshold
        lengths = dict(alarm.by_length)
        assert list(lengths) == [1.0, 2.0], "fewer pieces than half the clips, and those without a score, say nothing"
        assert lengths[1.0] == pytest.approx(2 * whole.threshold)
    few = fit_alarm(scores, rule="conformal", false_alarms_per_hour=2, **options, pieces=pieces)
    assert dict(few.by_length)[2.0] == max(scores[:30]), "the most that so few can promise"
    same = fit_alarm(scores, rule="gamma", false_alarm_rate=0.05, **options, pieces={1.0: np.full(60, 3.0)})
    assert same.by_length == (), "a rule that cannot be fitted to the pieces"


@pytest.mark.parametrize("rule", ["quantile", "gamma", "conformal"])
@pytest.mark.parametrize(
    ("scores", "message"), [([], "No validation scores"), ([1.0, math.nan], "1 of 2 validation scores")]
)
def test_scores_must_be_finite(rule: str, scores: list[float], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        fitted(scores, rule=rule)


@pytest.mark.parametrize("rate", [0.0, 1.0, 1.5, math.nan])
def test_impossible_rates_are_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="false_alarm_rate"):
        fitted([1.0], rate=rate)


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'magic'.*quantile, gamma, conformal"):
        fitted([1.0], rule="magic")


@pytest.mark.parametrize("scores", [[0.0, 1.0], [2.0, 2.0]])
def test_gamma_says_what_it_cannot_fit(scores: list[float]) -> None:
    with pytest.raises(StudyError, match="above 0 and differ"):
        fitted(scores, rule="gamma")


def test_a_new_rule_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="allowed: quantile, gamma, conformal"):
        Alarm(rule="highest")
    monkeypatch.setitem(alarms.RULES, "highest", alarms.Rule("the highest score", lambda scores, rate: scores.max()))
    assert fitted([1.0, 7.0, 3.0], rule=Alarm(rule="highest").rule).threshold == 7.0


def test_a_new_pooling_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="allowed: mean, worst_second"):
        Alarm(pooling="loudest")
    monkeypatch.setitem(POOLINGS, "loudest", AlarmPooling("worst_second_score", "loudest part", "the loudest part"))
    alarm = AlarmThreshold("quantile", Alarm(pooling="loudest").pooling, 0.05, 2.0, 18.0, 9)
    rows = [
        {"clip_id": name, "model": "ae", "seed": 0, "score": score, "worst_second_score": worst}
        for name, score, worst in (("a", 3.0, 1.0), ("b", 1.0, 3.0), ("c", 2.0, 2.0))
    ]
    table = pa.Table.from_pylist(rows, schema=schemas.SCORES)
    assert highest(table, 2, alarm)["clip_id"].to_pylist() == ["b", "c"]
    assert highest(table, 2, None)["clip_id"].to_pylist() == ["a", "c"]


def test_only_a_rule_that_counts_ranks_states_an_interval(capsys: pytest.CaptureFixture[str]) -> None:
    scores = np.random.default_rng(0).gamma(2.0, size=50)
    for rule, said in (
        ("quantile", "from 1.8 to 38 at 95 %"),
        ("gamma", "if the fit holds; the rule promises nothing"),
    ):
        say_alarm(fit_alarm(scores, rule=rule, pooling="mean", false_alarm_rate=0.02, clip_s=10.0), clip_s=10.0)
        assert said in " ".join(capsys.readouterr().out.split()), rule


@pytest.mark.parametrize(
    ("value", "digits", "text"), [(0.5613, 3, "0.561"), (262.4, 2, "260"), (3599.9, 3, "3,600"), (0.0, 2, "0")]
)
def test_rates_are_written_without_powers_of_ten(value: float, digits: int, text: str) -> None:
    assert rounded(value, digits) == text
