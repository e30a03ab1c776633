"""The settings of the core: constants of features, training and attribution, as plain values. Without torch.

A study's YAML sets them (see `config`); a notebook makes them itself.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal, NamedTuple

from faithad.errors import ConfigError

# Of matrix products and convolutions.
Precision = Literal["float32", "tf32", "bfloat16"]
# No mode with CUDA graphs: they overwrite what an earlier pass gave, and launches are few compared with 256 gradients.
Compile = Literal["none", "default", "max-autotune-no-cudagraphs"]
# Where the paths of the path methods begin.
Baseline = Literal["zero", "normals"]
# What is subtracted from a clip before a model takes it in.
Reference = Literal["none", "recording"]
# Gauss-Legendre nodes of Integrated Gradients; `auto`: as many as each clip needs.
Steps = int | Literal["auto"]
# A length that is a sum of decimal seconds may lie this far below a whole number of frames.
_ROUNDING_FRAMES = 1e-6


# Of one clip, so that a wrong setting cannot ask for more memory than machines have: samples for 3,355 s at 20 kHz, and
# cells of its spectrogram before it becomes mel bands, in 2 GiB.
_MOST_SAMPLES = 1 << 26
_MOST_CELLS = 1 << 28


def minute_s(clip_s: float) -> float:
    """Seconds of sound that the alarm for what lasts takes for one minute: longer clips are minutes by themselves."""
    return max(60.0, clip_s)


@dataclass(frozen=True)
class FeatureSettings:
    """What one spectrogram is. The defaults are those of the planer data.

    Raises:
        ConfigError: a value is impossible.
    """

    sample_rate_hz: int = 20_000
    n_fft: int = 1_000
    hop_samples: int = 500
    n_mels: int = 80
    scale: Literal["db", "log10"] = "db"
    clip_s: float = 10.0
    reference: Reference = "none"

    def __post_init__(self) -> None:
        for name in ("sample_rate_hz", "n_fft", "hop_samples", "n_mels", "clip_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be above 0.")
        if self.n_fft % 2:  # frames are centred: half a window on either side
            raise ConfigError(f"n_fft is {self.n_fft}; it must be even.")
        if self.scale not in ("db", "log10"):
            raise ConfigError(f"scale is {self.scale!r}; allowed: 'db', 'log10'.")
        if self.reference not in ("none", "recording"):
            raise ConfigError(f"reference is {self.reference!r}; allowed: 'none', 'recording'.")
        if self.clip_samples <= self.n_fft // 2:
            raise ConfigError(
                f"clip_s is {self.clip_s} s, {self.clip_samples} samples; it must be longer than half a window "
                f"(n_fft {self.n_fft})."
            )
        if self.clip_samples > _MOST_SAMPLES:
            raise ConfigError(
                f"clip_s is {self.clip_s} s, {self.clip_samples:,} samples; at most {_MOST_SAMPLES:,} are allowed."
            )
        for name, rows in (("n_fft", self.n_fft // 2 + 1), ("n_mels", self.n_mels)):
            if rows * self.n_frames > _MOST_CELLS:
                raise ConfigError(
                    f"clip_s is {self.clip_s} s: with {name} {getattr(self, name)} and hop_samples {self.hop_samples} "
                    f"its spectrogram has {rows * self.n_frames:,} cells; at most {_MOST_CELLS:,} are allowed."
                )

    def as_json(self) -> dict[str, Any]:
        """All values; without a reference, in the form of the releases that had none."""
        values = asdict(self)
        return values if self.reference != "none" else {key: values[key] for key in values if key != "reference"}

    @property
    def clip_samples(self) -> int:
        return round(self.clip_s * self.sample_rate_hz)

    @property
    def n_frames(self) -> int:
        """Frames of one clip: 401 for 10 s in hops of 25 ms."""
        return 1 + self.clip_samples // self.hop_samples

    @property
    def power_of_ten(self) -> float:
        """What a tenfold mel power adds to a cell of a log-mel spectrogram."""
        return 10.0 if self.scale == "db" else 1.0

    @property
    def frames_per_s(self) -> float:
        return self.sample_rate_hz / self.hop_samples

    def frames_in(self, duration_s: float) -> int:
        """Frames of a clip that hold sound: those of its own spectrogram, where it is shorter than `clip_s`."""
        if duration_s >= self.clip_s:
            return self.n_frames
        return min(self.n_frames, frames_in(duration_s, self.frames_per_s))


@dataclass(frozen=True)
class TrainingSettings:
    """Constants of one training. `mask_ratio` None trains a plain autoencoder.

    `schedule`, with `restart_period`, `warmup_epochs`: see `learning_rate`. `divergence_factor`: a validation loss
    above this many times the best one counts as diverged. `precision`, `optimizer`: see `low_precision`,
    `new_optimizer`.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    minimum_learning_rate: float
    weight_decay: float
    restart_period: int
    patience: int
    minimum_improvement: float
    mask_ratio: float | None
    patch: int
    seed: int
    schedule: str = "warm_restarts"
    warmup_epochs: int = 0
    divergence_factor: float = math.inf
    precision: Precision = "float32"
    optimizer: str = "adamw"


