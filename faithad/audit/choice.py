"""Which clips are explained once all are scored, and for which of them whole maps are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from faithad.model.alarm import AlarmThreshold
from faithad.model.random_bits import key_of
from faithad.settings import Checks
from faithad.vocabulary import POOLINGS

_TOP = "top:"


def choose_clips(clips: pa.Table, scores: pa.Table, *, explain: str, alarm: AlarmThreshold | None) -> pa.Table:
    """The clips that `explain` asks for, in their order.

    Args:
        clips: rows of the manifest.
        scores: schemas.SCORES of one model; clips without a score cannot be explained.
        explain: `all`, `annotated`, `alarms`, `top:N` or `none`.
        alarm: its pooling says which score `top:N` ranks by; without an alarm, the mean over the clip.
    """
    if explain == "none":
        chosen = scores.slice(0, 0)
    elif explain == "annotated":
        clips, chosen = clips.filter(clips["annotated"]), scores
    elif explain == "alarms":
        chosen = scores.filter(pc.fill_null(scores["alarm"], False))
    elif explain.startswith(_TOP):
        chosen = highest(scores, int(explain.removeprefix(_TOP)), alarm)
    else:
        chosen = scores
    return clips.filter(pc.is_in(clips["clip_id"], value_set=chosen["clip_id"]))


def highest(scores: pa.Table, n: int, alarm: AlarmThreshold | None) -> pa.Table:
    """The rows of the n highest scores; of equal scores, those of the first clips by their ids."""
    column = POOLINGS["mean" if alarm is None else alarm.pooling].column
    order = np.lexsort((scores["clip_id"].to_numpy(zero_copy_only=False), -scores[column].to_numpy()))
    return scores.take(pa.array(order[:n]))


def keep_highest(
    clips: pa.Table,
    scores: pa.Table,
    n: int,
    alarm: AlarmThreshold | None,
    event_of: Mapping[str, int] = MappingProxyType({}),
) -> pa.Table:
    """The clips with a column `keep_maps`: all for n = -1, else n of them: the highest of each event first.

    Args:
        clips: rows of the manifest.
        scores: schemas.SCORES; clips without a score are not kept.
        n: how many are kept.
        alarm: see `choose_clips`.
        event_of: number of the event that a clip belongs to. The second highest clip of each event, and clips without
            an event, come after the highest clips of all events, and so on.
    """
    if n < 0:
        return _keep(clips, pa.array([True] * clips.num_rows, pa.bool_()))
    of_clips = scores.filter(pc.is_in(scores["clip_id"], value_set=clips["clip_id"]))
    ranked = highest(of_clips, of_clips.num_rows, alarm)["clip_id"].to_pylist()
    turns, before = [], Counter[int]()
    for clip_id in ranked:
        event = event_of.get(clip_id)
        turns.append(1 if event is None else before[event])
        if event is not None:
            before[event] += 1
    kept = [ranked[place] for place in np.argsort(turns, kind="stable")[:n]]
    return _keep(clips, pc.is_in(clips["clip_id"], value_set=pa.array(kept, pa.string())))


def keep_examples(clips: pa.Table, n: int) -> pa.Table:
    """The clips with a column `keep_maps`: all for n = -1, else n examples, each anomaly type in turn and normal ones.

    Of each type, annotated clips are taken, from the middle on: the first clip of a day is the least typical one.
    """
    if n < 0:
        return _keep(clips, pa.array([True] * clips.num_rows, pa.bool_()))
    groups: dict[str, list[int]] = {}
    for position, clip in enumerate(clips.select(["annotated", "label", "anomaly_type"]).to_pylist()):
        if clip["annotated"]:
            groups.setdefault(f"a {clip['anomaly_type']}", []).append(position)
        elif not clip["label"]:
            groups.setdefault("normal", []).append(position)
    chosen: set[int] = set()
    queues = [groups[name] for name in sorted(groups)]
    while len(chosen) < min(n, clips.num_rows) and any(queues):
        for queue in queues:
            if queue and len(chosen) < n:
                chosen.add(queue.pop(len(queue) // 2))
    return _keep(clips, pa.array([position in chosen for position in range(clips.num_rows)], pa.bool_()))


def mark_deep(clips: pa.Table, checks: Checks, *, seed: int) -> pa.Table:
    """The clips with columns `deep`, `sanity` and `timed`: what is checked of each, see `Checks`.

    Every annotated clip comes first, then the others. In both groups, one clip of each recording comes before a second
    one of any recording, since verdicts count recordings. The seed decides which clip that is; clips of other
    recordings do not change it.
    """
    ids, annotated, recordings = (clips[name].to_pylist() for name in ("clip_id", "annotated", "recording"))
    by_key = sorted(range(len(ids)), key=lambda clip: key_of(seed, ids[clip], "deep"))
    turns, before = {}, Counter[tuple[str, bool]]()
    for clip in by_key:
        group = (recordings[clip], annotated[clip])
        turns[clip] = before[group]
        before[group] += 1
    order = sorted(by_key, key=lambda clip: (not annotated[clip], turns[clip]))
    for name, n in checks._asdict().items():
        chosen = set(order[:n])
        clips = clips.append_column(name, pa.array([clip in chosen for clip in range(len(ids))], pa.bool_()))
    return clips


def _keep(clips: pa.Table, kept: pa.Array) -> pa.Table:
    return clips.append_column("keep_maps", kept)
