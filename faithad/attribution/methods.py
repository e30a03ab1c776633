"""The table of attribution methods: a new method is one row here and the functions that it names. Without torch.

The explained scalar of a clip x (F mel bands, T frames) is its own anomaly score E(x) = mean((f(x) - x)²), with x at
both places and nothing detached (Deschênes et al. 2026, arXiv 2601.12660); or another score, as of `faithad.scoring`:
the error of each cell, weighted and pooled. Every method evaluates E, or its gradient,
at one or more points, and adds up a contribution of each point to a map (F, T). Methods without points of their own
look at the clip itself and share one pass.

The functions below use methods of tensors alone; what needs torch is in `faithad.attribution.tensors`, which they
import when they are called. An installed package adds a method by an entry point of the group `faithad.methods`, see
`faithad.extensions`.

Shape letters: N points of one clip; T is the number of its own frames, also where the network is built for more and a
short clip is filled up. The path methods begin at the baselines that `Noise.baselines` gives; occlusion sets to zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from faithad.errors import ConfigError
from faithad.extensions import METHODS_GROUP, ExtensibleTable
from faithad.settings import AttributionSettings

if TYPE_CHECKING:
    from torch import Tensor

    from faithad.attribution.noise import Noise

# Of Integrated Gradients where the steps are chosen for each clip.
FIRST_STEPS, MOST_STEPS = 25, 400

Needs = Literal["forward", "gradient", "activations"]
_Value = TypeVar("_Value")


class Points(NamedTuple):
    """The points at which a method evaluates the error.

    Attributes:
        at: (N, F, T).
        factor: the weight of each point's gradient, or of its drop in error; broadcasts to (N, F, T).
    """

    at: Tensor
    factor: Tensor


class NetworkEvaluation(NamedTuple):
    """The network's results at N points; None where a result was not asked for.

    Attributes:
        error: E, (N,).
        reconstruction: f, (N, F, T).
        gradient: of E at each point, (N, F, T).
        activation: output of the layer that Grad-CAM explains, (N, channels, height, width).
        activation_gradient: of E in that output.
        network_frames: the frames that this output spreads over: T, or more where a short clip was filled up.
        cells: of a score other than the mean squared error, the weighted error of each cell, (N, F, T).
    """

    error: Tensor
    reconstruction: Tensor
    gradient: Tensor | None = None
    activation: Tensor | None = None
    activation_gradient: Tensor | None = None
    network_frames: int | None = None
    cells: Tensor | None = None


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        name: in configurations and tables.
        title: in reports.
        reference: the publication it comes from.
        signed: whether the map has negative cells, which lower the error.
        needs: what the network computes at each point: E by a forward pass, its gradient too, or also the output of the
            layer that Grad-CAM explains.
        reduce: from (points, their evaluation, the clip's own evaluation) to a part of the map, (F, T); the map is the
            sum of all parts. The clip's own evaluation holds its error and reconstruction. It is None unless a method
            has no points of its own, or needs forward passes only.
        points: from (clip (F, T), numbers of the wanted points, settings, noise) to those points; None for the clip
            itself.
        n_points: from (settings, (F, T)) to the number of points other than the clip itself.
        stochastic: whether the map depends on noise, hence on a seed, also where baselines are zero.
    """

    name: str
    title: str
    reference: str
    signed: bool
    needs: Needs
    reduce: Callable[[Points, NetworkEvaluation, NetworkEvaluation | None], Tensor]
    points: Callable[[Tensor, Sequence[int], AttributionSettings, Noise], Points] | None = None
    n_points: Callable[[AttributionSettings, tuple[int, int]], int] = lambda settings, shape: 0
    stochastic: bool = False


def _errors(points: Points, evaluation: NetworkEvaluation, clip: NetworkEvaluation | None) -> Tensor:
    if evaluation.cells is not None:
        return evaluation.cells.sum(dim=0)
    return (evaluation.reconstruction - points.at).square().sum(dim=0)


def _gradients(points: Points, evaluation: NetworkEvaluation, clip: NetworkEvaluation | None) -> Tensor:
    return (points.factor * _given(evaluation.gradient)).sum(dim=0)


def _magnitudes(points: Points, evaluation: NetworkEvaluation, clip: NetworkEvaluation | None) -> Tensor:
    return (points.factor * _given(evaluation.gradient).abs()).sum(dim=0)


def _input_times_gradient(points: Points, evaluation: NetworkEvaluation, clip: NetworkEvaluation | None) -> Tensor:
    return (points.at * _given(evaluation.gradient)).sum(dim=0)


def _weighted_channels(points: Points, evaluation: NetworkEvaluation, clip: NetworkEvaluation | None) -> Tensor:
    from faithad.attribution.tensors import resized

    # Without a ReLU: the channels that lower the error count as much as those that raise it.
    weights = _given(evaluation.activation_gradient).mean(dim=(2, 3), keepdim=True)
    coarse = (weights * _given(evaluation.activation)).sum(dim=1, keepdim=True)
    _, n_mels, n_frames = points.at.shape
    maps = resized(coarse, (n_mels, _given(evaluation.network_frames)))[..., :n_frames]
    return maps[:, 0].sum(dim=0)


def _drops(points: Points, evaluation: NetworkEvaluation, clip: NetworkEvaluation | None) -> Tensor:
    drops = _given(clip).error - evaluation.error
    return (points.factor * drops[:, None, None]).sum(dim=0)


def _noisy_copies(clip: Tensor, samples: Sequence[int], settings: AttributionSettings, noise: Noise) -> Points:
    normal, _ = noise.draw(samples, clip)
    weight = clip.new_full((1, 1, 1), 1 / settings.smooth_grad_samples)
    return Points(clip + settings.smooth_grad_sigma * normal, weight)


