"""A cluster's job server: reached, and a job's log followed through dropped connections to the job's end.

Ray's client waits for an answer for ever, and lets RAY_API_SERVER_ADDRESS win over the address that it is given. Its
stream of a log ends with the connection, so the log is asked for again and again.
"""

from __future__ import annotations

import logging
import math
import os
import re
import shlex
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from faithad.errors import ConfigError, StudyError, masked
from faithad.pipelines.cluster.session import token_refusal

Answer = TypeVar("Answer")

_ADDRESS = "RAY_API_SERVER_ADDRESS"
_CONNECT_S = 20.0
# A tunnel whose far end is gone takes requests and never answers.
_REPLY_S = 120.0
_PATIENCE_S = 300.0
# A log comes whole every time: a long one is asked for less often.
_CHARACTERS_PER_S = 100_000
_INTERRUPTED = 130
# What Ray's client raises while the job server, or the way to it, is gone, and where the server refuses.
LOST = (AuthenticationError, RuntimeError, OSError)


def ask(call: Callable[..., Answer], *arguments: Any, within_s: float | None = None, **options: Any) -> Answer:
    """Call Ray's client, in a thread that can be left alone.

    Raises:
        TimeoutError: there was no answer in time.
    """
    answer: Future[Answer] = Future()

    def work() -> None:
        try:
            answer.set_result(call(*arguments, **options))
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    seconds = _REPLY_S if within_s is None else within_s
    try:
        return answer.result(timeout=seconds)
    except TimeoutError as error:
        raise TimeoutError(str(error) or f"nothing answers within {seconds:.0f} s") from error


def connect(address: str | None) -> JobSubmissionClient:
    """A client of the job server at `address`, else at the one that RAY_API_SERVER_ADDRESS names, else on this machine.

    Raises:
        ConfigError: it is no HTTP address.
        StudyError: nothing answers there, or no job server; the token is missing or wrong.
    """
    given = address or os.environ.get(_ADDRESS) or "127.0.0.1:8265"
    url = (given if "://" in given else f"http://{given}").rstrip("/")
    if not re.match("https?://[^/]", url):
        raise ConfigError(
            f"--address {url!r} is not the address of a job server: give its URL, such as http://head:8265 "
            "(the port of the dashboard, not that of ray:// or of `ray start --address`)."
        )
    os.environ[_ADDRESS] = url  # for Ray's client, which prefers it to its argument
    for handler in logging.getLogger("ray").handlers:  # the client logs every folder that it packs, several times
        handler.setLevel(logging.ERROR)
    try:
        return ask(JobSubmissionClient, url, within_s=_CONNECT_S)
    except AuthenticationError as error:
        raise StudyError(token_refusal(url, error.message)) from None
    except (OSError, RuntimeError, ValueError, LookupError, TypeError) as error:
        lost = isinstance(error, ConnectionError) and not isinstance(error, requests.RequestException)
        raise StudyError(
            f"There is no job server of Ray at {url}: {'no connection' if lost else error}. Is the head running, and "
            f"its dashboard's port, such as 8265, reachable from here (over `kubectl port-forward` or `ssh -L`, where "
            f"it listens on loopback)? Give --address or {_ADDRESS}."
        ) from error


def follow(client: JobSubmissionClient, job_id: str) -> int:
    """Write the job's log to standard output until the job has ended.

    Returns:
        The job's exit status. 1 where it has none: it was stopped, or could not start. 130 after Ctrl-C, which the job
        does not see.

    Raises:
        StudyError: as `watch`.
    """
    n_written = 0

    def show(log: str) -> None:
        nonlocal n_written
        print(log[n_written:], end="", flush=True)
        n_written = len(log)

    try:
        job, _ = watch(client, job_id, show)
    except KeyboardInterrupt:
        print(f"\n{job_id} goes on. {_commands(client, job_id)}", file=sys.stderr)
        return _INTERRUPTED
    if job.status == JobStatus.SUCCEEDED:
        return 0
    code, end = job.driver_exit_code, f"ended with exit status {job.driver_exit_code}"
    if job.status == JobStatus.STOPPED:
        end = "was stopped"
    elif code is None:
        end = f"could not be run: {job.message}"
    print(f"{job_id} {end}.", file=sys.stderr)
    return code if code is not None and 0 < code < 256 else 1


def watch(
    client: JobSubmissionClient, job_id: str, show: Callable[[str], None], *, limit_s: float = math.inf
) -> tuple[JobDetails, str]:
    """Wait until the job has ended, and give the whole log so far to `show` meanwhile. A lost connection costs time.

    Returns:
        The job, and its log.

    Raises:
        StudyError: the job server could not be reached for five minutes, or no longer knows the job; or the job has not
            ended in time.
    """
    address, started = masked(client.get_address()), time.monotonic()
    reached_at = started
    while True:
        try:
            job = ask(client.get_job_info, job_id)  # before the log, so that the log of a job that has ended is whole
            log = ask(client.get_job_logs, job_id)
        except LOST as error:
            if "status code 404" in str(error):
                raise StudyError(
                    f"The cluster at {address} no longer knows {job_id}: its head was started anew. Submit the job "
                    "again; it goes on where it was."
                ) from error
            lost_s = time.monotonic() - reached_at
            if lost_s > _PATIENCE_S:
                raise StudyError(
                    f"The job server at {address} could not be reached for {lost_s:.0f} s. {job_id} goes on as long as "
                    f"its cluster does. {_commands(client, job_id)}"
                ) from error
            time.sleep(1)
            continue
        reached_at = time.monotonic()
        show(log)
        if job.status.is_terminal():
            return job, log
        if reached_at - started > limit_s:
            raise StudyError(
                f"{job_id} did not end within {limit_s:.0f} s ({job.status}: {job.message}). Look at its log: `ray job "
                f"logs {job_id}`."
            )
        time.sleep(1 + len(log) / _CHARACTERS_PER_S)


def _commands(client: JobSubmissionClient, job_id: str) -> str:
    # The address stands in the environment, since Ray prefers that to --address.
    ray = f"{_ADDRESS}={shlex.quote(masked(client.get_address()))} ray job"
    return f"Follow it: {ray} logs --follow {job_id}   Stop it: {ray} stop {job_id}"
