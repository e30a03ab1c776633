"""The sections of a study that say how it computes: features, training, attribution, audit, alarm, evaluation, report.

What it computes on, and the study as a whole, are in `config`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from faithad.attribution.methods import PAPER_METHODS
from faithad.config.base import (
    Fraction,
    MethodName,
    Percentile,
    Section,
    Seed,
    all_different,
    clips_to_explain,
    one_of,
    refuse,
)
from faithad.config.file import KeyProblem, SectionError
from faithad.evaluation.alarms import RULES
from faithad.settings import AttributionSettings, Baseline, Compile, FeatureSettings, Precision, Reference
from faithad.vocabulary import ERROR_POOLINGS


class Features(Section):
    """Log-mel features. `normalization: training` standardises each mel band with training statistics; `none` gives
    the decibels to the model, as the paper does. `reference`: what is subtracted from each clip: `none`, `clip` (its
    median spectrum, by the linear models alone) or `recording` (that of its whole recording, for all models).
    """

    sample_rate_hz: int = Field(20_000, ge=1_000, le=384_000)
    n_fft: int = Field(1_000, ge=16)
    hop_samples: int = Field(500, ge=1)
    n_mels: int = Field(80, ge=16)
    scale: Literal["db", "log10"] = "db"
    normalization: Literal["none", "training"] = "none"
    reference: Literal["none", "clip", "recording"] = "none"

    def settings(self, clip_s: float) -> FeatureSettings:
        """What a spectrogram of a clip is, and what is subtracted from it before a model takes it in."""
        values = self.model_dump(exclude={"normalization", "reference"})
        reference: Reference = "recording" if self.reference == "recording" else "none"
        return FeatureSettings(**values, clip_s=clip_s, reference=reference)

    @property
    def own_reference(self) -> str:
        """What a linear model itself subtracts from each clip."""
        return "clip" if self.reference == "clip" else "none"

    @model_validator(mode="after")
    def _hop_fits(self) -> Features:
        problems: list[KeyProblem] = []
        if self.n_fft % 2:
            problems.append((("n_fft",), f"{self.n_fft} must be even: frames are centred"))
        if self.hop_samples > self.n_fft:
            reason = f"{self.hop_samples} may not exceed n_fft ({self.n_fft}): sound would be lost"
            problems.append((("hop_samples", "n_fft"), reason))
        if self.hop_samples > self.sample_rate_hz:
            reason = (
                f"{self.hop_samples} samples are {self.hop_samples / self.sample_rate_hz:g} s at sample_rate_hz "
                f"{self.sample_rate_hz}: at least one frame per second is needed"
            )
            problems.append((("hop_samples", "sample_rate_hz"), reason))
        return refuse(self, problems)


class Network(Section):
    """The network of `ae` and `mae`; the defaults are the paper's.

    `dropout`: inside its transformer layers. `width`: factor of the number of channels. `depth`: transformer layers in
    the encoder, and in the decoder.
    """

    dropout: float = Field(0.1, ge=0, lt=1)
    width: int = Field(1, ge=1, le=16)
    depth: int = Field(1, ge=1, le=16)


class Train(Section):
    """The paper's training. `workers` share each batch of `batch_size` clips; they do not enlarge it.

    `schedule`: `warm_restarts` is the paper's, of period `restart_period`; `warmup_cosine` rises linearly over
    `warmup_epochs` and then falls along one cosine to the last of `epochs`, so that such a training cannot go on when
    `epochs` is raised. A validation loss that is no number, or
    above `divergence_factor` times the best one, sends the training back to its best epoch, once. `trainings_at_once`
    null: as many (model, seed) trainings side by side as the cluster carries. `init_from`: the folder of a trained
    model whose weights trainings start from, in place of random ones; it must have the study's features, and the
    network of each model that is trained (`ae` and `mae` have the same). `interface`: the network interface on which
    workers on several machines meet, such as eth1; null: that of the cluster's addresses.
    """

    epochs: int = Field(500, ge=1)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    minimum_learning_rate: float = Field(1e-5, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    schedule: Literal["warm_restarts", "warmup_cosine"] = "warm_restarts"
    restart_period: int = Field(5, ge=1)
    warmup_epochs: int = Field(5, ge=0)
    divergence_factor: float = Field(10, gt=1)
    patience: int = Field(30, ge=1)
    minimum_improvement: float = Field(1e-5, ge=0)
    mask_ratio: Fraction = 0.30
    patch: int = Field(4, ge=1)
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    optimizer: Literal["adamw", "fused_adamw"] = "adamw"
    compile: Literal["none", "default", "reduce-overhead", "max-autotune"] = "none"
    init_from: str | None = Field(None, min_length=1)
    checkpoint_every: int = Field(1, ge=1)
    trainings_at_once: int | None = Field(None, ge=1)
    workers: int = Field(1, ge=1)
    cpus_per_worker: float | None = Field(None, gt=0)
    gpus_per_worker: float = Field(0, ge=0)
    max_failures: int = Field(3, ge=0)
    interface: str | None = Field(None, min_length=1)

    @property
    def ends_anywhere(self) -> bool:
        """Whether no epoch depends on how many there are, so that a training can go on when `epochs` is raised."""
        return self.schedule == "warm_restarts"

    @model_validator(mode="after")
    def _batch_feeds_workers(self) -> Train:
        problems: list[KeyProblem] = []
        if self.batch_size % self.workers:
            reason = f"{self.batch_size} must be a multiple of workers ({self.workers})"
            problems.append((("batch_size", "workers"), reason))
        if self.minimum_learning_rate > self.learning_rate:
            reason = f"{self.minimum_learning_rate} may not exceed learning_rate ({self.learning_rate})"
            problems.append((("minimum_learning_rate", "learning_rate"), reason))
        # NCCL refuses two workers on one GPU.
        if self.gpus_per_worker % 1 and (self.gpus_per_worker > 1 or self.workers > 1):
            reason = f"{self.gpus_per_worker} must be a whole number, or with one worker a share of one GPU"
            problems.append((("gpus_per_worker", "workers"), reason))
        if self.schedule == "warmup_cosine" and self.warmup_epochs >= self.epochs:
            reason = f"{self.warmup_epochs} must be below epochs ({self.epochs}): the cosine needs one epoch or more"
            problems.append((("warmup_epochs", "epochs", "schedule"), reason))
        return refuse(self, problems)


class Attribution(Section):
    """The attributions. The defaults are the constants of the paper's experiment.

    `precision` is that of matrix products and convolutions, `compile` the mode of torch.compile, on a GPU. `baseline`:
    where the paths of Integrated Gradients and GradSHAP begin, at `zero` or at training clips that the model keeps
    (`normals`), drawn by seed and clip. `integrated_gradients_steps: auto` takes 25 steps, and for each clip up to 400
    until the sum of its map is the change of its score within 0.5 %.
    """

    precision: Precision = "float32"
    compile: Compile = "none"
    methods: tuple[MethodName, ...] = PAPER_METHODS
    smooth_grad_samples: int = Field(25, ge=1)
    smooth_grad_sigma: float = Field(0.1, gt=0)
    baseline: Baseline = "zero"
    integrated_gradients_steps: Annotated[int, Field(ge=1)] | Literal["auto"] = 50
    gradient_shap_samples: int = Field(25, ge=1)
    gradient_shap_sigma: float = Field(0.09, ge=0)
    occlusion_bands: int = Field(20, ge=1)
    occlusion_frames: int = Field(20, ge=1)
    seed: Seed = 0

    @property
    def settings(self) -> AttributionSettings:
        return AttributionSettings(**self.model_dump(exclude={"precision", "compile", "methods", "seed"}))

    def as_in_marks(self) -> dict[str, Any]:
        """The settings as a finished stage's mark holds them. Release 0.1.0 had two engines and named one there, and
        had no other baseline than zero.
        """
        exclude = {"baseline"} if self.baseline == "zero" else set()
        return {"engine": "stream", **self.model_dump(mode="json", exclude=exclude)}

    @model_validator(mode="before")
    @classmethod
    def _leave_out_the_engine(cls, values: Any) -> Any:
        """Release 0.1.0 wrote `engine: stream` into each study; that engine is the only one now."""
        if isinstance(values, dict) and values.get("engine") == "captum":
            raise ValueError("engine 'captum' is gone; leave the key out")
        if isinstance(values, dict) and values.get("engine") == "stream":
            return {key: value for key, value in values.items() if key != "engine"}
        return values

    @model_validator(mode="after")
    def _methods_differ(self) -> Attribution:
        return refuse(self, all_different(self, "methods"))


class Audit(Section):
    """What the audit explains, and how it is spread. Only `percentiles`, `explain`, `maps` and `clips_per_shard` change
    what is written.

    `explain`: which clips are explained once all are scored: `all`, `annotated` (in a study), `alarms`, `top:N` (the N
    highest scores) or `none`.
    `maps`: for how many explained clips the whole maps are kept (-1: for all); curves always are. In an audit of a
    folder that grows, `top:N` and `maps` apply to each take, the recordings that one run found. `actors` null: as
    many as the cluster's CPUs (or GPUs, where gpus_per_actor asks for them) carry; `readers` null: as many tasks that
    read and decode as the rest of the CPUs carries. `clips_per_shard` is the most: a shard, the unit of work, holds
    fewer where workers would be left without one. `micro_batch`: spectrograms in one forward pass; null: what suits the
    device.
    """

    percentiles: tuple[Percentile, ...] = tuple(float(p) for p in range(90, 100))
    explain: Annotated[str, clips_to_explain("all", "annotated", "alarms", "none")] = "all"
    maps: int = Field(4, ge=-1)
    clips_per_shard: int = Field(8, ge=1)
    actors: int | None = Field(None, ge=1)
    readers: int | None = Field(None, ge=1)
    gpus_per_actor: float = Field(0, ge=0)
    micro_batch: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _percentiles_rise(self) -> Audit:
        if not self.percentiles or list(self.percentiles) != sorted(set(self.percentiles)):
            reason = f"must be one or more different values in rising order, found {list(self.percentiles)}"
            return refuse(self, [(("percentiles",), reason)])
        return self


def compiled_without_gpu(attribution: Attribution, audit: Audit) -> list[KeyProblem]:
    """On a CPU the compiled network takes 2.7 times as long as the one that is used there, and minutes to compile."""
    if attribution.compile == "none" or audit.gpus_per_actor:
        return []
    reason = f"'{attribution.compile}' is for GPUs: set audit.gpus_per_actor, or leave it at 'none'"
    return [(("attribution.compile", "audit.gpus_per_actor"), reason)]


class FalseAlarms(Section):
    """How often normal sound may alarm: a share of the clips (0.05 by default), or a number of times an hour."""

    false_alarm_rate: Fraction | None = 0.05
    false_alarms_per_hour: float | None = Field(None, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _one_of_both(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("false_alarms_per_hour") is None:
            return values
        if values.get("false_alarm_rate") is not None:
            reason = "false_alarm_rate says the same of all clips: leave one of the two out, or set it to null"
            raise SectionError([(("false_alarms_per_hour", "false_alarm_rate"), reason)])
        return {**values, "false_alarm_rate": None}

    @model_validator(mode="after")
    def _one_at_least(self) -> Self:
        if self.false_alarm_rate is None and self.false_alarms_per_hour is None:
            return refuse(self, [(("false_alarm_rate",), "is null, and false_alarms_per_hour is not given either")])
        return self

    def problems(self, clip_s: float) -> list[KeyProblem]:
        """What is wrong with the section for clips of this length."""
        per_hour = self.false_alarms_per_hour
        if per_hour is None or per_hour * clip_s < 3600:
            return []
        reason = f"{per_hour:g} is as many as an hour has clips of {clip_s:g} s"
        return [(("alarm.false_alarms_per_hour",), reason)]

    def rate(self, clip_s: float) -> float:
        """The share of normal clips that may alarm."""
        if self.false_alarm_rate is not None:
            return self.false_alarm_rate
        assert self.false_alarms_per_hour is not None
        return self.false_alarms_per_hour * clip_s / 3600.0


class Alarm(FalseAlarms):
    """When a clip raises an alarm: its score is above a threshold that is fitted to normal validation clips alone.

    `rule`: how it is fitted, a row of `evaluation.alarms.RULES`: `quantile` (empirical), `gamma` (of a gamma
    distribution fitted to the scores, as in DCASE) or `conformal` (the guarantee of split conformal prediction).
    `pooling`: which score alarms, a row of `vocabulary.ERROR_POOLINGS`: the clip's mean error or that of its worst
    second; an ensemble and any score but the paper's have one number only, and the default means that.
    `false_alarm_rate`: the share of normal clips that may alarm; or `false_alarms_per_hour`, in the user's unit, whose
    rule is `conformal` if none is given. The lowest rate that the clips can promise is taken where they are too few.
    """

    rule: Annotated[str, one_of(RULES)] = "quantile"
    pooling: Annotated[str, one_of(ERROR_POOLINGS)] = "mean"

    @model_validator(mode="before")
    @classmethod
    def _no_state_share(cls, values: Any) -> Any:
        if isinstance(values, dict) and "state_share" in values:
            reason = (
                "the alarm for what lasts compares minutes with a recorder's own past, which split and shuffled clips "
                "of a study do not have, and is stored with a model. Leave it out: `faithad calibrate --model ... "
                "--normals ... --set state_share=0.5` gives it to a model of a study, and `faithad train --normals ... "
                "--set alarm.state_share=0.5` to a new one"
            )
            raise SectionError([(("state_share",), reason)])
        return values

    @model_validator(mode="before")
    @classmethod
    def _rule_of_promises(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("false_alarms_per_hour") is not None and "rule" not in values:
            return {**values, "rule": "conformal"}
        return values

    def as_in_marks(self) -> dict[str, Any]:
        """The settings as a finished stage's mark holds them; those of older studies name no alarms per hour."""
        return self.model_dump(mode="json", exclude_none=True)


