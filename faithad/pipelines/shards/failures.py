"""Why work on Ray failed. Whoever reads headers alone needs no Ray Data, which takes a second to import."""

from __future__ import annotations

import re

from faithad.errors import StudyError

# The line of a traceback that names an exception, of ours or any. Ray passes the traceback of a worker on as text.
_OURS = re.compile(r"^faithad\.errors\.(\w+: .*)$", re.MULTILINE)
_EXCEPTION = re.compile(r"^([\w.]+(?:Error|Exception|Interrupt)(?:: .*)?)$", re.MULTILINE)


class WorkersLost(StudyError):
    """Processes or machines went away and Ray could not make up for it. What was written until then stays."""


def first_cause(error: BaseException) -> str:
    """The first exception in the chained traceback of an error of Ray; one of ours, if there is any."""
    match = _OURS.search(str(error)) or _EXCEPTION.search(str(error))
    return match.group(1) if match else f"{type(error).__name__}: {error}"
