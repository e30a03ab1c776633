"""A study's configuration: YAML in, one frozen and validated `Study` out.

Every default of the system is here or in `config.sections`, and nowhere else. Unknown keys are errors, and all problems
of a file are reported at once, each under its key. `--set train.epochs=3` on the command line is a change to the YAML
before validation.

Relative paths inside `data` start at `data.root`. `root`, `data.root`, `data.add_normals` and `train.init_from` start
at the current folder, or at the folder that FAITHAD_HOME names: that of a submitted job is a copy that Ray deletes.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, model_validator

from faithad.config.base import ScoreChoice, Section, Seed, all_different, refuse
from faithad.config.data import Data
from faithad.config.file import KeyProblem, parse
from faithad.config.search import Search
from faithad.config.sections import (
    Alarm,
    Attribution,
    Audit,
    Evaluation,
    Features,
    Network,
    Report,
    Train,
    compiled_without_gpu,
)
from faithad.config.yaml_text import read_text
from faithad.errors import ConfigError
from faithad.model.table import MODELS
from faithad.scoring.choices import PAPER as PAPER_SCORE
from faithad.scoring.choices import Score, chosen_score
from faithad.settings import NOT_CHECKED, Checks, FeatureSettings, JudgingSettings, n_hidden_patches
from faithad.vocabulary import CORRECTED, PAPER, TrackerName

# Frames below which no network can be built: most halve them four times.
_FEWEST_FRAMES = 16
# The models that others are judged with.
_LINEAR, _INPAINTER = "frame_pca", "mae"


def _model(name: str) -> str:
    if name not in MODELS:
        raise ValueError(f"allowed: {', '.join(MODELS)}")
    return name


ModelName = Annotated[str, AfterValidator(_model)]


def _name(name: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) is None:
        raise ValueError("allowed: letters, digits, '_', '.' and '-', a letter or digit first")
    return name


class Study(Section):
    """The whole study. See configs/demo.yaml and configs/paper.yaml.

    `score`: what is made of a model's error: `paper`, the mean squared error of the clip; `robust`, the recommended
    choices for each model, or the four choices themselves, rows of the tables in `scoring`. Models that only
    give a score keep that score.
    `protocol`: how maps are judged, as in the `paper`, `corrected`, or both: see docs/decisions.md.
    `models`: `ae` and `mae` are the study's question. `dense_ae`, `cae`, `skip_cae`, `one_class_svm` and
    `isolation_forest` are the model paper's baselines, for the detection table. `cae` and `skip_cae` are explained as
    `ae` and `mae` are; the other baselines are scored only, and `attribution` does not concern them.
    `model`: the size of the network of `ae` and `mae`.
    `track`: experiment trackers that trainings and trials are exported to as they end: see `runs.tracking`.
    """

    name: Annotated[str, AfterValidator(_name)] = Field(examples=["name"])
    root: str = Field(min_length=1, examples=["root"])
    protocol: Literal["paper", "corrected", "both"] = "paper"
    score: ScoreChoice = "paper"
    models: tuple[ModelName, ...] = ("ae", "mae")
    seeds: tuple[Seed, ...] = (0, 1, 2, 3, 4)
    track: tuple[TrackerName, ...] = ()
    data: Data = Field(examples=[{"layout": "planer"}])
    features: Features = Features()
    model: Network = Network()
    train: Train = Train()
    attribution: Attribution = Attribution()
    audit: Audit = Audit()
    alarm: Alarm = Alarm()
    search: Search = Search()
    evaluation: Evaluation = Evaluation()
    report: Report = Report()

    @model_validator(mode="before")
    @classmethod
    def _without_events(cls, values: Any) -> Any:
        """Release 0.1.0 wrote a section `events`, which nothing read, into the `study.yaml` of each root."""
        events = values.get("events") if isinstance(values, dict) else None
        if isinstance(events, dict) and set(events) == {"merge_gap_s", "method", "percentile"}:
            return {key: value for key, value in values.items() if key != "events"}
        return values

    @property
    def feature_settings(self) -> FeatureSettings:
        return self.features.settings(self.data.clip_s)

    def frames_in(self, model: str, duration_s: float) -> int:
        """Frames of a clip that hold sound, of those that a model takes in."""
        return min(self.n_frames(model), self.feature_settings.frames_in(duration_s))

    def n_frames(self, model: str) -> int:
        """Frames that a model takes of a clip: the most that its row's multiple, and its patches if any, divide."""
        frames, row = self.feature_settings.n_frames, MODELS[model]
        return frames - frames % math.lcm(row.frames_multiple, self.train.patch if row.masked else 1)

    def network_options(self, model: str) -> dict[str, float]:
        """What a model's network is built with besides its shape: the settings of `model` that are not the paper's."""
        return self.model.model_dump(exclude_defaults=True) if MODELS[model].sized else {}

    def score_of(self, model: str) -> Score | None:
        """The score of a model; None for the paper's, and for a model that gives a score only."""
        if not MODELS[model].reconstructs:
            return None
        score = chosen_score(self.score, model)
        return None if score == PAPER_SCORE else score

    @property
    def judging(self) -> JudgingSettings:
        """All protocols, and the frames that all explained models of the study take."""
        protocols = (PAPER, CORRECTED) if self.protocol == "both" else (self.protocol,)
        explained = [model for model in self.models if MODELS[model].explained]
        is_shared = CORRECTED in protocols and bool(explained)
        return JudgingSettings(protocols, min(map(self.n_frames, explained)) if is_shared else None)

    def checks(self, seed: int) -> Checks:
        """How many clips are checked of the models with this seed; only the first seed's are checked for sanity."""
        if CORRECTED not in self.judging.protocols:
            return NOT_CHECKED
        n_sanity = self.evaluation.sanity_clips if seed == self.seeds[0] else 0
        n_deep = self.evaluation.deep_clips
        return Checks(n_deep, n_sanity, min(1, n_deep))

    def beside(self, model: str, seed: int) -> dict[str, tuple[str, int]]:
        """The models that an explained one is judged with: `linear`, whose error is one of its lines, and
        `inpainter`, which predicts the hidden frames of deep clips.
        """
        if CORRECTED not in self.judging.protocols or not MODELS[model].explained:
            return {}
        beside = {"linear": (_LINEAR, self.seeds[0])} if _LINEAR in self.models and model != _LINEAR else {}
        if _INPAINTER in self.models and self.evaluation.deep_clips:
            beside["inpainter"] = (_INPAINTER, seed)
        return beside

    @property
    def runs(self) -> list[tuple[str, int]]:
        """All (model, seed) pairs, in the order in which they are trained. A model whose training is not random has
        the first seed only: every seed would give the same model.
        """
        return [(model, seed) for model in self.models for seed in self._seeds(model)]

    def _seeds(self, model: str) -> tuple[int, ...]:
        return self.seeds[:1] if MODELS[model].seedless else self.seeds

    @model_validator(mode="after")
    def _parts_fit(self) -> Study:
        problems = [*all_different(self, "models"), *all_different(self, "seeds")]
        problems += all_different(self, "track") if self.track else []
        problems += compiled_without_gpu(self.attribution, self.audit)
        problems += self.alarm.problems(self.data.clip_s)
        if self.protocol != PAPER and self.audit.percentiles[-1] == 100:
            reason = f"100 leaves no frame under protocol '{self.protocol}': percentiles must be below 100"
            problems.append((("audit.percentiles", "protocol"), reason))
        models = (*self.models, *self.search.members)
        if self.features.reference == "clip" and not any(MODELS[model].takes_reference for model in models):
            takers = ", ".join(name for name, row in MODELS.items() if row.takes_reference)
            reason = f"'clip' is for {takers}, and models lists none of them: set it to 'none' or 'recording'"
            problems.append((("features.reference", "models"), reason))
        problems += self._score_problems()
        try:
            frames = self.feature_settings.n_frames
        except ConfigError as error:
            keys = ("data.clip_s", "features.sample_rate_hz", "features.n_fft")
            return refuse(self, [*problems, (keys, str(error).removeprefix("clip_s "))])
        keys = ("data.clip_s", "features.hop_samples", "features.sample_rate_hz")
        if frames < _FEWEST_FRAMES:
            reason = (
                f"a clip of {self.data.clip_s:g} s has fewer than {_FEWEST_FRAMES} frames ({frames}): raise it, or "
                "lower features.hop_samples"
            )
            problems.append((keys, reason))
        else:
            for model in self.models:
                if MODELS[model].masked:
                    problems += self._patch_problems(model, (*keys, "models", "train.patch"))
                elif MODELS[model].reconstructs and self.n_frames(model) < _FEWEST_FRAMES:
                    problems.append(((*keys, "models"), self._too_few_frames(model)))
        return refuse(self, problems)

    def _score_problems(self) -> list[KeyProblem]:
        problems: list[KeyProblem] = []
        scores = {model: score for model in self.models if (score := self.score_of(model)) is not None}
        for model, score in scores.items():
            try:
                score.require_fits(model)
            except ConfigError as error:
                problems.append((("score", "models"), str(error)))
        if scores and self.alarm.pooling != "mean":
            reason = f"'{self.alarm.pooling}' is for score 'paper'; any other has a pooling of its own: leave it out"
            problems.append((("alarm.pooling", "score"), reason))
        if self.alarm.rule == "gamma" and any(score.calibration != "none" for score in scores.values()):
            reason = "'gamma' is for scores above 0, and calibrated ones are logarithms: use quantile or conformal"
            problems.append((("alarm.rule", "score"), reason))
        return problems

    def _too_few_frames(self, model: str) -> str:
        frames, row = self.n_frames(model), MODELS[model]
        divisors = [f"train.patch ({self.train.patch})"] if row.masked else []
        divisors += [str(row.frames_multiple)] if row.frames_multiple > 1 else []
        lower = ", or lower train.patch" if row.masked else ""
        return (
            f"the {row.title} sees {frames} frames of a clip, a multiple of {' and '.join(divisors)}, and needs "
            f"{_FEWEST_FRAMES}: raise it{lower}"
        )

    def _patch_problems(self, model: str, keys: tuple[str, ...]) -> list[KeyProblem]:
        """Why the patches of a masked model do not fit a clip; `keys` are those that set its number of frames."""
        patch, n_mels, frames = self.train.patch, self.features.n_mels, self.n_frames(model)
        title = MODELS[model].title
        problems: list[KeyProblem] = []
        if n_mels % patch:
            reason = f"{patch} must divide features.n_mels ({n_mels}) for the {title}"
            problems.append((("train.patch", "features.n_mels", "models"), reason))
        if frames < _FEWEST_FRAMES:
            problems.append((keys, self._too_few_frames(model)))
        if not problems:
            try:
                n_hidden_patches(n_mels // patch * (frames // patch), self.train.mask_ratio)
            except ConfigError as error:
                reason = str(error).removeprefix("ratio ")
                problems.append((("train.mask_ratio", "features.n_mels", *keys), reason))
        return problems

    def to_yaml(self) -> str:
        """The resolved configuration; `load_study` reads it back to an equal study."""
        return yaml.safe_dump(json.loads(self.model_dump_json()), sort_keys=False)


def load_study(location: str, *, overrides: Sequence[str] = ()) -> Study:
    """Read and validate a study.

    Args:
        location: a YAML file, local or a URI.
        overrides: `section.key=value` strings; the value is read as YAML.

    Raises:
        ConfigError: the file is missing or no YAML, or one or more keys are unknown, of a wrong type or impossible.
    """
    study = parse_study(read_text(location), name=location, overrides=overrides)
    data = study.data
    places = {"root": absolute(data.root), "add_normals": tuple(map(absolute, data.add_normals))}
    data = data.model_copy(update=places)
    train = study.train
    if train.init_from is not None:
        train = train.model_copy(update={"init_from": absolute(train.init_from)})
    return study.model_copy(update={"root": absolute(study.root), "data": data, "train": train})


def parse_study(text: str, *, name: str, overrides: Sequence[str] = ()) -> Study:
    """As `load_study`, from the text itself; `name` says in messages where it came from."""
    return parse(Study, text, name=name, overrides=overrides)


def absolute(location: str) -> str:
    """The location, independent of the current folder, which is another one on every worker."""
    if "://" in location:
        return location
    return os.path.normpath(os.path.join(os.environ.get("FAITHAD_HOME", os.getcwd()), os.path.expanduser(location)))
