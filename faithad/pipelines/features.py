"""Clips → log-mel features of the training and validation splits, computed by Ray Data once for all trainings.

Each shard writes one file to `features/<split>` in the study's root, and then one to `features/ledger` with the clips
that could not be read. A run after a kill goes on with the shards that have no ledger, or are damaged.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import torch

from faithad import parquet, storage
from faithad.config.study import Study
from faithad.errors import DamagedError, StudyError
from faithad.features import Normalization
from faithad.pipelines.cluster.machines import wait_for_machines
from faithad.pipelines.cluster.session import ray_session
from faithad.pipelines.index import require_study_visible
from faithad.pipelines.shards.freed_memory import keep_freed_memory
from faithad.pipelines.shards.log_mels import add_log_mels, log_mels_of
from faithad.pipelines.shards.stream import ShardRow, Tally, consume, dataset, from_bytes, shard_size, shards, to_bytes
from faithad.progress import console, progress
from faithad.runs import layout
from faithad.runs.shards import check_shard, write_shard_ledger
from faithad.runs.stages import ResumableStage, flatten
from faithad.runs.tables import read_manifest, read_shards, shard_files
from faithad.settings import FeatureSettings
from faithad.storage import Checksum
from faithad.vocabulary import listed

TRAINING_SPLITS = ("train", "validation")
CLIPS_PER_SHARD = 64


def features_stage(study: Study, clips_digest: str) -> ResumableStage:
    settings = flatten("features", study.features.model_dump(mode="json", exclude={"normalization", "reference"}))
    settings |= {"data.clip_s": study.data.clip_s, "clips": clips_digest}
    if study.feature_settings.reference != "none":
        settings["features.reference"] = study.feature_settings.reference
    return ResumableStage(study.root, "features", settings, (layout.FEATURES,), result=layout.features("train"))


def compute_features(study: Study, manifest: pa.Table, stage: ResumableStage, *, redo: bool) -> None:
    """Materialise the log-mel features of the clips that models learn from.

    Raises:
        StudyError: no clip of a split could be read (the reasons are named), or what was written cannot be seen here.
    """
    if stage.begin(redo=redo, again=stage.is_done() and not _are_whole(study.root, manifest)):
        with ray_session():
            wait_for_machines({"CPU": 1}, request="A reader asks for 1 CPU", advice="Add a machine with cores.")
            require_study_visible(study)
            write_features(study.root, manifest, study.feature_settings, splits=TRAINING_SPLITS)
        stage.finish()


def write_features(root: str, manifest: pa.Table, settings: FeatureSettings, *, splits: Sequence[str]) -> None:
    """Materialise the features of some splits below a root, as far as they are not there yet.

    Raises:
        StudyError: as `compute_features`.
    """
    todo: list[ShardRow] = []
    n_clips = 0
    for split, number, shard in _shards(manifest, splits):
        try:
            if _n_failed(root, split, number) == 0:  # a shard with failures is read again
                continue
        except FileNotFoundError:
            pass
        except DamagedError as error:
            console.print(f"features: {error.problem} The clips of this shard are read again.")
        todo.append({"split": split, "shard": number, "clips": to_bytes(shard)})
        n_clips += shard.num_rows
    if todo:
        options = {"root": root, "settings": settings, "run": uuid.uuid4().hex}
        with ray_session(), progress("features", n_clips) as ticker:
            written = dataset(todo).map(_write_shard, fn_kwargs=options, num_cpus=1)
            consume(written, title="features", tally=Tally(ticker))
        storage.delete(storage.join(root, layout.FEATURE_ATTEMPTS))
    for folder in (*map(layout.features, splits), layout.FEATURES_LEDGER):
        storage.flush_files(storage.join(root, folder))
    for split in splits:
        _check(root, split, pc.sum(pc.equal(manifest["split"], split)).as_py())


def _shards(manifest: pa.Table, splits: Sequence[str]) -> Iterator[tuple[str, int, pa.Table]]:
    """The split, the number and the clips of each shard."""
    for split in splits:
        clips = manifest.filter(pc.equal(manifest["split"], split)).sort_by("clip_id")
        size = shard_size(clips.num_rows, largest=CLIPS_PER_SHARD)
        yield from ((split, number, shard) for number, shard in enumerate(shards(clips, size=size)))


def load_features(root: str, split: str, settings: FeatureSettings) -> torch.Tensor:
    """The features of a split, (n, F, T) float32, in the order of clip_id."""
    folder = storage.join(root, layout.FEATURES)
    table = pa.concat_tables(read_shards(folder, split, columns=["clip_id", "log_mel"]))
    return torch.from_numpy(log_mels_of(table.sort_by("clip_id"), settings).copy())


def read_features(root: str, split: str, settings: FeatureSettings) -> Iterator[torch.Tensor]:
    """The same, one shard (n, F, T) after the other, so that memory never holds all of them."""
    for table in read_shards(storage.join(root, layout.FEATURES), split, columns=["clip_id", "log_mel"]):
        yield torch.from_numpy(log_mels_of(table.sort_by("clip_id"), settings).copy())


def read_inputs(
    root: str, split: str, settings: FeatureSettings, normalization: Normalization
) -> Iterator[torch.Tensor]:
    """The same as models take them in: normalised, and with the reference "recording" less the recording's spectrum."""
    references, start = load_references(root, split, settings), 0
    for part in read_features(root, split, settings):
        own = None if references is None else references[start : start + len(part)]
        yield normalization.apply(part, own)
        start += len(part)


