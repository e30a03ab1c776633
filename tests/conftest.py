"""Fixtures of all tests."""

from __future__ import annotations

import signal
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# A shell script that runs the tests in the background lets them ignore Ctrl-C, and so would every process that they
# start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The published annotation table and a few real recordings; they lie beside the checkout, not ours to copy."""
    folder = Path(__file__).parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the published table and the real recordings are not here: no folder {folder}")
    return folder


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in `integration` starts a Ray or joins one; elsewhere a module says so itself."""
    for item in items:
        if "integration" in item.path.relative_to(Path(__file__).parent).parts:
            item.add_marker(pytest.mark.ray)


RELEASES = Path(__file__).parent / "releases"


@pytest.fixture(scope="session")
def released_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a finished study that release 0.1.0 made (see `releases/0.1.0`); for tests that only read."""
    return _unpacked("study", tmp_path_factory.mktemp("release"))


@pytest.fixture
def released_audit(tmp_path: Path) -> Path:
    """The folder of a finished audit that release 0.1.0 made, a copy for each test."""
    return _unpacked("audit", tmp_path)


def _unpacked(name: str, folder: Path) -> Path:
    with zipfile.ZipFile(RELEASES / "0.1.0" / f"{name}.zip") as archive:
        archive.extractall(folder)
    return folder / name


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
