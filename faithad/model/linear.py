"""Two linear models of short context, which are fitted in seconds and which a network must beat.

Both reconstruct each frame of a clip from the frames around it. They map spectrograms (B, F, T) to reconstructions
(B, F, T) and have a gradient, as networks do, so they are scored, explained and judged in the same way.

    frame_pca     a frame and its context, every second frame from t - 8 to t + 8, are projected on 40 principal
                  components and back. The reconstruction is the middle frame of the context that comes back.
    frame_ridge   a frame is predicted by ridge regression from the mean of the frames t - 6 to t - 2, the mean of
                  t + 2 to t + 6, and the mean of the clip.

Beyond the edges of a clip its first and last frame are repeated. With the reference "clip", the median spectrum of the
clip is subtracted first and added to the reconstruction. Then the error does not change with the gain of a recording,
nor with the fixed colour of a microphone.

Each clip is a matrix product of its own: a product of a whole batch would round differently in a batch of another size.

Shape letters: B clips, F mel bands, T frames, O = 9 frames of context, K = 40 components, n frames to fit on.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from faithad.errors import ConfigError, StudyError
from faithad.features import median_over_frames
from faithad.model.layers import refuse_small

MOST_FRAMES = 20_000
REFERENCES = ("none", "clip")
_CONTEXT, _STEP = 9, 2
_COMPONENTS = 40
_NEAREST, _FARTHEST = 2, 6
_ALPHA = 10.0


class FramePCA(nn.Module):
    """The principal components of a frame and its context. Grad-CAM explains the K values that describe a frame.

    Args:
        n_mels: F, at least 16.
        n_frames: T, at least 16.
        reference: what is subtracted from a clip first: "none", or "clip" for its median spectrum.

    Raises:
        ConfigError: the shape is too small, or there is no such reference.
    """

    grad_cam_layer = "code"

    def __init__(self, n_mels: int, n_frames: int, *, reference: str = "none") -> None:
        super().__init__()
        self.n_mels, self.n_frames, self.options = n_mels, n_frames, _options(n_mels, n_frames, reference)
        self.register_buffer("mean", torch.zeros(_CONTEXT * n_mels, 1))
        self.register_buffer("components", torch.zeros(_COMPONENTS, _CONTEXT * n_mels))
        self.code = _Code()

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructions (B, F, T) of spectrograms (B, F, T)."""
        mean, components = self.get_buffer("mean"), self.get_buffer("components")
        first = _CONTEXT // 2 * self.n_mels
        middle = slice(first, first + self.n_mels)
        median = reference_spectrum(x, self.options["reference"])
        code = self.code(self.inputs(x - median) - mean, components)[:, :, 0]
        return median + mean[middle] + _products(components[:, middle].T, code)

    def context_error(self, x: Tensor) -> Tensor:
        """The squared error of each mel band, averaged over the O frames of each frame's context: (B, F, T).

        Its mean over the bands is the mean squared error of all O x F values that describe a frame.
        """
        mean, components = self.get_buffer("mean"), self.get_buffer("components")
        centred = self.inputs(x - reference_spectrum(x, self.options["reference"])) - mean
        rebuilt = _products(components.T, self.code(centred, components)[:, :, 0])
        errors: Tensor = (rebuilt - centred).square().unflatten(1, (_CONTEXT, self.n_mels))
        return errors.mean(dim=1)

    def inputs(self, z: Tensor) -> Tensor:
        """The frames t - 8, t - 6, … t + 8 of each frame t, one below the other: (B, F, T) to (B, O F, T)."""
        reach = _CONTEXT // 2 * _STEP
        shifted = functional.pad(z, (reach, reach), mode="replicate").unfold(2, 2 * reach + 1, 1)[..., ::_STEP]
        return shifted.permute(0, 3, 1, 2).flatten(1, 2)

    def fit(self, inputs: Tensor, targets: Tensor) -> None:
        """Fit to n frames, given as columns of `inputs`, (O F, n) float64; `targets` are not needed.

        The components are the leading eigenvectors of the covariance. Where there are fewer than K, the others stay 0.
        """
        mean = inputs.mean(dim=1, keepdim=True)
        centred = inputs - mean
        variances, vectors = torch.linalg.eigh(centred @ centred.T)
        used = variances.flip(0)[:_COMPONENTS] > 1e-12 * variances[-1]
        self.get_buffer("mean").copy_(mean)
        self.get_buffer("components").copy_(vectors.flip(1)[:, :_COMPONENTS].T * used[:, None])


class _Code(nn.Module):
    """A layer of its own, so that Grad-CAM can watch it."""

    def forward(self, centred: Tensor, components: Tensor) -> Tensor:
        """(B, O F, T) and (K, O F) to (B, K, 1, T)."""
        return _products(components, centred)[:, :, None]