@dataclass(frozen=True)
class AttributionSettings:
    """Constants of the methods.

    Attributes:
        smooth_grad_samples: noisy copies of the clip.
        smooth_grad_sigma: standard deviation of their noise, in the unit of the network's input.
        integrated_gradients_steps: Gauss-Legendre nodes on the path from the baseline to the clip. `auto`: 25, and for
            each clip twice as many until the sum of its map is the change of its score within 0.5 %; 400 at the most.
        gradient_shap_samples: noisy copies of the clip, each at one random place of its path from the baseline.
        gradient_shap_sigma: as `smooth_grad_sigma`.
        occlusion_bands: height of the patches that occlusion sets to zero, in mel bands.
        occlusion_frames: their width, in frames. The last patches of a clip are cut at its edge.
        baseline: where the paths of Integrated Gradients and GradSHAP begin: at `zero`, or at training clips that are
            drawn from those that the model keeps (`normals`), one for each clip, or for each sample of GradSHAP.
    """

    smooth_grad_samples: int = 25
    smooth_grad_sigma: float = 0.1
    integrated_gradients_steps: Steps = 50
    gradient_shap_samples: int = 25
    gradient_shap_sigma: float = 0.09
    occlusion_bands: int = 20
    occlusion_frames: int = 20
    baseline: Baseline = "zero"


@dataclass(frozen=True)
class JudgingSettings:
    """How maps are judged.

    Attributes:
        protocols: `paper`, `corrected` or both.
        n_frames: of the grid on which `corrected` judges all models of a study; None for the model's own frames.
        chance_at: percentiles at which random and the best frames are replaced under `paper`, too: what the reasons of
            an audit are compared with. `corrected` does so at all percentiles.
    """

    protocols: tuple[str, ...] = ("paper",)
    n_frames: int | None = None
    chance_at: tuple[float, ...] = ()


AS_IN_PAPER = JudgingSettings()


class Checks(NamedTuple):
    """How many clips of a model are checked deeply; of these, for the sanity of methods, and to time each of them."""

    deep: int
    sanity: int
    timed: int


NOT_CHECKED = Checks(0, 0, 0)


def frames_in(duration_s: float, frames_per_s: float) -> int:
    """Centred frames of this much sound: the first one lies on its start, the last one on its end or before it."""
    return 1 + math.floor(duration_s * frames_per_s + _ROUNDING_FRAMES)


def n_hidden_patches(n_patches: int, ratio: float) -> int:
    """Return floor(ratio * n_patches), counted exactly with the ratio as it is written in decimal.

    In binary floating point 0.29 * 100 is 28.999...96: a patch would be lost.

    Raises:
        ConfigError: the ratio is outside (0, 1), or hides no patch at all.
    """
    if not 0.0 < ratio < 1.0:
        raise ConfigError(f"ratio is {ratio}; it must be above 0 and below 1.")
    n_hidden = math.floor(Fraction(str(ratio)) * n_patches)
    if n_hidden == 0:
        raise ConfigError(
            f"ratio is {ratio}: of {n_patches} patches that hides none. Raise it to {1 / n_patches:.3g} at least, "
            "or make the patches smaller."
        )
    return n_hidden
