"""Locations: local paths, and URIs of any scheme that pyarrow.fs opens (`s3://bucket/key`, `gs://`).

Where a store is and who may use it stands in the environment of each machine (`_ENVIRONMENT`), never in a location,
which is written into tables, logs and the report. A person may write a URI with spaces and letters of any language.

One part of `storage`, whose users find all of this there.
"""

from __future__ import annotations

import functools
import os
import re
import string
import unicodedata
import urllib.parse
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from faithad.errors import StudyError, holds_secrets, without_secrets

# What the libraries behind a scheme take from the environment.
_ENVIRONMENT = {
    "s3": ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION"),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS",),
}
# Needed in few places only: that it is not set is no hint.
_SELDOM_SET = {"AWS_SESSION_TOKEN"}

# Options that a URI may set otherwise. S3: one request for a small object rather than three, and no half upload to be
# paid for after a kill. Google: what does not answer would be asked again for a quarter of an hour.
_OPTIONS = {"s3": {"allow_delayed_open": "true"}, "gs": {"retry_limit_seconds": "60"}}

# All that may stand in our URIs. Of `%` only what begins the code of a byte; a fragment (`#`) would say nothing.
_IN_URI = "".join(set(string.punctuation) - set('"#<>[\\]^`{|}'))
_BARE_PERCENT = re.compile("%(?![0-9A-Fa-f]{2})")


def locate(location: str) -> tuple[pafs.FileSystem, str]:
    """The file system and the path inside it that a location names.

    Raises:
        StudyError: the scheme is not one that pyarrow knows, its options cannot be understood, or it holds secrets.
    """
    if "://" not in location:
        return pafs.LocalFileSystem(), str(Path(location).expanduser().absolute())
    if (problem := location_problem(location)) is not None:
        raise StudyError(f"Location {without_secrets(location)!r} {problem}")
    parts = urllib.parse.urlsplit(quoted(location))
    options = _OPTIONS.get(parts.scheme, {}) | dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
    settings = tuple(os.environ.get(name) for name in _ENVIRONMENT.get(parts.scheme, ()))
    try:
        file_system, top = _file_system(
            f"{parts.scheme}://{parts.netloc}/", urllib.parse.urlencode(options, quote_via=urllib.parse.quote), settings
        )
    except (ValueError, pa.ArrowException, OSError) as error:
        raise StudyError(
            f"Location {location!r} cannot be opened: {told(error, location)} "
            "Give a local path or a URI such as s3://bucket/folder."
        ) from error
    return file_system, f"{top.rstrip('/')}{urllib.parse.unquote(parts.path).rstrip('/')}" or "/"


@functools.lru_cache(maxsize=64)
def _file_system(top: str, options: str, settings: tuple[str | None, ...]) -> tuple[pafs.FileSystem, str]:
    """The file system of a URI, kept for all that follow: a new one would connect, and ask for credentials, anew.

    Args:
        top: the URI without a path.
        options: of the URI.
        settings: what the environment says at this moment.
    """
    found: tuple[pafs.FileSystem, str] = pafs.FileSystem.from_uri(f"{top}?{options}" if options else top)
    return found


def quoted(location: str) -> str:
    """A URI whose spaces, letters beyond ASCII and the like stand as `%20`; any other location as it is.

    What begins options (`?`) or codes a byte (`%20`) is left alone, and so has to be quoted by those who mean it.
    """
    return location if "://" not in location else urllib.parse.quote(_BARE_PERCENT.sub("%25", location), safe=_IN_URI)


def location_problem(location: str) -> str | None:
    """What is wrong with a location as such, or None: it would end up in tables, logs and the report as it is."""
    if holds_secrets(location):
        return (
            "holds a password or a key. Leave it out, and put it into the environment: AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY for s3://, GOOGLE_APPLICATION_CREDENTIALS for gs://."
        )
    if any(unicodedata.category(sign) == "Cc" for sign in location):
        return "holds control characters, such as a line break. Rename the folder, or write it without them."
    return None


def is_remote(location: str) -> bool:
    return "://" in location and not location.startswith("file://")


def join(location: str, *parts: str) -> str:
    """Append path parts to a location, whatever its scheme; a URI's options (`?region=...`) stay at its end.

    Parts that come from file names must be quoted for a URI, as `list_files` does.
    """
    path, question_mark, options = location.partition("?") if "://" in location else (location, "", "")
    return "/".join([path.rstrip("/") or "/", *parts]) + question_mark + options


def name_of(location: str) -> str:
    """The last part of a location, as a person would write it."""
    if "://" in location:
        location = urllib.parse.unquote(location.partition("?")[0])
    return location.rstrip("/").rsplit("/", 1)[-1]


def told(error: Exception, location: str) -> str:
    """What an error of a store says, and which settings the store may have missed; never what those are that it has."""
    scheme = location.partition("://")[0]
    unset = [name for name in _ENVIRONMENT.get(scheme, ()) if name not in _SELDOM_SET and not os.environ.get(name)]
    hint = f" Not set in the environment here: {', '.join(unset)}." if unset else ""
    return f"{str(error).rstrip('.')}.{hint}"