def _n_steps(settings: AttributionSettings) -> int:
    steps = settings.integrated_gradients_steps
    return FIRST_STEPS if steps == "auto" else steps


def _error_sums(points: Points, evaluation: NetworkEvaluation, clip: NetworkEvaluation | None) -> Tensor:
    return (points.factor * evaluation.error[:, None, None]).sum(dim=0)


def _start(clip: Tensor, noise: Noise) -> Tensor:
    """Where the whole path of Integrated Gradients begins."""
    return noise.baselines([0], clip)


def _ends_of_the_path(clip: Tensor, samples: Sequence[int], settings: AttributionSettings, noise: Noise) -> Points:
    points = clip.expand(len(samples), *clip.shape).clone()
    factor = clip.new_ones(len(samples), 1, 1)
    if 0 in samples:
        points[list(samples).index(0)] = _start(clip, noise)
        factor[list(samples).index(0)] = -1
    return Points(points, factor)


def _gauss_legendre_path(clip: Tensor, samples: Sequence[int], settings: AttributionSettings, noise: Noise) -> Points:
    from faithad.attribution.tensors import gauss_legendre

    nodes, weights = gauss_legendre(_n_steps(settings), list(samples), clip)
    baseline = _start(clip, noise)
    path = clip - baseline
    return Points(baseline + nodes * path, weights * path)


def _noisy_places_on_the_path(
    clip: Tensor, samples: Sequence[int], settings: AttributionSettings, noise: Noise
) -> Points:
    normal, alphas = noise.draw(samples, clip)
    baselines = noise.baselines(samples, clip)
    path = clip + settings.gradient_shap_sigma * normal - baselines
    return Points(baselines + alphas * path, path / settings.gradient_shap_samples)


def _without_a_patch(clip: Tensor, samples: Sequence[int], settings: AttributionSettings, noise: Noise) -> Points:
    from faithad.attribution.tensors import patch_numbers

    patches = patch_numbers(clip, settings.occlusion_bands, settings.occlusion_frames)
    hidden = patches == patches.new_tensor(list(samples))[:, None, None]
    return Points(clip.masked_fill(hidden, 0), hidden.to(clip.dtype))


_TABLE = (
    Method(
        name="error_map",
        title="Error map",
        reference="Deschênes et al. 2026, arXiv 2601.12660",
        signed=False,
        needs="forward",
        reduce=_errors,
    ),
    Method(
        name="saliency",
        title="Saliency",
        reference="Simonyan et al. 2014, arXiv 1312.6034",
        signed=False,
        needs="gradient",
        reduce=_magnitudes,
    ),
    Method(
        name="smooth_grad",
        title="SmoothGrad",
        reference="Smilkov et al. 2017, arXiv 1706.03825",
        signed=False,
        stochastic=True,
        needs="gradient",
        n_points=lambda settings, shape: settings.smooth_grad_samples,
        points=_noisy_copies,
        reduce=_magnitudes,
    ),
    Method(
        name="integrated_gradients",
        title="Integrated Gradients",
        reference="Sundararajan et al. 2017, arXiv 1703.01365",
        signed=True,
        needs="gradient",
        n_points=lambda settings, shape: _n_steps(settings),
        points=_gauss_legendre_path,
        reduce=_gradients,
    ),
    Method(
        name="gradient_shap",
        title="GradSHAP",
        reference="Lundberg and Lee 2017, arXiv 1705.07874",
        signed=True,
        stochastic=True,
        needs="gradient",
        n_points=lambda settings, shape: settings.gradient_shap_samples,
        points=_noisy_places_on_the_path,
        reduce=_gradients,
    ),
    Method(
        name="grad_cam",
        title="Grad-CAM",
        reference="Selvaraju et al. 2017, arXiv 1610.02391",
        signed=True,
        needs="activations",
        reduce=_weighted_channels,
    ),
    Method(
        name="input_x_gradient",
        title="Input x Gradient",
        reference="Shrikumar et al. 2016, arXiv 1605.01713",
        signed=True,
        needs="gradient",
        reduce=_input_times_gradient,
    ),
    Method(
        name="occlusion",
        title="Occlusion",
        reference="Zeiler and Fergus 2014, arXiv 1311.2901",
        signed=True,
        needs="forward",
        n_points=lambda settings, shape: (
            -(-shape[0] // settings.occlusion_bands) * -(-shape[1] // settings.occlusion_frames)
        ),
        points=_without_a_patch,
        reduce=_drops,
    ),
)
# What Integrated Gradients must sum to, in each cell: the error of the clip less that of the start of its path.
CHANGE = Method(
    name="change",
    title="Change along the path",
    reference="Sundararajan et al. 2017, arXiv 1703.01365",
    signed=True,
    needs="forward",
    n_points=lambda settings, shape: 2,
    points=_ends_of_the_path,
    reduce=_error_sums,
)
METHODS = ExtensibleTable("method", METHODS_GROUP, Method, _TABLE)
PAPER_METHODS = ("error_map", "saliency", "smooth_grad", "integrated_gradients", "gradient_shap", "grad_cam")


def choose_methods(names: Iterable[str]) -> list[Method]:
    """The rows of the named methods, in the order of the names.

    Raises:
        ConfigError: a name is not in the table.
    """
    names = list(names)
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise ConfigError(f"Unknown attribution methods: {', '.join(unknown)}. Allowed: {', '.join(METHODS)}.")
    return [METHODS[name] for name in names]


def _given(value: _Value | None) -> _Value:
    if value is None:
        raise TypeError("the method uses a result that its row in the table does not ask for in `needs`")
    return value
