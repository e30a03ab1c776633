"""From the clips' median spectra to changes that last: minutes, recorders, clocks, and what a row says."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from faithad import schemas
from faithad.audit.minutes import recorder_minutes
from faithad.audit.states import find_states
from faithad.evaluation.mel_bands import mel_band_edges_hz
from faithad.model.state_alarm import StateAlarm, StateThreshold
from faithad.scoring.state import LEAST_PAST, centred
from faithad.settings import FeatureSettings

F = 16
FEATURES = FeatureSettings(sample_rate_hz=4_000, n_fft=400, hop_samples=400, n_mels=F, clip_s=10.0)
START = datetime(2026, 5, 4, 14, 0)
SHAPE = np.random.default_rng(0).normal(-40, 6, F)
ALARM = StateAlarm(
    torch.from_numpy(centred(SHAPE[None] + np.zeros((3, 1))).astype(np.float32)),
    0.5,
    0.05,
    StateThreshold(1.0, 0.05, 99),
    StateThreshold(0.8, 0.05, 99),
)
Row = dict[str, Any]


def recording(
    name: str, *, minutes: float, at: datetime | None = None, recorder: str | None = "mic", offset_s: int | None = None
) -> list[Row]:
    """The clips of one recording; the last one may be shorter."""
    seconds = minutes * 60
    return [
        {
            "clip_id": f"{name}-{onset_s:07.1f}",
            "recording": name,
            "uri": name,
            "onset_s": onset_s,
            "duration_s": min(10.0, seconds - onset_s),
            "recorded_at": at and at + timedelta(seconds=onset_s),
            "recorder": recorder if at else None,
            "utc_offset_s": offset_s,
            "split": "test",
            "annotated": False,
        }
        for onset_s in np.arange(0, seconds, 10.0).tolist()
    ]


def tables(rows: list[Row], *, louder: dict[str, tuple[int, int]] | None = None) -> tuple[pa.Table, pa.Table]:
    """Median spectra and manifest; of the clips from `louder`, named by their recordings and by the seconds between
    which they begin, bands 6 and 7 are 6 dB louder.
    """
    spectra = []
    for row in rows:
        levels = SHAPE + np.random.default_rng(sum(map(ord, row["clip_id"]))).normal(0, 0.3, F)
        first_s, last_s = (louder or {}).get(row["recording"], (1, 0))
        levels[6:8] += 6.0 * (first_s <= row["onset_s"] <= last_s)
        spectra.append({"clip_id": row["clip_id"], "model": "robust", "seed": 0, "median_db": levels.tolist()})
    manifest = [dict.fromkeys(schemas.MANIFEST.names) | row for row in rows]
    return (
        pa.Table.from_pylist(spectra, schema=schemas.MEDIAN_SPECTRA),
        pa.Table.from_pylist(manifest, schema=schemas.MANIFEST),
    )


def states(rows: list[Row], **options: Any) -> list[Row]:
    found = find_states(*tables(rows, **options), alarm=ALARM, features=FEATURES)
    assert found.schema.equals(schemas.STATES)
    return list(found.to_pylist())


def hours(n: int, *, recorder: str = "mic") -> list[Row]:
    """Recordings of 10 minutes, one after the other."""
    return [
        row
        for k in range(6 * n)
        for row in recording(f"{recorder}-{k}", minutes=10, at=START + timedelta(minutes=10 * k), recorder=recorder)
    ]


def test_a_change_says_since_when_until_when_and_which_bands_by_how_much() -> None:
    (state,) = states(hours(2), louder={"mic-7": (240, 600), "mic-8": (0, 170)})
    lower_hz, upper_hz = mel_band_edges_hz(F, 4_000)
    assert state["recording"] == "mic-7"
    assert (state["onset_s"], state["duration_s"], state["n_minutes"]) == (240.0, 540.0, 9)
    assert state["started_at"] == START + timedelta(minutes=74)
    assert state["ended_at"] == START + timedelta(minutes=83)
    assert state["parts"] == [
        {"recording": "mic-7", "onset_s": 240.0, "offset_s": 600.0},
        {"recording": "mic-8", "onset_s": 0.0, "offset_s": 180.0},
    ]
    (bands,) = state["changes"]
    assert (bands["mel_band_low"], bands["mel_band_high"]) == (6, 7)
    assert (bands["low_hz"], bands["high_hz"]) == (lower_hz[6], upper_hz[7])
    assert bands["change_db"] == pytest.approx(6.0, abs=0.3)
    assert (state["outcome"], state["reference"], state["recorder"]) == ("over", "past", "mic")
    assert state["strength"] == pytest.approx(state["distance_db"] / 0.8)
    assert state["threshold_db"] == 0.8


def test_what_lasts_to_the_end_has_no_end() -> None:
    (state,) = states(hours(2), louder={f"mic-{k}": (0, 600) for k in range(8, 12)})
    assert state["outcome"] == "lasting"
    assert state["ended_at"] is None
    assert state["duration_s"] == 40 * 60


def test_a_single_clip_of_a_minute_is_no_change() -> None:
    assert states(hours(2), louder={"mic-7": (240, 255)}) == []


def test_the_order_of_rows_changes_nothing() -> None:
    louder = {"mic-7": (240, 600), "mic-8": (0, 170)}
    spectra, manifest = tables(hours(2), louder=louder)
    expected = find_states(spectra, manifest, alarm=ALARM, features=FEATURES)
    rng = np.random.default_rng(0)
    for table in (spectra, manifest):
        shuffled = [table.take(rng.permutation(table.num_rows)) if t is table else t for t in (spectra, manifest)]
        assert find_states(*shuffled, alarm=ALARM, features=FEATURES).equals(expected)


def test_other_recorders_change_nothing() -> None:
    louder = {"mic-7": (240, 600), "mic-8": (0, 170), "other-2": (0, 600)}
    alone = states(hours(2), louder=louder)
    among = states([*hours(2, recorder="other"), *hours(2)], louder=louder)
    assert [state for state in among if state["recorder"] == "mic"] == alone
    assert {state["recorder"] for state in among} == {"mic", "other"}


def test_recordings_that_come_later_change_nothing_of_a_change_that_is_over() -> None:
    louder = {"mic-4": (0, 300)}
    assert states(hours(3), louder=louder) == states(hours(1), louder=louder)


def test_clips_without_a_spectrum_leave_the_minutes_where_they_were() -> None:
    """Two of six clips failed; a minute with only two left does not count."""
    rows = recording("mic", minutes=3, at=START)
    spectra, manifest = tables(rows)
    (whole,) = recorder_minutes(manifest, spectra, clip_s=10.0)
    assert whole.first_clips == ["mic-00000.0", "mic-00060.0", "mic-00120.0"]
    left = [k for k in range(18) if k not in (0, 1, 6, 7, 8, 9)]
    (minutes,) = recorder_minutes(manifest, spectra.take(left), clip_s=10.0)
    assert minutes.first_clips == ["mic-00020.0", "mic-00120.0"]
    np.testing.assert_array_equal(minutes.spectra[1], whole.spectra[2])


def test_minutes_go_on_across_recordings_that_follow_each_other() -> None:
    """The first ends in the middle of a minute."""
    rows = [*recording("a", minutes=2.5, at=START), *recording("b", minutes=1.5, at=START + timedelta(minutes=2.5))]
    spectra, manifest = tables(rows)
    (minutes,) = recorder_minutes(manifest, spectra, clip_s=10.0)
    assert minutes.first_clips == ["a-00000.0", "a-00060.0", "a-00120.0", "b-00030.0"]


def test_a_minute_is_the_median_of_its_clips() -> None:
    spectra, manifest = tables(recording("mic", minutes=1, at=START))
    (minutes,) = recorder_minutes(manifest, spectra, clip_s=10.0)
    levels = np.median(np.array(spectra["median_db"].to_pylist(), dtype=np.float32).astype(float), axis=0)
    np.testing.assert_allclose(minutes.spectra, [levels - levels.mean()])


def test_clips_longer_than_a_minute_are_minutes() -> None:
    rows = [row | {"duration_s": 90.0, "onset_s": 9 * row["onset_s"]} for row in recording("mic", minutes=1, at=START)]
    spectra, manifest = tables(rows)
    (minutes,) = recorder_minutes(manifest, spectra, clip_s=90.0)
    assert len(minutes.spectra) == 6


def test_recordings_without_a_clock_have_no_past_but_their_own() -> None:
    long = recording("long", minutes=LEAST_PAST + 10)
    short = recording("short", minutes=LEAST_PAST - 10)
    found = states([*short, *long], louder={"long": (60 * (LEAST_PAST + 5), 10_000), "short": (600, 10_000)})
    assert [(state["recording"], state["reference"]) for state in found] == [("long", "past"), ("short", "normals")]
    assert {state["started_at"] for state in found} == {None}


def test_clocks_with_an_offset_are_compared_in_utc() -> None:
    """A clock that is set back an hour in the middle of the night: its recordings go on."""
    summer, winter = 7_200, 3_600
    rows = [
        *recording("a", minutes=60, at=START, offset_s=summer),
        *recording("b", minutes=60, at=START, offset_s=winter),
    ]
    (state,) = states(rows, louder={"a": (3_000, 3_600), "b": (0, 300)})
    assert state["recording"] == "a"
    assert state["duration_s"] == 900.0
    assert state["ended_at"] == START + timedelta(minutes=5)
    assert state["utc_offset_s"] == summer


def test_an_audit_without_spectra_has_no_changes() -> None:
    empty = schemas.MEDIAN_SPECTRA.empty_table()
    manifest = tables(recording("mic", minutes=1, at=START))[1]
    assert find_states(empty, manifest, alarm=ALARM, features=FEATURES).num_rows == 0
