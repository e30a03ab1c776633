"""A study's configuration: YAML in, one frozen and validated `Study` out.

Every default of the system stands here and nowhere else. Unknown keys are errors, and all problems of a file are told
at once, each under its key. `--set train.epochs=3` on the command line is a change to the YAML before validation.

Relative paths inside `data` start at `data.root`. `root` and `data.root` start at the current folder, or at the folder
that FAITHAD_HOME names: the current folder of a submitted job is a copy that Ray deletes.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from faithad import storage
from faithad.attribution.methods import METHODS, PAPER_METHODS, AttributionSettings
from faithad.errors import ConfigError, StudyError
from faithad.features import FeatureSettings
from faithad.model.fast_network import Precision

ModelName = Literal["ae", "mae"]
MethodName = Annotated[str, Field(pattern="^(" + "|".join(METHODS) + ")$")]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Percentile = Annotated[float, Field(ge=0, le=100)]


class Section(BaseModel):
    """Frozen, so that a study can be hashed and sent to any worker; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Synthetic(Section):
    """The demo mill, made at `data.root` before the study where it does not exist yet."""

    train_recordings: int = Field(24, ge=2)
    test_recordings: int = Field(12, ge=2)
    seed: int = 0


class Split(Section):
    """Who trains and who tests. `folder`: as `data.train` and `data.test` say. `csv`: a table with the columns
    recording and split. `time`: recordings that start before `train_until` train, later ones test.
    """

    by: Literal["folder", "csv", "time"] = "folder"
    csv: str | None = None
    train_until: datetime | None = None
    validation_fraction: Fraction = 0.1
    validation_unit: Literal["clip", "recording"] = "clip"
    seed: int = 0


class Data(Section):
    """Where the clips come from. `layout: planer` is the published data set of `.pt` spectrograms, found below `root`;
    of its training folders only `training_folders` are taken, where given.
    """

    layout: Literal["audio", "planer"] = "audio"
    root: str = "."
    synthetic: Synthetic | None = None
    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    recordings: tuple[str, ...] = ()
    training_folders: tuple[str, ...] | None = None
    annotations: str | None = None
    clip_s: float = Field(10.0, gt=0, le=600)
    remainder: Literal["drop", "pad", "overlap"] = "drop"
    split: Split = Split()

    def locate(self, path: str) -> str:
        """A path of this section, starting from `root` on unless it is absolute or a URI."""
        return path if "://" in path or path.startswith("/") else storage.join(self.root, path)

    @model_validator(mode="after")
    def _sources_fit_the_split(self) -> Data:
        if self.layout == "planer":
            if self.train or self.test or self.recordings or self.split.by != "folder":
                raise ValueError("layout 'planer' finds training/ and evaluation/ below data.root by itself: "
                                 "leave train, test, recordings and split.by out")  # fmt: skip
            if self.clip_s != 10.0:
                raise ValueError("layout 'planer' holds clips of 10 s: leave clip_s out")
        elif self.training_folders is not None:
            raise ValueError("training_folders belongs to layout 'planer'; name the folders in train instead")
        elif self.split.by == "folder":
            if not (self.train and self.test) or self.recordings:
                raise ValueError("split.by 'folder' needs the folders in train and in test, and no recordings")
        elif not self.recordings or self.train or self.test:
            raise ValueError(f"split.by '{self.split.by}' needs the folders in recordings, and neither train nor test")
        if (self.split.by == "csv") != (self.split.csv is not None):
            raise ValueError("split.csv is needed with split.by 'csv', and only there")
        if (self.split.by == "time") != (self.split.train_until is not None):
            raise ValueError("split.train_until is needed with split.by 'time', and only there")
        return self