class Events(Section):
    """How alarms become events: windows above the threshold at most `merge_gap_s` apart are one. `method` and
    `percentile` name the explanation that gives the event's seconds and mel bands. `trusted`: the most faithful method
    that the rule of `evaluation.decisions` finds more faithful than random frames in this audit, the error map aside;
    the first of `attribution.methods` where it finds none.
    """

    merge_gap_s: float = Field(1.0, ge=0)
    method: MethodName | Literal["trusted"] = "saliency"
    percentile: Percentile = 95.0


class Follow(Section):
    """How an audit takes up recordings that come while others are still being written.

    `every_s`: how often `faithad audit --follow` looks. `settle_s`: a recording that was modified in the last seconds
    is still being written: `--follow` leaves it alone, a single run only if its header has no length yet.
    """

    every_s: float = Field(60.0, gt=0)
    settle_s: float = Field(60.0, ge=0)


class Report(Section):
    """`sound`: whether the page of an audit can play the strongest events, and that of a study its example clips
    (`events`), or holds no sound (`none`). The sound may contain voices.
    """

    sound: Literal["events", "none"] = "events"


class Evaluation(Section):
    """`seed`: of the bootstrap, and of which clips are checked deeply.

    Under the protocol `corrected`, `deep_clips` test clips, annotated ones first, are also judged with other
    replacements, by deletion and insertion, and by mel bands; `sanity_clips` of them are explained 14 times more, with
    the first seed's networks, to see whether the maps depend on the networks' weights and on noise.
    """

    seed: Seed = 0
    deep_clips: int = Field(24, ge=0)
    sanity_clips: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _sanity_is_deep(self) -> Evaluation:
        if self.sanity_clips <= self.deep_clips:
            return self
        reason = f"{self.sanity_clips} may not exceed deep_clips ({self.deep_clips}), of which they are a part"
        return refuse(self, [(("sanity_clips", "deep_clips"), reason)])
