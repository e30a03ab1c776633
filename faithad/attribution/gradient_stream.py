"""All methods of many clips as one stream of points.

Every (clip, point) pair of a batch goes through the network once, in micro-batches, and its contribution is added to
its clip's map at once: memory depends on the micro-batch, not on the number of clips nor of their points. Methods that
look at the clip itself share one pass.

A short clip is explained as the function of its own frames that its score is: points, gradients and maps have those
frames alone, and the network is given each point filled up (`faithad.features.fill_up`). So what the network makes of
the frames that fill it up is credited to the frames that they repeat, and the sums of the path methods are complete.

Two float32 computations of a gradient may differ by more than rounding: where an activation or a maximum is rounded to
the other side of its kink, the gradient at that point jumps. In float64 they agree.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from faithad.attribution.methods import CHANGE, FIRST_STEPS, MOST_STEPS, choose_methods
from faithad.attribution.point_stream import INTEGRATED, PointStream
from faithad.errors import ConfigError
from faithad.model.fast_network import fast_network, watchable
from faithad.model.precision import arithmetic
from faithad.scoring.score import Detector
from faithad.settings import AttributionSettings, Precision

# A gradient at one point of a planer clip (80, 400) needs 25 MB. Larger micro-batches are no faster on a CPU, and nine
# cut the paper's 25, 50 and 25 points evenly.
CPU_MICRO_BATCH = 9
GPU_MICRO_BATCH = 256
# A map of Integrated Gradients is complete if its sum differs from the change of the error by this share at most.
_COMPLETE = 0.005


def attribute_batch(
    network: nn.Module,
    x: Tensor,
    *,
    methods: Iterable[str],
    settings: AttributionSettings,
    seed: int,
    clip_ids: Sequence[str],
    n_frames: Sequence[int] | None = None,
    micro_batch: int | None = None,
    precision: Precision = "float32",
    reconstruction: Tensor | None = None,
    score: Detector | None = None,
    normals: Tensor | None = None,
) -> dict[str, Tensor]:
    """The maps of many clips.

    The network's mode and flags are restored; no global generator is touched, and no graph is left.

    Args:
        network: maps (B, F, T) to (B, F, T), on the device of x; see `faithad.model.fast_network` for what its class
            may define. To explain several batches, give `fast_network(network, precision)`, which is then made once.
        x: (B, F, T), the network's input.
        methods: names from `METHODS`.
        settings: the constants of the methods.
        seed: of the noise, together with each clip's id.
        clip_ids: B names; the same clip has the same noise whatever else is computed.
        n_frames: how many frames of each clip hold sound; all T by default. The rest of x is not looked at.
        micro_batch: the most spectrograms in one pass (on a CPU: of each thread). None: a size that suits the device.
        precision: of matrix products and convolutions, see `fast_network`.
        reconstruction: f(x), (B, F, T), if it is known. The error map is then taken from it.
        score: what is explained: the weighted and pooled error of this detector, before calibration. None: the mean
            squared error.
        normals: (N, F, T), training clips as the network takes them in, which baselines are drawn from where
            `settings` ask for that.

    Returns:
        One map (B, F, T) per method, in the order of `methods`, without a graph; 0 in frames that hold no sound.

    Raises:
        ConfigError: a method is unknown, shapes do not fit together, Grad-CAM is asked for and the network does not
            say which layer it explains, or baselines are to be drawn from normals and there are none.
    """
    chosen = choose_methods(methods)
    if settings.integrated_gradients_steps == "auto" and any(method.name == INTEGRATED for method in chosen):
        chosen.append(CHANGE)
    _check_shapes(watchable(network), x, clip_ids, n_frames, reconstruction, micro_batch)
    normals = _baselines(settings, normals, x)
    limit = micro_batch or (CPU_MICRO_BATCH if x.device.type == "cpu" else GPU_MICRO_BATCH)
    # Gradients are switched on only where they are taken; nothing else may leave a graph behind.
    with frozen(network), arithmetic(precision), torch.inference_mode(False), torch.no_grad():
        x = x.detach().clone()
        if reconstruction is not None:
            reconstruction = reconstruction.detach().clone()
        fast = fast_network(network, precision)
        lengths = [x.shape[2]] * len(x) if n_frames is None else list(n_frames)
        stream = PointStream(
            fast, x, chosen, settings, seed, clip_ids, lengths, precision, reconstruction, score, normals
        )
        maps = stream.maps(limit)
        if CHANGE in chosen:
            _complete(stream, maps, limit)
    return maps


@contextlib.contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients for the weights; both are put back as they were, module by module."""
    modes = [(module, module.training) for module in network.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        network.eval()
        network.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)


def _baselines(settings: AttributionSettings, normals: Tensor | None, x: Tensor) -> Tensor | None:
    """The normals that baselines are drawn from, on the device of the clips; None where baselines are zero."""
    if settings.baseline == "zero":
        return None
    if normals is None or not len(normals) or normals.shape[1:] != x.shape[1:]:
        shape = "none" if normals is None else str(tuple(normals.shape))
        raise ConfigError(
            f"baseline is {settings.baseline!r}, which needs normals of the clips' shape, (normals, {x.shape[1]}, "
            f"{x.shape[2]}); found {shape}. Give the model's own, or set baseline to 'zero'."
        )
    return normals.to(x.device, x.dtype)


def _complete(stream: PointStream, maps: dict[str, Tensor], limit: int) -> None:
    """Integrated Gradients again, of the clips whose map is not complete, with twice the steps each time."""
    changes = maps.pop(CHANGE.name)[:, 0, 0].tolist()
    of_clips, steps = maps[INTEGRATED], FIRST_STEPS
    incomplete = list(range(len(of_clips)))
    while True:
        sums = torch.stack([of_clips[clip].sum(dtype=torch.float64) for clip in incomplete]).tolist()
        incomplete = [
            clip
            for clip, total in zip(incomplete, sums, strict=True)
            if abs(total - changes[clip]) > _COMPLETE * abs(changes[clip])
        ]
        steps *= 2
        if not incomplete or steps > MOST_STEPS:
            return
        of_clips[incomplete] = stream.integrated_gradients(incomplete, steps).maps(limit)[INTEGRATED]


def _check_shapes(
    network: nn.Module,
    x: Tensor,
    clip_ids: Sequence[str],
    lengths: Sequence[int] | None,
    reconstruction: Tensor | None,
    micro_batch: int | None,
) -> None:
    n_mels, n_frames = getattr(network, "n_mels", None), getattr(network, "n_frames", None)
    if x.ndim != 3 or x.shape[1:] != (n_mels or x.shape[1], n_frames or x.shape[2]):
        raise ConfigError(
            f"The network explains clips of {n_mels or 'any number of'} mel bands x {n_frames or 'any number of'} "
            f"frames and was given {tuple(x.shape)}; the first axis counts the clips."
        )
    if len(clip_ids) != len(x):
        raise ConfigError(f"{len(x)} clips need as many ids, which key their noise; {len(clip_ids)} were given.")
    if lengths is not None and not (len(lengths) == len(x) and all(1 <= n <= x.shape[2] for n in lengths)):
        raise ConfigError(f"{len(x)} clips need as many n_frames, from 1 to {x.shape[2]}; found {list(lengths)}.")
    if reconstruction is not None and reconstruction.shape != x.shape:
        raise ConfigError(
            f"The reconstruction must have the clips' shape {tuple(x.shape)}, found {tuple(reconstruction.shape)}."
        )
    if micro_batch is not None and micro_batch < 1:
        raise ConfigError(f"micro_batch must be at least 1, found {micro_batch}.")
