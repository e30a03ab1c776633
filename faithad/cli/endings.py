"""How a command ends: its exit status, and its last message."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator

from faithad.errors import FaithadError

# Exit status of a command that Ctrl-C ended.
_INTERRUPTED = 128 + signal.SIGINT
# Commands whose results stay when they are interrupted.
_GO_ON = ("train", "calibrate", "audit", "search", "study")
# For how long a second SIGTERM counts as the first one.
_UNWINDING_S = 10.0


@contextlib.contextmanager
def ending(command: str) -> Iterator[None]:
    """Run a command in the block. An error that a user can act on becomes one last message, without a traceback.

    SIGTERM, by which `timeout`, Slurm and Kubernetes end a command, unwinds it as Ctrl-C does.
    """
    terminated_s: float | None = None
    advice = " The same command goes on where it was." if command in _GO_ON else ""

    def terminate(*_: object) -> None:
        nonlocal terminated_s
        # A second one must not cut the unwinding short; a later one shows that the first has been swallowed.
        if terminated_s is None or time.monotonic() > terminated_s + _UNWINDING_S:
            terminated_s = time.monotonic()
            raise KeyboardInterrupt  # Ray would lose the status of a SystemExit

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except FaithadError as error:
        sys.stdout.flush()
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as ended:
        # `submit` says itself what becomes of the job.
        if ended.code == _INTERRUPTED and terminated_s is None and command != "submit":
            print(f"Interrupted.{advice}", file=sys.stderr)
        raise
    finally:
        if terminated_s is not None:
            print(f"Terminated.{advice}", file=sys.stderr)
            sys.exit(128 + signal.SIGTERM)
