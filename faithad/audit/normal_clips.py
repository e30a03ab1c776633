"""The clips of a finished audit that may be taken for normal: quiet ones, and those that a reviewer rejected."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from itertools import chain
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from faithad import parquet, storage
from faithad.audit.outcome import read_scores
from faithad.audit.rejected_clips import rejected_clips
from faithad.errors import StudyError
from faithad.evaluation.intersection import NOISE_S, Span, overlap_s
from faithad.runs import layout
from faithad.runs.stages import is_finished
from faithad.runs.tables import read_manifest
from faithad.settings import FeatureSettings


class AuditedClips(NamedTuple):
    """Clips of an audit, as schemas.MANIFEST.

    Attributes:
        normal: those that did not alarm, nor lie in a change that lasts, and those whose events a reviewer has
            rejected; without those that have a label.
        left_out: the others.
        n_rejected: how many of the normal ones are clips of rejected events.
    """

    normal: pa.Table
    left_out: pa.Table
    n_rejected: int


def read_normal_clips(folder: str, features: FeatureSettings) -> AuditedClips:
    """The clips that an audit has scored.

    Args:
        folder: of the audit.
        features: of the model that the clips are for; the audit's model must have the same.

    Raises:
        StudyError: the audit is not finished, or its model has other features.
    """
    if not is_finished(folder, "score"):
        raise StudyError(f"The audit in {folder} is not finished: run it again, it goes on where it stopped.")
    _require_same_features(folder, json.loads(storage.read_text(storage.join(folder, layout.MODEL))), features)
    manifest, scores = read_manifest(folder), read_scores(folder)
    quiet = scores.filter(pc.invert(pc.fill_null(scores["alarm"], True)))["clip_id"].combine_chunks()
    scored = manifest.filter(pc.is_in(manifest["clip_id"], value_set=scores["clip_id"].combine_chunks()))
    quiet = pc.and_not(pc.is_in(scored["clip_id"], value_set=quiet), _in_states(folder, scored))
    rejected = pc.is_in(scored["clip_id"], value_set=pa.array(rejected_clips(folder), pa.string()))
    unlabelled = pc.not_equal(pc.fill_null(scored["label"], 0), 1)
    is_normal = pc.and_(pc.or_(quiet, rejected), unlabelled)
    n_rejected = pc.sum(pc.and_(rejected, unlabelled)).as_py() or 0
    return AuditedClips(scored.filter(is_normal), scored.filter(pc.invert(is_normal)), n_rejected)


def _in_states(folder: str, clips: pa.Table) -> pa.Array:
    """Which clips lie in a change that lasts."""
    location = storage.join(folder, layout.STATES)
    states = parquet.read_table(location, columns=["parts"])["parts"].to_pylist() if storage.exists(location) else []
    spans: dict[str, list[Span]] = {}
    for part in chain.from_iterable(states):
        spans.setdefault(part["recording"], []).append((part["onset_s"], part["offset_s"]))
    columns = (clips[name].to_pylist() for name in ("recording", "onset_s", "duration_s"))
    return pa.array(
        any(overlap_s((onset_s, onset_s + duration_s), span) > NOISE_S for span in spans.get(recording, ()))
        for recording, onset_s, duration_s in zip(*columns, strict=True)
    )


def _require_same_features(folder: str, card: Mapping[str, Any], features: FeatureSettings) -> None:
    audited_features = asdict(FeatureSettings(**card["features"]))
    differences = [
        f"{name} is {audited_features[name]!r} there and {value!r} here"
        for name, value in asdict(features).items()
        if audited_features[name] != value
    ]
    if differences:
        raise StudyError(
            f"The audit in {folder} was made with a model of other features: {', '.join(differences)}. Audit the "
            "recordings with this model, or give their folder (--normals)."
        )
