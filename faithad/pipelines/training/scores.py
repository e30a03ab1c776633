"""Trained models → models with the study's score: what it needs is fitted to at most 5,000 training normals.

A model is trained before, and in the same way whatever its score is: another score needs no other training. The model's
own file says which score it has, and so do the scores of its validation clips, to which the alarm is fitted. If a run
is killed in between, the two differ, and the score is fitted again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from ray.exceptions import RayError, RayTaskError
from torch import Tensor

from faithad import parquet, schemas, storage
from faithad.config.study import Study
from faithad.errors import FaithadError, StudyError
from faithad.model.checkpoint import TrainedModel, load_model, save_model, stored_score
from faithad.model.fast_network import fast_network
from faithad.model.precision import arithmetic
from faithad.pipelines.cluster.session import ray_session
from faithad.pipelines.features import load_references, read_inputs
from faithad.pipelines.index import require_study_visible
from faithad.pipelines.training.trained import fit_study_alarm
from faithad.progress import console
from faithad.runs import layout
from faithad.runs.piece_scores import paper_scores, read_pieces, write_piece_scores
from faithad.runs.tables import read_manifest
from faithad.scoring.calibration import choose_normals
from faithad.scoring.choices import score_name
from faithad.scoring.pieces import piece_lengths, piece_scores
from faithad.scoring.pooling import frame_errors, window_means
from faithad.scoring.score import ClipBatch, Detector, fit_detector, places_of

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
    table = parquet.read_table(storage.join(study.root, layout.validation_scores(model, seed)))
    of_table = (table.schema.metadata or {}).get(_SCORE, b"null")
    of_model = stored_score(storage.join(study.root, layout.model(model, seed)))
    return bool(of_model == names == json.loads(of_table))


def fit_score(study: Study, model: str, seed: int, folder: str | None = None) -> str:
    """Fit the study's score to the training clips, and write the model and the scores of its validation clips.

    Args:
        study: whose score and clips they are.
        model: by its name.
        seed: of the model.
        folder: of the model; that in `models/` by default.

    Returns:
        What was done, for the user.
    """
    torch.set_num_threads(1)  # the last digits do not depend on the machine's cores
    folder = folder or storage.join(study.root, layout.model(model, seed))
    place = storage.join(folder, layout.VALIDATION_SCORES)
    trained, score = load_model(folder, expect={"name": model, "seed": seed}), study.score_of(model)
    known = parquet.read_table(place)
    # The scores by which the paper's alarm is fitted stay, for a study that returns to it.
    table, pieces = as_paper(known), {duration_s: as_paper(part) for duration_s, part in read_pieces(folder).items()}
    trained = replace(trained, score=None)
    schema, n_normals = schemas.VALIDATION_SCORES, 0
    if score is not None:
        network = fast_network(trained.network) if trained.explained else trained.network
        clips = split_clips(study, trained, "train")
        chosen = choose_normals(len(clips), seed=seed)

        def normals() -> Iterator[ClipBatch]:
            return chosen_clips(inputs_of(study, trained, "train"), clips, chosen, offsets_of(study, trained, "train"))

        with arithmetic("float32"):
            detector, _ = fit_detector(network, score, normals, frames_per_s=trained.features.frames_per_s)
            recordings = [recording for recording, _ in clips.values()]
            names = sorted({recordings[number] for number in chosen})
            validation = compared_clips(study, trained, detector, "validation", names)
            scores, windows = validation.scores()
            of_pieces = validation.piece_scores()
        table = beside_paper(table, scores, windows)
        pieces = {duration_s: beside_paper(part, of_pieces[duration_s]) for duration_s, part in pieces.items()}
        schema, n_normals = schema.with_metadata({_SCORE: json.dumps(asdict(score))}), len(chosen)
        trained = replace(trained, score=detector.stored())
    write_piece_scores(folder, pieces)
    table = table.select(schema.names).cast(schema)
    parquet.write_table(table, place, schema=schema)
    save_model(replace(trained, alarm=fit_study_alarm(study, model, table, folder)), folder)
    return score_name(score, model) + (f", fitted to {n_normals} normal clips" if n_normals else "")


def split_clips(study: Study, trained: TrainedModel, split: str) -> dict[str, tuple[str, int]]:
    """Of each clip of a split with features its recording and the frames that hold sound, in the order of clip_id."""
    clip_ids = parquet.read_table(storage.join(study.root, layout.features(split)), columns=["clip_id"])["clip_id"]
    rows = read_manifest(study.root).select(["clip_id", "recording", "duration_s"]).to_pylist()
    of_clips = {row["clip_id"]: (row["recording"], trained.frames_in(row["duration_s"])) for row in rows}
    return {clip_id: of_clips[clip_id] for clip_id in sorted(clip_ids.to_pylist())}


def chosen_clips(
    parts: Iterable[Tensor],
    clips: Mapping[str, tuple[str, int]],
    chosen: np.ndarray,
    offsets: Tensor | None = None,
) -> Iterator[ClipBatch]:
    """The chosen ones of many clips.

    Args:
        parts: all clips as the model takes them in, (b, F, T) each.
        clips: of each clip its recording and the frames that hold sound, in the same order.
        chosen: their numbers in this order, rising.
        offsets: of all clips, see `ClipBatch`.
    """
    names, start = list(clips), 0
    for part in parts:
        numbers = chosen[(chosen >= start) & (chosen < start + len(part))]
        known = [clips[names[number]] for number in numbers]
        if len(numbers):
            yield ClipBatch(
                part[torch.from_numpy(numbers - start)],
                [names[number] for number in numbers],
                [recording for recording, _ in known],
                [n_frames for _, n_frames in known],
                None if offsets is None else offsets[torch.from_numpy(numbers)],
            )
        start += len(part)


def inputs_of(study: Study, trained: TrainedModel, split: str) -> Iterator[Tensor]:
    for part in read_inputs(study.root, split, study.feature_settings, trained.normalization):
        yield part[..., : trained.n_frames]


def offsets_of(study: Study, trained: TrainedModel, split: str) -> Tensor | None:
    return trained.normalization.offsets(load_references(study.root, split, study.feature_settings))


@dataclass(frozen=True)
class ComparedClips:
    """Normal clips and their pieces, scored by a detector, each compared with normal clips of other recordings.

    Attributes:
        detector: the model with its fitted score.
        parts: gives the clips in parts, always in the same order.
        n_frames: how many frames of each clip hold sound.
        recordings: the number of each clip's recording among those of the detector's normals, (N,); -1 for others.
        lengths: frames of pieces, by their duration in seconds.
    """

    detector: Detector
    parts: Callable[[], Iterable[ClipBatch]]
    n_frames: Sequence[int]
    recordings: Tensor
    lengths: Mapping[float, int]

    def scores(self) -> tuple[np.ndarray, list[float]]:
        """Of each clip, its score and the highest value of its windows of 0.25 s."""
        detector = self.detector
        scores, windows, start = list[Tensor](), list[float](), 0
        with torch.inference_mode():
            for part in self.parts():
                for k, clip_id in enumerate(part.clip_ids):
                    x, n = part.x[k : k + 1], [part.n_frames[k]] if part.n_frames is not None else None
                    offsets = None if part.offsets is None else part.offsets[k : k + 1]
                    place, own = places_of(x, n, offsets), self.recordings[start : start + 1]
                    cells = detector.cells(x, [clip_id])[0, :, : n[0] if n else None]
                    values = window_means(frame_errors(cells), detector.frames_per_s)
                    scores.append(detector.calibrate(detector.pool(cells[None]), place, own))
                    windows.append(float(detector.calibrate(values[:, None], place, own).max()))
                    start += 1
        return torch.cat(scores).double().numpy(), windows

    def piece_scores(self) -> dict[float, np.ndarray]:
        """The scores of pieces, by their duration in seconds."""
        of_pieces = piece_scores(self.detector, self.parts(), self.n_frames, self.recordings, self.lengths)
        return {duration_s: scores.numpy() for duration_s, scores in of_pieces.items()}


def compared_clips(
    study: Study,
    trained: TrainedModel,
    detector: Detector,
    split: str,
    names: Sequence[str],
    chosen: np.ndarray | None = None,
) -> ComparedClips:
    """The chosen clips of a split, by default all; `names` are those of the recordings of the detector's normals."""
    clips = split_clips(study, trained, split)
    numbers = np.arange(len(clips)) if chosen is None else chosen
    known = [list(clips.values())[number] for number in numbers]

    def parts() -> Iterator[ClipBatch]:
        offsets = offsets_of(study, trained, split)
        return chosen_clips(inputs_of(study, trained, split), clips, numbers, offsets)

    return ComparedClips(
        detector,
        parts,
        [n for _, n in known],
        recording_numbers(names, [recording for recording, _ in known]),
        {duration_s: trained.frames_in(duration_s) for duration_s in piece_lengths(study.data.clip_s)},
    )


