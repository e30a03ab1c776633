"""Locations: local paths, and URIs of any scheme that pyarrow.fs opens (`s3://bucket/key`, `gs://`).

Where a store is and who may use it stands in the environment of each machine (`ENVIRONMENT`), never in a location,
which is written into tables, logs and the report. A person may write a URI with spaces and letters of any language.

Without pyarrow; `storage` opens them, and its users find all of this there.
"""

from __future__ import annotations

import os
import re
import string
import unicodedata
import urllib.parse

from faithad.errors import holds_secrets

# What the libraries behind a scheme take from the environment.
ENVIRONMENT = {
    "s3": ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION"),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS",),
}
# Needed in few places only: that it is not set is no hint.
_SELDOM_SET = {"AWS_SESSION_TOKEN"}

# All that may stand in our URIs. Of `%` only what begins the code of a byte; a fragment (`#`) would say nothing.
_IN_URI = "".join(set(string.punctuation) - set('"#<>[\\]^`{|}'))
_BARE_PERCENT = re.compile("%(?![0-9A-Fa-f]{2})")


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
    unset = [name for name in ENVIRONMENT.get(scheme, ()) if name not in _SELDOM_SET and not os.environ.get(name)]
    hint = f" Not set in the environment here: {', '.join(unset)}." if unset else ""
    return f"{str(error).rstrip('.')}.{hint}"
