"""Events: a second way to merge, whatever the order of rows, and what carries them."""

from __future__ import annotations

import math
import posixpath
import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faithad import schemas
from faithad.audit.events import find_events
from faithad.clips.manifest import ClipRow, clip_id, manifest_table
from faithad.clips.recording_names import read_name
from faithad.errors import StudyError
from faithad.evaluation.mel_bands import mel_band_edges_hz
from faithad.model.alarm import AlarmThreshold
from faithad.settings import FeatureSettings

FEATURES = FeatureSettings()
N_FRAMES, N_MELS = 400, 80
ALARM = AlarmThreshold("quantile", "mean", 0.05, 2.0, 18.0, 20)
START = datetime(2024, 5, 6, 7, 0)

repeatable = settings(max_examples=50, deadline=None, derandomize=True)


class Made:
    """Recordings of 10 s clips with scores; the tables that find_events takes."""

    def __init__(self) -> None:
        self.clips: list[dict[str, Any]] = []
        self.scores: list[dict[str, Any]] = []

    def windows(self, *of_clips: Sequence[float] | None) -> Made:
        """The values of the windows of each clip so far; 1 is their threshold."""
        for row, values in zip(self.scores, of_clips, strict=True):
            row |= {"windows": values, "window_threshold": None if values is None else 1.0}
        return self

    def recording(
        self,
        name: str,
        scores: Sequence[float],
        *,
        start_s: float | None = 0.0,
        rest_s: float = 0.0,
        overlap: bool = False,
        utc_offset_s: int | None = None,
    ) -> Made:
        """Clips side by side; then, where there is a rest, a shorter clip or one that overlaps the one before.

        The recorder is the folder, as if the recording's name were a time stamp and nothing else.
        """
        recorder = read_name(f"{posixpath.dirname(name)}/20240506_070000.wav").recorder
        places = [(10.0 * number, 10.0) for number in range(len(scores) - (rest_s > 0))]
        if rest_s:
            end_s = 10.0 * len(places) + rest_s
            places.append((end_s - 10.0, 10.0) if overlap and places else (end_s - rest_s, rest_s))
        for (onset_s, duration_s), score in zip(places, scores, strict=True):
            clock = None if start_s is None else START + timedelta(seconds=start_s + onset_s)
            identity = clip_id(name, onset_s)
            self.clips.append(
                {"clip_id": identity, "recording": name, "uri": f"/{name}", "onset_s": onset_s,
                 "duration_s": duration_s, "recorded_at": clock, "utc_offset_s": utc_offset_s, "recorder": recorder,
                 "split": "test", "annotated": False}
            )  # fmt: skip
            self.scores.append(
                {"clip_id": identity, "model": "mae", "seed": 0, "score": score, "worst_second_score": 3 * score,
                 "threshold": 2.0, "alarm": score > 2.0, "worst_onset_s": 4.0, "worst_mel_band": 7}
            )  # fmt: skip
        return self

    def events(self, *, merge_gap_s: float = 10.0, **options: Any) -> list[dict[str, Any]]:
        manifest = pa.Table.from_pylist(self.clips, schema=schemas.MANIFEST)
        scores = pa.Table.from_pylist(self.scores, schema=schemas.SCORES)
        options = {"alarm": ALARM, "explanations": None, "faithfulness": None, **options}
        found = find_events(
            scores, manifest, merge_gap_s=merge_gap_s, method="saliency", percentile=95.0, features=FEATURES, **options
        )
        assert found.schema.equals(schemas.EVENTS)
        rows: list[dict[str, Any]] = found.to_pylist()
        return rows


def explanations(*clips: tuple[str, np.ndarray, np.ndarray], method: str = "saliency", flat: bool = False) -> pa.Table:
    schema = schemas.attributions(N_MELS, N_FRAMES)
    rows = [
        {"clip_id": identity, "model": "mae", "seed": 0, "method": method, "curve": curve, "profile": profile,
         "map": None, "map_scale": None, "degenerate": flat}
        for identity, curve, profile in clips
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=schema)


def peaks_in(*seconds: int) -> np.ndarray:
    """A curve whose highest twentieth, 20 frames, lies in these seconds."""
    curve = np.linspace(0, 0.1, N_FRAMES)
    for second in seconds:
        curve[40 * second + 5 : 40 * second + 5 + math.ceil(20 / len(seconds))] = 1.0
    return curve


