"""The whole corpus of odd files in one audit with good recordings: nobody is harmed, everything is accounted for."""

from __future__ import annotations

import os
import re
import stat
import time
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from faithad import parquet, storage
from faithad.clips.recordings import probe_recording
from faithad.config.audit import load_audit_run
from faithad.config.study import Study
from faithad.pipelines.audit.run import Outcome, run_audit
from tests.clips.malformed import Entry, write_corpus

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.long]


@pytest.fixture(scope="module")
def audited(mill: Path, finished: Study, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Entry], Path, Outcome]:
    """The corpus and the mill's test recordings in one audit."""
    folder = tmp_path_factory.mktemp("odd files")
    entries = write_corpus(folder / "corpus", seconds=finished.data.clip_s)
    an_hour_ago = time.time() - 3_600  # nobody writes a file without a length any more
    for path in (folder / "corpus").rglob("*"):
        if stat.S_ISREG(os.lstat(path).st_mode):
            os.utime(path, (an_hour_ago, an_hour_ago))
    run = load_audit_run(
        None,
        model=storage.join(finished.root, "models", "ae-0"),
        recordings=[str(mill / "test"), str(folder / "corpus")],
        out=str(folder / "out"),
        overrides=["remainder=drop", "audit.explain=none", "audit.clips_per_shard=4"],
    )
    return entries, folder / "out", run_audit(run, redo=False, retry_failed=False)


@pytest.fixture(scope="module")
def ledger(audited: tuple[list[Entry], Path, Outcome]) -> pd.DataFrame:
    return pq.read_table(audited[1] / "ledger.parquet").to_pandas()


@pytest.fixture(scope="module")
def scores(audited: tuple[list[Entry], Path, Outcome]) -> pd.DataFrame:
    """Scores with what the manifest says of their clips."""
    manifest = pq.read_table(audited[1] / "manifest.parquet").to_pandas().set_index("clip_id")
    return parquet.read_table(str(audited[1] / "scores")).to_pandas().join(manifest, on="clip_id")


def test_good_clips_are_scored_as_without_the_odd_ones(scores: pd.DataFrame, finished: Study) -> None:
    alone = parquet.read_table(storage.join(finished.root, "audit", "ae-0", "scores")).to_pandas()
    with_them = scores[scores["recording"].str.startswith("test/")]
    assert len(alone) == len(with_them) == 8
    columns = ["score", "worst_second_score", "worst_onset_s", "worst_mel_band"]
    pd.testing.assert_frame_equal(
        alone.set_index("clip_id")[columns].sort_index(),
        with_them.set_index("clip_id")[columns].sort_index(),
        check_exact=True,
    )


def test_odd_files_that_hold_the_same_sound_have_the_same_score(
    audited: tuple[list[Entry], Path, Outcome], scores: pd.DataFrame
) -> None:
    by_name = scores.set_index("recording")["score"]
    expected = by_name["corpus/ordinary.wav"]
    for entry in audited[0]:
        if entry.plain:
            assert by_name[f"corpus/{entry.listed}"] == expected, entry.listed
    assert sum(entry.plain for entry in audited[0]) > 60


def test_every_odd_file_is_audited_or_in_the_ledger_with_its_reason(
    audited: tuple[list[Entry], Path, Outcome], ledger: pd.DataFrame
) -> None:
    rows = {name: group for name, group in ledger.groupby("recording")}
    for entry in audited[0]:
        if entry.outcome == "absent":
            continue
        found = rows[f"corpus/{entry.listed}"]
        if entry.reason:
            reasons = found["reason"].dropna().tolist()
            assert any(re.search(entry.reason, reason, re.DOTALL) for reason in reasons), (entry.listed, reasons)
        wanted = "done" if entry.outcome == "audited" else entry.outcome
        assert wanted in set(found["status"]), (entry.listed, found["reason"].tolist())
        if wanted != "done":
            # Without a clip, `done` is a remark on the header.
            assert "done" not in set(found[found["clip_id"].notna()]["status"])
    listed = {f"corpus/{entry.listed}" for entry in audited[0]}
    assert {name for name in rows if name.startswith("corpus/")} <= listed


def test_every_second_of_what_can_be_read_is_accounted_for(
    audited: tuple[list[Entry], Path, Outcome], ledger: pd.DataFrame, mill: Path
) -> None:
    accounted = ledger.groupby("recording")["duration_s"].sum()
    missing = ledger[ledger["clip_id"].isna() & (ledger["status"] == "failed")].groupby("recording")["duration_s"].sum()
    files = {f"corpus/{entry.listed}": audited[1].parent / "corpus" / entry.listed for entry in audited[0]}
    files |= {f"test/{path.name}": path for path in (mill / "test").glob("*.wav")}
    read = ledger[ledger["onset_s"].notna()]["recording"].unique()
    assert len(read) > 80
    for name in read:
        heard_s = accounted[name] - missing.get(name, 0.0)
        assert heard_s == pytest.approx(probe_recording(str(files[name])).duration_s, abs=1e-3), name


def test_the_last_line_and_the_counts_tell_of_them(
    audited: tuple[list[Entry], Path, Outcome], ledger: pd.DataFrame
) -> None:
    entries, out, outcome = audited
    is_remark = ledger["clip_id"].isna() & (ledger["status"] == "done")
    assert is_remark.sum() >= 10
    statuses = ledger[~is_remark]["status"].value_counts()
    assert (outcome.n_done, outcome.n_failed, outcome.n_skipped) == tuple(
        statuses[status] for status in ("done", "failed", "skipped")
    )
    assert outcome.n_done >= 8 + sum(entry.outcome == "audited" for entry in entries)
    assert outcome.n_failed >= sum(entry.outcome == "failed" for entry in entries)
    clips_failed = int((ledger["status"].eq("failed") & ledger["clip_id"].notna()).sum())
    incomplete = int((ledger["status"].eq("failed") & ledger["clip_id"].isna() & ledger["onset_s"].notna()).sum())
    unreadable = outcome.n_failed - clips_failed - incomplete
    assert (
        f"{clips_failed} failed, {unreadable} recordings unreadable, {incomplete} recordings incomplete" in outcome.line
    )
    assert f"see {out}/ledger.parquet" in outcome.line


def test_names_are_harmless_in_the_report(audited: tuple[list[Entry], Path, Outcome]) -> None:
    """Failed files stand in it with their names; one of those is a piece of a page."""
    page = (audited[1] / "report.html").read_text()
    assert "<b>bold.wav" not in page
    assert "&lt;b&gt;bold.wav" in page
    for name in ("<script>alert", "<img src=x"):
        assert name not in page
