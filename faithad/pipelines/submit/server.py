"""The job server of a cluster: reached, asked, and a job's log followed through dropped connections.

Ray's client says little where something is wrong, lets RAY_API_SERVER_ADDRESS win over the address that it is given,
and ends a log when the connection ends. Hence this.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import sys
import time
import urllib.parse
from typing import Any

import aiohttp
import requests
from packaging.specifiers import SpecifierSet
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from faithad.errors import ConfigError, StudyError, masked

_ADDRESS = "RAY_API_SERVER_ADDRESS"
_DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_ANSWER_S = 10.0
# A tunnel whose far end is gone takes requests and never answers. An upload of 100 MiB may take its time.
_CONNECT_S, _REPLY_S = 10.0, 120.0
# A log that is silent for so long is opened anew: a connection that broke without a word is silent, too.
_SILENCE_S = 60.0
_PATIENCE_S = 300.0
_INTERRUPTED = 130
# How Ray's client tells that the job server, or the way to it, is gone for now.
LOST = (requests.RequestException, aiohttp.ClientError, AuthenticationError, ConnectionError, TimeoutError)


class _Client(JobSubmissionClient):  # type: ignore[misc]
    """Ray's own waits for an answer for ever."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        limits = {"timeout": (_CONNECT_S, _REPLY_S)}
        answer: requests.Response = super()._do_request(method, endpoint, **(limits | options))
        return answer


def connect(address: str | None, *, ray_versions: SpecifierSet) -> JobSubmissionClient:
    """A client of the job server at `address`, else at the one that RAY_API_SERVER_ADDRESS names, else on this machine.

    Raises:
        ConfigError: it is no HTTP address.
        StudyError: nothing answers there, or no job server; the token is missing or wrong; its Ray is none that faithad
            runs on.
    """
    url = _url(address or os.environ.get(_ADDRESS) or _DEFAULT_ADDRESS)
    _probe(url)
    os.environ[_ADDRESS] = url  # to Ray's client it says more than the argument
    for handler in logging.getLogger("ray").handlers:  # its client tells every folder that it packs, several times
        handler.setLevel(logging.ERROR)
    try:
        client = _Client(url)
    except AuthenticationError as error:
        raise StudyError(_refused(url, error.message)) from None
    except (requests.RequestException, ConnectionError) as error:
        raise StudyError(f"The job server at {url} was lost while it was asked for its version: {error}") from error
    version = client._server_ray_version
    if version not in ray_versions:
        raise StudyError(
            f"The cluster at {url} runs Ray {version}, and faithad needs ray{ray_versions}: start it from an "
            "image or an environment that has this version."
        )
    return client


def _url(address: str) -> str:
    url = address if "://" in address else f"http://{address}"
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"--address {url!r} is not the address of a job server: give its URL, such as http://head:8265 "
            "(the port of the dashboard, not that of ray:// or of `ray start --address`)."
        )
    return url.rstrip("/")


def _probe(url: str) -> None:
    try:
        answer = requests.get(f"{url}/api/version", timeout=_ANSWER_S)
    except requests.RequestException as error:
        reason = "nothing answers within 10 s" if isinstance(error, requests.Timeout) else "no connection"
        raise StudyError(
            f"There is no job server at {url}: {reason}. Is the head running, and its dashboard's port reachable "
            f"from here (over `kubectl port-forward` or `ssh -L`, where it listens on loopback)? Give --address or "
            f"{_ADDRESS}."
        ) from error
    if answer.status_code in (401, 403):
        return
    if answer.status_code != requests.codes.ok or "ray_version" not in answer.text:
        raise StudyError(
            f"What answers at {url} is no job server of Ray (/api/version gives HTTP {answer.status_code}). Give "
            "the address of the cluster's dashboard, such as http://head:8265."
        )


def _refused(url: str, reason: str) -> str:
    token = (
        "The token is the one that the head was started with: put it into ~/.ray/auth_token, or into a file that "
        "RAY_AUTH_TOKEN_PATH names, readable by you alone."
    )
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return f"The cluster at {url} asks for a token, and none was sent. Set RAY_AUTH_MODE=token. {token}"
    if reason.startswith("Authentication failed"):
        return f"The cluster at {url} does not accept this token: it is another cluster's, or an old one. {token}"
    return f"The cluster at {url} asks for a token, and there is none here ({reason.splitlines()[0]}). {token}"


class Log:
    """What a job prints, written to standard output as it comes: in order, and everything once."""

    def __init__(self, client: JobSubmissionClient, job_id: str) -> None:
        self._client, self._id = client, job_id
        self._n_written = 0

    def follow(self) -> int:
        """Write the log until the job has ended.

        Returns:
            The job's exit status. 1 where it has none: it was stopped, or could not start. 130 after Ctrl-C, which the
            job does not see.

        Raises:
            StudyError: the job server could not be reached for five minutes, or no longer knows the job.
        """
        try:
            return self._follow()
        except KeyboardInterrupt:
            _complain(f"\n{self._id} goes on. {self._commands()}")
            return _INTERRUPTED

    def _follow(self) -> int:
        reached_at = time.monotonic()
        while True:
            with contextlib.suppress(*LOST, RuntimeError):
                asyncio.run(self._tail())
            try:
                job = self._client.get_job_info(self._id)
                if job.status.is_terminal():
                    self._write(0, self._client.get_job_logs(self._id))
                    return self._outcome(job.status, job.driver_exit_code, job.message)
                reached_at = time.monotonic()
            except (*LOST, RuntimeError) as error:
                self._give_up(error, time.monotonic() - reached_at)
            time.sleep(1)

    async def _tail(self) -> None:
        """One connection, from the log's beginning to the connection's end."""
        position = 0
        async with contextlib.aclosing(self._client.tail_job_logs(self._id)) as chunks:
            while True:
                try:
                    text = await asyncio.wait_for(anext(chunks), _SILENCE_S)
                except (StopAsyncIteration, TimeoutError):
                    return
                self._write(position, text)
                position += len(text)

    def _write(self, position: int, text: str) -> None:
        """Write what is new in a piece of the log that starts at `position`, in characters."""
        fresh = text[max(0, self._n_written - position) :]
        sys.stdout.write(fresh)
        sys.stdout.flush()
        self._n_written += len(fresh)

    def _outcome(self, status: JobStatus, exit_code: int | None, message: str | None) -> int:
        if status == JobStatus.SUCCEEDED:
            return 0
        if status == JobStatus.STOPPED:
            _complain(f"{self._id} was stopped.")
        elif exit_code is None:
            _complain(f"{self._id} could not be run: {message}")
        else:
            _complain(f"{self._id} ended with exit status {exit_code}.")
        return exit_code if exit_code is not None and 0 < exit_code < 256 else 1

    def _give_up(self, error: Exception, lost_s: float) -> None:
        if "status code 404" in str(error):
            raise StudyError(
                f"The cluster at {self._address} no longer knows {self._id}: its head was started anew. Submit the job "
                "again; it goes on where it was."
            ) from error
        if lost_s > _PATIENCE_S:
            raise StudyError(
                f"The job server at {self._address} could not be reached for {lost_s:.0f} s. {self._id} goes on as "
                f"long as its cluster does. {self._commands()}"
            ) from error

    @property
    def _address(self) -> str:
        return masked(self._client.get_address())

    def _commands(self) -> str:
        # In the environment, since the variable wins over --address.
        ray = f"{_ADDRESS}={shlex.quote(self._address)} ray job"
        return f"Follow it: {ray} logs --follow {self._id}   Stop it: {ray} stop {self._id}"


def _complain(text: str) -> None:
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)