def bump(*bands: int) -> np.ndarray:
    profile = np.zeros(N_MELS)
    profile[list(bands)] = 1.0
    return profile


# --- merging ----------------------------------------------------------------------------------------------------------

recordings = st.lists(
    st.tuples(
        st.sampled_from(["north", "south"]),
        st.one_of(st.none(), st.integers(0, 12).map(lambda k: 10.0 * k), st.just(33.5)),  # start by the clock
        st.lists(st.sampled_from([1.0, 2.0, 2.5, 4.0]), min_size=1, max_size=6),
        st.sampled_from([0.0, 3.5, 9.0]),
        st.booleans(),
    ),
    min_size=1,
    max_size=5,
)


def made_of(drawn: list[tuple[str, float | None, list[float], float, bool]]) -> Made:
    made = Made()
    for number, (folder, start_s, scores, rest_s, overlap) in enumerate(drawn):
        made.recording(f"{folder}/{number}.wav", scores, start_s=start_s, rest_s=rest_s, overlap=overlap)
    return made


def follow_on(made: Made, one: str, other: str) -> bool:
    """From the definition: of two neighbours in one folder, whether the second begins where the first ends."""
    folder = one.split("/")[0]
    known = {
        name: (clips[0]["recorded_at"] - timedelta(seconds=clips[0]["onset_s"]),
               max(clip["recorded_at"] + timedelta(seconds=clip["duration_s"]) for clip in clips))
        for name in {clip["recording"] for clip in made.clips}
        if name.startswith(f"{folder}/")
        and (clips := [clip for clip in made.clips if clip["recording"] == name])[0]["recorded_at"]
    }  # fmt: skip
    ordered = sorted(known, key=lambda name: (known[name][0], name))
    if (one, other) not in pairwise(ordered):
        return False
    return -1.0 <= (known[other][0] - known[one][1]).total_seconds() < 10.0


def merged_slowly(made: Made, gap_s: float) -> set[frozenset[str]]:
    """Connected components of the alarms that are near each other, from all pairs."""
    names = sorted({clip["recording"] for clip in made.clips})
    chain = {name: {name} for name in names}
    for one in names:
        for other in names:
            if follow_on(made, one, other):
                joined = chain[one] | chain[other]
                for name in joined:
                    chain[name] = joined
    scores = {row["clip_id"]: row["score"] for row in made.scores}
    alarms = [clip for clip in made.clips if scores[clip["clip_id"]] > 2.0]

    def distance_s(one: dict[str, Any], other: dict[str, Any]) -> float:
        if one["recording"] == other["recording"]:
            first, second = sorted((one, other), key=lambda clip: clip["onset_s"])
            return float(second["onset_s"] - first["onset_s"] - first["duration_s"])
        if other["recording"] not in chain[one["recording"]]:
            return math.inf
        first, second = sorted((one, other), key=lambda clip: clip["recorded_at"])
        between = second["recorded_at"] - first["recorded_at"]
        return float(between.total_seconds() - first["duration_s"])

    groups = [{clip["clip_id"]} for clip in alarms]
    of = {clip["clip_id"]: group for clip, group in zip(alarms, groups, strict=True)}
    for one in alarms:
        for other in alarms:
            if distance_s(one, other) <= gap_s and of[one["clip_id"]] is not of[other["clip_id"]]:
                joined = of[one["clip_id"]] | of[other["clip_id"]]
                for identity in joined:
                    of[identity] = joined
    return {frozenset(group) for group in of.values()}


@repeatable
@given(recordings, st.sampled_from([0.0, 3.5, 10.0, 25.0]))
def test_merging_equals_connected_components(drawn: Any, gap_s: float) -> None:
    """So every alarm is in one event and one only, and no two events lie closer than the gap."""
    made = made_of(drawn)
    events = made.events(merge_gap_s=gap_s)
    assert {frozenset(event["clip_ids"]) for event in events} == merged_slowly(made, gap_s)
    assert sum(event["n_alarms"] for event in events) == sum(row["score"] > 2.0 for row in made.scores)


