"""Fixtures of all tests."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The published annotation table and a few real recordings; they lie beside the checkout, not ours to copy."""
    folder = Path(__file__).parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the published table and the real recordings are not here: no folder {folder}")
    return folder


@pytest.fixture(scope="module")
def object_store() -> Iterator[str]:
    """A bucket on a local server that speaks S3."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as environment:
        endpoint = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
        environment.setenv("AWS_ENDPOINT_URL", endpoint)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            environment.setenv(name, "test")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        # Servers of one process share what they hold, so an earlier one's objects go first.
        for path, method in (("moto-api/reset", "POST"), ("mill", "PUT")):
            urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{path}", method=method)).close()
        yield "s3://mill"
    server.stop()
