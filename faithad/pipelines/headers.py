"""The headers of many recordings and some windows of their sound, read by Ray tasks that spread over the cluster.

A file can crash its decoder, which ends the process that reads it. So no driver reads a header, and each task leaves a
mark before it opens files (see `attempts`): a recording that ends its process twice is left out with a reason.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Iterator, Sequence

import ray
from ray.exceptions import RayError

from faithad import storage
from faithad.clips.access import read_or_reason
from faithad.clips.manifest import Recording
from faithad.clips.recordings import AudioHeader, examine_recording, probe_recording
from faithad.pipelines.cluster.machines import wait_for_machines
from faithad.pipelines.cluster.session import cluster_total, ray_session
from faithad.pipelines.shards.failures import WorkersLost, first_cause
from faithad.runs.attempts import attempt
from faithad.runs.lookahead import PATIENCE_S, say_waiting, side_by_side

# Recordings of one task: a local one takes some milliseconds, a remote one some tenths of a second, and another process
# for tasks some seconds to start.
_FEWEST_PER_TASK, _MOST_PER_TASK, _TASKS = 64, 256, 64
_REMOTE_AT_ONCE, _LOCAL_AT_ONCE = 32, 2


def read_headers(recordings: Sequence[Recording], *, marks: str) -> Iterator[AudioHeader | str]:
    """The header of each recording in turn, or the reason why it has none.

    Args:
        recordings: whose headers are read.
        marks: folder for the tasks' marks, and for nothing else. It is removed at the end.

    Raises:
        WorkersLost: Ray could not make up for processes that were lost, or the recordings are out of reach.
        StudyError: no machine has a core, and none came in time.
    """
    if not recordings:
        return
    run = uuid.uuid4().hex
    size = min(_MOST_PER_TASK, max(_FEWEST_PER_TASK, len(recordings) // _TASKS))
    with ray_session():
        wait_for_machines({"CPU": 1}, request="A reader asks for 1 CPU", advice="Add a machine with cores.")
        # A task that ends its process is tried again until `attempts` has found the file.
        read = ray.remote(_read_some).options(max_retries=-1, scheduling_strategy="SPREAD", name="read headers")
        at_once = 2 * max(1, int(cluster_total("CPU")))
        ahead: deque[tuple[str, ray.ObjectRef]] = deque()
        try:
            for number, start in enumerate(range(0, len(recordings), size)):
                mark = storage.join(marks, f"headers-{number:05d}.json")
                part = recordings[start : start + size]
                more = f" or one of the {len(part) - 1:,} recordings after it" if len(part) > 1 else ""
                ahead.append((f"{part[0].uri}{more}", read.remote(part, mark, run)))
                if len(ahead) >= at_once:
                    yield from _headers_of(*ahead.popleft())
            while ahead:
                yield from _headers_of(*ahead.popleft())
        except RayError as error:
            raise WorkersLost(f"The headers of the recordings could not be read: {first_cause(error)}") from error
        finally:
            # After an interrupt, Python may get here when Ray, and all tasks with it, is gone.
            for _, task in ahead if ray.is_initialized() else ():
                ray.cancel(task)
    storage.delete(marks)


def _headers_of(name: str, task: ray.ObjectRef) -> list[AudioHeader | str]:
    if not ray.wait([task], timeout=PATIENCE_S)[0]:
        say_waiting(name)
    headers: list[AudioHeader | str] = ray.get(task)
    return headers


def _read_some(recordings: Sequence[Recording], mark: str, run: str) -> list[AudioHeader | str]:
    at_once = _REMOTE_AT_ONCE if storage.is_remote(recordings[0].uri) else _LOCAL_AT_ONCE

    def together(positions: list[int]) -> dict[int, AudioHeader | str]:
        headers = side_by_side(read_header, [recordings[position] for position in positions], at_once=at_once)
        return dict(zip(positions, headers, strict=True))

    attempted = attempt(
        mark,
        [recording.uri for recording in recordings],
        run=run,
        what="Opening this recording",
        together=together,
        alone=lambda position: read_header(recordings[position]),
    )
    headers = attempted.left_out | (attempted.result or {})
    return [headers[position] for position in range(len(recordings))]


def read_header(recording: Recording) -> AudioHeader | str:
    """The header of one recording, or the reason why it has none.

    Raises:
        StorageError: the folder of the recordings cannot be reached.
    """
    header = read_or_reason(recording.path, recording.uri, lambda: examine_recording(recording.uri))
    if not isinstance(header, str):
        return header
    # A part that cannot be read, such as a bad block of a disk, costs its own clips.
    return read_or_reason(recording.path, recording.uri, lambda: probe_recording(recording.uri))