@repeatable
@given(recordings, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(drawn: Any, shuffler: random.Random) -> None:
    made = made_of(drawn)
    events = made.events()
    shuffler.shuffle(made.clips)
    shuffler.shuffle(made.scores)
    assert made.events() == events


@repeatable
@given(recordings)
def test_events_lie_in_their_recordings_and_their_seconds_in_their_parts(drawn: Any) -> None:
    made = made_of(drawn)
    ends: dict[str, float] = {}
    for clip in made.clips:
        ends[clip["recording"]] = max(ends.get(clip["recording"], 0.0), clip["onset_s"] + clip["duration_s"])
    for event in made.events():
        parts = {part["recording"]: part for part in event["parts"]}
        assert len(parts) == len(event["parts"])
        assert (event["recording"], event["onset_s"]) == (event["parts"][0]["recording"], event["parts"][0]["onset_s"])
        for part in event["parts"]:
            assert 0 <= part["onset_s"] < part["offset_s"] <= ends[part["recording"]] + 1e-6
        for second in event["seconds"]:
            part = parts[second["recording"]]
            assert part["onset_s"] <= second["onset_s"] < second["offset_s"] <= part["offset_s"] + 1e-6
        if event["started_at"]:
            assert (event["ended_at"] - event["started_at"]).total_seconds() == pytest.approx(event["duration_s"])
        assert event["score"] == max(row["score"] for row in made.scores if row["clip_id"] in event["clip_ids"])


def test_alarms_up_to_the_gap_are_one_event() -> None:
    made = Made().recording("m/a.wav", [4.0, 1.0, 5.0, 1.0, 1.0, 3.0], start_s=None)
    first, second = made.events()
    assert first["parts"] == [{"recording": "m/a.wav", "onset_s": 0.0, "offset_s": 30.0}]
    assert (first["duration_s"], first["n_alarms"], first["score"], first["strength"]) == (30.0, 2, 5.0, 2.5)
    assert (second["onset_s"], second["started_at"], second["ended_at"]) == (50.0, None, None)


def test_an_event_goes_on_in_the_next_recording() -> None:
    """60 s of each minute are recorded but the last 5: what is missing is shorter than a clip."""
    made = Made().recording("m/a.wav", [1.0, 1.0, 1.0, 1.0, 5.0], rest_s=5.0, overlap=True, start_s=0.0)
    made.recording("m/b.wav", [3.0, 1.0], start_s=50.0)
    made.recording("elsewhere/c.wav", [3.0, 1.0], start_s=50.0)
    event, beside = made.events()
    assert event["parts"] == [
        {"recording": "m/a.wav", "onset_s": 35.0, "offset_s": 45.0},
        {"recording": "m/b.wav", "onset_s": 0.0, "offset_s": 10.0},
    ]
    assert (event["started_at"], event["ended_at"]) == (START + timedelta(seconds=35), START + timedelta(seconds=60))
    assert event["duration_s"] == 25.0
    assert beside["parts"] == [{"recording": "elsewhere/c.wav", "onset_s": 0.0, "offset_s": 10.0}]


def test_a_hole_in_the_recordings_ends_an_event() -> None:
    made = Made().recording("m/a.wav", [3.0], start_s=0.0).recording("m/b.wav", [3.0], start_s=20.0)
    assert len(made.events(merge_gap_s=60.0)) == 2


def test_recorders_side_by_side_stay_apart() -> None:
    made = Made().recording("north/a.wav", [3.0], start_s=0.0).recording("south/a.wav", [3.0], start_s=10.0)
    assert len(made.events()) == 2


def events_of(alarmed: dict[str, list[bool]]) -> list[dict[str, Any]]:
    """The events of recordings whose names say who made them and when: of each, which of its clips alarm."""
    clips = [
        ClipRow(name, name, 10.0 * k, 10.0, "test") for name, alarms in alarmed.items() for k in range(len(alarms))
    ]
    made = Made()
    made.clips = manifest_table(clips).to_pylist()
    made.scores = [
        {"clip_id": clip["clip_id"], "model": "mae", "seed": 0, "score": 1.0 + 2.0 * alarm, "worst_onset_s": 4.0,
         "worst_mel_band": 7}
        for clip in made.clips
        for alarm in [alarmed[clip["recording"]][round(clip["onset_s"] / 10)]]
    ]  # fmt: skip
    return made.events()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("A_%s.wav", "B_%s.wav"),
        ("S4A01234_%s.wav", "S4A05678_%s.wav"),
        ("%s_Tr1.WAV", "%s_Tr2.WAV"),
        ("%s.wav", "%s_rear.wav"),
        ("north/%s.wav", "south/%s.wav"),
        ("mic 1_%s+0100.flac", "mic 2_%s+0100.flac"),
    ],
)
def test_two_recorders_in_one_folder(first: str, second: str) -> None:
    """The second one hears something until its file ends, the first one something else, over two of its files."""
    one, next_one = (f"week/{first % stamp}" for stamp in ("20240506_070000", "20240506_070030"))
    other, next_other = (f"week/{second % stamp}" for stamp in ("20240506_070000", "20240506_070030"))
    quiet = [False, False, False]
    alarmed = {one: [False, False, True], next_one: [True, False, False], other: quiet, next_other: quiet}
    (event,) = events_of(alarmed)
    assert [part["recording"] for part in event["parts"]] == [one, next_one]
    assert event["duration_s"] == 20.0
    alarmed = {one: quiet, next_one: [True, False, False], other: [False, False, True], next_other: quiet}
    assert [[part["recording"] for part in event["parts"]] for event in events_of(alarmed)] == [[other], [next_one]]


