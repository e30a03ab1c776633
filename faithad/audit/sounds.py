"""The sound of each event, for the report: its strongest seconds as Ogg Opus, and their spectrogram; and that of clips.

A row holds one stretch of one recording: the event and 2 s around it, or, where that is longer than 30 s, the 30 s
around its strongest moment. Nothing is read that was not heard: a stretch ends where the scored clips around it end.

Opus at 24 kHz and 16 kbit/s makes 2 kB of a second. The spectrogram is that of the recording, not of the Opus file. The
strongest events also have the sound that the model expects there, see `expected_sounds`.

Shape letters: F mel bands, T columns.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from functools import cache, partial
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import soundfile
import torch

from faithad.audit.events import EventRow
from faithad.audit.expected_sounds import expected_sound, reconstructing
from faithad.audit.ranking import strongest_first
from faithad.clips.recordings import read_clip
from faithad.errors import RecordingError
from faithad.evaluation.arrays import list_arrays
from faithad.evaluation.intersection import Span, merge_spans, overlap_s
from faithad.features import log_mel, recording_spectrum
from faithad.runs.lookahead import side_by_side
from faithad.schemas import CLIP_SOUNDS, SOUNDS
from faithad.scoring.trained_ensemble import AnyModel
from faithad.settings import FeatureSettings
from faithad.threads import single_threaded
from faithad.vocabulary import AUDIO_SUFFIXES, POOLINGS

MOST_SOUNDS, LONGEST_S, MARGIN_S = 200, 30.0, 2.0
MOST_EXPECTED = 20
RATE_HZ = 24_000
# libsndfile gives Opus 256 kbit/s at level 0 and 6 kbit/s at level 1.
_LEVEL_OF_16_KBITS = (256 - 16) / (256 - 6)
# Field recordings are often quiet: the loudest sample is brought to -1 dB of full scale, by no more than 40 dB.
_LOUDEST, _MOST_GAIN = 10 ** (-1 / 20), 10 ** (40 / 20)
_MOST_COLUMNS = 600
_AT_ONCE = 4
_PICTURES = ["log_mel", "expected_log_mel"]
_NOT_EXPECTED: dict[str, Any] = {"expected": None, "expected_log_mel": None}
_BYTES_PER_S = 2_000  # of Opus

_Clip = Mapping[str, Any]  # of schemas.MANIFEST


class _SoundStretch(NamedTuple):
    """Seconds of a recording; `clip` is the strongest one of its event."""

    event_id: str
    recording: str
    clip: _Clip
    onset_s: float
    duration_s: float

    def touches(self, clip: _Clip) -> bool:
        span = clip["onset_s"], clip["onset_s"] + clip["duration_s"]
        own = self.onset_s, self.onset_s + self.duration_s
        return clip["recording"] == self.recording and overlap_s(own, span) > 0


def event_sounds(
    events: pa.Table, manifest: pa.Table, scores: pa.Table, trained: AnyModel, former: pa.Table | None = None
) -> pa.Table:
    """The sounds of the strongest events, as schemas.SOUNDS in the order of their strength.

    A recording that cannot be read any more leaves a row with the reason in place of the sound.

    Args:
        events: schemas.EVENTS.
        manifest: schemas.MANIFEST; says where the recordings are, and which channel is heard.
        scores: schemas.SCORES; clips without a score are not read.
        trained: the model.
        former: what this function returned earlier, with other recordings in the audit; its sounds are not made again.
    """
    rows = events.to_pylist()
    strongest = [rows[place] for place in strongest_first(rows)[:MOST_SOUNDS]]
    scored = manifest.filter(pc.is_in(manifest["clip_id"], value_set=scores["clip_id"].combine_chunks()))
    clips = {clip["clip_id"]: clip for clip in scored.to_pylist()}
    score_of = {score["clip_id"]: score for score in scores.to_pylist()}
    heard: dict[str, list[Span]] = {}
    for clip in clips.values():
        span = (clip["onset_s"], clip["onset_s"] + clip["duration_s"])
        heard.setdefault(clip["recording"], []).append(span)
    heard = {recording: merge_spans(spans) for recording, spans in heard.items()}
    stretches = [_strongest_stretch(event, clips, score_of, heard) for event in strongest]
    known = {_key(row): row for row in ([] if former is None else _rows(former)) if row["opus"] is not None}
    new = [stretch for stretch in stretches if _key(stretch._asdict()) not in known]
    # The last digits do not depend on the machine's cores: threads that start here compute with one thread, too.
    with single_threaded():
        cut = side_by_side(
            lambda stretch: _sound(stretch, trained.features), new, at_once=_AT_ONCE, named=lambda cut: cut.clip["uri"]
        )
        known |= {_key(row): row for row in cut}
    sounds = [known[_key(stretch._asdict())] for stretch in stretches]
    expected = _expected(strongest[:MOST_EXPECTED], stretches, sounds, clips, trained)
    rows = [row | columns for row, columns in zip_longest(sounds, expected, fillvalue=_NOT_EXPECTED)]
    return pa.Table.from_pylist(rows, schema=SOUNDS)


def sounds_bytes(n_events: int, features: FeatureSettings) -> int:
    """About how many bytes the table holds for this many events, each with a clip of sound around it."""
    duration_s = min(LONGEST_S, features.clip_s + 2 * MARGIN_S)
    n_sounds = min(n_events, MOST_SOUNDS)
    n_columns = min(_MOST_COLUMNS, round(duration_s * features.frames_per_s))
    n_opus = n_sounds + min(n_events, MOST_EXPECTED)
    return n_opus * (round(duration_s * _BYTES_PER_S) + n_columns * features.n_mels * 2)


def _rows(sounds: pa.Table) -> list[dict[str, Any]]:
    """The rows of a table of sounds, with its spectrograms as arrays."""
    pictures = {name: list_arrays(sounds[name]) for name in _PICTURES}
    return [
        row
        | {name: levels[place].astype(np.float16) if levels[place].ndim else None for name, levels in pictures.items()}
        for place, row in enumerate(sounds.drop_columns(_PICTURES).to_pylist())
    ]


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a sound depends on, of a row of schemas.SOUNDS or a stretch."""
    return row["event_id"], row["recording"], row["onset_s"], row["duration_s"]


