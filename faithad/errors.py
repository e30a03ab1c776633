"""Errors that a user can act on, and safe text for their messages.

Every error that a user may cause derives from `FaithadError`. Its text names the thing, the value, what is allowed and
what to do. Any other exception is a defect of faithad and keeps its traceback.

File names and locations are data and may contain codes of a terminal or a password. Therefore `masked` and `shown`
clean the text of every `FaithadError` before it reaches a terminal, a log, a table or the report.
"""

from __future__ import annotations

import re

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"]+")
# Credentials: a name with a password or, before a bucket of S3, a name alone. With other stores, a name alone is an
# account or a container and no secret. A password that contains a slash looks like a port that is no number.
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
    """A recording or a clip cannot be used: it is unreadable, truncated or empty, or has NaN or the wrong shape."""


class AnnotationError(FaithadError):
    """Annotations or labels cannot be understood."""


class CheckpointError(FaithadError):
    """A saved model is missing or damaged, or does not fit the study."""


class StudyError(FaithadError):
    """A stage cannot run or has failed: for example, there is no data, or an earlier stage is missing."""


class DamagedError(StudyError):
    """A file of results is not what was written: truncated, overwritten or gone, as after a power cut."""

    _ADVICE = "Run the command that wrote it again: it makes anew what is damaged."

    def __init__(self, location: str, problem: str) -> None:
        super().__init__(f"{location} is damaged: {problem}. {self._ADVICE}")
        self._made_of = location, problem

    def __reduce__(self) -> tuple[type[DamagedError], tuple[str, str]]:
        """Another process gets the error as the values that it was made of."""
        return DamagedError, self._made_of

    @property
    def problem(self) -> str:
        """What is damaged and why, without the advice."""
        return str(self).removesuffix(f" {self._ADVICE}")


class StorageError(StudyError, OSError):
    """A store does not answer or denies access. It is also an `OSError`, like the error of a disk."""


class FullError(StudyError):
    """A disk, or the part of it that this user may fill, is full."""


def shown(text: str, *, keep: str = "") -> str:
    """The text with escapes for all characters that cannot be printed, such as line breaks, except those in `keep`."""
    return "".join(letter if letter.isprintable() or letter in keep else repr(letter)[1:-1] for letter in text)


def masked(text: str) -> str:
    """The text without the secrets of its URIs: user names with passwords, and options such as a key."""
    return _URI.sub(lambda uri: without_secrets(uri[0]), text)


def holds_secrets(location: str) -> bool:
    """Whether a location contains credentials."""
    return "://" in location and without_secrets(location) != location


def without_secrets(uri: str) -> str:
    """The URI without its secrets. Unlike `masked`, it knows where the URI ends, even if a password has spaces."""
    place, mark, options = _SIGN_IN.sub(rf"\g<1>{_HIDDEN}@", uri).partition("?")
    return place + _OPTION.sub(rf"\g<1>{_HIDDEN}", mark + options)