def test_the_hour_that_comes_twice_when_summer_time_ends() -> None:
    """Both recordings begin at 2 o'clock, an hour apart; the first hour ends as the second one begins."""
    summer, winter = "week/20241027T020000+0200.wav", "week/20241027T020000+0100.wav"
    first, second = events_of({summer: [True, False], winter: [False, True]})
    assert [first["recording"], second["recording"]] == [summer, winter]
    assert (first["started_at"], first["utc_offset_s"]) == (datetime(2024, 10, 27, 2), 7200)
    assert (second["started_at"], second["utc_offset_s"]) == (datetime(2024, 10, 27, 2, 0, 10), 3600)
    before = "week/20241027T025940+0200.wav"
    (event,) = events_of({winter: [True, False], before: [False, True]})
    assert [part["recording"] for part in event["parts"]] == [before, winter]
    assert (event["started_at"], event["ended_at"]) == (
        datetime(2024, 10, 27, 2, 59, 50),
        datetime(2024, 10, 27, 2, 0, 10),
    )
    assert event["duration_s"] == 20.0


def test_a_clock_without_an_offset_is_not_compared_with_utc() -> None:
    alarmed = {"week/20241027T020000+0000.wav": [True], "week/20241027T020010.wav": [True]}
    assert len(events_of(alarmed)) == 2


def test_pieces_of_a_recording_follow_on() -> None:
    parent = "week/20240506_070000_{}s_{}s.wav"
    first, second, far = parent.format("590.0", "600.0"), parent.format("600.0", "610.0"), parent.format("0.0", "10.0")
    early, late = events_of({second: [True], far: [True], first: [True]})
    assert [part["recording"] for part in early["parts"]] == [far]
    assert [part["recording"] for part in late["parts"]] == [first, second]
    assert late["started_at"] == datetime(2024, 5, 6, 7, 9, 50)


MIDNIGHT_S = 17 * 3_600.0  # after START


@pytest.mark.parametrize(
    ("before", "after", "n_events"),
    [
        ("mill/2024-05-06/a.wav", "mill/2024-05-07/b.wav", 1),
        ("20240506/mic 1/a.wav", "20240507/mic 1/b.wav", 1),
        ("mill 2024/05/06/a.wav", "mill 2024/05/07/b.wav", 1),
        ("mill/2024-05-06/a.wav", "mill/2024-05-06/b.wav", 1),
        ("mill/2024-05-06/mic 1/a.wav", "mill/2024-05-07/mic 2/b.wav", 2),
        ("mic 120240506/a.wav", "mic 120240507/b.wav", 2),
        ("run 20241306/a.wav", "run 20241307/b.wav", 2),  # no dates
    ],
)
def test_an_event_goes_on_over_midnight_in_the_folder_of_the_next_day(before: str, after: str, n_events: int) -> None:
    made = Made().recording(before, [1, 3], start_s=MIDNIGHT_S - 20).recording(after, [3, 1], start_s=MIDNIGHT_S)
    events = made.events()
    assert [len(event["parts"]) for event in events] == ([2] if n_events == 1 else [1, 1])
    if n_events == 1:
        assert [part["recording"] for part in events[0]["parts"]] == [before, after]
        assert (events[0]["started_at"], events[0]["duration_s"]) == (datetime(2024, 5, 6, 23, 59, 50), 20.0)


