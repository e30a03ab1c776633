"""What lasts in an audit: changes of a recorder's sound, since when, until when, and in which mel bands by how many dB.

They are found after all shards are done, from the median spectra of the clips (`audit.minutes`, `scoring.state`), and
have neither a score nor an explanation of a model: the bands that changed are the reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from faithad.audit.minutes import Minutes, recorder_minutes
from faithad.evaluation.mel_bands import mel_band_edges_hz
from faithad.model.state_alarm import StateAlarm
from faithad.schemas import STATES
from faithad.scoring.state import Compared, StateChange, changed_bands, follow
from faithad.settings import FeatureSettings

StateRow = dict[str, Any]  # of schemas.STATES


def find_states(spectra: pa.Table, manifest: pa.Table, *, alarm: StateAlarm, features: FeatureSettings) -> pa.Table:
    """The changes of each recorder's sound; the changes of one recorder do not depend on the clips of others.

    Args:
        spectra: schemas.MEDIAN_SPECTRA of the clips that are searched, of one model; rows in any order.
        manifest: schemas.MANIFEST with all clips.
        alarm: of the model.
        features: of the model.

    Returns:
        schemas.STATES by the clock (in UTC where the offset is known), recording and onset; those without a clock last.
    """
    rows: list[tuple[Any, StateRow]] = []
    for minutes in recorder_minutes(manifest, spectra, clip_s=features.clip_s):
        compared, changes = follow(minutes.spectra, alarm)
        rows += [_row(minutes, compared, change, features) for change in changes]
    keys = {name: spectra[name][0].as_py() for name in ("model", "seed")} if rows else {}
    rows.sort(key=lambda row: (row[0], row[1]["recording"], row[1]["onset_s"]))
    named = [keys | row | {"state_id": _state_id(keys, row)} for _, row in rows]
    return pa.Table.from_pylist(named, schema=STATES)


def _row(
    minutes: Minutes, compared: list[Compared], change: StateChange, features: FeatureSettings
) -> tuple[pd.Timestamp, StateRow]:
    """A row without its name, after the clock by which it is sorted."""
    clips = minutes.clips.iloc[minutes.spans[change.alarmed[0], 0] : minutes.spans[change.alarmed[-1], 1]]
    first, last = clips.iloc[0], clips.iloc[-1]
    is_over, strongest = change.outcome == "over", max((compared[k] for k in change.alarmed), key=lambda c: c.strength)
    row = {
        "recorder": _known(first["recorder"]),
        "recording": first["recording"],
        "onset_s": first["onset_s"],
        "duration_s": _lasts_s(first, last),
        "started_at": _known(first["recorded_at"]),
        "ended_at": _known(last["recorded_at"] + pd.to_timedelta(last["duration_s"], unit="s")) if is_over else None,
        "utc_offset_s": _known(first["utc_offset_s"]),
        "outcome": change.outcome,
        "parts": list(_parts(clips)),
        "n_minutes": len(change.alarmed),
        "reference": "past" if strongest.with_past else "normals",
        "distance_db": strongest.distance_db,
        "threshold_db": strongest.threshold.threshold_db,
        "strength": strongest.strength,
        "changes": _changes([compared[k] for k in change.alarmed], features),
    }
    return (pd.Timestamp.max if pd.isna(first["clock"]) else first["clock"]), row


def _lasts_s(first: pd.Series, last: pd.Series) -> float:
    if first["axis"] == last["axis"]:
        return float(round(last["at_s"] + last["duration_s"] - first["at_s"], 6))
    return float((last["clock"] - first["clock"]).total_seconds() + last["duration_s"])


def _known(value: Any) -> Any:
    return None if pd.isna(value) else value


def _parts(clips: pd.DataFrame) -> Iterator[StateRow]:
    """One part per recording, in the order of time."""
    for recording, own in clips.groupby("recording", sort=False):
        offset_s = (own["onset_s"] + own["duration_s"]).max()
        yield {"recording": recording, "onset_s": own["onset_s"].min(), "offset_s": round(float(offset_s), 6)}


def _changes(alarmed: list[Compared], features: FeatureSettings) -> list[StateRow]:
    lower_hz, upper_hz = mel_band_edges_hz(features.n_mels, features.sample_rate_hz)
    mean = np.mean([minute.difference_db for minute in alarmed], axis=0)
    return [
        {
            "mel_band_low": bands.low,
            "mel_band_high": bands.high,
            "low_hz": float(lower_hz[bands.low]),
            "high_hz": float(upper_hz[bands.high]),
            "change_db": bands.change_db,
        }
        for bands in changed_bands(mean)
    ]


def _state_id(keys: StateRow, row: StateRow) -> str:
    """16 hex digits: a change that begins at the same place, by the same model, is the same one."""
    text = "\n".join([keys["model"], str(keys["seed"]), row["recording"], f"{row['onset_s']:.6f}"])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
