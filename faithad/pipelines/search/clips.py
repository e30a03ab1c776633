"""Features of the labelled test clips, for the AUC of a search: below `search/` of the study's root, apart from what
models learn from.

A study that is only searched has no audit, and a trial that read sounds would be slower than its training. Test clips
without labels are left out: they say nothing about an AUC.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import torch

from faithad import parquet, storage
from faithad.config.study import Study
from faithad.pipelines.features import features_stage, load_features, load_references, write_features
from faithad.runs import layout
from faithad.runs.fingerprints import clips_digest
from faithad.runs.stages import ResumableStage


def labelled_clips(manifest: pa.Table) -> pa.Table:
    """The test clips of a manifest that have a label."""
    return manifest.filter(pc.and_(pc.equal(manifest["split"], "test"), pc.is_valid(manifest["label"])))


def clips_stage(study: Study, labelled: pa.Table) -> ResumableStage:
    settings = features_stage(study, clips_digest(labelled, ("test",), ("clip_id", "duration_s"))).settings
    outputs = (f"{layout.SEARCH}/{layout.FEATURES}",)
    return ResumableStage(
        study.root, "search-clips", settings, outputs, result=f"{layout.SEARCH}/{layout.features('test')}"
    )


def compute_test_clips(study: Study, labelled: pa.Table, stage: ResumableStage, *, redo: bool) -> None:
    """Write the log-mel features of the labelled test clips, if there are any.

    Raises:
        StudyError: none of them could be read.
    """
    if labelled.num_rows and stage.begin(redo=redo):
        root = storage.join(study.root, layout.SEARCH)
        write_features(root, labelled, study.feature_settings, splits=("test",))
        stage.finish()


def clips_root(study: Study, split: str) -> str:
    """Where the features of a split lie."""
    return storage.join(study.root, layout.SEARCH) if split == "test" else study.root


def load_clips(study: Study, split: str) -> tuple[list[str], torch.Tensor, torch.Tensor | None]:
    """The clip_ids of a split (of `test`: the labelled ones), in their order, its features (n, F, T) float32, and its
    references (n, F), see `load_references`.
    """
    root = clips_root(study, split)
    names = parquet.read_table(storage.join(root, layout.features(split)), columns=["clip_id"]).sort_by("clip_id")
    settings = study.feature_settings
    return names["clip_id"].to_pylist(), load_features(root, split, settings), load_references(root, split, settings)