def test_ids_are_stable_and_sorting_is_by_the_clock() -> None:
    late = Made().recording("m/a.wav", [3.0, 1.0], start_s=5000.0)
    both = Made().recording("m/a.wav", [3.0, 1.0], start_s=5000.0).recording("m/b.wav", [4.0], start_s=0.0)
    unknown = both.recording("a/0.wav", [3.0], start_s=None)
    assert [event["recording"] for event in unknown.events()] == ["m/b.wav", "m/a.wav", "a/0.wav"]
    # Written out: another value would orphan every list that an id was copied into.
    assert late.events()[0]["event_id"] == unknown.events()[1]["event_id"] == "6d9bf6199fa62f42"


# --- where in a clip --------------------------------------------------------------------------------------------------


def above(*seconds: tuple[float, float], n: int = 40) -> list[float]:
    """Values of a clip's windows: 2 where a window lies in one of these stretches of the clip, else 0."""
    return [2.0 * any(onset <= 0.25 * k < offset for onset, offset in seconds) for k in range(n)]


def spans_of(events: Sequence[dict[str, Any]]) -> list[list[tuple[float, float]]]:
    return [[(part["onset_s"], part["offset_s"]) for part in event["parts"]] for event in events]


def test_an_event_is_where_its_windows_are_above_their_threshold() -> None:
    """Windows of other clips count for nothing; up to a second between two is bridged, also from clip to clip."""
    made = Made().recording("m/a.wav", [3.0, 4.0, 1.0, 5.0])
    made.windows(above((2, 2.5), (3.5, 4), (9.5, 10)), above((0.5, 0.75), (6, 7)), above((0, 10)), None)
    events = made.events(merge_gap_s=1.0)
    assert spans_of(events) == [[(2.0, 4.0)], [(9.5, 10.75)], [(16.0, 17.0)], [(30.0, 40.0)]]
    assert [event["n_alarms"] for event in events] == [1, 2, 1, 1]
    assert [event["duration_s"] for event in events] == [2.0, 1.25, 1.0, 10.0]
    assert [event["score"] for event in events] == [3.0, 4.0, 4.0, 5.0]
    assert (events[0]["started_at"], events[0]["ended_at"]) == (
        START + timedelta(seconds=2),
        START + timedelta(seconds=4),
    )
    assert len({event["event_id"] for event in events}) == 4
    assert len(made.events(merge_gap_s=10.0)) == 2


def test_an_alarm_without_a_window_above_is_where_the_highest_one_is() -> None:
    made = Made().recording("m/a.wav", [3.0], start_s=None)
    assert spans_of(made.windows([0.1] * 9 + [0.9] + [0.2] * 30).events()) == [[(2.25, 2.5)]]
    # The last window runs to the end of the clip, whose length need not be a multiple.
    short = Made().recording("m/a.wav", [1.0, 3.0], rest_s=3.6, start_s=None)
    assert spans_of(short.windows(None, [*[0.0] * 13, 2.0]).events()) == [[(13.25, 13.6)]]


def test_windows_go_on_in_the_next_recording() -> None:
    made = Made().recording("m/a.wav", [1.0, 3.0], start_s=0.0).recording("m/b.wav", [3.0], start_s=20.0)
    made.windows(None, above((9, 10)), above((0.75, 2)))
    (event,) = made.events(merge_gap_s=1.0)
    assert event["parts"] == [
        {"recording": "m/a.wav", "onset_s": 19.0, "offset_s": 20.0},
        {"recording": "m/b.wav", "onset_s": 0.75, "offset_s": 2.0},
    ]
    assert (event["started_at"], event["ended_at"]) == (START + timedelta(seconds=19), START + timedelta(seconds=22))
    assert event["duration_s"] == 3.0
    assert len(made.events(merge_gap_s=0.5)) == 2


