"""Objects of S3 whose key has an empty part, such as `week//day.wav`: pyarrow only lists them; boto3 opens them.

boto3 is optional (`pip install "faithad[s3]"`), since few buckets have such keys.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import urllib.parse
from typing import Any

import pyarrow.fs as pafs

from faithad.errors import StorageError
from faithad.locations import ENVIRONMENT, quoted

_DEFAULT_REGION = "us-east-1"


def has_empty_part(location: str) -> bool:
    """Whether a URI names a key with two slashes in a row."""
    return "//" in location.partition("://")[2].partition("?")[0].rstrip("/")


def can_be_read(location: str) -> bool:
    """Whether this machine reads an object with such a key at a location."""
    return location.startswith("s3://") and importlib.util.find_spec("boto3") is not None


class S3Object:
    """An object for reading, with the methods of a `pyarrow.NativeFile` that `storage` uses.

    Args:
        location: the URI, with the options that pyarrow knows (`region`, `endpoint_override`, `scheme`). Credentials
            come from the environment.

    Raises:
        FileNotFoundError: there is no such object.
        StorageError: boto3 is not installed.
        OSError: the store does not answer, or refuses.
    """

    def __init__(self, location: str) -> None:
        if not can_be_read(location):
            raise StorageError(
                f"Location {location!r} has an empty part, which needs boto3. Install it on every machine "
                '(pip install "faithad[s3]"), or rename the object.'
            )
        parts = urllib.parse.urlsplit(quoted(location))
        options = tuple(sorted(urllib.parse.parse_qsl(parts.query)))
        environment = tuple(os.environ.get(name) for name in ENVIRONMENT["s3"])
        self._client = _client(options, environment)
        self._name = {"Bucket": parts.netloc, "Key": urllib.parse.unquote(parts.path)[1:]}
        head = _answer(self._client.head_object, **self._name)
        self._n_bytes, self._position = int(head["ContentLength"]), 0
        self.modified_ns = int(head["LastModified"].timestamp() * 1e9)

    def size(self) -> int:
        return self._n_bytes

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._n_bytes}[whence]
        return self._position

    def readinto(self, buffer: bytearray) -> int:
        """Fill a buffer from the present position; returns the number of bytes read."""
        last = min(self._position + len(buffer), self._n_bytes) - 1
        if last < self._position:
            return 0
        answer = _answer(self._client.get_object, **self._name, Range=f"bytes={self._position}-{last}")
        content = _answer(answer["Body"].read)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def information(location: str) -> pafs.FileInfo | None:
    """What `pyarrow.fs.FileSystem.get_file_info` would say of an object; None if there is none, or no boto3."""
    if not can_be_read(location):
        return None
    try:
        opened = S3Object(location)
    except FileNotFoundError:
        return None
    return pafs.FileInfo(location, pafs.FileType.File, size=opened.size(), mtime_ns=opened.modified_ns)


@functools.lru_cache(maxsize=8)
def _client(options: tuple[tuple[str, str], ...], environment: tuple[str | None, ...]) -> Any:
    """A client; `environment` holds the variables that boto3 reads itself: a new account needs a new client."""
    import boto3

    values = dict(options)
    endpoint = values.get("endpoint_override")
    if endpoint is not None and "://" not in endpoint:
        endpoint = f"{values.get('scheme', 'https')}://{endpoint}"
    region = values.get("region") or os.environ.get("AWS_DEFAULT_REGION") or _DEFAULT_REGION
    return boto3.client("s3", endpoint_url=endpoint, region_name=region)


def _answer(request: Any, **arguments: Any) -> Any:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return request(**arguments)
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if status == 404:
            raise FileNotFoundError(f"there is no object {arguments.get('Key')!r}") from error
        raise OSError(f"{error} (HTTP status {status})") from error
    except BotoCoreError as error:
        raise OSError(str(error)) from error
