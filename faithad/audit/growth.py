"""An audit of a folder that grows: which recordings belong to it, and which leave it because they changed.

Recordings come while others are audited, and recorders write while somebody reads. A recording belongs to an audit as
soon as `inputs.parquet` names it (see `inputs`). A recording whose file changes while it is read leaves the audit
again, with all its clips, and the next run takes it as it is then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from faithad import parquet, storage
from faithad.audit.inputs import Inputs, inputs_table, is_indexed, of_files, read_inputs, write_index
from faithad.audit.steps import SCORE, Step
from faithad.clips import audio_headers
from faithad.clips.channels import split_name
from faithad.clips.ledger import LedgerRow, ledger_row, ledger_table
from faithad.errors import DamagedError
from faithad.runs import layout
from faithad.runs.fingerprints import Fingerprint, Look, is_recent
from faithad.runs.marks import read_mark
from faithad.runs.stages import FILE_KEY, LABELS_KEY
from faithad.runs.tables import read_manifest, shard_files


def is_recording(key: str) -> bool:
    """Whether a setting in the mark of an audit's score step is the fingerprint of a recording."""
    return key.startswith(FILE_KEY) and not key.startswith(LABELS_KEY)


def audited_recordings(out: str) -> Inputs:
    """The recordings that belong to an audit; where its index is damaged, those that the mark of its scores names."""
    if is_indexed(out):
        return read_inputs(out)
    if not shard_files(storage.join(out, SCORE.ledger)):
        return Inputs()
    marks = [read_mark(storage.join(out, layout.STAGES, name)) for name in ("score.json", "score.begun.json")]
    settings = next(filter(None, marks), {})
    files = {key.removeprefix(FILE_KEY): digest for key, digest in settings.items() if is_recording(key)}
    return Inputs({name: Fingerprint(None, digest) for name, digest in files.items()})


def with_clips(out: str, known: Inputs) -> set[str]:
    """The recordings that have clips in an audit: nothing would be lost of the others."""
    if not is_indexed(out):
        return set(known.files)
    return {split_name(name)[0] for name in read_manifest(out)["recording"].unique().to_pylist()}


def is_still_written(uri: str, look: Look, *, within_s: float, only_settled: bool) -> bool:
    """Whether a recording is taken for one that a recorder has not finished.

    Args:
        uri: where it lies.
        look: what the file is now.
        within_s: a file that was not modified in this many last seconds is finished.
        only_settled: whether a recent change alone is enough; if not, the header must also lack a length.
    """
    if not is_recent(look, within_s=within_s):
        return False
    if only_settled:
        return True
    try:
        with storage.open_input(uri) as file:
            return audio_headers.is_open(file, int(file.size()))
    except OSError:
        return False


def withdraw_changed(out: str, step: Step) -> dict[str, str]:
    """Take recordings out of an audit whose files changed while they were read; their shards must be made again.

    Args:
        out: the audit's folder.
        step: the pass that read them.

    Returns:
        Their names, and what became of them.
    """
    if not is_indexed(out):
        return {}
    inputs, manifest = read_inputs(out), read_manifest(out)
    changed = {name: reason for name, reason in _skipped(out, step, manifest) if name in inputs.files}
    if changed:
        write_index(out, layout.INPUTS, inputs_table(inputs.without(changed)))  # first: what it does not name has left
        write_index(out, layout.MANIFEST, manifest.filter(pc.invert(of_files(manifest["recording"], changed))))
        ledger = parquet.read_table(storage.join(out, layout.INDEX_LEDGER)).to_pylist()
        kept = [row for row in ledger if split_name(row["recording"])[0] not in changed]
        write_index(out, layout.INDEX_LEDGER, ledger_table([*kept, *skipped_rows(changed)]))
        if storage.exists(storage.join(out, layout.HEALTH)):
            health = parquet.read_table(storage.join(out, layout.HEALTH))
            write_index(out, layout.HEALTH, health.filter(pc.invert(of_files(health["recording"], changed))))
    return changed


def skipped_rows(recordings: Mapping[str, str]) -> list[LedgerRow]:
    """The ledger's rows of recordings that are left to the next run, by name and reason."""
    return [ledger_row(name, "skipped", reason) for name, reason in sorted(recordings.items())]


def _skipped(out: str, step: Step, manifest: pa.Table) -> Iterator[tuple[str, str]]:
    """Recording and reason of each clip whose file had changed when it was read."""
    shards = dict(zip(manifest["clip_id"].to_pylist(), manifest["shard"].to_pylist(), strict=True))
    for location in shard_files(storage.join(out, step.ledger)):
        with contextlib.suppress(DamagedError):  # it is made again
            for row in parquet.read_rows(location, condition=pc.field("status") == "skipped").to_pylist():
                # The clip may have left this shard, because its recording was taken again.
                is_there = layout.shard(shards.get(row["clip_id"]) or 0) == storage.name_of(location)
                if step is not SCORE or is_there:
                    yield split_name(row["recording"])[0], row["reason"]
