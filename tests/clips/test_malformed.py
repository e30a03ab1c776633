"""Every file of the corpus by itself: listed, probed, cut and read, or refused in words that a mill understands."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

from faithad.clips.inputs import find_left_out, find_recordings
from faithad.clips.manifest import Recording, cut_recording
from faithad.clips.recordings import probe_recording, read_clip
from faithad.errors import RecordingError
from tests.clips.malformed import ENTRIES, UNREADABLE, Entry, write_corpus
from tests.clips.sound_bytes import RATE_HZ, sound

CLIP_S = 1.0

# What no reader of a ledger should have to understand.
JARGON = re.compile(r"Error\b|Exception|Errno|Traceback|libsndfile|psf_|SF_INFO|\\x|<class|None\b|0x[0-9a-f]|b'")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "odd"
    write_corpus(folder, seconds=CLIP_S)
    return folder


@pytest.fixture(scope="module")
def found(corpus: Path) -> dict[str, Recording]:
    return {recording.path.removeprefix("odd/"): recording for recording in find_recordings([("test", str(corpus))])}


def outcome(recording: Recording) -> tuple[str, str, list[np.ndarray]]:
    """What becomes of a recording, why, or what else the ledger says of it, and its clips."""
    try:
        header = probe_recording(recording.uri)
        rows, ledger = cut_recording(recording, header, clip_s=CLIP_S, remainder="drop")
        clips = [
            read_clip(row.uri, onset_s=row.onset_s, duration_s=row.duration_s, clip_s=CLIP_S, sample_rate_hz=RATE_HZ)
            for row in rows
        ]
    except RecordingError as error:
        return "failed", str(error), []
    statuses = {row["status"] for row in ledger}
    became = "audited" if clips else "failed" if "failed" in statuses else "skipped"
    return became, " ".join(row["reason"] or "" for row in ledger), clips


def test_the_corpus_is_large_and_its_names_differ() -> None:
    assert len({entry.listed for entry in ENTRIES}) == len(ENTRIES) >= 100
    assert sum(entry.outcome == "failed" for entry in ENTRIES) >= 40


def test_every_file_is_listed_once(corpus: Path, found: dict[str, Recording]) -> None:
    left_out = {row["recording"].removeprefix("odd/"): row for row in find_left_out([str(corpus)])}
    expected = {entry.listed for entry in ENTRIES if entry.outcome != "absent"}
    expected -= {UNREADABLE} if os.geteuid() == 0 else set()
    assert set(found) | set(left_out) == expected
    assert not set(found) & set(left_out)
    for name, row in left_out.items():
        (entry,) = (entry for entry in ENTRIES if entry.listed == name)
        assert (row["status"], entry.outcome) == ("skipped", "skipped")
        assert re.search(entry.reason, row["reason"] or "")


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: ascii(entry.listed)[:40])
def test_entry(entry: Entry, found: dict[str, Recording]) -> None:
    if entry.name == UNREADABLE and os.geteuid() == 0:
        pytest.skip("an administrator may read everything")
    if entry.listed not in found:
        assert entry.outcome in ("skipped", "absent")
        return
    became, reason, clips = outcome(found[entry.listed])
    assert became == entry.outcome, reason
    assert re.search(entry.reason, reason, re.DOTALL), reason
    if entry.plain and not entry.reason:
        assert not reason
    assert "Dear" not in reason, "contents are quoted"
    if became == "failed":
        # Without its own name, which may be anything, except that it may not break a line or colour a terminal.
        assert reason.isprintable()
        assert not JARGON.search(reason.partition(entry.listed)[2] or reason)
    if became == "audited":
        assert len(clips) == 1
        assert np.isfinite(clips[0]).all()
    if entry.plain:
        np.testing.assert_array_equal(clips[0], (sound(CLIP_S) / 128).astype(np.float32))


@pytest.mark.parametrize("name", ["mu-law.wav", "IMA ADPCM.wav", "Microsoft ADPCM.wav", "16 bit.flac"])
def test_a_window_is_what_the_whole_file_has_there(name: str, corpus: Path) -> None:
    """Encodings in blocks: reading starts in the middle of one."""
    whole, parts = (
        [
            read_clip(str(corpus / name), onset_s=k * step_s, duration_s=step_s, clip_s=step_s, sample_rate_hz=RATE_HZ)
            for k in range(round(CLIP_S / step_s))
        ]
        for step_s in (CLIP_S, CLIP_S / 8)
    )
    np.testing.assert_array_equal(np.concatenate(parts), whole[0])
