"""The log-mel features of the clips of a shard, from their sound or from published spectrograms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from faithad import storage
from faithad.clips.access import read_or_reason, require_reach
from faithad.clips.ledger import LedgerRow, clip_ledger_row
from faithad.clips.recordings import read_clip
from faithad.clips.spectrograms import read_spectrogram
from faithad.features import fill_up, log_mel, median_over_frames, recording_spectrum
from faithad.runs.attempts import attempt
from faithad.runs.fingerprints import UNREADABLE, Fingerprint, Look, change
from faithad.runs.lookahead import in_time, side_by_side
from faithad.settings import FeatureSettings
from faithad.vocabulary import SPECTROGRAM_SUFFIX

STAGE = "features"
# Columns of clips that say what the clip's file was when it was looked at.
_LOOK = pa.schema([("file_bytes", pa.int64()), ("file_fingerprint", pa.string()), ("file_modified_ns", pa.int64())])
# An object store answers late, but many requests at a time.
_REMOTE_AT_ONCE = 8
# A local file that does not answer for this long is given up; the client of a store gives up by itself.
_PATIENCE_S = 60.0
# Spectra of recordings that a process keeps: clips of one recording are in several shards.
_MOST_SPECTRA = 4_096
# The runs and the files that this process has given up: it waits for a file once.
_given_up: set[tuple[str, str]] = set()


def read_log_mel(clip: Mapping[str, Any], settings: FeatureSettings) -> np.ndarray:
    """The log-mel spectrogram (F, T) of one clip of the manifest, from its sound or its published `.pt` file.

    A clip that is shorter than a whole one is filled up with its own frames, see `fill_up`.

    Raises:
        RecordingError: the clip cannot be read or holds values that are not finite.
    """
    return _log_mel(clip, _read_sound(clip, settings), settings)


def _read_sound(clip: Mapping[str, Any], settings: FeatureSettings) -> np.ndarray:
    """The waveform (samples,) of a clip, or the spectrogram (F, T) that its published file holds."""
    if _is_spectrogram(clip):
        return read_spectrogram(clip["uri"], shape=(settings.n_mels, settings.n_frames))
    return read_clip(
        clip["uri"],
        onset_s=clip["onset_s"],
        duration_s=clip["duration_s"],
        clip_s=settings.clip_s,
        sample_rate_hz=settings.sample_rate_hz,
        channel=clip["channel"],
    )


def _log_mel(clip: Mapping[str, Any], sound: np.ndarray, settings: FeatureSettings) -> np.ndarray:
    """The log-mel spectrogram (F, T) of what `_read_sound` gives."""
    if _is_spectrogram(clip):
        return sound
    own = log_mel(torch.from_numpy(sound)[None], settings)[0, :, : settings.frames_in(clip["duration_s"])]
    features: np.ndarray = fill_up(own, settings.n_frames).numpy()
    return features


def _is_spectrogram(clip: Mapping[str, Any]) -> bool:
    return bool(clip["uri"].lower().endswith(SPECTROGRAM_SUFFIX))


def add_log_mels(
    clips: pa.Table, settings: FeatureSettings, *, mark: str, run: str
) -> tuple[pa.Table, list[LedgerRow]]:
    """Read the features of a shard.

    Args:
        clips: rows of the manifest; where they have the columns of `with_looks`, the sound of a file that has changed
            since it was looked at is not used.
        settings: of the features.
        mark: of this shard, because a file may kill the process that reads it, see `attempts`.
        run: see `attempts`.

    Returns:
        The clips that could be read with a column `log_mel` (float32, F·T values each), and one ledger row for each
        clip that could not. It is `skipped` if its file has changed, else `failed`. With the reference "recording" the
        column `reference` holds the spectrum of each clip's recording (float32, F values).

    Raises:
        StorageError: the folder of the recordings cannot be reached.
    """
    rows = clips.to_pylist()
    spectra = _spectra(rows, settings, mark=mark, run=run) if settings.reference == "recording" else []
    lacking = {position: spectrum for position, spectrum in enumerate(spectra) if isinstance(spectrum, str)}
    attempted = attempt(
        mark,
        [row["clip_id"] for row in rows],
        run=run,
        what="Reading this clip",
        together=lambda positions: _read(rows, positions, settings, run),
        alone=lambda position: _read(rows, [position], settings, run),
    )
    log_mels, unread = attempted.result or _read(rows, [], settings, run)
    changed = _changes(rows, run)
    unread |= attempted.left_out
    reasons = lacking | unread | changed
    failed = [
        clip_ledger_row(rows[position], "skipped" if position in changed else "failed", stage=STAGE, reason=reason)
        for position, reason in sorted(reasons.items())
    ]
    if changed or lacking:
        log_mels = log_mels[[position not in reasons for position in range(len(rows)) if position not in unread]]
    left = [position for position in range(len(rows)) if position not in reasons]
    kept = clips.take(pa.array(left, pa.int64()))
    if spectra:
        kept = _with_column(kept, "reference", np.array([spectra[position] for position in left]), settings.n_mels)
    return _with_column(kept, "log_mel", log_mels, settings.n_mels * settings.n_frames), failed


def _with_column(clips: pa.Table, name: str, values: np.ndarray, width: int) -> pa.Table:
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), pa.float32()), width)
    return clips.append_column(pa.field(name, column.type), column)


def log_mels_of(table: pa.Table, settings: FeatureSettings) -> np.ndarray:
    """The column `log_mel` as one array (B, F, T)."""
    column = table.column("log_mel").combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], type=column.type)
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat).reshape(table.num_rows, settings.n_mels, settings.n_frames)


def with_looks(clips: pa.Table, looks: Mapping[str, Look]) -> pa.Table:
    """The clips with columns that say what their files were like when they were looked at; null where nobody looked."""
    recordings = clips["recording"].combine_chunks().dictionary_encode()
    nobody_looked = Look(Fingerprint(None, UNREADABLE), None)
    of_recordings = [looks.get(name, nobody_looked) for name in recordings.dictionary.to_pylist()]
    columns = zip(*((*look.fingerprint, look.modified_ns) for look in of_recordings), strict=True)
    for field, values in zip(_LOOK, columns, strict=False):
        clips = clips.append_column(field, pc.take(pa.array(values, field.type), recordings.indices))
    return clips


def _changes(clips: Sequence[Mapping[str, Any]], run: str) -> dict[int, str]:
    """How the files of some clips have changed since they were looked at, by the clip's position.

    This is asked after they were read, so that nothing can change in between.
    """
    n_bytes, digest, modified_ns = _LOOK.names
    looks = {
        clip["uri"]: Look(Fingerprint(clip[n_bytes], clip[digest]), clip[modified_ns])
        for clip in clips
        if n_bytes in clip and (run, clip["uri"]) not in _given_up
    }
    changed = {uri: reason for uri, look in looks.items() if (reason := change(uri, look)) is not None}
    return {position: changed[clip["uri"]] for position, clip in enumerate(clips) if clip["uri"] in changed}


def _spectra(
    clips: Sequence[Mapping[str, Any]], settings: FeatureSettings, *, mark: str, run: str
) -> list[np.ndarray | str]:
    """Of each clip the spectrum (F,) of its recording, or the reason why it has none."""
    # Of each recording and channel its first clip.
    firsts = {(clip["uri"], clip["channel"]): clip for clip in reversed(clips)}
    recordings = list(firsts.values())

    def read(positions: Sequence[int]) -> dict[int, np.ndarray | str]:
        chosen = [recordings[position] for position in positions]
        spectra = _answers(lambda clip: _spectrum(run, clip["uri"], clip["channel"], settings), chosen, run)
        return dict(zip(positions, spectra, strict=True))

    attempted = attempt(
        f"{mark.removesuffix('.json')}-recordings.json",
        [f"{uri} {channel}" for uri, channel in firsts],
        run=run,
        what="Reading this recording for its spectrum",
        together=read,
        alone=lambda position: read([position]),
    )
    known = attempted.left_out | (attempted.result or {})
    of_recordings = {key: known[position] for position, key in enumerate(firsts)}
    return [of_recordings[clip["uri"], clip["channel"]] for clip in clips]


@lru_cache(maxsize=_MOST_SPECTRA)
def _spectrum(run: str, uri: str, channel: int | None, settings: FeatureSettings) -> np.ndarray:
    """The spectrum (F,) of a recording, or of the clip that a published spectrogram is. Another run reads it again."""
    if uri.lower().endswith(SPECTROGRAM_SUFFIX):
        log_mel = read_spectrogram(uri, shape=(settings.n_mels, settings.n_frames))
        return np.asarray(median_over_frames(torch.from_numpy(log_mel))[:, 0])
    return recording_spectrum(uri, channel=channel, settings=settings).numpy()


def _read(
    clips: Sequence[Mapping[str, Any]], positions: Sequence[int], settings: FeatureSettings, run: str
) -> tuple[np.ndarray, dict[int, str]]:
    """The features (n, F, T) of those clips at `positions` that can be read, and for each other the reason."""
    chosen = [clips[position] for position in positions]
    log_mels = np.empty((len(chosen), settings.n_mels, settings.n_frames), dtype=np.float32)

    results: Iterable[np.ndarray | str]
    if _are_remote(chosen):
        results = _answers(lambda clip: read_log_mel(clip, settings), chosen, run)
    else:
        # Only what may block is left to a thread, whose freed memory the system takes back (see `keep_freed_memory`).
        sounds = _answers(lambda clip: _read_sound(clip, settings), chosen, run)
        results = (_finished(clip, sound, settings) for clip, sound in zip(chosen, sounds, strict=True))
    unread: dict[int, str] = {}
    n_read = 0
    for position, result in zip(positions, results, strict=True):
        if isinstance(result, str):
            unread[position] = result
        else:
            log_mels[n_read] = result
            n_read += 1
    return log_mels[:n_read], unread


def _are_remote(clips: Sequence[Mapping[str, Any]]) -> bool:
    return any(storage.is_remote(clip["uri"]) for clip in clips)


def _answers(
    read: Callable[[Mapping[str, Any]], np.ndarray], clips: Sequence[Mapping[str, Any]], run: str
) -> Iterator[np.ndarray | str]:
    """What `read` makes of the file of each clip, or the reason why it cannot be read or has not answered in time.

    Raises:
        StorageError: a file has not answered, and its folder cannot be reached either.
    """

    def answer(clip: Mapping[str, Any]) -> np.ndarray | str:
        if (run, clip["uri"]) in _given_up:
            return _no_answer(clip["uri"])
        return read_or_reason(clip["recording"], clip["uri"], lambda: read(clip))

    if _are_remote(clips):
        yield from side_by_side(answer, clips, at_once=_REMOTE_AT_ONCE)
        return
    for clip, result in zip(clips, in_time(answer, clips, limit_s=_PATIENCE_S), strict=True):
        if result is None:
            require_reach(clip["recording"], clip["uri"])
            _given_up.add((run, clip["uri"]))
        yield _no_answer(clip["uri"]) if result is None else result


def _finished(clip: Mapping[str, Any], sound: np.ndarray | str, settings: FeatureSettings) -> np.ndarray | str:
    """The features of a clip whose file was read, or the reason why there are none."""
    if isinstance(sound, str):
        return sound
    return read_or_reason(clip["recording"], clip["uri"], lambda: _log_mel(clip, sound, settings))


def _no_answer(uri: str) -> str:
    return f"{uri} has not answered for {_PATIENCE_S:.0f} s: is its disk or network drive still there?"