class Features(Section):
    """Log-mel features. `normalization: training` standardises each mel band with training statistics; `none` gives
    the decibels to the model, as the paper does.
    """

    sample_rate_hz: int = Field(20_000, ge=1_000, le=384_000)
    n_fft: int = Field(1_000, ge=16)
    hop_samples: int = Field(500, ge=1)
    n_mels: int = Field(80, ge=16)
    scale: Literal["db", "log10"] = "db"
    normalization: Literal["none", "training"] = "none"

    @model_validator(mode="after")
    def _hop_fits(self) -> Features:
        if self.hop_samples > self.n_fft:
            raise ValueError(
                f"hop_samples ({self.hop_samples}) may not exceed n_fft ({self.n_fft}): sound would be lost"
            )
        return self


class Train(Section):
    """The paper's training. `workers` share each batch of `batch_size` clips; they do not enlarge it."""

    epochs: int = Field(500, ge=1)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    minimum_learning_rate: float = Field(1e-5, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    restart_period: int = Field(5, ge=1)
    patience: int = Field(30, ge=1)
    minimum_improvement: float = Field(1e-5, ge=0)
    mask_ratio: Fraction = 0.30
    patch: int = Field(4, ge=1)
    workers: int = Field(1, ge=1)
    cpus_per_worker: float | None = Field(None, gt=0)
    gpus_per_worker: float = Field(0, ge=0)
    max_failures: int = Field(3, ge=0)

    @model_validator(mode="after")
    def _batch_feeds_workers(self) -> Train:
        if self.batch_size % self.workers:
            raise ValueError(f"batch_size ({self.batch_size}) must be a multiple of workers ({self.workers})")
        if self.minimum_learning_rate > self.learning_rate:
            raise ValueError("minimum_learning_rate may not exceed learning_rate")
        return self


class Attribution(Section):
    """The attributions; constants of the paper's experiment.

    `engine`: `stream` evaluates the points of all clips and methods in one stream; `captum` makes the plain Captum
    calls, one clip and one method at a time. `precision` is that of matrix products and convolutions in the stream.
    """

    engine: Literal["stream", "captum"] = "stream"
    precision: Precision = "float32"
    methods: tuple[MethodName, ...] = PAPER_METHODS
    smooth_grad_samples: int = Field(25, ge=1)
    smooth_grad_sigma: float = Field(0.1, gt=0)
    integrated_gradients_steps: int = Field(50, ge=1)
    gradient_shap_samples: int = Field(25, ge=1)
    gradient_shap_sigma: float = Field(0.09, ge=0)
    occlusion_bands: int = Field(20, ge=1)
    occlusion_frames: int = Field(20, ge=1)
    seed: int = 0

    @property
    def settings(self) -> AttributionSettings:
        return AttributionSettings(**self.model_dump(exclude={"engine", "precision", "methods", "seed"}))

    @model_validator(mode="after")
    def _captum_has_one_precision(self) -> Attribution:
        if self.engine == "captum" and self.precision != "float32":
            raise ValueError("precision belongs to engine 'stream'; engine 'captum' computes in float32")
        if not self.methods or len(set(self.methods)) != len(self.methods):
            raise ValueError(f"methods must name one or more different methods, found {list(self.methods)}")
        return self


class Audit(Section):
    """How the audit is spread. Only `percentiles` and `maps` change what is written.

    `maps`: for how many test clips the whole maps are kept (-1: for all); curves always are. `actors` null: as many as
    the cluster's CPUs (or GPUs, where gpus_per_actor asks for them) carry.
    """

    percentiles: tuple[Percentile, ...] = tuple(float(p) for p in range(90, 100))
    maps: int = Field(4, ge=-1)
    clips_per_shard: int = Field(8, ge=1)
    actors: int | None = Field(None, ge=1)
    gpus_per_actor: float = Field(0, ge=0)
    micro_batch: int = Field(16, ge=1)

    @model_validator(mode="after")
    def _percentiles_rise(self) -> Audit:
        if not self.percentiles or list(self.percentiles) != sorted(set(self.percentiles)):
            raise ValueError("percentiles must be one or more different values in rising order")
        return self


class Evaluation(Section):
    """`alarm_quantile`: the alarm threshold is this quantile of the scores of validation normals."""

    alarm_quantile: Fraction = 0.95
    seed: int = 0


class Study(Section):
    """The whole study. See configs/demo.yaml and configs/paper.yaml."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    root: Annotated[str, Field(min_length=1)]
    protocol: Literal["paper"] = "paper"
    models: tuple[ModelName, ...] = ("ae", "mae")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (0, 1, 2, 3, 4)
    data: Data
    features: Features = Features()
    train: Train = Train()
    attribution: Attribution = Attribution()
    audit: Audit = Audit()
    evaluation: Evaluation = Evaluation()

    @property
    def feature_settings(self) -> FeatureSettings:
        values = self.features.model_dump(exclude={"normalization"})
        return FeatureSettings(**values, clip_s=self.data.clip_s)

    def n_frames(self, model: str) -> int:
        """Frames that a model sees: the AE all of them, the MAE as many as its patches divide (paper protocol)."""
        frames = self.feature_settings.n_frames
        return frames - frames % self.train.patch if model == "mae" else frames

    @property
    def runs(self) -> list[tuple[str, int]]:
        """All (model, seed) pairs, in the order in which they are trained."""
        return [(model, seed) for model in self.models for seed in self.seeds]

    @model_validator(mode="after")
    def _parts_fit(self) -> Study:
        for key in ("models", "seeds"):
            values = getattr(self, key)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{key} must name one or more different values, found {list(values)}")
        if "mae" in self.models and self.features.n_mels % self.train.patch:
            raise ValueError(
                f"train.patch ({self.train.patch}) must divide features.n_mels ({self.features.n_mels}) for the MAE"
            )
        if self.feature_settings.n_frames < 16:
            raise ValueError("a clip has fewer than 16 frames: raise data.clip_s or lower features.hop_samples")
        return self

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
    try:
        text = storage.read_text(location)
    except (OSError, StudyError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read the configuration {location!r}: {error}") from error
    study = parse_study(text, name=location, overrides=overrides)
    data = study.data.model_copy(update={"root": _absolute(study.data.root)})
    return study.model_copy(update={"root": _absolute(study.root), "data": data})


def parse_study(text: str, *, name: str, overrides: Sequence[str] = ()) -> Study:
    """As `load_study`, from the text itself; `name` says in messages where it came from."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{name} must hold keys and values (name: ..., root: ..., data: ...), found {type(values).__name__}"
        )
    for override in overrides:
        _override(values, override)
    try:
        return Study.model_validate(values)
    except ValidationError as error:
        problems = error.errors()
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = [f"{name} has {count}:", *(f"  {_describe(problem)}" for problem in problems)]
        raise ConfigError("\n".join(lines)) from error


