"""Read and write Parquet tables at a location, see `faithad.storage`.

Tables carry a checksum for each of their pages, which is verified when they are read. A damaged table raises
`DamagedError`.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Collection, Iterator
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from faithad import listing, storage
from faithad.errors import DamagedError, StudyError
from faithad.storage import Checksum

TableOrSchema = TypeVar("TableOrSchema", pa.Table, pa.Schema)


def encoded(table: pa.Table, *, schema: pa.Schema) -> pa.Buffer:
    """The content of the file that `write_table` writes."""
    columns = table.select(schema.names).cast(schema)
    buffer = pa.BufferOutputStream()
    pq.write_table(columns, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def write_table(table: pa.Table, location: str, *, schema: pa.Schema, flush: bool = True) -> Checksum:
    """Write one Parquet file with exactly the columns of the schema, in its order; `flush` as `storage.open_output`."""
    content = encoded(table, schema=schema)
    storage.write_bytes(location, content, flush=flush)
    return Checksum.of(content)


def read_table(location: str, *, columns: list[str] | None = None) -> pa.Table:
    """Read one Parquet file, or all Parquet files of a folder in the order of their names.

    Raises:
        StudyError: there is no table, or reading it would run code from it.
        DamagedError: a file is damaged.
    """
    if location.endswith(".parquet"):
        files = [location] if storage.exists(location) else []
    else:
        files = [file for _, file in listing.list_files(location, suffixes=[".parquet"])]
    if not files:
        raise StudyError(f"There is no table at {location}. Run the stage that writes it first.")
    return pa.concat_tables([read_rows(file, columns=columns) for file in files])


def read_rows(
    file: str,
    *,
    columns: list[str] | None = None,
    condition: pc.Expression | None = None,
    checksum: Checksum | None = None,
    may_lack: Collection[str] = (),
) -> pa.Table:
    """The rows of one Parquet file that meet a condition (default: all), with some columns (default: all).

    Args:
        file: its location.
        columns: which to read.
        condition: which rows to read.
        checksum: of the whole file, which is then read and compared. Without it only the pages that are read are
            verified.
        may_lack: columns that are left out where the file does not have them.

    Raises:
        StudyError: reading the file would run code from it.
        DamagedError: the file is damaged.
    """
    if checksum is None:
        try:
            with storage.open_input(file) as source:
                return _parsed(source, file, columns, condition, may_lack)
        except (StudyError, FileNotFoundError):
            raise
        except (pa.ArrowException, OSError, ValueError):
            # This raises where the disk or the store has failed; else the content is damaged.
            content = storage.read_bytes(file)
    else:
        content = storage.read_checked(file, checksum)
    with _damage(file):
        return _parsed(pa.BufferReader(content), file, columns, condition, may_lack)


def _parsed(
    source: pa.NativeFile,
    file: str,
    columns: list[str] | None,
    condition: pc.Expression | None,
    may_lack: Collection[str],
) -> pa.Table:
    """The rows of an opened Parquet file, as `read_rows`; a damaged one raises an error of Arrow."""
    names = _require_one_schema(source)
    if columns is not None:
        columns = [column for column in columns if column in names or column not in may_lack]
    try:
        return plain(pq.read_table(source, columns=columns, filters=condition, page_checksum_verification=True), file)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # an extension type cannot be filtered
        plain(pq.read_schema(source), file)
        raise


def _require_one_schema(source: pa.NativeFile) -> list[str]:
    """The names of the columns. No checksum covers the two places that hold names and types: they must agree."""
    file = pq.ParquetFile(source)
    written = (file.metadata.metadata or {}).get(b"ARROW:schema")
    if written is not None and not pa.ipc.read_schema(pa.BufferReader(base64.b64decode(written))).equals(
        file.schema_arrow
    ):
        raise pa.ArrowInvalid("the names or types of its columns contradict each other")
    names: list[str] = file.schema_arrow.names
    return names


def read_metadata(file: str) -> dict[bytes, bytes]:
    """The metadata of the schema of one Parquet file.

    Raises:
        DamagedError: the file is damaged.
    """
    with _damage(file):
        return dict(pq.read_schema(pa.BufferReader(storage.read_bytes(file))).metadata or {})


@contextlib.contextmanager
def _damage(file: str) -> Iterator[None]:
    """Turn what Arrow raises for content in memory that is no whole Parquet file into `DamagedError`."""
    try:
        yield
    except StudyError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        cause = str(error).partition("\n")[0].rstrip(".")
        raise DamagedError(file, f"it is no whole Parquet file ({cause})") from error


def plain(table: TableOrSchema, location: str) -> TableOrSchema:
    """Return a table, or the schema of an opened Parquet file, if its values can be read without running code.

    Arrow's extension types may unpickle values when they are read; one of Ray's types does. Our tables have none.

    Raises:
        StudyError: a column has an extension type.
    """
    schema = table if isinstance(table, pa.Schema) else table.schema
    if names := [field.name for field in schema if _has_extension_type(field)]:
        raise StudyError(
            f"{location} was not written by faithad: reading its columns {', '.join(names)} could run code, which is "
            "never done. Remove the file, and run the stage that writes it again."
        )
    return table


def _has_extension_type(field: pa.Field[Any]) -> bool:
    kind = field.type
    # The metadata tells of a type that this process has not registered.
    if isinstance(kind, pa.BaseExtensionType) or b"ARROW:extension:name" in (field.metadata or {}):
        return True
    if pa.types.is_dictionary(kind):
        return _has_extension_type(pa.field(field.name, kind.value_type))
    return any(_has_extension_type(kind.field(position)) for position in range(kind.num_fields))
