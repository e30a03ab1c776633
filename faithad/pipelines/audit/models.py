"""The study's audit: test clips x models → `audit/<model>-<seed>/`.

Where all clips are to be explained, explained models score and explain them in one pass; else all clips are scored
first, and the chosen ones explained in a second pass. Other models only score. The passes are those of
`faithad audit --model`, see `passes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import pyarrow as pa
import pyarrow.compute as pc

from faithad import parquet, storage
from faithad.audit.choice import choose_clips, keep_examples, mark_deep
from faithad.audit.model import require_baselines
from faithad.audit.outcome import read_scores
from faithad.audit.raised_alarm import say_too_few
from faithad.audit.steps import EXPLAIN, SCORE, SCORE_AND_EXPLAIN
from faithad.config.study import Study
from faithad.errors import StudyError
from faithad.features import Normalization
from faithad.model.checkpoint import load_model
from faithad.model.table import MODELS
from faithad.pipelines.audit.passes import Pass, is_whole, run_passes, wait_for_room
from faithad.pipelines.audit.takes import number_shards
from faithad.pipelines.audit.worker import ModelAudit
from faithad.pipelines.cluster.session import ray_session
from faithad.pipelines.features import training_statistics
from faithad.pipelines.index import require_study_visible
from faithad.pipelines.training.more_epochs import epochs_of
from faithad.pipelines.training.scores import has_score
from faithad.pipelines.training.trained import fit_study_alarm
from faithad.progress import console
from faithad.runs import layout
from faithad.runs.stages import ResumableStage, flatten
from faithad.scoring.choices import score_name
from faithad.vocabulary import CORRECTED, PAPER, count

# Settings that say how an audit is spread, not what it writes.
SPREAD = {"actors", "readers", "gpus_per_actor", "micro_batch"}
# Settings of explanations, which models that are scored only do not have.
_EXPLANATIONS = {"percentiles", "explain", "maps"}


def audit_stage(
    study: Study, model: str, seed: int, trainings: dict[tuple[str, int], ResumableStage], clips_digest: str
) -> ResumableStage:
    """The mark of one model's audit, which depends on its training."""
    left_out = SPREAD if MODELS[model].explained else SPREAD | _EXPLANATIONS
    settings = flatten("audit", study.audit.model_dump(mode="json", exclude=left_out))
    if MODELS[model].explained:
        settings |= flatten("attribution", study.attribution.as_in_marks())
        if study.protocol != PAPER:  # marks of older studies, which are judged as in the paper, do not name it
            settings |= {"judging.protocols": list(study.judging.protocols), "judging.n_frames": study.judging.n_frames}
        for name, judge in study.beside(model, seed).items():
            settings[name] = trainings[judge].fingerprint
        if CORRECTED in study.judging.protocols:
            settings |= flatten("checks", {**study.checks(seed)._asdict(), "seed": study.evaluation.seed})
    # Marks of older studies, whose score is the paper's, do not name it.
    if (score := study.score_of(model)) is not None:
        settings |= flatten("score", asdict(score))
    settings |= flatten("alarm", study.alarm.as_in_marks())
    settings |= {"train": trainings[model, seed].fingerprint, "clips": clips_digest}
    folder = layout.audit(model, seed)
    return ResumableStage(study.root, f"audit-{model}-{seed}", settings, (folder,), result=f"{folder}/ledger")


def audit_models(
    study: Study,
    manifest: pa.Table,
    stages: dict[tuple[str, int], ResumableStage],
    trainings: dict[tuple[str, int], ResumableStage],
    *,
    redo: bool,
    conclusions: Sequence[ResumableStage],
) -> None:
    """Audit every test clip with every model of the study, as far as that is not done yet.

    An audit is removed and made again if its model, or one that it is judged with, got more epochs since.

    Args:
        study: whose models and clips they are.
        manifest: all clips of the study.
        stages: the audit of each model.
        trainings: the training of each model, all of them done.
        redo: see `ResumableStage.begin`.
        conclusions: stages that are made of the audits, and have to run again if an audit changes.

    Raises:
        StudyError: there are no test clips, an actor asks for more than the cluster has, or what was written cannot
            be seen here.
        CheckpointError: a model is missing, damaged or does not fit the study.
        ConfigError: a model lacks the baselines of its explanations.
    """
    damaged = {run for run in study.runs if stages[run].is_done() and not is_audit_whole(study, manifest, *run)}
    outdated = {run for run in study.runs if _is_of_fewer_epochs(study, stages[run], trainings, run)}
    todo = [run for run in study.runs if stages[run].begin(redo=redo or run in outdated, again=run in damaged)]
    if not todo:
        return
    for model, seed in todo:
        if not has_score(study, model, seed):
            raise StudyError(
                f"The model {model}-{seed} in {study.root} does not have the study's score, "
                f"{score_name(study.score_of(model), model)}. Run `faithad train` with the same configuration first."
            )
    for stage in conclusions:
        stage.withdraw()
    clips = _test_clips(manifest)
    if not clips.num_rows:
        raise StudyError("There are no test clips to audit: check data.test, or the split, and the index's ledger.")
    if study.audit.explain == "annotated" and not pc.any(clips["annotated"]).as_py():
        raise StudyError("audit.explain: annotated, but no test clip is annotated: check data.annotations.")
    explained = study.audit.explain != "none" and any(MODELS[model].explained for model, _ in todo)
    if explained and study.attribution.baseline == "normals":
        for model, seed in todo:
            require_baselines(load_model(storage.join(study.root, layout.model(model, seed))), study.attribution)
    # For the outlier curve, which the paper's protocol compares with F-scores only.
    has_outliers = explained and (CORRECTED in study.judging.protocols or pc.any(clips["annotated"]).as_py())
    training = training_statistics(study) if has_outliers else None
    audits = {run: model_audit(study, *run, training) for run in todo}
    if (alarm := audits[todo[0]].alarm) is not None:  # all models have as many validation clips
        say_too_few(alarm, clip_s=study.data.clip_s)
    with ray_session():
        wait_for_room(study.audit)
        require_study_visible(study)
        _run(study, [_first_pass(study, audits[run], clips, *run) for run in todo], title="audit")
        second = [second for run in todo if (second := _second_pass(study, audits[run], clips, *run)) is not None]
        _run(study, second, title="explain")
    for run in todo:
        stages[run].finish()