def _expected(
    events: Sequence[EventRow],
    stretches: Sequence[_SoundStretch],
    sounds: Sequence[Mapping[str, Any]],
    clips: Mapping[str, _Clip],
    trained: AnyModel,
) -> list[dict[str, Any]]:
    """The columns of what the model expects at each of some events, which are the first of `stretches` and `sounds`."""
    from torchaudio.functional import resample  # takes a second to import

    models = reconstructing(trained) if events else {}
    # Several events lie in one recording, which may be in an object store.
    spectrum = cache(partial(recording_spectrum, settings=trained.features))
    made: list[dict[str, Any]] = []
    for event, stretch, sound in zip(events, stretches, sounds, strict=False):
        columns = {name: sound.get(name) for name in _NOT_EXPECTED}
        if columns["expected"] is None and sound["opus"] is not None and event["raised_by"] in models:
            around = [clip for clip in clips.values() if stretch.touches(clip)]
            # As above. A recording that was just read may be gone.
            with single_threaded(), contextlib.suppress(RecordingError):
                needs_spectrum = trained.features.reference == "recording"
                uri, channel = stretch.clip["uri"], stretch.clip["channel"]
                samples, levels = expected_sound(
                    models[event["raised_by"]],
                    [*around, stretch.clip],
                    onset_s=stretch.onset_s,
                    duration_s=stretch.duration_s,
                    reference=spectrum(uri, channel=channel) if needs_spectrum else None,
                )
                resampled = resample(torch.from_numpy(samples), trained.features.sample_rate_hz, RATE_HZ).numpy()
                # As much louder as the recording is played, so that both compare.
                louder = np.clip(resampled * np.float32(10 ** (sound["gain_db"] / 20)), -1, 1)
                columns = {"expected": _opus(louder), "expected_log_mel": _picture(levels).ravel()}
        made.append(columns)
    return made


def clip_sounds(clips: Sequence[_Clip]) -> pa.Table:
    """The sound of whole clips, as schemas.CLIP_SOUNDS in their order; none of clips that were spectrograms.

    Args:
        clips: rows of schemas.MANIFEST.
    """
    audible = [clip for clip in clips if clip["uri"].lower().endswith(AUDIO_SUFFIXES)]
    with single_threaded():
        sounds = list(side_by_side(_clip_sound, audible, at_once=_AT_ONCE, named=lambda clip: str(clip["uri"])))
    return pa.Table.from_pylist(sounds, schema=CLIP_SOUNDS)


def _clip_sound(clip: _Clip) -> dict[str, Any]:
    try:
        samples = _read(clip, clip["onset_s"], clip["duration_s"], RATE_HZ)
    except RecordingError as error:
        return {"clip_id": clip["clip_id"], "reason": str(error)}
    return {"clip_id": clip["clip_id"], **_loud(samples)}