def _absolute(location: str) -> str:
    """Independent of the current folder, which is another one on every worker."""
    if "://" in location:
        return location
    return os.path.normpath(os.path.join(os.environ.get("FAITHAD_HOME", os.getcwd()), os.path.expanduser(location)))


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override!r} is not of the form section.key=value, such as train.epochs=3")
    *sections, last = key.strip().split(".")
    for section in sections:
        inner = values.get(section)
        if inner is None:
            inner = values[section] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override!r}: {section} is a value, not a section")
        values = inner
    try:
        values[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not valid YAML: {error}") from error


def _describe(problem: ErrorDetails) -> str:
    key = ".".join(str(part) for part in problem["loc"]) or "(whole file)"
    if problem["type"] == "extra_forbidden":
        section: Any = Study
        for part in problem["loc"][:-1]:
            section = _section_type(section, str(part))
        close = difflib.get_close_matches(str(problem["loc"][-1]), list(section.model_fields), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(section.model_fields)}"
        return f"{key}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{key}: missing, give it a value"
    message = problem["msg"].removeprefix("Value error, ")
    found = problem["input"]
    return f"{key}: {message}" + ("" if isinstance(found, dict | BaseModel) else f", found {found!r}")


def _section_type(section: type[BaseModel], name: str) -> type[BaseModel]:
    annotation = section.model_fields[name].annotation
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return section
