"""What a user can act on, and how text that comes from elsewhere is put into a message.

Every error that a person at the keyboard may cause derives from `FaithadError` and its text names the thing, the
value found, what is allowed and what to do. Anything else that escapes is a defect of ours and keeps its traceback.

Names of files and locations are data: whoever made them may have put the codes of a terminal into them, or a password.
So the text of every such error went through `masked` and `shown`, wherever it ends: terminal, log, table, report.
"""

from __future__ import annotations

import re

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"]+")
# Who signs in: a name with a password, and before a bucket of S3 a name alone too. In other stores an account or a
# container stands there, which is no secret. A password that holds a slash looks like a port that is no number.
_SIGN_IN = re.compile(
    r"\A([^:]+://)(?:(?<=s3://)[^/?]*|[^/?@]*:[^/?]*|[^/?:]*:(?!\d*(?:[/?]|\Z)).*)@",
    re.IGNORECASE,
)
_OPTION = re.compile(
    r"([?&;](?:[^=&;]*(?:key|secret|token|sig|password|credential(?!_kind))[^=&;]*=|[^=&;]*=(?=[^&;]*(?:@|%40))))[^&;]+",
    re.IGNORECASE,
)
_HIDDEN = "…"


class FaithadError(Exception):
    """Root of all errors that a user can act on; the command line prints the text alone and exits with 1."""

    def __init__(self, text: str) -> None:
        super().__init__(shown(masked(text), keep="\n"))


class ConfigError(FaithadError):
    """A setting is unknown, of the wrong type or impossible."""


class RecordingError(FaithadError):
    """A recording, or one clip of it, cannot be used: unreadable, truncated, empty, NaN, of another shape."""


class AnnotationError(FaithadError):
    """An annotation table, or rows of it, cannot be understood."""


class CheckpointError(FaithadError):
    """A saved model is missing, damaged, or does not fit the study that asks for it."""


class StudyError(FaithadError):
    """A stage cannot run or did not end well: nothing to work on, an earlier stage missing, a run that failed."""


class StorageError(StudyError, OSError):
    """A store does not answer, or refuses us. It is an `OSError` as well, as for a disk that cannot be read."""


def shown(text: str, *, keep: str = "") -> str:
    """The text with what cannot be printed as an escape: no line break or code of a terminal in a name takes effect.

    Args:
        text: of one line, or of as many as it has.
        keep: characters that stay as they are.
    """
    return "".join(sign if sign.isprintable() or sign in keep else repr(sign)[1:-1] for sign in text)


def masked(text: str) -> str:
    """The text with the secrets of all URIs in it left out: user names with passwords, and options such as a key."""
    return _URI.sub(lambda found: without_secrets(found[0]), text)


def holds_secrets(location: str) -> bool:
    """Whether a location says who signs in, rather than where something is."""
    return "://" in location and without_secrets(location) != location


def without_secrets(uri: str) -> str:
    """The URI with its secrets left out. Unlike `masked` it knows where the URI ends, whatever signs a password has."""
    place, mark, options = _SIGN_IN.sub(rf"\g<1>{_HIDDEN}@", uri).partition("?")
    return place + _OPTION.sub(rf"\g<1>{_HIDDEN}", mark + options)
