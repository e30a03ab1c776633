"""Loaded by every Python process of an audit under test (through PYTHONPATH): notes each file that it puts in place.

One line for each, process and name, into the file that FAITHAD_WITNESS names. Nothing else is changed. The marks that
are left before a shard is worked on (`attempts`) tell how often it was begun.
"""

import os
import sys

_LOG = os.environ.get("FAITHAD_WITNESS")


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event == "os.rename":
        os.write(_file, f"{os.getpid()}\t{arguments[1]}\n".encode())


if _LOG:
    _file = os.open(_LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    sys.addaudithook(_watch)
