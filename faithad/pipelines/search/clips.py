"""Features of the labelled test clips, for the AUC of a search: below `search/` of the study's root, apart from what
models learn from.

A study that is only searched has no audit, and a trial that read sounds would be slower than its training. Test clips
without labels are left alone: nothing could be told of them.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import torch

from faithad import storage
from faithad.config.study import Study
from faithad.pipelines.features import features_stage, load_features, write_features
from faithad.pipelines.index import clips_digest
from faithad.runs import layout
from faithad.runs.stages import Stage
from faithad.settings import FeatureSettings


def labelled_clips(manifest: pa.Table) -> pa.Table:
    """The test clips of a manifest that have a label."""
    return manifest.filter(pc.and_(pc.equal(manifest["split"], "test"), pc.is_valid(manifest["label"])))


def clips_stage(study: Study, labelled: pa.Table) -> Stage:
    settings = features_stage(study, clips_digest(labelled, ("test",), ("clip_id", "duration_s"))).settings
    return Stage(study.root, "search-clips", settings, ("search/features",), result="search/features/test")


def compute_test_clips(study: Study, labelled: pa.Table, stage: Stage, *, redo: bool) -> None:
    """Materialise the log-mel features of the labelled test clips, if there are any.

    Raises:
        StudyError: not one of them could be read.
    """
    if labelled.num_rows and stage.begin(redo=redo):
        write_features(_root(study.root), labelled, study.feature_settings, splits=("test",))
        stage.finish()


def load_clips(root: str, split: str, settings: FeatureSettings) -> tuple[list[str], torch.Tensor]:
    """The clip_ids of a split (of `test`: the labelled ones), in their order, and its features (n, F, T) float32."""
    place = _root(root) if split == "test" else root
    names = storage.read_table(storage.join(place, layout.features(split)), columns=["clip_id"]).sort_by("clip_id")
    return names["clip_id"].to_pylist(), load_features(place, split, settings)


def _root(root: str) -> str:
    return storage.join(root, "search")
