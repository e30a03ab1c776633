"""The clips of rejected events: sound that alarmed, and that a reviewer takes for normal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from faithad import storage
from faithad.audit.finished import read_card, require_finished
from faithad.audit.review import REJECT, clip_verdicts, read_decisions
from faithad.clips.manifest import ClipRow
from faithad.errors import ConfigError, RecordingError, StudyError, shown
from faithad.runs import layout
from faithad.runs.tables import read_events, read_manifest
from faithad.vocabulary import listed


class Named(NamedTuple):
    """A recording of a training or a study: its name, its location, and who learns from it."""

    recording: str
    uri: str
    split: str | None


def rejected_clips(audit: str) -> list[str]:
    """The clips of an audit whose events are all rejected; none where nobody has reviewed it."""
    decisions = read_decisions(audit)
    if not decisions:
        return []
    verdicts = clip_verdicts(read_events(audit).select(["event_id", "clip_ids"]).to_pylist(), decisions)
    return [clip_id for clip_id, of_clip in verdicts.items() if of_clip == {REJECT}]


def read_rejected_clips(audits: Sequence[str], *, clip_s: float, besides: Iterable[Named]) -> list[ClipRow]:
    """The clips of rejected events of some audits, as normal training clips.

    A clip that holds another event as well, which was not rejected, is left out; so are clips of recordings that are
    learned from anyway.

    Args:
        audits: folders or URIs that `faithad audit --out` wrote to, and that were reviewed.
        clip_s: length of a clip, which must be that of the audits.
        besides: the recordings of the training itself.

    Raises:
        ConfigError: an audit cut its clips to another length.
        RecordingError: a recording tests the study that learns, or has the name of another one.
        StudyError: there is no finished audit, or nobody has reviewed it.
    """
    known = {recording.uri: recording for recording in besides}
    uri_of = {recording.recording: recording.uri for recording in known.values()}
    rows: dict[str, ClipRow] = {}
    problems: list[str] = []
    for audit in audits:
        for clip in _of_audit(audit, clip_s):
            uri, name = clip["uri"], clip["recording"]
            if uri in known:
                if known[uri].split == "test":
                    problems.append(f"{shown(name)} of {audit} is a test recording: a model must not learn from it")
            elif uri_of.setdefault(name, uri) != uri:
                problems.append(f"{uri_of[name]} and {uri} would both be called {name!r}: rename one of the folders")
            else:
                rows[clip["clip_id"]] = _training_row(clip)
    if problems:
        lines = listed([*dict.fromkeys(problems)], most=3, separator="\n  ")
        raise RecordingError(f"Rejected events cannot be learned from:\n  {lines}")
    return list(rows.values())


def _of_audit(audit: str, clip_s: float) -> list[dict[str, Any]]:
    """Rows of the manifest."""
    require_finished(audit)
    if not storage.exists(storage.join(audit, layout.DECISIONS)):
        raise StudyError(
            f"Nobody has reviewed the audit in {audit}: decide about its events in its report.html, save the "
            f"decisions, and run `faithad review {audit} --decisions FILE`."
        )
    cut_s = read_card(audit).get("features", {}).get("clip_s", clip_s)
    if cut_s != clip_s:
        raise ConfigError(f"The audit in {audit} has clips of {cut_s:g} s, and here they have {clip_s:g} s (clip_s).")
    manifest = read_manifest(audit)
    rejected = pc.is_in(manifest["clip_id"], value_set=pa.array(rejected_clips(audit), pa.string()))
    rows: list[dict[str, Any]] = manifest.filter(rejected).to_pylist()
    return rows


def _training_row(clip: dict[str, Any]) -> ClipRow:
    kept = ("recording", "uri", "onset_s", "duration_s", "machine", "section", "domain", "channel", "utc_offset_s")
    began_at = clip["recorded_at"] and clip["recorded_at"] - timedelta(seconds=clip["onset_s"])
    return ClipRow(**{name: clip[name] for name in kept}, split="train", label=0, recorded_at=began_at)
