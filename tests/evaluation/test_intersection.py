"""Detections against labels: a second way to count, hundredth by hundredth of a second, and cases by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faithad.evaluation.intersection import Stretch, match, merge_spans

edges = st.lists(st.integers(0, 60), min_size=2, max_size=10, unique=True).map(sorted)


def apart(places: Sequence[int]) -> list[tuple[float, float]]:
    """Spans in tenths of a second that do not overlap, perhaps touch."""
    return [(a / 10, b / 10) for a, b in zip(places[::2], places[1::2], strict=False)]


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[list[Stretch]], list[Stretch]]:
    stretches = [(name, span) for name in "ab" for span in apart(draw(edges))]
    owners = draw(st.lists(st.integers(0, 3), min_size=len(stretches), max_size=len(stretches)))
    detections = [[s for s, owner in zip(stretches, owners, strict=True) if owner == number] for number in set(owners)]
    labels = [(name, span) for name in "abc" for span in merge_spans(apart(draw(edges)))]
    return detections, labels


def ticks(stretches: Sequence[Stretch]) -> set[tuple[str, int]]:
    """The tenths of a second of some stretches."""
    return {(name, tick) for name, (a, b) in stretches for tick in range(round(10 * a), round(10 * b))}


@settings(max_examples=200, deadline=None, derandomize=True)
@given(cases(), st.sampled_from([0.05, 0.3, 0.5, 1.0]), st.sampled_from([0.1, 0.5, 1.0]))
def test_matching_equals_counting(case: tuple[list[list[Stretch]], list[Stretch]], dtc: float, gtc: float) -> None:
    """From the definition: of a detection's time at least `dtc` is labelled, of a label's at least `gtc` is covered."""
    detections, labels = case
    labelled = ticks(labels)
    true = [len(ticks(d) & labelled) > 0 and len(ticks(d) & labelled) >= dtc * len(ticks(d)) - 1e-9 for d in detections]
    covered = set().union(*(ticks(d) for d, is_true in zip(detections, true, strict=True) if is_true))
    found = [len(ticks([label]) & covered) >= gtc * len(ticks([label])) - 1e-9 for label in labels]
    matches = match(detections, labels, detection_tolerance=dtc, ground_truth_tolerance=gtc)
    assert (list(matches.true), list(matches.found)) == (true, found)
    everything = [stretch for detection in detections for stretch in detection]
    assert matches.detected_s == pytest.approx(len(ticks(everything)) / 10)
    assert matches.labelled_s == pytest.approx(len(labelled) / 10)
    assert matches.shared_s == pytest.approx(len(ticks(everything) & labelled) / 10)


def test_an_event_of_an_hour_over_24_seconds_of_labels_is_false() -> None:
    labels = [("a", (150.0 * k, 150.0 * k + 1.0)) for k in range(24)]
    matches = match([[("a", (0.0, 3600.0))]], labels)
    assert (matches.true, any(matches.found), matches.shared_s) == ((False,), False, 24.0)


def test_a_clip_over_half_a_second_of_sound_is_true() -> None:
    assert match([[("a", (0.0, 10.0))]], [("a", (9.5, 10.0))]).true == (True,)
    assert match([[("a", (0.0, 10.0))]], [("a", (9.51, 10.0))]).true == (False,)


def test_a_label_that_a_false_event_covers_is_not_found() -> None:
    label = ("a", (5.0, 7.0))
    long, short = [("a", (6.0, 106.0))], [("a", (5.0, 6.0))]
    assert match([long], [label]).found == (False,)
    assert match([long, short], [label]).found == (True,)
    assert match([short], [label], ground_truth_tolerance=0.51).found == (False,)


def test_an_event_over_two_recordings_is_one() -> None:
    event = [("a", (50.0, 60.0)), ("b", (0.0, 10.0))]
    assert match([event], [("b", (0.0, 1.0))]).true == (True,)
    assert match([event], [("b", (0.0, 0.9))]).true == (False,)
    assert match([event], [("c", (0.0, 9.0))]).true == (False,)


def test_nothing_on_either_side() -> None:
    assert match([], [("a", (0.0, 1.0))]).found == (False,)
    assert match([[("a", (0.0, 1.0))]], []).true == (False,)
