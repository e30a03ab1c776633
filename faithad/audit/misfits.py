"""Recordings that do not sound like what the model was trained on: another microphone, gain or channel.

All clips of such a recording may alarm, and would be one event of an hour. Instead, the recording gets a verdict. How
far a clip is from the training clips is measured as it is scored, see `model.training_sound`. The rule:

1. A recording does not fit the model where nine in ten of its clips, of at least six, differ from every training clip
   by more than the model's limit.
2. If most clips of such recordings of one recorder alarm, these recordings are not searched: their clips are neither
   explained nor part of an event, and the ledger has them as skipped. Otherwise they are searched.
3. A recording that is louder than the training, while another one of its recorder fits, is searched as well. A fault
   that lasts for an hour adds sound, and cannot be told from a gain that was turned up. Its recorder must be known: a
   folder of undated names may hold those of several microphones.
4. No maps are kept of the clips of a misfit.

A fault that leaves half of the mel bands as they were is never a misfit, however long it lasts. A fault that changes
more bands, from the first clip to the last of all recordings of a recorder, is one, and the verdict names the
recordings.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from faithad.clips.ledger import ledger_row, ledger_table
from faithad.errors import shown
from faithad.vocabulary import listed

# What a ledger calls this check.
STAGE = "fit"

_SHARE_OUTSIDE, _LEAST_CLIPS = 0.9, 6
_SHARE_OF_ALARMS = 0.5
_NAMES = 3

_UNLIKE = "not sound like what the model was trained on"
_CHECK = "check microphone, channel and gain"
_NOT_SEARCHED = "not searched for events"
_SEARCHED = "searched for events, some of which may be missing or false"


class Misfit(NamedTuple):
    """A recording that does not fit the model.

    Attributes:
        recording: its name in the manifest.
        is_searched: whether it is searched for events all the same.
        reason: for the ledger.
    """

    recording: str
    is_searched: bool
    reason: str


def find_misfits(scores: pa.Table, manifest: pa.Table, *, limit_db: float | None) -> list[Misfit]:
    """The recordings that do not fit the model, by name.

    Args:
        scores: schemas.SCORES of one model.
        manifest: all clips.
        limit_db: how far a clip may be from the nearest training clip; None where the model does not know these.
    """
    if limit_db is None or not scores.num_rows:
        return []
    measured = scores.select(["clip_id", "alarm", "spectrum_difference_db", "level_difference_db"])
    clips = measured.join(manifest.select(["clip_id", "recording", "recorder"]), "clip_id", join_type="inner")
    frame = clips.to_pandas().astype({"alarm": float})
    # Where a name does not say which recorder made it, all recordings of the folder are of one.
    frame["group"] = frame["recorder"].fillna(frame["recording"].str.rpartition("/")[0])
    frame["outside"] = frame["spectrum_difference_db"] > limit_db
    recordings = frame.groupby("recording").agg(
        n_clips=("outside", "size"),
        outside=("outside", "mean"),
        recorder=("recorder", "first"),
        group=("group", "first"),
        spectrum_db=("spectrum_difference_db", "median"),
        level_db=("level_difference_db", "median"),
    )
    unlike = recordings[(recordings["outside"] >= _SHARE_OUTSIDE) & (recordings["n_clips"] >= _LEAST_CLIPS)]
    fitting = set(recordings["recorder"].drop(unlike.index).dropna())
    alarms = frame[frame["recording"].isin(unlike.index)].groupby("group")["alarm"].mean()
    return [_misfit(row, alarms[row.group], fitting, limit_db) for row in unlike.itertuples()]


def _misfit(recording: Any, alarms: float, fitting: Collection[str], limit_db: float) -> Misfit:
    may_be_fault = recording.level_db > 0 and recording.recorder in fitting
    is_searched = alarms <= _SHARE_OF_ALARMS or may_be_fault
    reason = (
        f"does {_UNLIKE} (its spectrum is {recording.spectrum_db:.1f} dB from the nearest of the training, "
        f"{_direction(recording.level_db, limit_db)}; up to {limit_db:.1f} dB fit): {_CHECK}; "
        f"{_SEARCHED if is_searched else _NOT_SEARCHED}"
    )
    return Misfit(recording.Index, bool(is_searched), reason)


def _direction(level_db: float, limit_db: float) -> str:
    if abs(level_db) <= limit_db / 2:
        return "neither louder nor quieter"
    return "louder" if level_db > 0 else "quieter"


def without_misfits(
    scores: pa.Table, manifest: pa.Table, misfits: Sequence[Misfit], *, but_searched: bool = False
) -> pa.Table:
    """The scores without those of misfits; with those that are searched all the same if `but_searched`."""
    names = [misfit.recording for misfit in misfits if not (but_searched and misfit.is_searched)]
    of_these = pc.is_in(manifest["recording"], value_set=pa.array(names, pa.string()))
    return _without(scores, manifest.filter(of_these)["clip_id"])


def without_skipped(table: pa.Table, ledger: pa.Table) -> pa.Table:
    """The rows of a table whose clips a merged ledger does not have as skipped."""
    return _without(table, ledger.filter(pc.equal(ledger["status"], "skipped"))["clip_id"])


def with_misfits(ledger: pa.Table, misfits: Sequence[Misfit]) -> pa.Table:
    """A merged ledger in which the clips of recordings that are not searched are skipped, and others have a note."""
    if not misfits:
        return ledger
    skipped = {misfit.recording: misfit.reason for misfit in misfits if not misfit.is_searched}
    rows = ledger.to_pylist()
    for row in rows:
        if row["clip_id"] is not None and row["status"] == "done" and row["recording"] in skipped:
            row |= {"status": "skipped", "stage": STAGE, "reason": skipped[row["recording"]]}
    notes = [
        ledger_row(misfit.recording, "done", misfit.reason, stage=STAGE) for misfit in misfits if misfit.is_searched
    ]
    return ledger_table([*notes, *rows])


def misfit_words(ledger: pa.Table) -> list[str]:
    """What a merged ledger says of misfits: a sentence for those that were not searched, and one for the others."""
    rows = ledger.filter(pc.equal(ledger["stage"], STAGE))
    sentences = []
    for status, consequence in (("skipped", _NOT_SEARCHED), ("done", _SEARCHED)):
        of_status = rows.filter(pc.equal(rows["status"], status))
        names = sorted(set(of_status["recording"].to_pylist()))
        if names:
            do = "does" if len(names) == 1 else "do"
            all_names = listed([shown(name) for name in names], most=_NAMES)
            sentences.append(f"{all_names} {do} {_UNLIKE}: {_CHECK}; {consequence}.")
    return sentences


def _without(table: pa.Table, clip_ids: pa.ChunkedArray) -> pa.Table:
    return table.filter(pc.invert(pc.is_in(table["clip_id"], value_set=clip_ids.combine_chunks())))
