"""Whether two runs came to the same tables, row for row and to the last bit."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePosixPath

from faithad import listing, parquet

# How long something took is not what it came to.
_ITS_OWN = {"duration_s"}


def tables(root: str) -> dict[str, list[str]]:
    """Every table below a folder or a URI: its name, and its file or its shards."""
    found: dict[str, list[str]] = {}
    for name, location in listing.list_files(root, suffixes=[".parquet"]):
        path = PurePosixPath(name)
        found.setdefault(str(path.parent if path.name.startswith("part-") else path), []).append(location)
    return found


def rows(files: list[str]) -> Counter[str]:
    """A table as a bag of rows: `repr` of a float is exact."""
    return Counter(
        repr(sorted((key, value) for key, value in row.items() if key not in _ITS_OWN))
        for file in files
        for row in parquet.read_table(file).to_pylist()
    )


def differences(found: object, expected: object) -> list[str]:
    """What differs between two runs' tables: one line for each table, none where all rows are equal."""
    here, there = tables(str(found)), tables(str(expected))
    problems = [f"{name} is in one of the two only" for name in sorted(set(here) ^ set(there))]
    for name in sorted(set(here) & set(there)):
        ours, theirs = rows(here[name]), rows(there[name])
        if ours != theirs:
            extra, missing = ours - theirs, theirs - ours
            example = next(iter(extra or missing))[:300]
            problems.append(
                f"{name}: {extra.total()} rows that should not be there, {missing.total()} missing, "
                f"{ours.total()} for {theirs.total()}, such as {example}"
            )
    return problems
