"""Clips → log-mel features of the training and validation splits, computed once for all trainings by Ray Data.

Written to `features/<split>` in the study's root, one file a shard, the clips that could not be read to
`features/ledger`. A run that was killed goes on with the shards whose ledger is missing: it is written last.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import torch

from faithad import schemas, storage
from faithad.config import Study
from faithad.errors import StudyError
from faithad.features import FeatureSettings, Normalization
from faithad.pipelines.session import ray_session
from faithad.pipelines.shards import (
    Row,
    add_log_mels,
    consume,
    dataset,
    from_bytes,
    ledger_table,
    log_mels_of,
    shard_name,
    shards,
    to_bytes,
)
from faithad.pipelines.stages import Stage, flatten

TRAINING_SPLITS = ("train", "validation")
_CLIPS_PER_SHARD = 64


def features_stage(study: Study, clips_digest: str) -> Stage:
    settings = flatten("features", study.features.model_dump(mode="json", exclude={"normalization"}))
    settings |= {"data.clip_s": study.data.clip_s, "clips": clips_digest}
    return Stage(study.root, "features", settings, ("features",), result="features/train")


def compute_features(study: Study, manifest: pa.Table, stage: Stage, *, redo: bool) -> None:
    """Materialise the log-mel features of the clips that models learn from.

    Raises:
        StudyError: no clip of a split could be read (the reasons are named), or what was written cannot be seen here.
    """
    if not stage.begin(redo=redo):
        return
    todo: list[Row] = []
    n_clips = 0
    for split in TRAINING_SPLITS:
        clips = manifest.filter(pc.equal(manifest["split"], split)).sort_by("clip_id")
        for number, shard in enumerate(shards(clips, clips_per_shard=_CLIPS_PER_SHARD)):
            if not _is_done(_ledger_location(study.root, split, number)):
                todo.append({"split": split, "shard": number, "clips": to_bytes(shard)})
                n_clips += shard.num_rows
    if todo:
        with ray_session():
            written = dataset(todo).map(
                _write_shard, fn_kwargs={"root": study.root, "settings": study.feature_settings}, num_cpus=1
            )
            consume(written, title="features", n_clips=n_clips)
    for split in TRAINING_SPLITS:
        _check(study.root, split, pc.sum(pc.equal(manifest["split"], split)).as_py())
    stage.finish()


def load_features(root: str, split: str, settings: FeatureSettings) -> torch.Tensor:
    """The features of a split, (n, F, T) float32, in the order of clip_id."""
    table = storage.read_table(storage.join(root, "features", split), columns=["clip_id", "log_mel"])
    return torch.from_numpy(log_mels_of(table.sort_by("clip_id"), settings).copy())


def fit_normalization(study: Study) -> Normalization:
    """The statistics of the training split, or the identity where the study gives features to the model as they are."""
    if study.features.normalization == "none":
        return Normalization.identity(study.features.n_mels)
    return Normalization.fit([load_features(study.root, "train", study.feature_settings)])


def _write_shard(row: Row, *, root: str, settings: FeatureSettings) -> Row:
    torch.set_num_threads(1)
    split, number = row["split"], row["shard"]
    clips, failed = add_log_mels(from_bytes(row["clips"]), settings)
    if clips.num_rows:
        table = clips.select(["clip_id", "log_mel"])
        storage.write_table(table, storage.join(root, "features", split, shard_name(number)), schema=table.schema)
    storage.write_table(ledger_table(failed), _ledger_location(root, split, number), schema=schemas.LEDGER)
    return {"n_done": clips.num_rows, "n_failed": len(failed)}


def _ledger_location(root: str, split: str, number: int) -> str:
    return storage.join(root, "features", "ledger", f"{split}-{shard_name(number)}")


def _is_done(ledger: str) -> bool:
    """Whether a shard was written and every clip of it could be read: what failed is tried again by the next run."""
    return storage.exists(ledger) and storage.read_table(ledger).num_rows == 0


def _check(root: str, split: str, n_clips: int) -> None:
    """Each clip of a split must be found here, as features or in the ledger."""
    folder, ledgers = storage.join(root, "features", split), storage.join(root, "features", "ledger")
    written = 0
    if storage.list_files(folder, suffixes=[".parquet"]):
        written = storage.read_table(folder, columns=["clip_id"]).num_rows
    failed = [
        reason
        for name, location in storage.list_files(ledgers, suffixes=[".parquet"])
        if name.startswith(f"{split}-")
        for reason in storage.read_table(location, columns=["reason"])["reason"].to_pylist()
    ]
    if written + len(failed) != n_clips:
        raise StudyError(
            f"Of {n_clips} {split} clips, {written + len(failed)} can be found in {root}. If the cluster has several "
            "machines, the root must be a folder that all of them share, or a URI such as s3://bucket/folder."
        )
    if not written:
        first = "\n".join(f"  {reason}" for reason in failed[:5])
        raise StudyError(f"No {split} clip could be read ({len(failed)} failed). The first reasons:\n{first}")
