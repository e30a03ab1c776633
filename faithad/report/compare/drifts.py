"""Did recorders change from one audit to the other, and did their scores? Is one recording different as a whole?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from faithad.evaluation.drift import Change, change, find_step, stands_out
from faithad.report.compare.audits import Run, have_one_score, shared_clips
from faithad.report.compare.runs import Row
from faithad.report.words import percent
from faithad.vocabulary import count, listed

# What a listener notices.
_LEAST_DB = 3.0
# A recording is different as a whole if so many of its clips alarm, and of the others no more than a half of that.
_WHOLE, _LEAST_CLIPS = 0.8, 6
_MOST_NAMED = 5


class Drift(NamedTuple):
    """One quantity of one recorder.

    Attributes:
        recorder: its name.
        quantity: `level_dbfs` or `score`.
        since: the clock of the first recording after the change; None: compared are reference and run.
        change: from what to what.
        matters: whether it is real and large.
        alarms: share of the clips that alarm before and after; None where that is not known.
    """

    recorder: str
    quantity: str
    since: pd.Timestamp | None
    change: Change
    matters: bool
    alarms: tuple[float, float] | None


def recordings(run: Run) -> pd.DataFrame:
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


def recorder_series(run: Run, reference: Run) -> dict[str, pd.DataFrame]:
    """The recordings of each recorder of both, with the column `is_new` (the reference lacks it), in the order of time
    where all have a clock. Nothing where the run has no recording that the reference lacks.
    """
    theirs, ours = recordings(reference), recordings(run)
    ours = ours[~ours.index.isin(theirs.index)]
    ours = ours.assign(recorder=ours["recorder"].map(_same_recorders(ours["recorder"], theirs["recorder"])))
    both = pd.concat([theirs.assign(is_new=False), ours.assign(is_new=True)])
    series = {name: both[both["recorder"] == name] for name in sorted(set(ours["recorder"].dropna()))}
    return {
        name: part.sort_values("start", kind="stable") if part["start"].notna().all() else part
        for name, part in series.items()
    }


def drifts(run: Run, reference: Run) -> list[Drift]:
    """Level and score of each recorder of `recorder_series`, before and after it changed."""
    found = []
    for recorder, series in recorder_series(run, reference).items():
        level = _drift(series, recorder, "level_dbfs", None)
        # The scores are looked at before and after the level's change, if there is one.
        step = level[1] if level and level[0].matters else None
        found += [level[0]] if level else []
        if have_one_score(run, reference):
            score = _drift(series, recorder, "score", step)
            found += [score[0]] if score else []
    return found


def _drift(series: pd.DataFrame, recorder: str, quantity: str, step: int | None) -> tuple[Drift, int] | None:
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
    return Drift(recorder, quantity, since, changed, matters, (shares[0], shares[1]) if known else None), at


def _same_recorders(ours: pd.Series, theirs: pd.Series) -> dict[str, str]:
    """Our names of the recorders that both have, with the names that they have there. The folder that was audited may
    have another name: then the rest of the name decides, where it is unambiguous.
    """
    mine, others = sorted(set(ours)), sorted(set(theirs))
    names = {name: name for name in mine if name in others}
    rest = [[name for name in side if name not in names] for side in (mine, others)]
    tails = [[name.partition("/")[2] or name for name in side] for side in rest]
    for name, tail in zip(rest[0], tails[0], strict=True):
        if tails[0].count(tail) == 1 == tails[1].count(tail):
            names[name] = rest[1][tails[1].index(tail)]
    return names


def drift_rows(run: Run, reference: Run, found: Sequence[Drift]) -> list[Row]:
    """Rows of schemas.DRIFT."""
    return [
        {"run": run.name, "reference": reference.name}
        | {name: getattr(drift, name) for name in ("recorder", "quantity", "matters")}
        | {"since": None if drift.since is None else drift.since.to_pydatetime(), **drift.change._asdict()}
        for drift in found
    ]


def drift_sentences(run: Run, found: Sequence[Drift]) -> list[str]:
    """One sentence for each recorder whose level or score changed, with what to do."""
    sentences = []
    for recorder in dict.fromkeys(drift.recorder for drift in found):
        by_quantity = {drift.quantity: drift for drift in found if drift.recorder == recorder and drift.matters}
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
                compared = any(drift.quantity == "score" for drift in found if drift.recorder == recorder)
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


def _went(score: Drift) -> str:
    return "rose" if score.change.after > score.change.before else "fell"


def _alarms(score: Drift) -> str:
    if score.alarms is None:
        return ""
    before, after = map(percent, score.alarms)
    return f" ({before} of its clips alarmed before, {after} do now)"


def whole_recordings(run: Run, reference: Run, found: Sequence[Drift] = ()) -> dict[str, str]:
    """The recordings of the run of which nearly all clips alarm, where the same recording in the reference, or else the
    other recordings of that recorder, are quiet; each with a sentence. Those after a drift are a part of that.
    """
    ours, theirs = recordings(run), recordings(reference)
    shared = shared_clips(run, reference).groupby("recording")["alarm_b"].mean()
    everything = pd.concat([ours, theirs[~theirs.index.isin(ours.index)]])
    told = _drifted(run, reference, found)
    sentences = {}
    for name, row in ours[(ours["alarm"] >= _WHOLE) & (ours["n_clips"] >= _LEAST_CLIPS)].iterrows():
        of_recorder = everything[(everything["recorder"] == row["recorder"]) & (everything.index != name)]
        usual = shared[name] if name in shared.index else of_recorder["alarm"].median()
        if name in told or not usual <= _WHOLE / 2:
            continue
        n_alarms = round(row["alarm"] * row["n_clips"])
        text = (
            f"{name} is different as a whole in {run.name}: {n_alarms:,} of {count(int(row['n_clips']), 'clip')} alarm"
        )
        text += f", {percent(usual)} in {reference.name}" if name in shared.index else f", usually {percent(usual)}"
        sentences[str(name)] = f"{text}{_level_words(str(name), everything, row['recorder'])}. Look at it as one case."
    return sentences


def _drifted(run: Run, reference: Run, found: Sequence[Drift]) -> set[str]:
    """The recordings after the drift of their recorder."""
    names: set[str] = set()
    series = recorder_series(run, reference) if found else {}
    for drift in found:
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
