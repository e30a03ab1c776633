"""Which shard each clip of an audit is in, so that a folder that grows is audited take by take.

Recordings that come together are a take. Its clips are in shards of their own, whose numbers go on after those of the
takes before it. So no shard changes when recordings come: what was audited is not audited again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from faithad import schemas
from faithad.audit.choice import choose_clips, keep_highest
from faithad.config.audit import RunAudit
from faithad.model.alarm import AlarmThreshold
from faithad.pipelines.shards.stream import shard_size
from faithad.runs.tables import read_manifest

# A take of this many clips or more has at least this many shards. The first take is often the only one, and keeps more
# workers busy; those of a folder that is followed are small, and there are many.
_FEWEST_SHARDS = 16


def number_shards(clips: pa.Table, *, largest: int, take: int = 1, first: int = 0) -> pa.Table:
    """The clips of one take with the columns `take` and `shard`, in their order.

    Args:
        clips: rows of the manifest.
        largest: clips in a shard at most.
        take: its number, from 1.
        first: number of its first shard.
    """
    fewest = {} if take == 1 else {"fewest": _FEWEST_SHARDS}
    shards = np.arange(clips.num_rows) // shard_size(clips.num_rows, largest=largest, **fewest) + first
    return _with(clips, take=pa.repeat(take, clips.num_rows), shard=pa.array(shards))


def next_shard(clips: pa.Table) -> int:
    """The number after that of the last shard."""
    return int(pc.max(clips["shard"]).as_py()) + 1 if clips.num_rows else 0


def read_takes(out: str, largest: int) -> pa.Table:
    """The manifest of an audit, in which each clip has its take and its shard; an older release wrote only one take."""
    manifest = read_manifest(out)
    return number_shards(manifest, largest=largest) if manifest["shard"].null_count else manifest


def choose_by_take(
    clips: pa.Table,
    scores: pa.Table,
    settings: RunAudit,
    *,
    alarm: AlarmThreshold | None,
    pictured: pa.Table | None = None,
    event_of: Mapping[str, int] = MappingProxyType({}),
) -> pa.Table:
    """The clips to explain, with `keep_maps` and the shard of their explanation; `top:N` and `maps` hold for each take.

    Args:
        clips: as `read_takes` gives them.
        scores: schemas.SCORES of these clips; those without a score cannot be explained.
        settings: which clips are explained.
        alarm: see `choose_clips`.
        pictured: the scores of clips whose maps may be kept; all by default.
        event_of: see `keep_highest`.
    """

    def take_of(table: pa.Table) -> pa.ChunkedArray:
        return pc.take(clips["take"], pc.index_in(table["clip_id"], value_set=clips["clip_id"]))

    pictured = scores if pictured is None else pictured
    numbers = np.unique(clips["take"].to_numpy())
    chosen = [keep_highest(clips.slice(0, 0), scores.slice(0, 0), settings.maps, alarm)]
    first = 0
    of_takes = zip(
        numbers,
        _split(clips, clips["take"], numbers),
        *(_split(table, take_of(table), numbers) for table in (scores, pictured)),
        strict=True,
    )
    for take, of_take, scored, with_maps in of_takes:
        some = choose_clips(of_take, scored, explain=settings.explain, alarm=alarm)
        some = keep_highest(some, with_maps, settings.maps, alarm, event_of)
        chosen.append(number_shards(some, largest=settings.clips_per_shard, take=int(take), first=first))
        first = max(first, next_shard(chosen[-1]))
    return pa.concat_tables(chosen)


def _split(table: pa.Table, takes: pa.ChunkedArray, numbers: np.ndarray) -> Iterator[pa.Table]:
    """The rows of each take, in their order."""
    if not len(numbers):
        return
    order = np.argsort(takes.to_numpy(), kind="stable")
    for rows in np.split(order, np.searchsorted(takes.to_numpy()[order], numbers[1:])):
        yield table.take(pa.array(rows))


def _with(clips: pa.Table, **columns: pa.Array) -> pa.Table:
    for name, values in columns.items():
        field = schemas.MANIFEST.field(name)
        clips = clips.set_column(clips.schema.get_field_index(name), field, values.cast(field.type))
    return clips
