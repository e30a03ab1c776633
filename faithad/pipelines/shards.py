"""The unit in which clips travel through Ray Data: a shard, some clips of the manifest in one row.

The row holds them as a small Arrow table, so a stage sees whole shards whatever Ray's blocks are, each shard can be
written to one file of a fixed name, and a manifest that arrives as one block still feeds all workers.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import torch
from ray.data.exceptions import ExecutionTimeoutError, SystemException
from ray.exceptions import RayError

from faithad import schemas
from faithad.clips.recordings import read_clip
from faithad.clips.spectrograms import SPECTROGRAM_SUFFIX, read_spectrogram
from faithad.errors import RecordingError, StudyError
from faithad.features import FeatureSettings, log_mel
from faithad.progress import progress

Row = dict[str, Any]


def shards(manifest: pa.Table, *, clips_per_shard: int) -> list[pa.Table]:
    """Cut a manifest in slices of at most `clips_per_shard` clips, in its order."""
    return [manifest.slice(start, clips_per_shard) for start in range(0, manifest.num_rows, clips_per_shard)]


def shard_name(number: int) -> str:
    """The file name of a shard, the same in every table and at every run."""
    return f"part-{number:05d}.parquet"


def dataset(rows: Sequence[Row]) -> ray.data.Dataset:
    """A Ray data set with one block for each row, quiet and with a bound on silent waiting."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = 600
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray.data.from_arrow([pa.Table.from_pylist([row]) for row in rows])


def consume(results: ray.data.Dataset, *, title: str, n_clips: int) -> None:
    """Run a chain whose rows say `n_done` and `n_failed`, one row a shard, and show how it goes.

    Raises:
        StudyError: a shard could not be processed; the text is the cause's own.
    """
    done = failed = 0
    with progress(title, n_clips) as ticker:
        try:
            for row in results.iter_rows():
                done, failed = done + row["n_done"], failed + row["n_failed"]
                ticker.update(done + failed, f"{failed} failed" if failed else "")
        except (RayError, ExecutionTimeoutError, SystemException) as error:
            raise StudyError(f"The stage {title!r} stopped: {_first_cause(error)}") from error


# The line of a traceback that names an exception. Ray carries the traceback of a worker as text only.
_EXCEPTION = re.compile(r"^([\w.]+(?:Error|Exception|Interrupt)(?:: .*)?)$", re.MULTILINE)


def _first_cause(error: BaseException) -> str:
    """What went wrong first, out of the errors that Ray wraps around it: a chained traceback begins with it."""
    found = _EXCEPTION.search(str(error))
    return found.group(1).removeprefix("faithad.errors.") if found else f"{type(error).__name__}: {error}"


def to_bytes(table: pa.Table) -> bytes:
    """An Arrow table as one value of a row."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def from_bytes(payload: bytes) -> pa.Table:
    with pa.ipc.open_stream(payload) as reader:
        return reader.read_all()


def read_log_mel(clip: Mapping[str, Any], settings: FeatureSettings) -> np.ndarray:
    """The log-mel spectrogram (F, T) of one clip of the manifest, from its sound or its published `.pt` file.

    Raises:
        RecordingError: the clip cannot be read or holds values that are not finite.
    """
    if clip["uri"].lower().endswith(SPECTROGRAM_SUFFIX):
        return read_spectrogram(clip["uri"], shape=(settings.n_mels, settings.n_frames))
    samples = read_clip(
        clip["uri"],
        onset_s=clip["onset_s"],
        duration_s=clip["duration_s"],
        clip_s=settings.clip_s,
        sample_rate_hz=settings.sample_rate_hz,
    )
    features: np.ndarray = log_mel(torch.from_numpy(samples)[None], settings)[0].numpy()
    return features


def add_log_mels(clips: pa.Table, settings: FeatureSettings) -> tuple[pa.Table, list[Row]]:
    """Read the features of a shard.

    Returns:
        The clips that could be read with a column `log_mel` (float32, F·T values each), and one ledger row for each
        clip that could not.
    """
    features: list[np.ndarray] = []
    readable: list[int] = []
    failed: list[Row] = []
    for position, clip in enumerate(clips.to_pylist()):
        try:
            features.append(read_log_mel(clip, settings).reshape(-1))
            readable.append(position)
        except RecordingError as error:
            failed.append(ledger_row(clip, status="failed", stage="features", reason=str(error)))
    cells = settings.n_mels * settings.n_frames
    flat = np.concatenate(features) if features else np.zeros(0, dtype=np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(flat, type=pa.float32()), cells)
    kept = clips.take(pa.array(readable, type=pa.int64()))
    return kept.append_column(pa.field("log_mel", pa.list_(pa.float32(), cells)), column), failed


def log_mels_of(table: pa.Table, settings: FeatureSettings) -> np.ndarray:
    """The column `log_mel` as one array (B, F, T)."""
    column = table.column("log_mel").combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], type=column.type)
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat).reshape(table.num_rows, settings.n_mels, settings.n_frames)


def ledger_row(clip: Mapping[str, Any], *, status: str, stage: str, reason: str | None = None) -> Row:
    """What the ledger says of one clip."""
    keys = ("clip_id", "recording", "onset_s", "duration_s")
    return {**{key: clip[key] for key in keys}, "status": status, "stage": stage, "reason": reason}


def ledger_table(rows: Sequence[Row]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=schemas.LEDGER)