@repeatable
@given(
    st.lists(
        st.tuples(st.booleans(), st.lists(st.sampled_from([0.0, 0.5, 2.0]), min_size=40, max_size=40)),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([0.0, 1.0, 10.0]),
)
def test_edges_are_those_of_a_grid_of_windows(clips: list[tuple[bool, list[float]]], gap_s: float) -> None:
    made = Made().recording("m/a.wav", [1.0 + 2.0 * alarms for alarms, _ in clips], start_s=None)
    made.windows(*(values for _, values in clips))
    grid = [alarms and (value > 1 or value == max(values)) for alarms, values in clips for value in values]
    runs: list[list[int]] = []
    for k in np.flatnonzero(grid).tolist():
        if runs and 0.25 * (k - runs[-1][-1] - 1) <= gap_s:
            runs[-1].append(k)
        else:
            runs.append([k])
    events = made.events(merge_gap_s=gap_s)
    assert spans_of(events) == [[(0.25 * run[0], 0.25 * (run[-1] + 1))] for run in runs]
    assert [event["n_alarms"] for event in events] == [len({k // 40 for k in run}) for run in runs]


def test_the_seconds_of_another_event_of_the_clip_do_not_carry_this_one() -> None:
    made = Made().recording("m/a.wav", [3.0], start_s=None).windows(above((1.5, 2), (7, 8)))
    identity = made.clips[0]["clip_id"]
    for peaks, first, second in [((1, 7), (1, 2), (7, 8)), ((2, 7), (7, 8), (7, 8)), ((4,), (4, 5), (4, 5))]:
        early, late = made.events(explanations=explanations((identity, peaks_in(*peaks), bump(3))), merge_gap_s=1.0)
        seconds = [(span["onset_s"], span["offset_s"]) for span in early["seconds"]]
        assert seconds == ([first] if peaks != (2, 7) else [(2, 3), first])
        assert [(span["onset_s"], span["offset_s"]) for span in late["seconds"]] == [second]


# --- what carries an event --------------------------------------------------------------------------------------------


def test_seconds_and_bands_of_explained_alarms() -> None:
    made = Made().recording("m/a.wav", [3.0, 1.0, 4.0], start_s=None)
    first, _, last = (clip["clip_id"] for clip in made.clips)
    table = explanations((first, peaks_in(3), bump(10, 11)), (last, peaks_in(0, 9), bump(11, 12)))
    (event,) = made.events(explanations=table)
    places = [(second["onset_s"], second["offset_s"]) for second in event["seconds"]]
    assert places == [(3.0, 4.0), (20.0, 21.0), (29.0, 30.0)]
    # Bands 10 to 12 hold 1, 2 and 1 of 4: band 11 alone is half of it.
    assert (event["mel_band_low"], event["mel_band_high"]) == (11, 11)
    low, high = mel_band_edges_hz(N_MELS, 20_000)
    assert (event["low_hz"], event["high_hz"]) == (low[11], high[11])
    assert (event["method"], event["percentile"]) == ("saliency", 95.0)


def test_faithfulness_is_the_mean_over_the_alarms_at_the_percentile_in_frame_mode() -> None:
    made = Made().recording("m/a.wav", [3.0, 4.0], start_s=None)
    first, second = (clip["clip_id"] for clip in made.clips)
    table = explanations((first, peaks_in(3), bump(1)), (second, peaks_in(3), bump(1)))
    keys = {"model": "mae", "seed": 0, "replaced_fraction": 0.05, "error_before": 3.0, "error_after": 2.0}
    rows = [
        {
            **keys,
            "clip_id": identity,
            "method": method,
            "mode": mode,
            "percentile": percentile,
            "faithfulness": value,
            "normalized": 0.6 if identity == first else None,
        }
        for identity, method, mode, percentile, value in [
            (first, "saliency", "frame", 95.0, 0.5),
            (second, "saliency", "frame", 95.0, 0.25),
            (second, "saliency", "frame", 96.0, 9.0),
            (second, "saliency", "segment", 95.0, 9.0),
            (second, "error_map", "frame", 95.0, 9.0),
        ]
    ]
    judged = pa.Table.from_pylist(rows, schema=schemas.FAITHFULNESS)
    (event,) = made.events(explanations=table, faithfulness=judged, trusted="yes")
    assert (event["faithfulness"], event["normalized"], event["trusted"]) == (0.375, 0.6, "yes")
    (event,) = made.events(faithfulness=judged, trusted="yes")
    assert (event["faithfulness"], event["normalized"], event["trusted"]) == (None, None, None)


@pytest.mark.parametrize("table", [None, "other method", "flat"])
def test_without_an_explanation_the_error_says_where(table: str | None) -> None:
    made = Made().recording("m/a.wav", [3.0, 3.0], start_s=None)
    clips = [(clip["clip_id"], peaks_in(8), bump(70)) for clip in made.clips]
    found = {
        None: None,
        "other method": explanations(*clips, method="error_map"),
        "flat": explanations(*clips, flat=True),
    }[table]
    (event,) = made.events(explanations=found)
    assert [(second["onset_s"], second["offset_s"]) for second in event["seconds"]] == [(4.0, 5.0), (14.0, 15.0)]
    assert (event["mel_band_low"], event["mel_band_high"]) == (7, 7)
    assert (event["method"], event["percentile"], event["faithfulness"]) == (None, None, None)


def test_a_model_that_only_scores_has_events_without_seconds_and_with_all_bands() -> None:
    made = Made().recording("m/a.wav", [3.0], start_s=None)
    made.scores[0] |= {"worst_second_score": None, "worst_onset_s": None, "worst_mel_band": None}
    (event,) = made.events()
    assert (event["seconds"], event["mel_band_low"], event["mel_band_high"]) == ([], 0, 79)
    assert (event["low_hz"], event["high_hz"]) == (0.0, pytest.approx(10_000.0))
    with pytest.raises(StudyError, match=r"1 of 1 scores have no worst_second_score.*alarm\.pooling to mean"):
        made.events(alarm=AlarmThreshold("quantile", "worst_second", 0.05, 2.0, 18.0, 20))


def test_peaks_in_the_silence_after_a_recording_are_no_seconds_of_it() -> None:
    made = Made().recording("m/a.wav", [1.0, 3.0], rest_s=3.5, start_s=None)
    table = explanations((made.clips[1]["clip_id"], peaks_in(3, 8), bump(2)))
    (event,) = made.events(explanations=table)
    assert event["seconds"] == [{"recording": "m/a.wav", "onset_s": 13.0, "offset_s": 13.5}]


def test_the_alarm_pools_the_worst_second() -> None:
    made = Made().recording("m/a.wav", [1.0, 0.5], start_s=None)
    (event,) = made.events(alarm=AlarmThreshold("quantile", "worst_second", 0.05, 2.0, 18.0, 20))
    assert (event["score"], event["strength"], event["pooling"], event["n_alarms"]) == (3.0, 1.5, "worst_second", 1)


def test_a_threshold_that_is_not_positive_has_no_ratio() -> None:
    made = Made().recording("m/a.wav", [3.0])
    made.scores[0]["threshold"] = -1.0
    (event,) = made.events(alarm=AlarmThreshold("quantile", "mean", 0.05, -1.0, 18.0, 20))
    assert math.isnan(event["strength"])


def test_an_event_is_as_strong_as_its_clip_that_is_furthest_above_its_own_threshold() -> None:
    """The short clip at the end has the lower score, and a lower threshold."""
    made = Made().recording("m/a.wav", [3.0, 2.5], rest_s=4.0)
    made.scores[1]["threshold"] = 1.0
    (event,) = made.events()
    assert (event["score"], event["threshold"], event["strength"], event["n_alarms"]) == (2.5, 1.0, 2.5, 2)
    made.scores[1]["threshold"] = 2.6
    (event,) = made.events()
    assert (event["score"], event["threshold"], event["strength"], event["n_alarms"]) == (3.0, 2.0, 1.5, 1)


# --- tables that do not fit -------------------------------------------------------------------------------------------


def test_no_alarm_is_no_event() -> None:
    assert Made().recording("m/a.wav", [1.0, 2.0]).events() == []
    assert Made().events() == []


def test_scores_of_another_index_are_refused() -> None:
    made = Made().recording("m/a.wav", [3.0])
    made.scores[0]["clip_id"] = "f" * 16
    with pytest.raises(StudyError, match="ffffffffffffffff, which the manifest does not"):
        made.events()


def test_rows_given_twice_are_refused() -> None:
    made = Made().recording("m/a.wav", [3.0])
    made.scores *= 2
    with pytest.raises(StudyError, match="several rows for one clip"):
        made.events()


def test_events_are_those_of_one_model() -> None:
    made = Made().recording("m/a.wav", [3.0, 1.0])
    made.scores[1]["seed"] = 1
    with pytest.raises(ValueError, match=r"seed has the values \[0, 1\]"):
        made.events()
