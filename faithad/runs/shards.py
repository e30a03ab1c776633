"""The ledger of shards: which shards of a step are finished, and what each of them wrote.

A step that works shard by shard has a folder with one small table for each finished shard, written after all other
files of the shard. Its rows say what became of the clips. Its metadata, under `faithad.files`, holds the size and the
SHA-256 of every file that the shard wrote, by the path from the folder in which the tables of the step lie:

    audit/mae-0/ledger/part-00003.parquet    {"scores/part-00003.parquet": [4711, "9f2c…"], …}

A shard is whole if its ledger can be read and all these files are what was written. A run checks that for the shards
that it finds, and makes the others again; whoever reads a table checks the files that he reads.

The files of a shard are not flushed to the disk one by one, which would cost a tenth of the time of scoring. They are
flushed together before the step is marked as done; a power cut before that costs at most the shards of the last
seconds, and these checksums tell which.

Roots of FORMAT 1 and 2
have no such metadata, and their tables are read unchecked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

import pyarrow as pa

from faithad import listing, parquet, schemas, storage
from faithad.clips.ledger import LedgerRow, ledger_table
from faithad.errors import DamagedError
from faithad.runs import layout
from faithad.runs.lookahead import side_by_side
from faithad.storage import Checksum

# Checksums of files, by their paths from the folder in which the tables lie.
Files = Mapping[str, Checksum]

_KEY = "faithad.files"
# By the location of a shard's ledger: its rows, and what the shard's files were when this process compared them.
_verified: dict[str, tuple[pa.Table, dict[str, tuple[int, int] | None]]] = {}
_REMOTE_AT_ONCE, _LOCAL_AT_ONCE = 16, 2


def at_once(location: str) -> int:
    """How many small files are best read at a time: an object store answers late, but many requests at a time."""
    return _REMOTE_AT_ONCE if storage.is_remote(location) else _LOCAL_AT_ONCE


def write_shard_ledger(rows: Iterable[LedgerRow], location: str, *, files: Files) -> None:
    """Mark a shard as finished, after all its files were written."""
    schema = schemas.LEDGER.with_metadata({_KEY: json.dumps(files)})
    parquet.write_table(ledger_table(rows), location, schema=schema, flush=False)


def check_shard(folder: str, ledger: str) -> pa.Table:
    """The rows of a finished shard's ledger, after all its files were compared with what it says of them.

    Files that this process has compared before are compared again only where size or time stamp have changed: an audit
    that follows a folder asks for all shards at each take.

    Args:
        folder: in which the tables lie.
        ledger: location of the shard's ledger.

    Raises:
        DamagedError: the ledger is damaged, or a file is damaged or gone.
    """
    rows, looks = _verified.get(ledger, (None, {}))
    if rows is not None and all(_look(file) == look for file, look in looks.items()):
        return rows
    looks = {ledger: _look(ledger)}
    rows = parquet.read_rows(ledger)
    for path, checksum in (_files(ledger, rows.schema.metadata or {}) or {}).items():
        file = storage.join(folder, path)
        looks[file] = _look(file)
        storage.read_checked(file, checksum)
    _verified[ledger] = rows, looks
    return rows


def _look(file: str) -> tuple[int, int] | None:
    try:
        return storage.size_and_time(file)
    except FileNotFoundError:
        return None


def change_file(folder: str, path: str, checksum: Checksum | None) -> None:
    """Have the ledger of a finished shard expect another content of a file, or (None) no such file any more.

    Args:
        folder: in which the tables lie.
        path: of the file, from there; its last part is also the name of the ledger.
        checksum: of the new content.
    """
    for ledgers in layout.SHARD_LEDGERS:
        ledger = storage.join(folder, ledgers, storage.name_of(path))
        if not storage.exists(ledger):
            continue
        rows = parquet.read_rows(ledger)
        files = _files(ledger, rows.schema.metadata or {}) or {}
        if path in files:
            left = {name: content for name, content in files.items() if name != path}
            schema = rows.schema.with_metadata(
                {_KEY: json.dumps(left if checksum is None else left | {path: checksum})}
            )
            parquet.write_table(rows, ledger, schema=schema)


def table_shards(folder: str, table: str) -> Iterator[tuple[str, Checksum | None]]:
    """Location and checksum of each file of a table that is written shard by shard, in their order.

    The checksum is None for shards of FORMAT 1 and 2, where there is no ledger at all, and for ledgers themselves.

    Raises:
        DamagedError: a file or a ledger is damaged or gone, or the shard is not finished.
    """
    locations = dict(listing.list_files(storage.join(folder, table), suffixes=[".parquet"]))
    if table in layout.SHARD_LEDGERS:
        yield from ((location, None) for location in locations.values())
        return
    ledgers = [
        entry
        for folder_name in layout.SHARD_LEDGERS
        for entry in listing.list_files(storage.join(folder, folder_name), suffixes=[".parquet"])
    ]
    files: dict[str, Checksum] = {}
    damaged: dict[str, DamagedError] = {}
    is_old = not ledgers
    recorded = side_by_side(_read_files, (location for _, location in ledgers), at_once=at_once(folder))
    for (name, _), of_shard in zip(ledgers, recorded, strict=True):
        if isinstance(of_shard, DamagedError):
            damaged[name] = of_shard
        else:
            files |= of_shard or {}
            is_old = is_old or of_shard is None
    written = {path.removeprefix(f"{table}/") for path in files if path.startswith(f"{table}/")}
    for name in sorted(written | locations.keys() | damaged.keys()):
        location = storage.join(folder, table, name)
        if name in written and name not in locations:
            raise DamagedError(location, "it is gone")
        if name not in written and not is_old:  # another step's ledger may be whole
            raise damaged.get(name) or DamagedError(
                location, "the ledger of its shard is gone, or the shard is not finished"
            )
        if name in locations:
            yield locations[name], files.get(f"{table}/{name}")


def _read_files(ledger: str) -> dict[str, Checksum] | DamagedError | None:
    try:
        return _files(ledger, parquet.read_metadata(ledger))
    except DamagedError as error:
        return error


def _files(ledger: str, metadata: Mapping[bytes, bytes]) -> dict[str, Checksum] | None:
    """What a shard's ledger says of the shard's files; None if it is of FORMAT 1 or 2."""
    text = metadata.get(_KEY.encode())
    if text is None:
        return None
    try:
        return {str(path): Checksum(int(n_bytes), str(sha256)) for path, (n_bytes, sha256) in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError):
        raise DamagedError(ledger, "its list of files cannot be read") from None