def _is_of_fewer_epochs(
    study: Study, stage: ResumableStage, trainings: dict[tuple[str, int], ResumableStage], run: tuple[str, int]
) -> bool:
    """Whether an audit is of models that had fewer epochs, and differs in nothing else; tells the user if so."""
    before = stage.settings_before()
    models = {"train": run, **study.beside(*run)}
    if before is None or not (differing := stage.differing(before)) or not differing <= models.keys():
        return False
    epochs = [epochs_of(trainings[models[name]], before.get(name, "")) for name in sorted(differing)]
    fewer = epochs[-1]
    if fewer is None or None in epochs:
        return False
    model, seed = models[max(differing)]
    console.print(
        f"audit {run[0]}-{run[1]}: is made again, because it is of {model}-{seed} with {count(fewer, 'epoch')}, which "
        f"has {study.train.epochs} now"
    )
    return True


def is_audit_whole(study: Study, manifest: pa.Table, model: str, seed: int) -> bool:
    """Whether all shards of a finished audit are there, and all their files are what was written."""
    audit, clips = model_audit(study, model, seed), _test_clips(manifest)
    if not is_whole(_first_pass(study, audit, clips, model, seed)):
        return False
    second = _second_pass(study, audit, clips, model, seed)
    return second is None or is_whole(second)


def _test_clips(manifest: pa.Table) -> pa.Table:
    return manifest.filter(pc.equal(manifest["split"], "test"))


def _first_pass(study: Study, audit: ModelAudit, clips: pa.Table, model: str, seed: int) -> Pass:
    if MODELS[model].explained and study.audit.explain == "all":
        return Pass(audit, SCORE_AND_EXPLAIN, _marked(study, clips, seed))
    return Pass(audit, SCORE, _in_shards(study, clips))


def _second_pass(study: Study, audit: ModelAudit, clips: pa.Table, model: str, seed: int) -> Pass | None:
    """The pass that explains the clips that were chosen by their scores; None where there is none."""
    explain = study.audit.explain
    if not MODELS[model].explained or explain == "all":
        return None
    chosen = choose_clips(clips, read_scores(audit.out), explain=explain, alarm=audit.alarm)
    return Pass(audit, EXPLAIN, _marked(study, chosen, seed)) if chosen.num_rows else None


def _marked(study: Study, clips: pa.Table, seed: int) -> pa.Table:
    """Clips to explain, in shards, with marks of those whose maps are kept and of those that are checked."""
    clips = keep_examples(_in_shards(study, clips), study.audit.maps)
    return mark_deep(clips, study.checks(seed), seed=study.evaluation.seed)


def _in_shards(study: Study, clips: pa.Table) -> pa.Table:
    return number_shards(clips, largest=study.audit.clips_per_shard)


def _run(study: Study, passes: Sequence[Pass], *, title: str) -> None:
    run_passes(passes, attribution=study.attribution, audit=study.audit, features=study.feature_settings, title=title)


def model_audit(study: Study, model: str, seed: int, training: Normalization | None = None) -> ModelAudit:
    """The audit of one model. The alarm is fitted anew: its settings may have changed since the training."""
    expect = {
        "name": model,
        "seed": seed,
        "n_mels": study.features.n_mels,
        "n_frames": study.n_frames(model),
        "features": study.feature_settings,
    }
    scores = parquet.read_table(storage.join(study.root, layout.validation_scores(model, seed)))
    folder, out = (storage.join(study.root, place(model, seed)) for place in (layout.model, layout.audit))
    judges = {name: storage.join(study.root, layout.model(*run)) for name, run in study.beside(model, seed).items()}
    return ModelAudit(
        folder,
        out,
        fit_study_alarm(study, model, scores, folder),
        expect,
        training,
        study.judging,
        linear=judges.get("linear"),
        inpainter=judges.get("inpainter"),
        beside_paper=True,
    )
