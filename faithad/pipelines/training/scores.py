"""Trained models → models with the study's score: what it needs is fitted to at most 5,000 training normals.

A model is trained before, and in the same way whatever its score is: another score needs no other training. Which score
a model has stands in its own file, and with the scores of its validation clips, which the alarm is fitted to; what a
kill leaves half done differs in the two, and is fitted again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.exceptions import RayError, RayTaskError
from torch import Tensor

from faithad import schemas, storage
from faithad.config.study import Study
from faithad.errors import FaithadError, StudyError
from faithad.model.checkpoint import TrainedModel, load_model, save_model, stored_score
from faithad.model.fast_network import fast_network
from faithad.model.precision import arithmetic
from faithad.pipelines.cluster.session import ray_session
from faithad.pipelines.features import read_features
from faithad.pipelines.index import require_study_visible
from faithad.pipelines.training.trained import fit_study_alarm
from faithad.progress import console
from faithad.runs import layout
from faithad.runs.tables import read_manifest
from faithad.scoring.calibration import choose_normals
from faithad.scoring.choices import score_name
from faithad.scoring.score import Clips, Detector, fit_detector, places_of

_SCORE = b"score"


def fit_scores(study: Study) -> None:
    """Give each model of the study the study's score, as far as it does not have it.

    Raises:
        StudyError: a score cannot be fitted to these clips, or a process was lost.
    """
    todo = [run for run in study.runs if not has_score(study, *run)]
    if not todo:
        return
    with ray_session():
        require_study_visible(study)
        fit = ray.remote(fit_score)
        tasks = {
            f"{model}-{seed}": fit.options(name=f"score {model}").remote(study, model, seed) for model, seed in todo
        }
        for name, task in tasks.items():
            try:
                console.print(f"score {name}: {ray.get(task)}")
            except RayTaskError as error:
                if isinstance(error.cause, FaithadError):
                    raise StudyError(f"The score of {name} cannot be fitted: {error.cause}") from error
                raise
            except RayError as error:
                raise StudyError(
                    f"The process that fits the score of {name} was lost: {error}. Run it again."
                ) from error


def has_score(study: Study, model: str, seed: int) -> bool:
    """Whether a trained model, and the scores of its validation clips, have the study's score."""
    wanted = study.score_of(model)
    names = None if wanted is None else asdict(wanted)
    table = storage.read_table(storage.join(study.root, layout.validation_scores(model, seed)))
    of_table = (table.schema.metadata or {}).get(_SCORE, b"null")
    of_model = stored_score(storage.join(study.root, layout.model(model, seed)))
    return bool(of_model == names == json.loads(of_table))


def fit_score(study: Study, model: str, seed: int) -> str:
    """Fit the study's score to the training clips, and write the model and the scores of its validation clips.

    Returns:
        What was done, for the user.
    """
    torch.set_num_threads(1)  # the last digits do not depend on the machine's cores
    folder, place = (storage.join(study.root, of(model, seed)) for of in (layout.model, layout.validation_scores))
    trained, score = load_model(folder, expect={"name": model, "seed": seed}), study.score_of(model)
    known = storage.read_table(place)
    columns = {"worst_second_score": known["worst_second_score"], "paper_score": pa.nulls(known.num_rows, pa.float64())}
    # The scores by which the paper's alarm is fitted stay, for a study that returns to it.
    is_fitted = _SCORE in (known.schema.metadata or {})
    columns["score"] = known["paper_score" if is_fitted else "score"]
    trained = replace(trained, score=None)
    schema, n_normals = schemas.VALIDATION_SCORES, 0
    if score is not None:
        network = fast_network(trained.network) if trained.explained else trained.network
        clips = split_clips(study, model, "train")
        chosen = choose_normals(len(clips), seed=seed)

        def normals() -> Iterator[Clips]:
            return chosen_clips(_inputs(study, trained, "train"), clips, chosen)

        with arithmetic("float32"):
            detector, _ = fit_detector(network, score, normals, frames_per_s=trained.features.frames_per_s)
            recordings = [recording for recording, _ in clips.values()]
            scores = _validation_scores(study, trained, detector, sorted({recordings[number] for number in chosen}))
        columns |= {"paper_score": columns["score"], "score": pa.array(scores)}
        schema, n_normals = schema.with_metadata({_SCORE: json.dumps(asdict(score))}), len(chosen)
        trained = replace(trained, score=detector.stored())
    table = pa.table({name: columns[name] for name in schema.names}, schema=schema)
    storage.write_table(table, place, schema=schema)
    save_model(replace(trained, alarm=fit_study_alarm(study, model, table)), folder)
    return score_name(score, model) + (f", fitted to {n_normals} normal clips" if n_normals else "")


def split_clips(study: Study, model: str, split: str) -> dict[str, tuple[str, int]]:
    """Of each clip of a split with features its recording and the frames that hold sound, in the order of clip_id."""
    there = storage.read_table(storage.join(study.root, layout.features(split)), columns=["clip_id"])["clip_id"]
    rows = read_manifest(study.root).select(["clip_id", "recording", "duration_s"]).to_pylist()
    of_clips = {row["clip_id"]: (row["recording"], study.frames_in(model, row["duration_s"])) for row in rows}
    return {clip_id: of_clips[clip_id] for clip_id in sorted(there.to_pylist())}


def chosen_clips(parts: Iterable[Tensor], clips: Mapping[str, tuple[str, int]], chosen: np.ndarray) -> Iterator[Clips]:
    """The chosen ones of many clips.

    Args:
        parts: all clips as the model takes them in, (b, F, T) each.
        clips: of each clip its recording and the frames that hold sound, in the same order.
        chosen: their numbers in this order, rising.
    """
    names, start = list(clips), 0
    for part in parts:
        numbers = chosen[(chosen >= start) & (chosen < start + len(part))]
        known = [clips[names[number]] for number in numbers]
        if len(numbers):
            yield Clips(
                part[torch.from_numpy(numbers - start)],
                [names[number] for number in numbers],
                [recording for recording, _ in known],
                [n_frames for _, n_frames in known],
            )
        start += len(part)


def _inputs(study: Study, trained: TrainedModel, split: str) -> Iterator[Tensor]:
    return map(trained.prepare, read_features(study.root, split, study.feature_settings))


def _validation_scores(study: Study, trained: TrainedModel, detector: Detector, names: list[str]) -> np.ndarray:
    """The scores of the validation clips, each compared with clips of other recordings; `names` are the normals'."""
    clips = split_clips(study, trained.name, "validation")
    parts = chosen_clips(_inputs(study, trained, "validation"), clips, np.arange(len(clips)))
    codes = {name: code for code, name in enumerate(names)}
    scores = []
    with torch.inference_mode():
        for part in parts:
            raw = detector.raw(part.x, part.clip_ids, part.n_frames)
            recordings = torch.tensor([codes.get(recording, -1) for recording in part.recordings])
            scores.append(detector.calibrate(raw, places_of(part.x, part.n_frames), recordings))
    return torch.cat(scores).double().numpy()
