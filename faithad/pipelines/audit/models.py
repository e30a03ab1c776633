"""The study's audit: test clips x models → `audit/<model>-<seed>/`.

Where all clips are to be explained, explained models score and explain them in one pass; else all clips are scored
first, and the chosen ones explained in a second pass. Other models only score. The passes are those of
`faithad audit --model`, see `passes`.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from faithad import storage
from faithad.audit.choice import choose_clips, keep_examples
from faithad.audit.outcome import read_scores
from faithad.audit.steps import EXPLAIN, SCORE, SCORE_AND_EXPLAIN
from faithad.config.study import Study
from faithad.errors import StudyError
from faithad.model.table import MODELS
from faithad.pipelines.audit.passes import Pass, run_passes, wait_for_room
from faithad.pipelines.audit.worker import ModelAudit
from faithad.pipelines.cluster.session import ray_session
from faithad.pipelines.index import require_study_visible
from faithad.pipelines.training.trained import fit_study_alarm
from faithad.runs import layout
from faithad.runs.stages import Stage, flatten

# Settings that say how an audit is spread, not what it writes.
SPREAD = {"actors", "readers", "gpus_per_actor", "micro_batch"}
# Settings of explanations, which models that are scored only do not have.
_EXPLANATIONS = {"percentiles", "explain", "maps"}


def audit_stage(study: Study, model: str, seed: int, train: Stage, clips_digest: str) -> Stage:
    left_out = SPREAD if MODELS[model].explained else SPREAD | _EXPLANATIONS
    settings = flatten("audit", study.audit.model_dump(mode="json", exclude=left_out))
    if MODELS[model].explained:
        settings |= flatten("attribution", study.attribution.as_in_marks())
    settings |= flatten("alarm", study.alarm.model_dump(mode="json"))
    settings |= {"train": train.fingerprint, "clips": clips_digest}
    folder = layout.audit(model, seed)
    return Stage(study.root, f"audit-{model}-{seed}", settings, (folder,), result=f"{folder}/ledger")


def audit_models(study: Study, manifest: pa.Table, stages: dict[tuple[str, int], Stage], *, redo: bool) -> None:
    """Audit every test clip with every model of the study, as far as that is not done yet.

    Raises:
        StudyError: there are no test clips, an actor asks for more than the cluster has, or what was written cannot
            be seen here.
        CheckpointError: a model is missing, damaged or does not fit the study.
    """
    todo = [run for run in study.runs if stages[run].begin(redo=redo)]
    if not todo:
        return
    clips = manifest.filter(pc.equal(manifest["split"], "test"))
    if not clips.num_rows:
        raise StudyError("There are no test clips to audit: check data.test, or the split, and the index's ledger.")
    audits = {run: _model_audit(study, *run) for run in todo}
    explain, maps = study.audit.explain, study.audit.maps
    explained = [run for run in todo if MODELS[run[0]].explained]
    at_once = explained if explain == "all" else []
    with ray_session():
        wait_for_room(study.audit)
        require_study_visible(study)
        with_maps = keep_examples(clips, maps)
        first = [
            Pass(audits[run], SCORE_AND_EXPLAIN, with_maps) if run in at_once else Pass(audits[run], SCORE, clips)
            for run in todo
        ]
        _run(study, first, title="audit")
        second = []
        for run in explained:
            if run not in at_once:
                chosen = choose_clips(clips, read_scores(audits[run].out), explain=explain, alarm=audits[run].alarm)
                second.append(Pass(audits[run], EXPLAIN, keep_examples(chosen, maps)))
        _run(study, second, title="explain")
    for run in todo:
        stages[run].finish()


def _run(study: Study, passes: Sequence[Pass], *, title: str) -> None:
    run_passes(passes, attribution=study.attribution, audit=study.audit, features=study.feature_settings, title=title)


def _model_audit(study: Study, model: str, seed: int) -> ModelAudit:
    """The audit of one model. The alarm is fitted anew: its settings may have changed since the training."""
    expect = {
        "name": model,
        "seed": seed,
        "n_mels": study.features.n_mels,
        "n_frames": study.n_frames(model),
        "features": study.feature_settings,
    }
    scores = storage.read_table(storage.join(study.root, layout.validation_scores(model, seed)))
    folder, out = (storage.join(study.root, place(model, seed)) for place in (layout.model, layout.audit))
    return ModelAudit(folder, out, fit_study_alarm(study, scores), expect)
