"""Make a demo mill in a local folder or on an object store."""

from __future__ import annotations

import tempfile
from typing import Any

from faithad import listing, storage
from faithad.demo.mark import MARK, read_mark, refuse_foreign_files, refuse_strangers, write_mark
from faithad.demo.mill import DISTURBED_FRACTION, SyntheticMill, synthesize
from faithad.errors import ConfigError
from faithad.progress import progress


def make_mill(
    root: str,
    *,
    train_recordings: int,
    test_recordings: int,
    seed: int,
    workers: int,
    disturbed_fraction: float = DISTURBED_FRACTION,
) -> None:
    """Make a mill at a local path or a URI; files that are already there are kept.

    Raises:
        StudyError: the location contains something else.
    """
    settings: dict[str, Any] = {"train_recordings": train_recordings, "test_recordings": test_recordings, "seed": seed}
    settings["disturbed_fraction"] = disturbed_fraction
    if not storage.is_remote(root):
        make_local_mill(root, **settings, workers=workers)
        return
    mark = read_mark(root)
    # Marks of release 0.1.0 name no fraction.
    if mark is not None and ({"disturbed_fraction": DISTURBED_FRACTION} | mark).items() >= settings.items():
        return
    with tempfile.TemporaryDirectory() as folder:
        make_local_mill(folder, **settings, workers=workers)
        files = dict(listing.list_files(folder, suffixes=[""]))
        refuse_strangers(root, files)
        if mark is None:
            refuse_foreign_files(root, files)
        write_mark(root)  # a copy that is killed is known as ours, and as no whole mill
        for name in sorted(files, key=lambda name: name == MARK):
            storage.write_bytes(storage.join(root, name), storage.read_bytes(files[name]))


def make_local_mill(
    out: str,
    *,
    train_recordings: int,
    test_recordings: int,
    seed: int,
    workers: int,
    disturbed_fraction: float = DISTURBED_FRACTION,
) -> SyntheticMill:
    """Make a mill in a local folder, `workers` recordings at a time, with a progress bar.

    Raises:
        ConfigError: the folder is not a local one.
        StudyError: the folder contains something else.
    """
    if storage.is_remote(out):
        raise ConfigError(f"The demo mill is made on this machine's disk, not at {out!r}: give a local folder.")
    with progress("synth", train_recordings + test_recordings) as ticker:
        return synthesize(
            out,
            train_recordings=train_recordings,
            test_recordings=test_recordings,
            seed=seed,
            disturbed_fraction=disturbed_fraction,
            workers=workers,
            progress=lambda done, _: ticker.update(done),
        )