def recording_numbers(names: Sequence[str], recordings: Iterable[str]) -> Tensor:
    """The number of each recording among these names, (N,); -1 for others."""
    codes = {name: code for code, name in enumerate(names)}
    return torch.tensor([codes.get(recording, -1) for recording in recordings])


def as_paper(table: pa.Table) -> pa.Table:
    """Scores of clips or pieces by the paper's score alone."""
    names = [name for name in table.column_names if name not in ("score", "paper_score", "worst_windows")]
    columns = {name: table[name] for name in names} | {"score": paper_scores(table)}
    columns["paper_score"] = pa.nulls(table.num_rows, pa.float64())
    if "worst_windows" in table.column_names:
        columns["worst_windows"] = pc.list_slice(table["worst_windows"], 0, 1)
    return pa.table(columns)


def beside_paper(table: pa.Table, scores: np.ndarray, windows: Sequence[float] = ()) -> pa.Table:
    """The paper's scores, and in addition the scores (N,) of clips or pieces, and the worst windows of clips."""
    columns = {name: table[name] for name in table.column_names}
    columns |= {"paper_score": columns["score"], "score": pa.array(scores)}
    if windows and not columns["worst_windows"].null_count:
        of_paper = columns["worst_windows"].to_pylist()
        columns["worst_windows"] = pa.array([[*first, second] for first, second in zip(of_paper, windows, strict=True)])
    return pa.table(columns)
