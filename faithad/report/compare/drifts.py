"""Did recorders change from one audit to the other, and did their scores? Is one recording different as a whole?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from faithad.evaluation.drift import MedianChange, change, find_step, stands_out
from faithad.report.compare.audits import ComparedAudit, have_one_score, shared_clips
from faithad.report.compare.runs import Row
from faithad.report.words import percent
from faithad.vocabulary import count, listed

# What a listener notices.
_LEAST_DB = 3.0
# A recording is different as a whole if this share of its clips alarms, and at most half as large a share of the
# others.
_WHOLE, _LEAST_CLIPS = 0.8, 6
_MOST_NAMED = 5


class RecorderDrift(NamedTuple):
    """One quantity of one recorder.

    Attributes:
        recorder: its name.
        quantity: `level_dbfs` or `score`.
        since: the clock of the first recording after the change; None where the reference is compared with the run.
        change: the medians before and after.
        matters: whether the change is real and large.
        alarms: share of the clips that alarm before and after; None where that is not known.
    """

    recorder: str
    quantity: str
    since: pd.Timestamp | None
    change: MedianChange
    matters: bool
    alarms: tuple[float, float] | None


def recordings(run: ComparedAudit) -> pd.DataFrame:
    """One row per recording, by name: recorder, start, score (median of its clips), alarm (share), n_clips, level."""
    scores = run.audit.scores
    start = scores["recorded_at"] - pd.to_timedelta(scores["onset_s"], unit="s")
    clips = scores.assign(start=start, value=run.scores, alarm=scores["alarm"].astype(float))
    by_name = clips.groupby("recording").agg(
        recorder=("recorder", "first"), start=("start", "min"), score=("value", "median"), alarm=("alarm", "mean"),
        n_clips=("value", "size"),
    )  # fmt: skip
    folder = by_name.index.to_series().str.rpartition("/")[0]
    by_name["recorder"] = by_name["recorder"].fillna(folder)
    by_name["level_dbfs"] = by_name.index.map(run.levels()).astype(float)
    return by_name


def recorder_series(run: ComparedAudit, reference: ComparedAudit) -> dict[str, pd.DataFrame]:
    """The recordings of each recorder of both, with the column `is_new` (the reference lacks it), in the order of time
    where all have a clock. Nothing where the run has no recording that the reference lacks.
    """
    reference_recordings, run_recordings = recordings(reference), recordings(run)
    run_recordings = run_recordings[~run_recordings.index.isin(reference_recordings.index)]
    same = _same_recorders(run_recordings["recorder"], reference_recordings["recorder"])
    run_recordings = run_recordings.assign(recorder=run_recordings["recorder"].map(same))
    both = pd.concat([reference_recordings.assign(is_new=False), run_recordings.assign(is_new=True)])
    series = {name: both[both["recorder"] == name] for name in sorted(set(run_recordings["recorder"].dropna()))}
    return {
        name: part.sort_values("start", kind="stable") if part["start"].notna().all() else part
        for name, part in series.items()
    }


def drifts(run: ComparedAudit, reference: ComparedAudit) -> list[RecorderDrift]:
    """Level and score of each recorder of `recorder_series`, before and after it changed."""
    recorder_drifts = []
    for recorder, series in recorder_series(run, reference).items():
        level = _drift(series, recorder, "level_dbfs", None)
        # The scores are looked at before and after the level's change, if there is one.
        step = level[1] if level and level[0].matters else None
        recorder_drifts += [level[0]] if level else []
        if have_one_score(run, reference):
            score = _drift(series, recorder, "score", step)
            recorder_drifts += [score[0]] if score else []
    return recorder_drifts


def _drift(series: pd.DataFrame, recorder: str, quantity: str, step: int | None) -> tuple[RecorderDrift, int] | None:
    """The change of a quantity, and the position of the first recording after it.

    Args:
        series: see `recorder_series`. Without a clock, the run is compared with the reference.
        recorder: its name.
        quantity: a column of the series.
        step: where the change is, if that is known.
    """
    timed, n_before = bool(series["start"].notna().all()), int((~series["is_new"]).sum())
    values = series[quantity].to_numpy()
    stepped = find_step(values) if timed and step is None else None
    if stepped is not None:
        at, changed = stepped
    else:
        at = n_before if step is None else step
        between = change(values[:at], values[at:])
        if between is None:
            return None
        changed = between
    before = values[:at][np.isfinite(values[:at])]
    spread = 1.4826 * float(np.median(np.abs(before - np.median(before))))
    least = _LEAST_DB if quantity == "level_dbfs" else spread
    matters = changed.is_real and abs(changed.after - changed.before) > least
    clips, alarms = series["n_clips"].to_numpy(), series["alarm"].to_numpy()
    shares = [float(np.average(alarms[part], weights=clips[part])) for part in (slice(at), slice(at, None))]
    since = series["start"].iloc[at] if timed and (stepped is not None or step is not None) else None
    known = bool(np.isfinite(shares).all())
    return RecorderDrift(recorder, quantity, since, changed, matters, (shares[0], shares[1]) if known else None), at


def _same_recorders(run_recorders: pd.Series, reference_recorders: pd.Series) -> dict[str, str]:
    """The reference's name of each of the run's recorders that both have. The folder that was audited may have another
    name; then the rest of the recorder's name decides, where it is unambiguous.
    """
    mine, others = sorted(set(run_recorders)), sorted(set(reference_recorders))
    names = {name: name for name in mine if name in others}
    rest = [[name for name in side if name not in names] for side in (mine, others)]
    tails = [[name.partition("/")[2] or name for name in side] for side in rest]
    for name, tail in zip(rest[0], tails[0], strict=True):
        if tails[0].count(tail) == 1 == tails[1].count(tail):
            names[name] = rest[1][tails[1].index(tail)]
    return names


def drift_rows(run: ComparedAudit, reference: ComparedAudit, recorder_drifts: Sequence[RecorderDrift]) -> list[Row]:
    """Rows of schemas.DRIFT."""
    return [
        {"run": run.name, "reference": reference.name}
        | {name: getattr(drift, name) for name in ("recorder", "quantity", "matters")}
        | {"since": None if drift.since is None else drift.since.to_pydatetime(), **drift.change._asdict()}
        for drift in recorder_drifts
    ]


def drift_sentences(run: ComparedAudit, recorder_drifts: Sequence[RecorderDrift]) -> list[str]:
    """One sentence for each recorder whose level or score changed, with what to do."""
    sentences = []
    for recorder in dict.fromkeys(drift.recorder for drift in recorder_drifts):
        by_quantity = {
            drift.quantity: drift for drift in recorder_drifts if drift.recorder == recorder and drift.matters
        }
        level, score = by_quantity.get("level_dbfs"), by_quantity.get("score")
        if level is None and score is None:
            continue
        first = level or score
        assert first is not None
        when = f"in {run.name}" if first.since is None else f"since {first.since:%A, %Y-%m-%d %H:%M}"
        calibrate = "fit the alarm anew with faithad calibrate, if this is how it sounds from now on"
        if level is not None:
            by_db = level.change.after - level.change.before
            text = f"{recorder} is {abs(by_db):.0f} dB {'louder' if by_db > 0 else 'quieter'} {when}"
            if score is None:
                compared = any(drift.quantity == "score" for drift in recorder_drifts if drift.recorder == recorder)
                sentences.append(f"{text}. Its scores did not follow." if compared else f"{text}.")
                continue
            same = (score.change.after > score.change.before) == (by_db > 0)
            text += f"; its scores {_went(score)} {'with it' if same else 'meanwhile'}"
        else:
            assert score is not None
            text = f"The scores of {recorder} {_went(score)} {when}, at the same level"
            calibrate = f"listen to some of it; {calibrate}"
        sentences.append(f"{text}{_alarms(score)}: {calibrate}.")
    return sentences


def _went(score: RecorderDrift) -> str:
    return "rose" if score.change.after > score.change.before else "fell"


def _alarms(score: RecorderDrift) -> str:
    if score.alarms is None:
        return ""
    before, after = map(percent, score.alarms)
    return f" ({before} of its clips alarmed before, {after} do now)"


def whole_recordings(
    run: ComparedAudit, reference: ComparedAudit, recorder_drifts: Sequence[RecorderDrift] = ()
) -> dict[str, str]:
    """The recordings of the run of which nearly all clips alarm, where the same recording in the reference, or else the
    other recordings of that recorder, are quiet; each with a sentence. Recordings after a drift of their recorder are
    left out.
    """
    run_recordings, reference_recordings = recordings(run), recordings(reference)
    shared = shared_clips(run, reference).groupby("recording")["alarm_b"].mean()
    only_in_reference = ~reference_recordings.index.isin(run_recordings.index)
    everything = pd.concat([run_recordings, reference_recordings[only_in_reference]])
    drifted = _drifted(run, reference, recorder_drifts)
    sentences = {}
    alarmed = (run_recordings["alarm"] >= _WHOLE) & (run_recordings["n_clips"] >= _LEAST_CLIPS)
    for name, row in run_recordings[alarmed].iterrows():
        of_recorder = everything[(everything["recorder"] == row["recorder"]) & (everything.index != name)]
        usual = shared[name] if name in shared.index else of_recorder["alarm"].median()
        if name in drifted or not usual <= _WHOLE / 2:
            continue
        n_alarms = round(row["alarm"] * row["n_clips"])
        text = (
            f"{name} is different as a whole in {run.name}: {n_alarms:,} of {count(int(row['n_clips']), 'clip')} alarm"
        )
        text += f", {percent(usual)} in {reference.name}" if name in shared.index else f", usually {percent(usual)}"
        sentences[str(name)] = f"{text}{_level_words(str(name), everything, row['recorder'])}. Look at it as one case."
    return sentences


def _drifted(run: ComparedAudit, reference: ComparedAudit, recorder_drifts: Sequence[RecorderDrift]) -> set[str]:
    """The recordings after the drift of their recorder."""
    names: set[str] = set()
    series = recorder_series(run, reference) if recorder_drifts else {}
    for drift in recorder_drifts:
        if drift.matters:
            part = series[drift.recorder]
            names |= set(part.index[part["is_new"] if drift.since is None else part["start"] >= drift.since])
    return names


def _level_words(name: str, everything: pd.DataFrame, recorder: str) -> str:
    """How much louder or quieter a recording is than the others of its recorder, if that stands out."""
    of_recorder = everything[everything["recorder"] == recorder]
    levels = of_recorder["level_dbfs"].to_numpy()
    if not stands_out(levels, least=_LEAST_DB)[of_recorder.index.get_loc(name)]:
        return ""
    by_db = float(of_recorder.loc[name, "level_dbfs"] - np.nanmedian(levels))
    return f"; it is {abs(by_db):.0f} dB {'louder' if by_db > 0 else 'quieter'} than the others of its recorder"


def whole_sentences(sentences: dict[str, str]) -> list[str]:
    """The first of them, and how many more there are."""
    shown = list(sentences.values())[:_MOST_NAMED]
    more = list(sentences)[_MOST_NAMED:]
    return shown + ([f"So are {count(len(more), 'other recording')}: {listed(more)}."] if more else [])
