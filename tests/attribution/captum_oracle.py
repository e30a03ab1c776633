"""The methods by plain calls of Captum, one clip and one method at a time: the oracle of the gradient stream.

Captum 0.9 computes each method as its paper defines it; see `faithad.attribution.methods` for what is explained. Three
of its properties are dealt with here:

1. It evaluates all the points of a method in one batch. The gradients of that batch are taken in micro-batches instead,
   by wrapping the function that each Captum method keeps for them. Captum's own options were not enough: GradientShap
   has none, and `nt_samples_batch_size` of NoiseTunnel may change the noise.
2. It draws from the global generators: Gaussian noise from torch's, GradSHAP's places on the path from NumPy's. Both
   draws are replaced with the noise of this clip, method and sample, for the time of the call; everything computed
   from them stays Captum's own. NumPy's generator, which GradientShap uses without effect, is put back.
3. Saliency warns when it has to switch on gradients for its input: it is given an input that has them.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as functional
from captum.attr import (
    GradientAttribution,
    GradientShap,
    InputXGradient,
    IntegratedGradients,
    LayerGradCam,
    NoiseTunnel,
    Occlusion,
    Saliency,
)
from captum.attr._core import gradient_shap as captum_gradient_shap
from torch import Tensor, nn

from faithad.attribution.gradient_stream import frozen
from faithad.attribution.methods import choose_methods
from faithad.attribution.noise import Noise
from faithad.model.masking import mse_per_clip
from faithad.settings import AttributionSettings

# A gradient at one point of a planer clip (80, 400) needs 25 MB; on a CPU larger batches are not faster either.
MICRO_BATCH = 10

_ONE_AT_A_TIME = threading.Lock()


def attribute(
    network: nn.Module,
    x: Tensor,
    *,
    methods: Iterable[str],
    settings: AttributionSettings,
    seed: int,
    clip_id: str,
) -> dict[str, Tensor]:
    """The maps of one clip.

    The network's mode and flags, and all global generators, are afterwards as they were before. One thread at a time:
    the others wait, since the noise is put in Captum's place.

    Args:
        network: on the device of x.
        x: (F, T), what the network takes in.
        methods: names from `METHODS`.
        settings: the constants of the methods.
        seed: of the noise, together with `clip_id`.
        clip_id: the same clip has the same noise, whatever is computed before or beside it.

    Returns:
        One map (F, T) per method, in the order of `methods`, without a graph.

    Raises:
        ConfigError: a method is unknown.
    """
    chosen = choose_methods(methods)
    maps = {}
    # Captum switches gradients on where it takes them; whatever it computes outside must not leave a graph behind.
    with _ONE_AT_A_TIME, frozen(network), torch.inference_mode(False), torch.no_grad():
        clip = x.detach().clone()[None]
        for method in chosen:
            with _keyed_noise(Noise(seed, clip_id, method.name)):
                maps[method.name] = _MAPS[method.name](network, clip, settings)[0]
    return maps


def _error_map(network: nn.Module, clip: Tensor, settings: AttributionSettings) -> Tensor:
    reconstruction: Tensor = network(clip)
    return (reconstruction - clip).square()


def _saliency(network: nn.Module, clip: Tensor, settings: AttributionSettings) -> Tensor:
    maps: Tensor = Saliency(_explained(network)).attribute(clip.clone().requires_grad_(), abs=True)
    return maps


def _smooth_grad(network: nn.Module, clip: Tensor, settings: AttributionSettings) -> Tensor:
    saliency = Saliency(_explained(network))
    _take_gradients_in_micro_batches(saliency)
    maps: Tensor = NoiseTunnel(saliency).attribute(
        clip,
        nt_type="smoothgrad",
        nt_samples=settings.smooth_grad_samples,
        stdevs=float(settings.smooth_grad_sigma),
        abs=True,
    )
    return maps


def _integrated_gradients(network: nn.Module, clip: Tensor, settings: AttributionSettings) -> Tensor:
    integrated_gradients = IntegratedGradients(_explained(network), multiply_by_inputs=True)
    _take_gradients_in_micro_batches(integrated_gradients)
    maps: Tensor = integrated_gradients.attribute(
        clip,
        baselines=torch.zeros_like(clip),
        n_steps=settings.integrated_gradients_steps,
        method="gausslegendre",
    )
    return maps


def _gradient_shap(network: nn.Module, clip: Tensor, settings: AttributionSettings) -> Tensor:
    gradient_shap = GradientShap(_explained(network), multiply_by_inputs=True)
    _take_gradients_in_micro_batches(gradient_shap)
    maps: Tensor = gradient_shap.attribute(
        clip,
        baselines=torch.zeros_like(clip),
        n_samples=settings.gradient_shap_samples,
        stdevs=float(settings.gradient_shap_sigma),
    )
    return maps


def _grad_cam(network: nn.Module, clip: Tensor, settings: AttributionSettings) -> Tensor:
    # Without a ReLU: the channels that lower the error count as much as those that raise it.
    coarse = LayerGradCam(_explained(network), network.get_submodule(network.grad_cam_layer)).attribute(
        clip, relu_attributions=False
    )
    return functional.interpolate(coarse, clip.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


def _input_x_gradient(network: nn.Module, clip: Tensor, settings: AttributionSettings) -> Tensor:
    maps: Tensor = InputXGradient(_explained(network)).attribute(clip.clone().requires_grad_())
    return maps.detach()


def _occlusion(network: nn.Module, clip: Tensor, settings: AttributionSettings) -> Tensor:
    # Captum takes no patch larger than the clip; ours are cut at its edge.
    patch = min(settings.occlusion_bands, clip.shape[1]), min(settings.occlusion_frames, clip.shape[2])
    maps: Tensor = Occlusion(_explained(network)).attribute(
        clip, sliding_window_shapes=patch, strides=patch, baselines=0, perturbations_per_eval=MICRO_BATCH
    )
    return maps.to(clip.dtype)  # Captum adds up in float32


_MAPS: dict[str, Callable[[nn.Module, Tensor, AttributionSettings], Tensor]] = {
    "error_map": _error_map,
    "saliency": _saliency,
    "smooth_grad": _smooth_grad,
    "integrated_gradients": _integrated_gradients,
    "gradient_shap": _gradient_shap,
    "grad_cam": _grad_cam,
    "input_x_gradient": _input_x_gradient,
    "occlusion": _occlusion,
}


def _explained(network: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: mse_per_clip(network(x), x)


def _take_gradients_in_micro_batches(method: GradientAttribution) -> None:
    whole_batch = method.gradient_func

    def micro_batches(
        forward_fn: Callable[[Tensor], Tensor],
        inputs: tuple[Tensor, ...],
        target_ind: None = None,
        additional_forward_args: None = None,
    ) -> tuple[Tensor, ...]:
        (points,) = inputs
        parts = [
            whole_batch(forward_fn, part.detach().requires_grad_())[0] for part in torch.split(points, MICRO_BATCH)
        ]
        return (torch.cat(parts),)

    method.gradient_func = micro_batches


@contextlib.contextmanager
def _keyed_noise(noise: Noise) -> Iterator[None]:
    """Have Captum take the noise of this clip and method where it would draw its own."""

    def noisy_copies(x: Tensor, sigma: float, n: int) -> Tensor:
        normal, _ = noise.draw(range(n), x[0])
        return x + sigma * normal

    def on_the_path(noisy: Tensor, baseline: Tensor, drawn: Tensor) -> Tensor:
        _, places = noise.draw(range(len(noisy)), noisy[0])
        scaled: Tensor = scale(noisy, baseline, places.flatten())
        return scaled

    numpy_state, scale = np.random.get_state(), captum_gradient_shap._scale_input
    add_noise = NoiseTunnel.__dict__["_add_noise_to_input"]
    try:
        NoiseTunnel._add_noise_to_input = staticmethod(noisy_copies)
        captum_gradient_shap._scale_input = on_the_path
        yield
    finally:
        NoiseTunnel._add_noise_to_input = add_noise
        captum_gradient_shap._scale_input = scale
        np.random.set_state(numpy_state)
