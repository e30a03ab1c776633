"""How large tables become: shards of any number of clips, imitated from a few real ones, and what they take on disk.

A file has a part that does not depend on its clips, and small shards consist of little else; so two sizes are needed.
Numbers are made a little different for each clip, because equal ones would take no space.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from faithad import storage
from faithad.config.study import Study
from faithad.pipelines.features import CLIPS_PER_SHARD
from faithad.pipelines.plan.rates import FileBytes
from faithad.pipelines.plan.trial import TrialRun
from faithad.runs.tables import read_shards, shard_files

_SCORED = ("scores", "ledger")
_EXPLAINED = ("attributions", "localization", "faithfulness", "spectrograms")
# Clips of a manifest, which is one file.
_MANY = 500

# Numbers that come from the configuration or from the clip's place: equal in many rows of a real table, too.
_GIVEN = {"percentile", "replaced_fraction", "threshold", "onset_s", "duration_s", "worst_onset_s"}


def file_bytes(
    plain: pa.Table | None, *, size: int, annotated: pa.Table | None = None, with_maps: pa.Table | None = None
) -> FileBytes:
    """What a table takes.

    Args:
        plain: of a few clips without reference intervals; None where such clips are not in this table.
        size: clips in a shard.
        annotated: of a few clips that have some.
        with_maps: of one clip whose maps are kept; None where that makes no difference.
    """
    size = max(2, size)
    file = clip = more = 0.0
    base = plain if plain is not None else annotated
    if base is not None:
        one, many = _bytes(imitate(base, 1)), _bytes(imitate(base, size))
        clip = (many - one) / (size - 1)
        file = one - clip
    if annotated is not None:
        more = clip if plain is None else (_bytes(imitate(annotated, size)) - many) / size
    if plain is None:
        clip = 0.0
    maps = 0.0 if with_maps is None else _bytes(with_maps) - (0.0 if plain is None else _bytes(imitate(plain, 1)))
    return FileBytes(file=file, clip=max(0.0, clip), annotated=max(0.0, more), maps=max(0.0, maps))


def table_bytes(trial: TrialRun, tries: Mapping[str, str], *, size: int) -> dict[str, FileBytes]:
    """What every table of a study or an audit takes.

    Args:
        trial: a finished one.
        tries: folders of the tables of a few clips: `few` (scores), `plain`, `annotated` and `with maps`.
        size: clips in a shard.
    """
    found = {name: file_bytes(_table(tries["few"], name), size=size) for name in _SCORED}
    if "plain" in tries:
        for name in _EXPLAINED:
            plain, annotated, with_maps = (_table(tries[each], name) for each in ("plain", "annotated", "with maps"))
            found[name] = file_bytes(plain, size=size, annotated=annotated, with_maps=with_maps)
    found["manifest"] = file_bytes(trial.manifest, size=_MANY)
    conclusions = [storage.join(trial.root, name) for name in ("report.html", "summary", "events.parquet")]
    found["report"] = FileBytes(file=sum(map(_size, conclusions)), clip=0.0)
    if isinstance(trial.of, Study):
        found["features"] = file_bytes(_table(storage.join(trial.root, "features"), "train"), size=CLIPS_PER_SHARD)
        found["models"] = FileBytes(file=sum(map(_size, trial.models.values())) / len(trial.models), clip=0.0)
    return found


def imitate(table: pa.Table, n: int) -> pa.Table:
    """A table of n clips, each like one of those of a table in its turn."""
    names = pc.unique(table["clip_id"])
    like = [table.filter(pc.equal(table["clip_id"], name)) for name in names]
    return pa.concat_tables([_another(like[number % len(like)], number) for number in range(n)])


def _another(clip: pa.Table, number: int) -> pa.Table:
    """The rows of one clip under another id, their numbers a little different."""
    factor = 1 + 1e-3 * np.random.default_rng(number).random()
    columns = []
    for field, column in zip(clip.schema, clip.columns, strict=True):
        values = column.combine_chunks()
        if field.name == "clip_id":
            values = pa.array([hashlib.sha256(f"{number}".encode()).hexdigest()[:16]] * len(clip))
        elif pa.types.is_floating(field.type) and field.name not in _GIVEN:
            values = pc.multiply(values, factor).cast(field.type)
        elif pa.types.is_fixed_size_list(field.type) and field.type.value_type == pa.float32():
            flat = values.flatten().to_numpy(zero_copy_only=False) * np.float32(factor)
            values = pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), field.type.list_size)
        columns.append(values)
    return pa.table(columns, schema=clip.schema)


def _bytes(table: pa.Table) -> int:
    with tempfile.TemporaryDirectory(prefix="faithad-plan-") as folder:
        location = Path(folder, "part.parquet")
        storage.write_table(table, str(location), schema=table.schema)
        return location.stat().st_size


def _table(folder: str, name: str) -> pa.Table | None:
    location = storage.join(folder, name)
    return pa.concat_tables(list(read_shards(location))) if shard_files(location) else None


def _size(location: str) -> int:
    return sum(n_bytes for _, n_bytes in storage.sizes(location, suffixes=[""]))
