"""The events of an audit, and what lasts in it, for other tools: labels to look at and correct, and sound to listen to.

They are made of `events.parquet`, `states.parquet` and `manifest.parquet` in the audit's folder.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import numpy as np
import soundfile

from faithad import parquet, schemas, storage
from faithad.audit.events import EventRow
from faithad.audit.finished import require_finished
from faithad.audit.review import REJECT, read_decisions
from faithad.clips.channels import split_name
from faithad.clips.labels import csv_labels, label_studio
from faithad.clips.labels.files import FORMATS, write_labels
from faithad.clips.labels.label import Label, alarm_text, change_text
from faithad.clips.labels.names import plain_name
from faithad.clips.sound_files import lower_24_bits, open_sound
from faithad.errors import ConfigError, RecordingError, StudyError, shown
from faithad.runs import layout
from faithad.runs.lock import require_nobody_in
from faithad.runs.tables import read_events, read_manifest, read_whole
from faithad.vocabulary import POOLINGS, count

# In these formats all labels lie in one file; in the others each recording has its own.
_ONE_FILE = ("label-studio", "csv")

LONGEST_S = 30.0
_PLACE_COLUMNS = ["clip_id", "recording", "onset_s", "duration_s"]
_BLOCK_FRAMES = 1 << 18
# Below this libsndfile decodes and encodes without any change; other encodings are kept to 24 bits.
_EXACT = ("PCM_U8", "PCM_16", "PCM_24", "PCM_32")
_LARGEST_WAV_BYTES = 2**32 - 2**16


class _Cut(NamedTuple):
    """One review file: a stretch of a recording, in seconds, and the name of the file.

    `of_s` is the length of the event with its margin, if the file holds only a part of it.
    """

    recording: str
    onset_s: float
    offset_s: float
    name: str
    of_s: float | None = None


class _Audited(NamedTuple):
    """Where the last clip of each recording ends, and the strongest moment of each event in each of its recordings.

    The strongest moment is the middle of the worst second of the clip with the highest score, or the clip's middle.
    """

    ends_s: dict[str, float]
    moments_s: dict[tuple[str, str], float]


def export_events(audit: str, to: str, *, format: str) -> str:
    """Write the parts of all events as labels; after a review, without rejected events and with the reviewer's kinds.

    Args:
        audit: folder or URI that `faithad audit --out` wrote to.
        to: folder or URI to write to.
        format: `audacity`, `raven`, `label-studio` or `csv`.

    Returns:
        A line for the user.

    Raises:
        ConfigError: an unknown format.
        StudyError: there is no finished audit, or the folder holds other labels, which may be somebody's work.
    """
    _require_format(format)
    decisions = read_decisions(audit)
    rejected = {event_id for event_id, decision in decisions.items() if decision["verdict"] == REJECT}
    events = [event for event in _read_events(audit) if event["event_id"] not in rejected]
    kinds = {event_id: decision["kind"] for event_id, decision in decisions.items()}
    parts = [(event, part) for event in events for part in event["parts"]]
    labels = [_label(event, part, kinds.get(event["event_id"], "")) for event, part in parts]
    ids = [event["event_id"] for event, _ in parts]
    return _write_all(labels, audit, to, format=format, more=_event_cells(parts), what="event", ids=ids)


def export_changes(audit: str, to: str, *, format: str) -> str:
    """Write what lasts, the table `states`, as labels: one for each recording that a change lies in.

    Its frequency bounds are those of the bands that changed most.

    Args, Returns and Raises: as `export_events`.
    """
    _require_format(format)
    require_finished(audit)
    require_nobody_in(audit)
    location = storage.join(audit, layout.STATES)
    if not storage.exists(location):
        raise StudyError(f"The audit in {audit} was made by a release that did not look for changes: audit again.")
    parts = [(state, part) for state in parquet.read_table(location).to_pylist() for part in state["parts"]]
    labels = [_change_label(state, part) for state, part in parts]
    cells = {
        name: [_changes(state) if name == "changes" else _cell(state[name]) for state, _ in parts]
        for name in csv_labels.CHANGE_COLUMNS
    }
    return _write_all(
        labels, audit, to, format=format, more=cells, what="change", ids=[s["state_id"] for s, _ in parts]
    )


def _require_format(format: str) -> None:
    if format not in FORMATS:
        raise ConfigError(f"--format is {format!r}; allowed: {', '.join(FORMATS)}.")


def _write_all(
    labels: list[Label], audit: str, to: str, *, format: str, more: dict[str, list[str]], what: str, ids: list[str]
) -> str:
    """Write labels in a format; `more`: further columns of a table, `ids`: the event of each label."""
    if format == "csv":
        texts = csv_labels.files(labels, more=more)
    elif format == "label-studio":
        texts = label_studio.files(labels, places=_places(audit))
    else:
        texts = FORMATS[format](labels)
    write_labels(texts, to)
    if not labels:
        return f"There is no {what} in {audit}, so there are no labels: {to}."
    written = next(iter(texts)) if format in _ONE_FILE else count(len(texts), "file")
    recordings = count(len({label.recording for label in labels}), "recording")
    kind = "a CSV table" if format == "csv" else f"labels for {format}"
    return f"{count(len(set(ids)), what)} in {recordings} as {kind}: {written} in {to}."


def export_clips(audit: str, to: str, *, margin_s: float, longest_s: float = LONGEST_S) -> str:
    """Cut a WAV around each event, one per part where an event runs over several recordings.

    The WAV has the recording's sample rate, the channel that was heard (all, where it was their mean), and the
    recording's bits if it is PCM. Recordings that cannot be read are named in the returned line; all others are
    written.

    Args:
        audit: folder or URI that `faithad audit --out` wrote to.
        to: folder or URI to write to.
        margin_s: seconds before and after, as far as the recording goes.
        longest_s: the most seconds of a WAV, margin included. From a longer part they are cut around its strongest
            moment: the worst second of the clip with the highest score. The name of such a file ends in
            `_<these>s_of_<all>s`.

    Returns:
        A line for the user.

    Raises:
        ConfigError: a margin below 0, or a length that is not above 0.
        StudyError: there is no finished audit, or somebody works there.
        RecordingError: there are events, and none of their recordings can be read.
    """
    if not margin_s >= 0:
        raise ConfigError(f"--margin is {margin_s}; it must be 0 s or more.")
    if not longest_s > 0:
        raise ConfigError(f"--longest is {longest_s}; it must be above 0 s, or inf for whole events.")
    events = _read_events(audit)
    if not events:
        return f"There is no event in {audit}, so there is nothing to cut."
    places, channels = _places(audit), _channels(audit)
    failures: dict[str, str] = {}
    n_written = n_parts = 0
    for cut in _cuts(events, _audited(audit, events), margin_s=margin_s, longest_s=longest_s):
        try:
            _write_cut(cut, places.get(cut.recording), channels.get(cut.recording), storage.join_path(to, cut.name))
            n_written += 1
            n_parts += cut.of_s is not None
        except RecordingError as error:
            failures[cut.recording] = str(error)
    reasons_of = "\n".join(f"  {shown(recording)}: {reason}" for recording, reason in failures.items())
    if not n_written:
        raise RecordingError(f"Not one of the recordings with events can be read:\n{reasons_of}")
    line = f"{count(n_written, 'WAV file')} of {count(len(events), 'event')} in {to}."
    if n_parts:
        hold = "1 holds" if n_parts == 1 else f"{n_parts:,} hold"
        line += (
            f" {hold} no more than the {longest_s:g} s around the strongest moment of a longer event: --longest inf "
            "writes whole events."
        )
    left_out = count(len(failures), "recording is", "recordings are")
    return f"{line} {left_out} left out:\n{reasons_of}" if failures else line


def _read_events(audit: str) -> list[EventRow]:
    require_finished(audit)
    require_nobody_in(audit)  # an audit that begins anew removes its tables
    return cast(list[EventRow], read_events(audit).to_pylist())


def _places(audit: str) -> dict[str, str]:
    """Where each recording lies, by name."""
    manifest = read_manifest(audit)
    return dict(zip(manifest["recording"].to_pylist(), manifest["uri"].to_pylist(), strict=True))


def _channels(audit: str) -> dict[str, int | None]:
    """The channel of each recording that was heard, by name; None for all."""
    manifest = read_manifest(audit)
    return dict(zip(manifest["recording"].to_pylist(), manifest["channel"].to_pylist(), strict=True))


def _label(event: EventRow, part: dict[str, Any], kind: str) -> Label:
    words = kind or alarm_text(event["strength"], event["low_hz"], event["high_hz"])
    return Label(part["recording"], part["onset_s"], part["offset_s"], words, event["low_hz"], event["high_hz"])


def _change_label(state: dict[str, Any], part: dict[str, Any]) -> Label:
    low_hz, high_hz, change_db = (state["changes"][0][name] for name in ("low_hz", "high_hz", "change_db"))
    words = change_text(change_db, low_hz, high_hz)
    return Label(part["recording"], part["onset_s"], part["offset_s"], words, low_hz, high_hz)


def _changes(state: dict[str, Any]) -> str:
    """All ranges of bands that changed."""
    return "; ".join(
        f"{bands['low_hz']:.0f}-{bands['high_hz']:.0f} Hz {bands['change_db']:+.1f} dB" for bands in state["changes"]
    )


def _event_cells(parts: list[tuple[EventRow, dict[str, Any]]]) -> dict[str, list[str]]:
    """The columns of a CSV table after those of the label: what is known of the event, one cell per part."""
    seconds = [_seconds(event, part) for event, part in parts]
    return {
        name: seconds if name == "seconds" else [_cell(event[name]) for event, _ in parts]
        for name in csv_labels.EVENT_COLUMNS
    }


def _seconds(event: EventRow, part: dict[str, Any]) -> str:
    """The seconds of one recording that the explanation points at."""
    return "; ".join(
        f"{second['onset_s']:g}-{second['offset_s']:g}"
        for second in event["seconds"]
        if second["recording"] == part["recording"]
    )


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _cuts(events: list[EventRow], audited: _Audited, *, margin_s: float, longest_s: float) -> Iterator[_Cut]:
    """The files of all events: numbered in the order of the table of events and named after the recording."""
    for number, event in enumerate(events, start=1):
        for place, part in enumerate(event["parts"], start=1):
            recording = part["recording"]
            file, channel = split_name(storage.name_of(recording))
            stem = plain_name(file.rpartition(".")[0] or recording) + (f"_channel{channel}" if channel else "")
            several = f"_part{place}" if len(event["parts"]) > 1 else ""
            event_id = plain_name(event["event_id"], longest=8)
            name = f"{number:04d}_{stem}_{part['onset_s']:.0f}s_{event_id}{several}"
            onset_s, offset_s = max(0.0, part["onset_s"] - margin_s), part["offset_s"] + margin_s
            if offset_s - onset_s > longest_s:
                offset_s = min(offset_s, max(part["offset_s"], audited.ends_s[recording]))
            whole_s = offset_s - onset_s
            if whole_s <= longest_s:
                yield _Cut(recording, onset_s, offset_s, f"{name}.wav")
                continue
            middle_s = audited.moments_s[event["event_id"], recording]
            onset_s = min(max(onset_s, middle_s - longest_s / 2), offset_s - longest_s)
            name += f"_{longest_s:g}s_of_{whole_s:.0f}s.wav"
            yield _Cut(recording, onset_s, onset_s + longest_s, name, whole_s)


def _audited(audit: str, events: list[EventRow]) -> _Audited:
    clips = {clip["clip_id"]: clip for clip in read_manifest(audit).select(_PLACE_COLUMNS).to_pylist()}
    scores = read_whole(audit, layout.SCORES, schemas.SCORES).to_pylist()
    score_of = {score["clip_id"]: score for score in scores}
    ends_s: dict[str, float] = {}
    for clip in clips.values():
        ends_s[clip["recording"]] = max(ends_s.get(clip["recording"], 0.0), clip["onset_s"] + clip["duration_s"])
    moments_s: dict[tuple[str, str], float] = {}
    for event in events:
        column = POOLINGS[event["pooling"]].column
        for clip_id in sorted(event["clip_ids"], key=lambda clip_id: score_of[clip_id][column]):  # the highest is last
            clip, worst_s = clips[clip_id], score_of[clip_id]["worst_onset_s"]
            inside_s = clip["duration_s"] / 2 if worst_s is None else worst_s + 0.5
            moments_s[event["event_id"], clip["recording"]] = clip["onset_s"] + inside_s
    return _Audited(ends_s, moments_s)


def _write_cut(cut: _Cut, place: str | None, channel: int | None, target: str) -> None:
    """Copy a stretch of a recording block by block: an event may last for hours.

    Raises:
        RecordingError: the recording is missing or cannot be read.
    """
    if place is None:
        raise RecordingError(f"The manifest does not hold {cut.recording!r}: it belongs to another audit.")
    with tempfile.TemporaryFile() as aside:
        with open_sound(place) as (sound, correction):
            start = round(cut.onset_s * sound.samplerate)
            end = min(sound.frames, round(cut.offset_s * sound.samplerate))
            if start >= end:
                raise RecordingError(f"{place} ends before {cut.onset_s:g} s: the file has changed since the audit.")
            subtype = sound.subtype if sound.subtype in _EXACT else "PCM_24"
            if channel is not None and channel > sound.channels:
                raise RecordingError(f"{place} has no channel {channel} any more: it has changed since the audit.")
            n_channels = sound.channels if channel is None else 1
            # 32 bits hold any sample; a WAV of more than 4 GiB needs the longer header.
            container = "RF64" if (end - start) * n_channels * 4 > _LARGEST_WAV_BYTES else "WAV"
            with soundfile.SoundFile(
                aside, "w", sound.samplerate, n_channels, subtype=subtype, format=container
            ) as review:
                lower_of = place if correction.is_s24_in_32 else None
                n_copied = _copy(sound, review, start, end, channel=channel, lower_of=lower_of)
            if n_copied == 0:
                raise RecordingError(f"{place} is truncated: nothing is there at {cut.onset_s:g} s. Copy it again.")
        aside.seek(0)
        with storage.open_output(target) as file:
            shutil.copyfileobj(aside, file, 1 << 20)


def _copy(
    sound: soundfile.SoundFile,
    review: soundfile.SoundFile,
    start: int,
    end: int,
    *,
    channel: int | None,
    lower_of: str | None,
) -> int:
    """Copy samples start to end of a channel, or of all, as far as they are there, and count them.

    `lower_of`: see `lower_24_bits`.
    """
    exact = sound.subtype in _EXACT
    sound.seek(start)
    n_copied = 0
    while n_copied < end - start:
        wanted = min(_BLOCK_FRAMES, end - start - n_copied)
        block = sound.read(wanted, dtype="int32" if exact else "float64", always_2d=True)
        if not len(block):
            break
        if lower_of is not None:
            block = lower_24_bits(lower_of, block)
        if channel is not None:
            block = block[:, channel - 1]
        review.write(block if exact else np.nan_to_num(block, nan=0.0, posinf=1.0, neginf=-1.0))
        n_copied += len(block)
    return n_copied