class FrameRidge(nn.Module):
    """Each frame predicted from those before and after it. Grad-CAM explains the three means that it is predicted from.

    Args:
        n_mels: F, at least 16.
        n_frames: T, at least 16.
        reference: what is subtracted from a clip first: "none", or "clip" for its median spectrum.

    Raises:
        ConfigError: the shape is too small, or there is no such reference.
    """

    grad_cam_layer = "surroundings"

    def __init__(self, n_mels: int, n_frames: int, *, reference: str = "none") -> None:
        super().__init__()
        self.n_mels, self.n_frames, self.options = n_mels, n_frames, _options(n_mels, n_frames, reference)
        self.register_buffer("coefficients", torch.zeros(n_mels, 3 * n_mels))
        self.register_buffer("intercept", torch.zeros(n_mels, 1))
        self.surroundings = _Surroundings()

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructions (B, F, T) of spectrograms (B, F, T)."""
        median = reference_spectrum(x, self.options["reference"])
        predicted = _products(self.get_buffer("coefficients"), self.inputs(x - median))
        return median + self.get_buffer("intercept") + predicted

    def inputs(self, z: Tensor) -> Tensor:
        """The three means that each frame is predicted from, one below the other: (B, F, T) to (B, 3 F, T)."""
        surroundings: Tensor = self.surroundings(z)
        return surroundings.flatten(1, 2)

    def fit(self, inputs: Tensor, targets: Tensor) -> None:
        """Fit to n frames, given as columns of `targets`, (F, n), and of what they are predicted from, (3 F, n)."""
        input_mean, target_mean = inputs.mean(dim=1, keepdim=True), targets.mean(dim=1, keepdim=True)
        centred = inputs - input_mean
        penalised = centred @ centred.T + _ALPHA * torch.eye(len(centred), dtype=centred.dtype)
        coefficients = torch.linalg.solve(penalised, centred @ (targets - target_mean).T).T
        self.get_buffer("coefficients").copy_(coefficients)
        self.get_buffer("intercept").copy_(target_mean - coefficients @ input_mean)


class _Surroundings(nn.Module):
    """A layer of its own, so that Grad-CAM can watch it."""

    def forward(self, z: Tensor) -> Tensor:
        """The means of the frames before and after each frame, and of the clip: (B, F, T) to (B, 3, F, T)."""
        n_frames, width = z.shape[2], _FARTHEST - _NEAREST + 1
        padded = functional.pad(z, (_FARTHEST, _FARTHEST), mode="replicate")
        means = padded.unfold(2, width, 1).mean(dim=-1)
        before, after = means[..., :n_frames], means[..., -n_frames:]
        return torch.stack([before, after, z.mean(dim=2, keepdim=True).expand_as(z)], dim=1)


LinearModel = FramePCA | FrameRidge


def fit_linear(model: LinearModel, parts: Iterable[Tensor], *, n_clips: int, seed: int) -> None:
    """Fit a linear model to frames of normal clips: to all of them, or to a random sample of `MOST_FRAMES`.

    Only the sampled frames are held in memory.

    Args:
        model: an unfitted one, on the CPU.
        parts: the clips in any number of tensors (b, F, T), as the model takes them in, always in the same order.
        n_clips: in all parts together.
        seed: of the sample.

    Raises:
        StudyError: there are no clips, more or fewer than `n_clips`, or values that are not finite.
    """
    n_frames, reference = model.n_frames, model.options["reference"]
    n_all = n_clips * n_frames
    chosen = np.sort(np.random.default_rng(seed).choice(n_all, min(n_all, MOST_FRAMES), replace=False, shuffle=False))
    inputs, targets, n_seen = [], [], 0
    for part in parts:
        first, last = np.searchsorted(chosen, [n_seen * n_frames, (n_seen + len(part)) * n_frames])
        clips, frames = np.divmod(chosen[first:last] - n_seen * n_frames, n_frames)
        for clip in np.unique(clips):
            if not part[clip].isfinite().all():
                raise StudyError("A linear model cannot be fitted: a training clip holds NaN or infinite values.")
            z = part[clip : clip + 1] - reference_spectrum(part[clip : clip + 1], reference)
            columns = torch.from_numpy(frames[clips == clip])
            inputs.append(model.inputs(z)[0, :, columns])
            targets.append(z[0, :, columns])
        n_seen += len(part)
    if n_seen != n_clips or not inputs:
        raise StudyError(f"A linear model was to be fitted to {n_clips} clips and was given {n_seen}.")
    model.fit(torch.cat(inputs, dim=1).double(), torch.cat(targets, dim=1).double())


def reference_spectrum(x: Tensor, reference: str) -> Tensor:
    """What is subtracted from clips (B, F, T): the median of each band over the frames, (B, F, 1), or zeros."""
    if reference == "none":
        return torch.zeros_like(x[..., :1])
    return median_over_frames(x)


def _products(matrix: Tensor, clips: Tensor) -> Tensor:
    """(M, D) times each of (B, D, T), as (B, M, T)."""
    return torch.stack([matrix @ clip for clip in clips])


def _options(n_mels: int, n_frames: int, reference: str) -> dict[str, str]:
    refuse_small(n_mels, n_frames)
    if reference not in REFERENCES:
        raise ConfigError(f"There is no reference {reference!r}; allowed: {', '.join(REFERENCES)}.")
    return {"reference": reference}