def _strongest_stretch(
    event: EventRow, clips: Mapping[str, _Clip], score_of: Mapping[str, _Clip], heard: Mapping[str, Sequence[Span]]
) -> _SoundStretch:
    column = POOLINGS[event["pooling"]].column
    clip = clips[max(event["clip_ids"], key=lambda clip_id: score_of[clip_id][column])]
    worst_s = score_of[clip["clip_id"]]["worst_onset_s"]
    moment_s = clip["onset_s"] + (clip["duration_s"] / 2 if worst_s is None else worst_s + 0.5)
    part = next(part for part in event["parts"] if part["recording"] == clip["recording"])
    moment_s = min(max(moment_s, part["onset_s"]), part["offset_s"])
    first_s, last_s = next(span for span in heard[clip["recording"]] if span[0] <= clip["onset_s"] < span[1])
    onset_s, offset_s = max(first_s, part["onset_s"] - MARGIN_S), min(last_s, part["offset_s"] + MARGIN_S)
    if offset_s - onset_s > LONGEST_S:
        onset_s = min(max(onset_s, moment_s - LONGEST_S / 2), offset_s - LONGEST_S)
        offset_s = onset_s + LONGEST_S
    return _SoundStretch(event["event_id"], clip["recording"], clip, onset_s, offset_s - onset_s)


def _sound(stretch: _SoundStretch, features: FeatureSettings) -> dict[str, Any]:
    """A row of schemas.SOUNDS."""
    clip, duration_s = stretch.clip, stretch.duration_s
    row = {"event_id": stretch.event_id, "recording": stretch.recording, "onset_s": stretch.onset_s}
    row |= {"duration_s": duration_s, "opus": None}
    try:
        samples = _read(clip, stretch.onset_s, duration_s, RATE_HZ)
        waveform = _read(clip, stretch.onset_s, duration_s, features.sample_rate_hz)
    except RecordingError as error:
        return row | {"reason": str(error)}
    picture = _picture(log_mel(torch.from_numpy(waveform)[None], features)[0].numpy())
    return row | _loud(samples) | {"n_mels": len(picture), "log_mel": picture.ravel()}


def _read(clip: _Clip, onset_s: float, duration_s: float, rate_hz: int) -> npt.NDArray[np.float32]:
    return read_clip(
        clip["uri"],
        onset_s=onset_s,
        duration_s=duration_s,
        clip_s=max(LONGEST_S, duration_s),
        sample_rate_hz=rate_hz,
        channel=clip["channel"],
    )


def _loud(samples: npt.NDArray[np.float32]) -> dict[str, Any]:
    """The columns `gain_db` and `opus`."""
    loudest = float(np.abs(samples).max(initial=0.0))
    gain = min(_LOUDEST / loudest, _MOST_GAIN) if loudest else 1.0
    return {"gain_db": 20 * float(np.log10(gain)), "opus": _opus(samples * np.float32(gain))}


def _opus(samples: npt.NDArray[np.float32]) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, RATE_HZ, format="OGG", subtype="OPUS", compression_level=_LEVEL_OF_16_KBITS)
    return _with_serial_0(out.getvalue())


def _with_serial_0(ogg: bytes) -> bytes:
    """The same file for the same sound: libsndfile draws the serial number that each page of a file bears.

    A page has its serial number at byte 14, its checksum at 22 and the lengths of its segments from 27 on (RFC 3533).
    """
    pages, start = bytearray(ogg), 0
    while start < len(pages):
        first = start + 27 + pages[start + 26]
        end = first + sum(pages[start + 27 : first])
        pages[start + 14 : start + 18] = pages[start + 22 : start + 26] = bytes(4)
        checksum = 0
        for byte in pages[start:end]:
            checksum = (checksum << 8 & 0xFFFFFFFF) ^ _CRC[checksum >> 24 ^ byte]
        pages[start + 22 : start + 26] = checksum.to_bytes(4, "little")
        start = end
    return bytes(pages)


def _crc_of_byte(byte: int) -> int:
    value = byte << 24
    for _ in range(8):
        value = value << 1 ^ (0x04C11DB7 if value >> 31 else 0)
        value &= 0xFFFFFFFF
    return value


_CRC = [_crc_of_byte(byte) for byte in range(256)]


def _picture(frames: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """A log-mel spectrogram (F, T); of a long stretch, neighbouring frames are averaged."""
    parts = np.array_split(frames, min(_MOST_COLUMNS, frames.shape[1]), axis=1)
    return np.stack([part.mean(axis=1) for part in parts], axis=1).astype(np.float16)
