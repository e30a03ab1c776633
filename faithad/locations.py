"""Locations: local paths, and URIs of any scheme that pyarrow.fs opens (`s3://bucket/key`, `gs://`).

The environment of each machine says where a store is and who may use it (`ENVIRONMENT`). A location never does, because
it is written into tables, logs and the report. A URI may contain spaces and letters of any language.

This module does not import pyarrow; `storage` opens locations.
"""

from __future__ import annotations

import os
import re
import string
import unicodedata
import urllib.parse

from faithad.errors import holds_secrets

# The environment variables that the library of each scheme reads.
ENVIRONMENT = {
    "s3": ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION"),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS",),
}
# Rarely needed: no hint if it is not set.
_SELDOM_SET = {"AWS_SESSION_TOKEN"}

_EXPIRED = re.compile(r"ExpiredToken|TokenExpired|EXPIRED_TOKEN|invalid_grant|token .*expired", re.IGNORECASE)
# S3 answers so where it may send no text and the credentials have expired.
_BARE_400 = re.compile(r"HTTP status 400.*No response body", re.IGNORECASE)

# The punctuation that stays unquoted in a URI: `%` only before two hex digits, `#` never, since it is part of a name.
_IN_URI = "".join(set(string.punctuation) - set('"#<>[\\]^`{|}'))
_BARE_PERCENT = re.compile("%(?![0-9A-Fa-f]{2})")


def quoted(location: str) -> str:
    """A URI with spaces, letters beyond ASCII and the like written as `%20`; a local path is returned unchanged.

    `?` (the start of options) and codes such as `%20` are kept. If they are part of a name, quote them before.
    """
    return location if "://" not in location else urllib.parse.quote(_BARE_PERCENT.sub("%25", location), safe=_IN_URI)


def location_problem(location: str) -> str | None:
    """What a location must not contain, because it is written into tables, logs and the report; None if it is fine."""
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
    """Append path parts to a location; the options of a URI (`?region=...`) stay at its end. Parts are not quoted."""
    path, mark, options = location.partition("?") if "://" in location else (location, "", "")
    return "/".join([path.rstrip("/") or "/", *parts]) + mark + options


def join_path(folder: str, path: str) -> str:
    """The location of a relative path in a folder; the path is quoted if the folder is a URI."""
    return join(folder, urllib.parse.quote(path) if "://" in folder else path)


def name_of(location: str) -> str:
    """The last part of a location, unquoted."""
    if "://" in location:
        location = urllib.parse.unquote(location.partition("?")[0])
    return location.rstrip("/").rsplit("/", 1)[-1]


def have_expired(error: Exception) -> bool:
    """Whether a store says that the credentials were valid and no longer are."""
    return _EXPIRED.search(str(error)) is not None


def store_message(error: Exception, location: str) -> str:
    """The message of a store's error, and what to do: renew credentials, or set environment variables, by name."""
    text = str(error).rstrip(".")
    if have_expired(error):
        return f"{text}. The credentials have expired: renew them; the same command goes on."
    if _BARE_400.search(text):
        return f"{text}. Have the credentials expired? Then renew them; the same command goes on."
    scheme = location.partition("://")[0]
    unset = [name for name in ENVIRONMENT.get(scheme, ()) if name not in _SELDOM_SET and not os.environ.get(name)]
    hint = f" Not set in the environment here: {', '.join(unset)}." if unset else ""
    return f"{text}.{hint}"
