"""A cluster's job server: reached, and a job's log followed through dropped connections to the job's end.

Ray's client waits for an answer for ever, and lets RAY_API_SERVER_ADDRESS win over the address that it is given. Its
stream of a log ends with the connection, so the log is asked for again and again.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import shlex
import sys
import time
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from faithad.errors import ConfigError, StudyError, masked
from faithad.pipelines.cluster.session import token_refusal

_ADDRESS = "RAY_API_SERVER_ADDRESS"
_PATIENCE_S = 300.0
# What Ray's client raises while the job server, or the way to it, is gone, and where the server refuses.
LOST = (AuthenticationError, RuntimeError, OSError)


def ask(call: Callable[..., Any], *arguments: Any, within_s: float = 120.0, **options: Any) -> Any:
    """Call Ray's client in a thread that can be left alone: a tunnel whose far end is gone never answers.

    Raises:
        TimeoutError: there was no answer in time.
    """
    with ThreadPool(1) as thread:
        try:
            return thread.apply_async(call, arguments, options).get(within_s)
        except multiprocessing.TimeoutError:
            raise TimeoutError(f"nothing answers within {within_s:.0f} s") from None


def connect(address: str | None) -> JobSubmissionClient:
    """A client of the job server at `address`, else at the one that RAY_API_SERVER_ADDRESS names, else on this machine.

    Raises:
        ConfigError: it is no HTTP address.
        StudyError: nothing answers there, or no job server; the token is missing or wrong.
    """
    given = address or os.environ.get(_ADDRESS) or "127.0.0.1:8265"
    url = given if "://" in given else f"http://{given}"
    if not re.match("https?://[^/]", url):
        raise ConfigError(
            f"--address {url!r} is not the address of a job server: give its URL, such as http://head:8265 "
            "(the port of the dashboard, not that of ray:// or of `ray start --address`)."
        )
    os.environ[_ADDRESS] = url  # for Ray's client, which prefers it to its argument
    for handler in logging.getLogger("ray").handlers:  # the client logs every folder that it packs, several times
        handler.setLevel(logging.ERROR)
    try:
        return ask(JobSubmissionClient, url, within_s=20.0)
    except AuthenticationError as error:
        raise StudyError(token_refusal(url, error.message)) from None
    except Exception as error:  # whatever the client makes of another server's answer
        raise StudyError(
            f"There is no job server of Ray at {url}: {str(error).rstrip('.')}. Is the head running, and its "
            "dashboard's port, such as 8265, reachable from here (over `kubectl port-forward` or `ssh -L`, where it "
            f"listens on loopback)? Give --address or {_ADDRESS}."
        ) from error


def follow(client: JobSubmissionClient, job_id: str) -> int:
    """Write the job's log to standard output until the job has ended. A lost connection costs time.

    Returns:
        The job's exit status. 1 where it has none: it was stopped, or could not start. 130 after Ctrl-C, which the job
        does not see.

    Raises:
        StudyError: the job server could not be reached for five minutes, or no longer knows the job.
    """
    address = masked(client.get_address())
    ray = f"{_ADDRESS}={shlex.quote(address)} ray job"  # which prefers the variable to --address, too
    how = f"Follow it: {ray} logs --follow {job_id}   Stop it: {ray} stop {job_id}"
    n_written, reached_at = 0, time.monotonic()
    try:
        while True:
            try:
                job = ask(client.get_job_info, job_id)  # before the log: that of a job that has ended is whole
                log = ask(client.get_job_logs, job_id)
            except LOST as error:
                lost_s = time.monotonic() - reached_at
                if lost_s > _PATIENCE_S or "status code 404" in str(error):
                    raise StudyError(
                        f"The job server at {address} has said nothing of {job_id} for {lost_s:.0f} s: {error}. The "
                        "job goes on as long as its cluster does; if its head was started anew, submit it again, and "
                        f"it goes on where it was. {how}"
                    ) from error
                time.sleep(1)
                continue
            reached_at = time.monotonic()
            print(log[n_written:], end="", flush=True)
            n_written = len(log)
            if job.status.is_terminal():
                break
            time.sleep(1 + n_written / 100_000)  # it comes whole every time: a long one is asked for less often
    except KeyboardInterrupt:
        print(f"\n{job_id} goes on. {how}", file=sys.stderr)
        return 130
    if job.status == JobStatus.SUCCEEDED:
        return 0
    code = job.driver_exit_code
    print(f"{job_id} ended with exit status {code}." if code else f"{job_id}: {job.message}", file=sys.stderr)
    if re.search("No module named '?faithad", log):
        print(
            "The cluster has no faithad, or one without `submit`, and none travels with the job. Submit from the "
            "folder that holds faithad/ and jobs/, or install it in the image or the environments of all machines.",
            file=sys.stderr,
        )
    return code or 1
