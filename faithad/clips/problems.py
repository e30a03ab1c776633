"""Every problem of a file in one error, and the rows of CSV tables. Row 1 of a table is its header."""

from __future__ import annotations

import contextlib
import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pyarrow as pa

from faithad import storage
from faithad.errors import FaithadError
from faithad.vocabulary import count

# The most problems of a file that are named one by one.
_MOST = 10
_TAB = "\t"


class ProblemList(list[str]):
    """The problems of a file, one line of text each; and in `unread` the columns of its table that nobody reads."""

    def __init__(self, problems: Iterable[str] = ()) -> None:
        super().__init__(problems)
        self.unread: list[str] = []

    @contextlib.contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Keep the message of a `ValueError` that the block raises, with its place in the file."""
        try:
            yield
        except ValueError as error:
            self.append(f"{place}: {error}")

    def refuse(self, location: str, noun: str, *, error: type[FaithadError]) -> None:
        """Raise an error with the first problems and their number, if there are any; `noun` names what is there."""
        if self:
            lines = "\n  ".join(self[:_MOST])
            lines += f"\n  and {len(self) - _MOST:,} more" if len(self) > _MOST else ""
            raise error(f"{location}: {count(len(self), 'problem')} in the {noun}:\n  {lines}")


def read_text(location: str, *, error: type[FaithadError]) -> str:
    """The text of a UTF-8 file.

    Raises:
        FaithadError: of the given class; the file is missing or unreadable.
    """
    try:
        return decoded(read_content(location, error=error))
    except ValueError as cause:
        raise error(f"{location} is {cause}.") from cause


def read_content(location: str, *, error: type[FaithadError]) -> bytes:
    """As `read_text`, of any file."""
    try:
        return storage.read_bytes(location)
    except FileNotFoundError as cause:
        raise error(f"{location} does not exist. Check the path.") from cause
    except (OSError, pa.ArrowException) as cause:
        raise error(f"{location} cannot be read: {cause}. Check its permissions and the connection.") from cause


def decoded(content: bytes) -> str:
    """The text of a UTF-8 file's content. Raises ValueError if it is not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"no text in UTF-8 ({error}). Save it as UTF-8") from error


def csv_rows(
    text: str,
    problems: ProblemList,
    *,
    noun: str,
    needed: Sequence[str],
    optional: Sequence[str] = (),
    aliases: Mapping[str, str] | None = None,
    others_allowed: bool = True,
    delimiter: str = ",",
) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV table that are not blank: their numbers, and their cells by column.

    `problems` gets a line for each needed column that is missing or repeated, and for each row with too few or too many
    cells. If a needed column is missing, there are no rows. Columns may have any order; their case, spaces and a hint
    in brackets are ignored. Of an optional column that is repeated, the last one counts. `aliases` are other names of
    columns. Other columns are noted in `problems.unread`; where no others are allowed, `problems` gets a line for each
    of them, and for each optional column that is repeated. `noun` names the table in messages.
    """
    try:
        lines = [
            (number, cells)
            for number, cells in enumerate(
                csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter), start=1
            )
            if any(cell.strip() for cell in cells)
        ]
    except csv.Error as error:
        problems.append(f"no CSV table: {error}. Save it as 'CSV UTF-8' in the spreadsheet")
        return
    top, header = lines[0] if lines else (1, [])
    names = {_comparable(column): column for column in (*needed, *optional)}
    names |= {_comparable(alias): column for alias, column in (aliases or {}).items()}
    columns = [names.get(_comparable(name), "") for name in header]
    if missing := [shorten(column) for column in needed if column not in columns]:
        hint = "; its columns seem separated by semicolons: use commas" if ";" in "".join(header) else ""
        present = ", ".join(repr(" ".join(name.split())) for name in header) or "nothing"
        problems.append(f"row {top}: the {noun} has no column {', '.join(map(repr, missing))}, found {present}{hint}")
        return
    single = needed if others_allowed else (*needed, *optional)
    repeated = [shorten(column) for column, times in Counter(columns).items() if column in single and times > 1]
    problems += [f"row {top}: column {column!r} is there more than once; keep one" for column in repeated]
    unknown = [name for name, column in zip(header, columns, strict=True) if not column]
    if others_allowed:
        problems.unread += unknown
    else:
        allowed = ", ".join(map(shorten, (*needed, *optional)))
        problems += [f"row {top}: unknown column {name!r}; allowed: {allowed}" for name in unknown]
    for number, cells in lines[1:]:
        if len(cells) == len(header):
            yield number, dict(zip(columns, cells, strict=True))
        else:
            problems.append(
                f"row {number}: {len(cells)} cells instead of {len(header)}; put cells with "
                f"{'tabs' if delimiter == _TAB else 'commas'} in quotes"
            )


def shorten(column: str) -> str:
    """A column's name without the hint on how to write its cells."""
    return column.split("[")[0].strip()


def _comparable(column: str) -> str:
    return " ".join(shorten(column).split()).casefold()
