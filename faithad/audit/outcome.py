"""What an audit of recordings came to: its scores, its events, and the last line for the user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from faithad import parquet, schemas, storage
from faithad.audit.events import find_events
from faithad.audit.ledger import count_ledger
from faithad.audit.misfits import Misfit, misfit_words, without_misfits
from faithad.audit.states import find_states
from faithad.config.sections import Events
from faithad.runs import layout
from faithad.runs.tables import read_manifest, read_whole
from faithad.scoring.trained_ensemble import AnyModel
from faithad.vocabulary import count


@dataclass(frozen=True)
class Outcome:
    """What an audit came to. `line` is for a person; `failed` and `skipped` count recordings without clips, too."""

    line: str
    n_done: int
    n_failed: int
    n_skipped: int


def read_scores(folder: str) -> pa.Table:
    """All scores of one audit; none where no clip could be scored."""
    return read_whole(folder, layout.SCORES, schemas.SCORES)


def events_table(
    out: str, trained: AnyModel, events: Events, misfits: Sequence[Misfit] = (), *, trusted: str | None = None
) -> pa.Table:
    """The events of a finished audit, as schemas.EVENTS, from its other tables.

    Args:
        out: the audit's folder.
        trained: the model, with the alarm that was raised.
        events: which alarms become one event, and which explanation says where it is.
        misfits: recordings that do not fit the model, some of which are not searched.
        trusted: see `find_events`.
    """
    assert trained.alarm is not None
    manifest = read_manifest(out)
    scores = without_misfits(read_scores(out), manifest, misfits, but_searched=True)
    alarmed = scores.filter(pc.fill_null(scores["alarm"], False))["clip_id"].combine_chunks()
    of_alarms = pc.field("clip_id").isin(alarmed) & (pc.field("method") == events.method)
    judged = of_alarms & (pc.field("mode") == "frame") & (pc.field("percentile") == events.percentile)
    attributions = schemas.attributions(trained.n_mels, trained.n_frames)
    columns = [name for name in attributions.names if name not in ("map", "map_scale")]  # maps would fill the memory
    return find_events(
        scores,
        manifest,
        alarm=trained.alarm,
        explanations=read_whole(out, "attributions", attributions, columns=columns, condition=of_alarms),
        faithfulness=read_whole(out, "faithfulness", schemas.FAITHFULNESS, condition=judged),
        features=trained.features,
        trusted=trusted,
        **events.model_dump(),
    )


def states_table(out: str, trained: AnyModel, misfits: Sequence[Misfit] = ()) -> pa.Table:
    """The changes that last of a finished audit, as schemas.STATES; arguments as `events_table`."""
    if trained.state is None:
        return schemas.STATES.empty_table()
    manifest = read_manifest(out)
    spectra = read_whole(out, layout.MEDIAN_SPECTRA, schemas.MEDIAN_SPECTRA)
    searched = without_misfits(spectra, manifest, misfits, but_searched=True)
    return find_states(searched, manifest, alarm=trained.state, features=trained.features)


def audit_outcome(out: str) -> Outcome:
    """What the ledger and the events of a finished audit come to."""
    counts = count_ledger(storage.join(out, layout.LEDGER))
    parts = [f"{counts.clips_done:,} of {count(counts.clips, 'clip')} audited"]
    parts += [f"{counts.clips_skipped:,} not searched"] if counts.clips_skipped else []
    parts += [f"{counts.clips_failed:,} failed"] if counts.clips_failed else []
    incomplete = counts.parts_failed - counts.recordings_failed
    parts += [f"{count(counts.recordings_failed, 'recording')} unreadable"] if counts.recordings_failed else []
    parts += [f"{count(incomplete, 'recording')} incomplete"] if incomplete else []
    parts += [f"{count(counts.parts_skipped, 'part')} of the recordings skipped"] if counts.parts_skipped else []
    see = f" (see {storage.join(out, layout.LEDGER)})" if len(parts) > 1 else ""
    see += f". Not heard: {counts.unheard}" if counts.unheard else ""
    ledger = parquet.read_table(storage.join(out, layout.LEDGER))
    misfits = "".join(f" {sentence}" for sentence in misfit_words(ledger))
    events = storage.join(out, layout.EVENTS)
    n_events = parquet.read_table(events, columns=["event_id"]).num_rows
    states = storage.join(out, layout.STATES)
    n_states = parquet.read_table(states, columns=["state_id"]).num_rows if storage.exists(states) else 0
    lasting = f" {count(n_states, 'change that lasts', 'changes that last')}: {states} " if n_states else ""
    return Outcome(
        line=f"{', '.join(parts)}{see}.{misfits} {count(n_events, 'event')}: {events} {lasting} "
        f"Report: {storage.join(out, layout.REPORT)}",
        n_done=counts.clips_done,
        n_failed=counts.clips_failed + counts.parts_failed,
        n_skipped=counts.clips_skipped + counts.parts_skipped,
    )