def load_references(root: str, split: str, settings: FeatureSettings) -> torch.Tensor | None:
    """The spectrum of each clip's recording, (n, F) float32, in the order of clip_id; None with another reference."""
    if settings.reference == "none":
        return None
    tables = read_shards(storage.join(root, layout.FEATURES), split, columns=["clip_id", "reference"])
    table = pa.concat_tables(tables).sort_by("clip_id").combine_chunks()
    values = table["reference"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return torch.from_numpy(values.reshape(-1, settings.n_mels).copy())


def count_features(root: str, split: str) -> int:
    """How many clips of a split have features."""
    return sum(table.num_rows for table in read_shards(storage.join(root, layout.FEATURES), split, columns=["clip_id"]))


def load_n_frames(study: Study, split: str, model: str, *, root: str | None = None) -> list[int]:
    """How many frames of each clip of a split hold sound, as a model takes them in; in the order of `load_features`.

    Args:
        study: whose manifest holds the clips.
        split: of which the features were written.
        model: by its name.
        root: of the features; that of the study by default.
    """
    features = parquet.read_table(storage.join(root or study.root, layout.features(split)), columns=["clip_id"])
    manifest = read_manifest(study.root)
    duration_s = dict(zip(manifest["clip_id"].to_pylist(), manifest["duration_s"].to_pylist(), strict=True))
    return [study.frames_in(model, duration_s[clip_id]) for clip_id in sorted(features["clip_id"].to_pylist())]


def fit_normalization(study: Study) -> Normalization:
    """The statistics of the training split, or the identity where the study gives features to the model as they are."""
    if study.features.normalization == "none":
        return Normalization.identity(study.features.n_mels)
    return training_statistics(study)


def training_statistics(study: Study) -> Normalization:
    """Mean and standard deviation of each band over the training split."""
    return Normalization.fit(read_features(study.root, "train", study.feature_settings))


def _write_shard(row: ShardRow, *, root: str, settings: FeatureSettings, run: str) -> ShardRow:
    keep_freed_memory()
    torch.set_num_threads(1)
    split, number = row["split"], row["shard"]
    mark = storage.join(root, layout.FEATURE_ATTEMPTS, f"{split}-{number:05d}.json")
    clips, failed = add_log_mels(from_bytes(row["clips"]), settings, mark=mark, run=run)
    files: dict[str, Checksum] = {}
    if clips.num_rows:
        table = clips.select([name for name in ("clip_id", "reference", "log_mel") if name in clips.column_names])
        location = storage.join(root, layout.features(split), layout.shard(number))
        files[f"{split}/{layout.shard(number)}"] = parquet.write_table(
            table, location, schema=table.schema, flush=False
        )
    write_shard_ledger(failed, _ledger_location(root, split, number), files=files)
    return {"n_done": clips.num_rows, "n_failed": len(failed)}


def _ledger_location(root: str, split: str, number: int) -> str:
    return storage.join(root, layout.FEATURES_LEDGER, f"{split}-{layout.shard(number)}")


def _are_whole(root: str, manifest: pa.Table) -> bool:
    """Whether every shard is finished, and all its files are what was written."""
    try:
        for split, number, _ in _shards(manifest, TRAINING_SPLITS):
            _n_failed(root, split, number)
    except (FileNotFoundError, DamagedError):
        return False
    return True


def _n_failed(root: str, split: str, number: int) -> int:
    """How many clips of a shard could not be read.

    Raises:
        FileNotFoundError: the shard is not finished.
        DamagedError: a file of it is damaged or gone.
    """
    ledger = check_shard(storage.join(root, layout.FEATURES), _ledger_location(root, split, number))
    return int(ledger.num_rows)


def _check(root: str, split: str, n_clips: int) -> None:
    """Refuse features that do not account for every clip of a split, or that hold none of them."""
    n_written = count_features(root, split)
    failed = [
        reason
        for file in shard_files(storage.join(root, layout.FEATURES_LEDGER))
        if storage.name_of(file).startswith(f"{split}-")
        for reason in parquet.read_table(file, columns=["reason"])["reason"].to_pylist()
    ]
    if n_written + len(failed) != n_clips:
        raise StudyError(
            f"Of {n_clips} {split} clips, {n_written + len(failed)} can be found in {root}. If the cluster has several "
            "machines, the root must be a folder that all of them share, or a URI such as s3://bucket/folder."
        )
    if not n_written:
        reasons = listed([f"  {reason}" for reason in failed], most=5, separator="\n")
        raise StudyError(f"No {split} clip could be read ({len(failed)} failed). The first reasons:\n{reasons}")
