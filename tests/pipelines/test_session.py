"""A cluster that RAY_ADDRESS names and that cannot be joined: what is told, and that it is told at once."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator

import pytest
import ray
from ray.exceptions import AuthenticationError

from faithad.errors import ConfigError, StudyError
from faithad.pipelines.cluster import session
from faithad.pipelines.cluster.session import ray_session

PATIENCE = "RAY_gcs_server_port_wait_time_s"


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Ray is joined, and what is set in the environment goes again."""
    for name in ("RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED", PATIENCE):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # other tests may have one
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was asked"))
    monkeypatch.setattr(session, "_hear_warning_unseen", lambda: None)  # which needs a Ray that is joined


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of something that takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        yield address


def refusal(monkeypatch: pytest.MonkeyPatch, error: Exception, cause: Exception | None = None) -> str:
    """What is told where Ray raises this."""

    def refuse(**_: object) -> None:
        raise error from cause

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(StudyError) as caught, ray_session():
        pass
    return str(caught.value)


@pytest.mark.parametrize(
    "address", ["head", "head:", ":6379", "head:ten", "head:0", "head:65536", ".head:6379", "ray://head:10001"]
)
def test_what_is_no_address_of_a_head_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match="is not the address of a head") as caught, ray_session():
        pass
    assert f"RAY_ADDRESS {address!r}" in str(caught.value)


def test_a_port_where_nothing_listens_is_named_before_ray_tries_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(StudyError, match=f"no cluster at {address}, .*: Connection refused") as caught, ray_session():
        pass
    assert "token" not in str(caught.value)


def test_a_machine_that_keeps_silent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object, **__: object) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", silent)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    with pytest.raises(StudyError, match=r"no cluster at head:6379, .*: nothing answers within 5 s"), ray_session():
        pass


@pytest.mark.usefixtures("head")
def test_a_ray_of_our_own_has_all_its_time_later(monkeypatch: pytest.MonkeyPatch) -> None:
    during = []
    monkeypatch.setattr(ray, "init", lambda **_: during.append(os.environ.get(PATIENCE)))
    with ray_session():
        assert (during, os.environ.get(PATIENCE)) == (["1"], None)
    refusal(monkeypatch, ConnectionError("no"))
    assert PATIENCE not in os.environ


@pytest.mark.usefixtures("head")
def test_sigterm_does_what_it_did_before_ray_came(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(**_: object) -> None:
        ray._private.utils.set_sigterm_handler(lambda *_: None)
        assert signal.getsignal(signal.SIGTERM) is ours, "not even while it starts"
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def ours(*_: object) -> None: ...

    monkeypatch.setattr(ray, "init", start)
    before = signal.signal(signal.SIGTERM, ours)
    try:
        with ray_session():
            assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("mode", "told"), [("", "Set RAY_AUTH_MODE=token"), ("token", "does not accept this token")])
def test_a_head_that_refuses_the_token_is_told_as_that(
    monkeypatch: pytest.MonkeyPatch, head: str, mode: str, told: str
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    cause = RuntimeError(
        "Failed to connect to GCS. Traceback:\n...\nAuthenticationError: RPC error: InvalidAuthToken: …"
    )
    said = refusal(monkeypatch, ConnectionError("Failed to connect to Ray cluster"), cause)
    assert head in said
    assert told in said
    assert "~/.ray/auth_token" in said
    assert "Traceback" not in said


def test_a_token_that_is_nowhere_is_asked_for(monkeypatch: pytest.MonkeyPatch, head: str) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    error = AuthenticationError("Token authentication is enabled but no authentication token was found")
    assert f"there is no token here for the cluster at {head}. " in refusal(monkeypatch, error)


def test_other_versions_are_told_in_full(monkeypatch: pytest.MonkeyPatch, head: str) -> None:
    versions = "Version mismatch: The cluster was started with:\n    Ray: 1.0\n    Python: 3.6.1"
    assert versions in refusal(monkeypatch, RuntimeError(versions))


def test_whatever_else_ray_says_is_passed_on_in_its_last_line(monkeypatch: pytest.MonkeyPatch, head: str) -> None:
    said = refusal(monkeypatch, ConnectionError("Failed"), RuntimeError("Traceback\n  File\nRpcError: Timed out.\n"))
    assert head in said
    assert said.endswith("Ray says: RpcError: Timed out.")


def test_auto_where_no_ray_runs_asks_for_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    said = refusal(monkeypatch, ConnectionError("Could not find any running Ray instance."))
    assert said.startswith("RAY_ADDRESS is 'auto', and no Ray on this machine could be joined. ")
    assert said.endswith("Ray says: Could not find any running Ray instance.")
