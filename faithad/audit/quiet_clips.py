"""The clips of a finished audit that did not alarm, nor lie in a change that lasts: they may be taken for normal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from itertools import chain
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from faithad import storage
from faithad.audit.outcome import read_scores
from faithad.errors import StudyError
from faithad.evaluation.intersection import NOISE_S, Span, overlap_s
from faithad.runs import layout
from faithad.runs.stages import is_finished
from faithad.runs.tables import read_manifest
from faithad.settings import FeatureSettings


class AuditedClips(NamedTuple):
    """Clips of an audit, as schemas.MANIFEST: those that did not alarm, and those that did or have a label."""

    quiet: pa.Table
    left_out: pa.Table


def is_audit(folder: str) -> bool:
    """Whether a folder holds the results of an audit of recordings."""
    return storage.exists(storage.join(folder, layout.AUDIT))


def read_quiet_clips(folder: str, features: FeatureSettings) -> AuditedClips:
    """The clips that an audit has scored.

    Args:
        folder: of the audit.
        features: that the clips are for; those of the audit's model must be the same.

    Raises:
        StudyError: the audit is not finished, or its model has other features.
    """
    if not is_finished(folder, "score"):
        raise StudyError(f"The audit in {folder} is not finished: run it again, it goes on where it stopped.")
    _require_same_features(folder, json.loads(storage.read_text(storage.join(folder, layout.MODEL))), features)
    manifest, scores = read_manifest(folder), read_scores(folder)
    quiet = scores.filter(pc.invert(pc.fill_null(scores["alarm"], True)))["clip_id"].combine_chunks()
    scored = manifest.filter(pc.is_in(manifest["clip_id"], value_set=scores["clip_id"].combine_chunks()))
    is_quiet = pc.and_(pc.is_in(scored["clip_id"], value_set=quiet), pc.not_equal(pc.fill_null(scored["label"], 0), 1))
    is_quiet = pc.and_not(is_quiet, _in_states(folder, scored))
    return AuditedClips(scored.filter(is_quiet), scored.filter(pc.invert(is_quiet)))


def _in_states(folder: str, clips: pa.Table) -> pa.Array:
    """Which clips lie in a change that lasts."""
    location = storage.join(folder, layout.STATES)
    states = storage.read_table(location, columns=["parts"])["parts"].to_pylist() if storage.exists(location) else []
    spans: dict[str, list[Span]] = {}
    for part in chain.from_iterable(states):
        spans.setdefault(part["recording"], []).append((part["onset_s"], part["offset_s"]))
    columns = (clips[name].to_pylist() for name in ("recording", "onset_s", "duration_s"))
    return pa.array(
        any(overlap_s((onset_s, onset_s + duration_s), span) > NOISE_S for span in spans.get(recording, ()))
        for recording, onset_s, duration_s in zip(*columns, strict=True)
    )


def _require_same_features(folder: str, card: Mapping[str, Any], features: FeatureSettings) -> None:
    differences = [
        f"{name} is {card['features'].get(name)!r} there and {value!r} here"
        for name, value in asdict(features).items()
        if card["features"].get(name) != value
    ]
    if differences:
        raise StudyError(
            f"The audit in {folder} was made with a model of other features: {', '.join(differences)}. Audit the "
            "recordings with this model, or give their folder (--normals)."
        )
