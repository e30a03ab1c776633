"""What a finished run holds, and the removal of what the same command could make again: `faithad prune`.

Removed are log-mel features, whole maps, spectrograms, the last states of trainings, and the checkpoints of a search's
trials, but for the best one. All else stays: models, tables, curves, sounds, reports. Nothing is removed while a
recording that a run read is gone, because then nothing could be made again.

A shard's ledger forgets a file before the file goes, and expects the new content before a table is written anew without
its maps. So after a kill in between the same command goes on. What was removed, and when, is in `pruned.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq

from faithad import listing, parquet, storage
from faithad.errors import StudyError
from faithad.runs import layout
from faithad.runs.formats import require_readable
from faithad.runs.lock import alone_in
from faithad.runs.marks import read_mark
from faithad.runs.shards import change_file
from faithad.runs.stages import is_finished
from faithad.runs.tables import read_manifest, run_folders
from faithad.vocabulary import count, listed, size

FEATURES, MAPS, SPECTROGRAMS, STATES, TRIALS = (
    *("log-mel features", "whole maps", "spectrograms"),
    *("last states of trainings", "checkpoints of other trials than the best"),
)
# What makes each of them again, after `faithad prune`.
MADE_AGAIN = {
    FEATURES: "by the next training",
    MAPS: "by an audit into another folder",
    SPECTROGRAMS: "by an audit into another folder",
    STATES: "by a training from epoch 1",
    TRIALS: "by a search in another root",
}
_KEPT = {
    "models": (f"{layout.MODELS}/", f"{layout.BEST_MODEL}/", f"{layout.BEST_ENSEMBLE}/", f"{layout.TRIALS}/"),
    "reports": (layout.REPORT, layout.SEARCH_REPORT, layout.SOUNDS),
}
_MODEL_FILE = "model.safetensors"


def prune(root: str, *, dry_run: bool) -> str:
    """Remove what can be made again from the root of a study or a search, or from the folder of an audit.

    Returns:
        For the user: what the run holds, and what was removed, or with `dry_run` would be.

    Raises:
        StudyError: there is no finished run, or a recording is gone.
        DamagedError: a table is damaged.
    """
    root = root.rstrip("/")
    require_readable(root)
    _require_finished(root)
    removable = _removable(root)
    _require_recordings(root, removable)
    freed = {kind: sum(files.values()) for kind, files in removable.items() if files}
    text = _listing(root, freed)
    if not freed:
        return f"{text}\nThere is nothing that can be made again."
    if dry_run:
        return f"{text}\nNothing was removed. Without --dry-run, {size(sum(freed.values()))} are."
    with alone_in(root):
        _note(root, freed)
        _remove(root, removable)
    return f"{text}\n{size(sum(freed.values()))} were removed."


def pruned(root: str) -> list[str]:
    """What was removed from a run by `faithad prune`, and was not made again."""
    kinds = list(read_mark(storage.join(root, layout.PRUNED)) or {})
    is_present = {FEATURES: storage.exists(storage.join(root, layout.features("train")))}
    return [kind for kind in kinds if not is_present.get(kind)]


def _require_finished(root: str) -> None:
    marks = listing.list_files(storage.join(root, layout.STAGES), suffixes=[".json"])
    if not marks:
        raise StudyError(f"There is no run of faithad in {root}: it has no {layout.STAGES}/. Check the folder.")
    begun = [name.removesuffix(".begun.json") for name, _ in marks if name.endswith(".begun.json")]
    if begun:
        raise StudyError(
            f"The run in {root} is not finished: stage {begun[0]!r} has begun. Run the same command to its end first."
        )


def _require_recordings(root: str, removable: Mapping[str, Mapping[str, int]]) -> None:
    """Refuse where what is removed could not be made again."""
    if not any(removable.values()) or not storage.exists(storage.join(root, layout.MANIFEST)):
        return
    uris = sorted(set(read_manifest(root)["uri"].to_pylist()))
    if gone := [uri for uri in uris if not storage.exists(uri)]:
        raise StudyError(
            f"{count(len(gone), 'recording')} of {len(uris):,} of the run in {root} cannot be found, so that nothing "
            f"could be made again, and nothing is removed: {listed(gone, most=3)}. Put them back first."
        )


def _removable(root: str) -> dict[str, dict[str, int]]:
    """Of each kind the files to remove, or to write anew without their maps, below the root, with their bytes."""
    sizes = dict(listing.sizes(root, suffixes=[""]))
    audits = [name for name in _audit_folders(root) if not name or is_finished(root, f"audit-{name.split('/')[-1]}")]
    shards = [f"{folder}/{table}/" if folder else f"{table}/" for folder in audits for table in ("spectrograms",)]
    files: dict[str, dict[str, int]] = {kind: {} for kind in MADE_AGAIN}
    best = _best_trial(root, sizes)
    for path, n_bytes in sizes.items():
        parts = path.split("/")
        if path.startswith((f"{layout.FEATURES}/", f"{layout.SEARCH}/{layout.FEATURES}/")):
            if not path.startswith(f"{layout.FEATURES_LEDGER}/"):  # it says which clips could not be read
                files[FEATURES][path] = n_bytes
        elif path.startswith(tuple(shards)):
            files[SPECTROGRAMS][path] = n_bytes
        elif path.startswith(f"{layout.TRAININGS}/") and is_finished(root, f"train-{parts[1]}"):
            files[STATES][path] = n_bytes
        elif path.startswith(f"{layout.TRIALS}/") and parts[-1] in (_MODEL_FILE, layout.STATE) and len(parts) == 4:
            is_over = storage.join("/".join(parts[:3]), layout.TRIAL_RECORD) in sizes
            if best is not None and is_over and parts[2] != best:
                files[TRIALS][path] = n_bytes
    for folder in audits:
        for path in (path for path in sizes if path.startswith(f"{folder}/attributions/".lstrip("/"))):
            if n_bytes := _bytes_of_maps(storage.join(root, path)):
                files[MAPS][path] = n_bytes
    return files


def _audit_folders(root: str) -> list[str]:
    """Where the tables of audits lie, below the root: in a study one folder each, in an audit the root itself."""
    if storage.exists(storage.join(root, layout.AUDIT)):
        return [""]
    return [f"{layout.AUDITS}/{name}" for name in run_folders(root, layout.AUDITS)]


def _best_trial(root: str, sizes: Mapping[str, int]) -> str | None:
    """The trial whose model is in `best/`; None if there is none."""
    best = f"{layout.BEST_MODEL}/{layout.EPOCHS}"  # the model itself may have another score in `best/`
    if best not in sizes:
        return None
    content = storage.read_bytes(storage.join(root, best))
    for path, n_bytes in sizes.items():
        is_trial_s = path.startswith(f"{layout.TRIALS}/") and path.endswith(f"/{layout.EPOCHS}")
        if is_trial_s and n_bytes == len(content) and storage.read_bytes(storage.join(root, path)) == content:
            return path.split("/")[2]
    return None


def _bytes_of_maps(location: str) -> int:
    """Bytes of the whole maps in a shard of attributions; 0 if it holds none."""
    with storage.open_input(location) as file:
        metadata = pq.read_metadata(file)
    total = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for column in map(group.column, range(group.num_columns)):
            # A row without a map has one value there, which is null.
            if column.path_in_schema.split(".")[0] == "map" and column.num_values > group.num_rows:
                total += column.total_compressed_size
    return total


def _listing(root: str, freed: Mapping[str, int]) -> str:
    kept = dict.fromkeys((*_KEPT, "tables and all else"), 0)
    for path, n_bytes in listing.sizes(root, suffixes=[""]):
        kind = next((kind for kind, places in _KEPT.items() if path.startswith(places)), "tables and all else")
        kept[kind] += n_bytes
    total, in_models = sum(kept.values()), freed.get(TRIALS, 0)
    kept["models"] -= in_models
    kept["tables and all else"] -= sum(freed.values()) - in_models
    lines = [f"{root} holds {size(total)}:"]
    lines += [f"  {kind:42s}{size(n):>10s}   made again {MADE_AGAIN[kind]}" for kind, n in freed.items()]
    lines += [f"  {kind:42s}{size(n):>10s}   kept" for kind, n in kept.items() if n]
    before = [kind for kind in pruned(root) if kind not in freed]
    return "\n".join([*lines, *([f"  removed before: {listed(before)}"] if before else [])])


def _note(root: str, freed: Mapping[str, int]) -> None:
    location = storage.join(root, layout.PRUNED)
    note = {"at": datetime.now(UTC).isoformat(timespec="seconds")}
    known = (read_mark(location) or {}) | {kind: note | {"bytes": n_bytes} for kind, n_bytes in freed.items()}
    storage.write_text(location, json.dumps(known, indent=1))


def _remove(root: str, removable: Mapping[str, Mapping[str, int]]) -> None:
    for kind, files in removable.items():
        for path in files:
            location = storage.join(root, path)
            folder = location.removesuffix("/" + "/".join(path.split("/")[-2:]))
            in_folder = "/".join(path.split("/")[-2:])
            if kind == MAPS:
                rows = _without_maps(location)
                content = parquet.encoded(rows, schema=rows.schema)
                change_file(folder, in_folder, storage.Checksum.of(content))
                storage.write_bytes(location, content.to_pybytes())
                continue
            if kind == SPECTROGRAMS:
                change_file(folder, in_folder, None)
            storage.delete(location)
    # An empty folder would pass for features.
    for folder in (f"{layout.SEARCH}/{layout.FEATURES}", layout.features("train"), layout.features("validation")):
        if removable[FEATURES]:
            storage.delete(storage.join(root, folder))


def _without_maps(location: str) -> pa.Table:
    rows = parquet.read_rows(location)
    number = rows.schema.get_field_index("map")
    field = rows.schema.field(number)
    return rows.set_column(number, field, pa.nulls(rows.num_rows, field.type))
