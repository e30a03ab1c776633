"""The alarm for what lasts, against its definition in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from faithad.model.state_alarm import StateAlarm, StateThreshold
from faithad.scoring.state import (
    LEAST_PAST,
    MOST_PAST,
    MOST_QUIET,
    Compared,
    Floats,
    centred,
    changed_bands,
    fit_state,
    follow,
    nearest,
)

F = 12


def sound(n: int, *, seed: int = 0, states: int = 3) -> Floats:
    """Minutes of a machine that changes between a few states, as levels in decibels."""
    rng = np.random.default_rng(seed)
    of_states = np.random.default_rng(99).normal(-40, 6, (states, F))
    return np.asarray(of_states[rng.integers(0, states, n)] + rng.normal(0, 0.2, (n, F)))


def whine(levels: Floats, *, first: int, last: int, change_db: float = 6.0) -> Floats:
    """The same minutes, with bands 4 and 5 louder from one to another, included."""
    changed = levels.copy()
    changed[first : last + 1, 4:6] += change_db
    return changed


def alarm_of(minutes: Floats, *, normals_db: float = 1.0, past_db: float | None = 1.0) -> StateAlarm:
    past = None if past_db is None else StateThreshold(past_db, 0.05, 99)
    spectra = torch.from_numpy(centred(minutes).astype(np.float32))
    return StateAlarm(spectra, 0.5, 0.05, StateThreshold(normals_db, 0.05, 99), past)


def slow_distance(spectrum: list[float], others: list[list[float]]) -> float:
    def rms(other: list[float]) -> float:
        return math.sqrt(sum((a - b) ** 2 for a, b in zip(spectrum, other, strict=True)) / len(spectrum))

    first, second, *_ = sorted(map(rms, others))
    return (first + second) / 2


def slow_follow(minutes: Floats, alarm: StateAlarm) -> list[tuple[float, bool, bool]]:
    """Distance, whether the past was the reference, and whether it alarmed, of each minute: the four rules by name."""
    in_past = [False] * len(minutes)
    alarms: list[int] = []  # of the open change
    results = []
    for now in range(len(minutes)):
        past = [minutes[k].tolist() for k in range(now) if in_past[k]][-MOST_PAST:]
        with_past = alarm.against_past is not None and len(past) >= LEAST_PAST
        threshold = alarm.against_past if with_past else alarm.against_normals
        assert threshold is not None
        distance = slow_distance(minutes[now].tolist(), past if with_past else alarm.spectra.double().tolist())
        is_alarm = distance > threshold.threshold_db
        results.append((distance, with_past, is_alarm))
        if is_alarm:
            alarms.append(now)
        if not alarms:
            in_past[now] = True
        elif now - alarms[-1] > MOST_QUIET or (alarm.against_past is not None and now - alarms[0] + 1 >= MOST_PAST):
            for k in range(alarms[0], now + 1):
                in_past[k] = True
            alarms = []
    return results


@pytest.mark.parametrize("past_db", [0.3, 1.0, None])
def test_minutes_are_compared_as_the_rules_say(past_db: float | None) -> None:
    minutes = centred(whine(sound(120), first=70, last=90))
    alarm = alarm_of(sound(15, seed=1), past_db=past_db)
    compared, changes = follow(minutes, alarm)
    slow = slow_follow(minutes, alarm)
    assert [minute.with_past for minute in compared] == [with_past for _, with_past, _ in slow]
    assert [minute.alarms for minute in compared] == [is_alarm for *_, is_alarm in slow]
    np.testing.assert_allclose([minute.distance_db for minute in compared], [distance for distance, *_ in slow])
    assert [number for change in changes for number in change.alarmed] == [k for k, row in enumerate(slow) if row[2]]


def test_a_change_is_one_as_long_as_it_lasts() -> None:
    minutes = centred(whine(sound(200), first=100, last=180))
    _, (change,) = follow(minutes, alarm_of(sound(40, seed=1)))
    assert change.alarmed == list(range(100, 181))
    assert change.outcome == "over"


def test_a_change_that_the_recordings_end_in_lasts() -> None:
    _, (change,) = follow(centred(whine(sound(150), first=100, last=149)), alarm_of(sound(40, seed=1)))
    assert (change.alarmed[0], change.alarmed[-1], change.outcome) == (100, 149, "lasting")


@pytest.mark.parametrize(("gap", "n_changes"), [(MOST_QUIET, 1), (MOST_QUIET + 1, 2)])
def test_quiet_minutes_between_alarms(gap: int, n_changes: int) -> None:
    """Of two whines that differ, so that the second is no news of the first."""
    minutes = whine(sound(160), first=100, last=105)
    minutes[106 + gap : 110 + gap, 8:10] += 6.0
    _, changes = follow(centred(minutes), alarm_of(sound(40, seed=1)))
    assert len(changes) == n_changes


def test_a_machine_that_returns_to_a_state_is_told_once() -> None:
    minutes = whine(whine(sound(200), first=100, last=110), first=150, last=160)
    _, changes = follow(centred(minutes), alarm_of(sound(40, seed=1)))
    assert [change.alarmed[0] for change in changes] == [100]


def test_what_lasts_for_the_whole_past_is_usual_and_its_end_a_change() -> None:
    n, first = 60 + MOST_PAST + 60, 60
    minutes = whine(sound(n), first=first, last=first + MOST_PAST + 29)
    _, changes = follow(centred(minutes), alarm_of(sound(40, seed=1)))
    assert [(change.alarmed[0], change.outcome) for change in changes] == [(60, "usual"), (330, "lasting")]


def test_without_a_threshold_for_the_past_a_change_lasts_without_end() -> None:
    minutes = whine(sound(MOST_PAST + 60), first=10, last=MOST_PAST + 59)
    compared, (change,) = follow(centred(minutes), alarm_of(sound(40, seed=1), past_db=None))
    assert not any(minute.with_past for minute in compared)
    assert (change.alarmed[0], len(change.alarmed), change.outcome) == (10, MOST_PAST + 50, "lasting")


def test_a_minute_knows_nothing_of_later_ones() -> None:
    minutes, alarm = centred(whine(sound(140), first=90, last=120)), alarm_of(sound(15, seed=1))
    whole, _ = follow(minutes, alarm)
    for n in (20, 60, 95, 139):
        part, _ = follow(minutes[:n], alarm)
        assert [minute.distance_db for minute in part] == [minute.distance_db for minute in whole[:n]]


def test_neither_gain_nor_the_order_of_the_reference_counts() -> None:
    levels = sound(20)
    spectra = centred(levels)
    distance, mean = nearest(spectra[0], spectra[1:])
    louder = centred(levels + np.linspace(-20, 20, 20)[:, None])
    assert nearest(louder[0], louder[1:])[0] == pytest.approx(distance)
    again, same_mean = nearest(spectra[0], spectra[:0:-1])
    assert again == distance
    np.testing.assert_allclose(same_mean, mean)


@given(st.integers(0, F - 2), st.integers(1, 4), st.sampled_from([-12.0, -3.0, 3.0, 12.0]))
def test_the_bands_that_changed_and_by_how_much(low: int, n: int, change_db: float) -> None:
    high = min(F, low + n)
    difference = np.zeros(F)
    difference[low:high] = change_db
    (bands,) = changed_bands(difference - difference.mean())
    assert (bands.low, bands.high) == (low, high - 1)
    assert bands.change_db == pytest.approx(change_db)


def test_a_rise_and_a_fall_side_by_side_are_two_changes() -> None:
    difference = np.zeros(F)
    difference[3:5], difference[5:7] = 4.0, -6.0
    assert [(bands.low, bands.high, bands.change_db) for bands in changed_bands(difference)] == [
        (5, 6, -6.0),
        (3, 4, 4.0),
    ]


@pytest.mark.parametrize(("rate", "above"), [(0.05, 4), (0.025, 1), (0.2, 19), (0.001, 0)])
def test_the_threshold_is_the_rank_that_the_rate_needs(rate: float, above: int) -> None:
    """Of 99 minutes, ranks by (99 + 1)(1 - rate)."""
    minutes = centred(sound(99, states=1))
    names = [str(number) for number in range(99)]
    alarm = fit_state([minutes], [names], false_alarm_rate=rate, share=0.5)
    assert alarm is not None
    distances = [
        slow_distance(minutes[k].tolist(), np.delete(minutes, k, axis=0).tolist()) for k in range(len(minutes))
    ]
    assert sum(distance > alarm.against_normals.threshold_db + 1e-12 for distance in distances) == above
    assert alarm.against_normals.false_alarm_rate == pytest.approx((above + 1) / 100)
    assert alarm.against_past is not None
    assert alarm.against_past.n_minutes == 99 - LEAST_PAST
    past = [
        slow_distance(minutes[k].tolist(), minutes[max(0, k - MOST_PAST) : k].tolist()) for k in range(LEAST_PAST, 99)
    ]
    rank = min(69, math.ceil(round(70 * (1 - rate), 9)))
    assert alarm.against_past.threshold_db == pytest.approx(sorted(past)[rank - 1])
    assert alarm.against_past.false_alarm_rate == pytest.approx((70 - rank) / 70)


def test_minutes_are_compared_with_those_of_other_recordings() -> None:
    minutes = centred(np.repeat(sound(10, states=10), 4, axis=0))  # four times the same in each recording
    names = [str(number // 4) for number in range(40)]
    alarm = fit_state([minutes], [names], false_alarm_rate=0.05, share=0.5)
    assert alarm is not None
    assert alarm.against_normals.threshold_db > 1.0


@pytest.mark.parametrize(("n", "recordings"), [(19, 19), (40, 1), (0, 1)])
def test_too_few_minutes_give_no_alarm(n: int, recordings: int) -> None:
    minutes = [centred(sound(n))] if n else []
    names = [[str(number % recordings) for number in range(n)]] if n else []
    assert fit_state(minutes, names, false_alarm_rate=0.05, share=0.5) is None


def test_few_minutes_in_a_row_give_no_threshold_for_the_past() -> None:
    recorders = [centred(sound(10, seed=seed)) for seed in range(10)]
    alarm = fit_state(recorders, [[str(seed)] * 10 for seed in range(10)], false_alarm_rate=0.05, share=0.5)
    assert alarm is not None
    assert alarm.against_past is None
    assert alarm.against_normals.n_minutes == 100


def test_digital_silence_lets_other_silence_pass() -> None:
    silence = np.full((40, F), -100.0)
    alarm = fit_state([centred(silence)], [[str(k // 20) for k in range(40)]], false_alarm_rate=0.05, share=0.5)
    assert alarm is not None
    compared, changes = follow(centred(silence), alarm)
    assert not changes
    assert all(math.isfinite(minute.strength) for minute in compared)


@pytest.mark.parametrize("rate", [0.025, 0.05])
def test_at_most_the_promised_share_of_normal_minutes_begins_a_change(rate: float) -> None:
    """Of a machine of 12 states, over 8 days of training and as many others, within three standard errors."""
    n, n_days, changes, minutes = 300, 8, 0, 0
    for day in range(n_days):
        normal, new = (centred(sound(n, seed=1_000 * part + day, states=12)) for part in (1, 2))
        alarm = fit_state([normal], [[str(k // 60) for k in range(n)]], false_alarm_rate=rate, share=0.5)
        assert alarm is not None
        assert alarm.against_past is not None
        compared, found = follow(new, alarm)
        changes += sum(compared[change.alarmed[0]].with_past for change in found)
        minutes += sum(minute.with_past for minute in compared)
    assert changes / minutes <= rate + 3 * math.sqrt(rate * (1 - rate) / minutes)


def test_strength_is_a_ratio_of_its_own_threshold() -> None:
    minute = Compared(3.0, np.zeros(F), StateThreshold(1.5, 0.05, 99), True)
    assert minute.strength == 2.0
