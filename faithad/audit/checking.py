"""Checks of the explanations of some clips, the deep clips, that cost too much for all: rows of the table `checks`.

    training_mean, inpainting       faithfulness with other replacements than the model's own reconstruction: the mean
                                    of each mel band in training; what the MAE predicts where the frames are hidden
    deletion, insertion             E(x') / E(x) while the highest frames are replaced by f(x), and from f(x) back to x
    band_drop, band_mass            by how much E falls when one of ten groups of mel bands is replaced by f(x), and the
                                    share of the map's absolute mass in it (Buck et al. 2026, arXiv 2601.19017)
    randomisation                   Spearman's rho of |map| with that of the same network with layers reset, from the
                                    output inwards (Adebayo et al. 2018, arXiv 1810.03292)
    completeness                    |sum of the map - (E(x) - E(b))| / |E(x) - E(b)| of Integrated Gradients, b being
                                    the baseline
    infidelity, sensitivity         Yeh et al. 2019, arXiv 1901.09392: of noise of deviation 0.02; infidelity with the
                                    map scaled as suits it best, since maps have different units

    seconds                         that the method takes for the clip when it is computed alone

All checks concern the frames that the protocol `corrected` judges. `randomisation` to `sensitivity` are for the
clips that are checked for sanity, each of which is explained 14 times more, and `seconds` are those of one clip.

Shape letters: B clips, F mel bands, T frames, N inputs of one clip, G groups of mel bands.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from faithad.attribution.gradient_stream import attribute_batch
from faithad.attribution.noise import Noise
from faithad.audit.judging import Clip
from faithad.audit.reset_networks import reset_networks
from faithad.evaluation.arrays import Bools, Reals
from faithad.evaluation.checks import (
    BAND_DROP,
    BAND_MASS,
    COMPLETENESS,
    DELETION,
    INFIDELITY,
    INPAINTING,
    INSERTION,
    N_BAND_GROUPS,
    RANDOMISATION,
    SECONDS,
    SENSITIVITY,
    TRAINING_MEAN,
    spearman,
)
from faithad.evaluation.controls import OUTLIER
from faithad.evaluation.faithfulness import ClipScore, errors_after_replacement, signed_faithfulness
from faithad.evaluation.peaks import highest_frames
from faithad.features import fill_up
from faithad.model.masking import apply_mask
from faithad.model.micro_batches import MicroBatches, forwards_at_once
from faithad.model.random_bits import key_of
from faithad.vocabulary import CORRECTED

if TYPE_CHECKING:
    from faithad.audit.model import AuditModel

TableRow = dict[str, Any]

# Frames that are replaced for deletion and insertion, in percent.
_SHARES = (2, 5, 10, 20, 40, 60, 80)
_SIGMA, _PERTURBATIONS = 0.02, 10


class CheckedClip(NamedTuple):
    """One deep clip.

    Attributes:
        clip: as the audit judges it.
        log_mel: (F, T), in the unit of the features.
        x: the network's input, filled up, (F, T).
        reconstruction: f(x), (F, T).
        maps: of each method, (F, T); 0 behind the sound.
        error: E(x).
        n_frames: how many frames are judged.
        references: of its recording, (1, F); None where models need none.
    """

    clip: Clip
    log_mel: Tensor
    x: Tensor
    reconstruction: Tensor
    maps: Mapping[str, Tensor]
    error: float
    n_frames: int
    references: Tensor | None = None


def check_clip(model: AuditModel, checked: CheckedClip) -> list[TableRow]:
    """The rows of one deep clip; no rows where the clip has no error to explain."""
    if checked.error == 0:
        return []
    rows = [*_other_replacements(model, checked), *_deletion_and_insertion(model, checked), *_bands(model, checked)]
    if checked.clip.row.get("sanity"):
        rows += _sanity(model, checked)
    if checked.clip.row.get("timed"):
        rows += _seconds(model, checked)
    keys = {**checked.clip.keys, "protocol": CORRECTED}
    return [
        {**keys, "method": method, "check": check, "at": at, "value": float(value)}
        for method, check, at, value in rows
        if np.isfinite(value)
    ]


_Row = tuple[str | None, str, float | None, float]


def _other_replacements(model: AuditModel, checked: CheckedClip) -> Iterator[_Row]:
    percentiles = model.audit.percentiles
    sets = [
        masks
        for masks in checked.clip.masks
        if (masks.protocol, masks.mode, masks.is_line) == (CORRECTED, "frame", False)
    ]
    if not sets:
        return
    masks = np.zeros((len(sets) * len(percentiles), checked.x.shape[-1]), dtype=np.bool_)
    masks[:, : checked.n_frames] = np.concatenate([mask_set.masks for mask_set in sets])
    n = len(masks)
    replacements: dict[str, Tensor] = {}
    if model.training is not None:
        mean = model.trained.normalization.apply(model.training.mean[None, :, None], checked.references)
        replacements[TRAINING_MEAN] = mean.to(checked.x.device).expand(n, -1, checked.x.shape[-1])
    if model.inpainter is not None:
        replacements[INPAINTING] = _inpainted(model, checked, masks)
    for name, replacement in replacements.items():
        after = errors_after_replacement(
            model.network,
            checked.x.expand(n, -1, -1),
            replacement,
            masks,
            np.arange(n),
            error_before=np.full(n, checked.error),
            micro_batch=forwards_at_once(model.audit.micro_batch, model.device),
            n_frames=[checked.clip.n_frames] * n,
            score=_score(model, checked),
        )
        values = signed_faithfulness(checked.error, after).reshape(len(sets), -1)
        for mask_set, of_method in zip(sets, values, strict=True):
            for percentile, value in zip(percentiles, of_method.tolist(), strict=True):
                yield mask_set.name, name, percentile, value


def _inpainted(model: AuditModel, checked: CheckedClip, masks: Bools) -> Tensor:
    """What the MAE predicts for the frames of each mask, (N, F, T), in the unit of the model's input."""
    assert model.inpainter is not None
    inpainter, n = model.inpainter, checked.clip.n_frames
    x = inpainter.prepare(checked.log_mel[None], checked.references).to(model.device)[0]
    n_common, n_own = min(x.shape[-1], checked.x.shape[-1]), min(n, x.shape[-1])
    hidden = torch.from_numpy(masks[:, :n_own]).to(model.device)[:, None, :].expand(-1, len(x), -1)
    filled = fill_up(apply_mask(x[None, :, :n_own], hidden), x.shape[-1])
    predicted = _outputs(inpainter.network, filled, model)[..., :n_common]
    in_features = inpainter.normalization.invert(predicted, checked.references)
    own_unit = model.trained.normalization.apply(in_features, checked.references)
    replacement = checked.x.repeat(len(masks), 1, 1)
    replacement[..., :n_common] = own_unit
    return replacement


def _deletion_and_insertion(model: AuditModel, checked: CheckedClip) -> Iterator[_Row]:
    curves = {name: summed for name, summed in checked.clip.curves.items() if name in checked.maps}
    if not curves:
        return
    percentiles = [100 - share for share in _SHARES]
    first = np.stack([highest_frames(summed, percentiles) for summed in curves.values()])  # (methods, shares, T)
    everything = np.ones((1, checked.n_frames), dtype=np.bool_)
    judged = np.concatenate([first.reshape(-1, checked.n_frames), ~first.reshape(-1, checked.n_frames), everything])
    masks = np.zeros((len(judged), checked.x.shape[-1]), dtype=np.bool_)
    masks[:, : checked.n_frames] = judged
    after = errors_after_replacement(
        model.network,
        checked.x[None],
        checked.reconstruction[None],
        masks,
        np.zeros(len(masks), dtype=np.int64),
        error_before=np.array([checked.error]),
        micro_batch=forwards_at_once(model.audit.micro_batch, model.device),
        n_frames=[checked.clip.n_frames],
        score=_score(model, checked),
    )
    ratios = after / checked.error
    parts = ratios[:-1].reshape(2, len(curves), len(_SHARES))
    for name, deleted, inserted in zip(curves, *parts, strict=True):
        for check, start, values, end in ((DELETION, 1.0, deleted, ratios[-1]), (INSERTION, ratios[-1], inserted, 1.0)):
            for share, value in zip((0, *_SHARES, 100), [start, *values.tolist(), end], strict=True):
                yield name, check, float(share), value


def _bands(model: AuditModel, checked: CheckedClip) -> Iterator[_Row]:
    n = checked.clip.n_frames
    groups = band_groups(len(checked.x))
    x, rebuilt = checked.x[:, :n], checked.reconstruction[:, :n]
    replaced = torch.where(torch.from_numpy(groups).to(x.device)[:, :, None], rebuilt, x)
    drops = 1 - _errors(model, checked, replaced) / checked.error
    masses = {name: np.abs(of_method.numpy()) for name, of_method in checked.maps.items()}
    if model.training is not None:
        masses[OUTLIER] = model.training.apply(checked.log_mel).square().numpy()
    for group, drop in enumerate(drops.tolist()):
        yield None, BAND_DROP, float(group), drop
    for name, mass in masses.items():
        of_bands = mass[:, : checked.n_frames].sum(axis=1, dtype=np.float64)
        if of_bands.sum() > 0:
            for group, share in enumerate((groups @ of_bands / of_bands.sum()).tolist()):
                yield name, BAND_MASS, float(group), share


def band_groups(n_mels: int) -> Bools:
    """Ten neighbouring groups of mel bands, as equal as possible: (G, F)."""
    groups = np.zeros((N_BAND_GROUPS, n_mels), dtype=np.bool_)
    for group, bands in enumerate(np.array_split(np.arange(n_mels), N_BAND_GROUPS)):
        groups[group, bands] = True
    return groups


def _sanity(model: AuditModel, checked: CheckedClip) -> Iterator[_Row]:
    n = checked.clip.n_frames
    x = checked.x[:, :n]
    own = {name: of_method[:, :n].numpy().astype(np.float64) for name, of_method in checked.maps.items()}
    for share, network in reset_networks(model.trained.network, fill_up(x, checked.x.shape[-1])):
        maps = _maps(model, network, x[None], checked)
        for name, of_method in own.items():
            rho = spearman(np.abs(maps[name][0]).ravel(), np.abs(of_method).ravel())
            yield name, RANDOMISATION, 100 * share, float(rho)

    if "integrated_gradients" in own:
        start = _baseline(model, x, checked.clip.row["clip_id"])
        change = checked.error - float(_errors(model, checked, start)[0])
        gap = abs(own["integrated_gradients"].sum() - change)
        yield "integrated_gradients", COMPLETENESS, None, gap / abs(change) if change else np.nan

    generator = torch.Generator().manual_seed(key_of(0, checked.clip.row["clip_id"], "perturbation") % 2**63)
    noise = _SIGMA * torch.randn(_PERTURBATIONS, *x.shape, generator=generator)
    changes = checked.error - _errors(model, checked, x - noise.to(x.device))
    maps = _maps(model, None, x + noise.to(x.device), checked)
    for name, of_method in own.items():
        yield name, INFIDELITY, None, infidelity(of_method, noise.numpy().astype(np.float64), changes)
        yield name, SENSITIVITY, None, max_sensitivity(of_method, maps[name])


def _baseline(model: AuditModel, x: Tensor, clip_id: str) -> Tensor:
    """Where the path of Integrated Gradients to a clip x (F, T) begins, (1, F, T)."""
    attribution = model.attribution
    normals = None if attribution.baseline == "zero" else model.trained.normals
    noise = Noise(attribution.seed, clip_id, "integrated_gradients", normals)
    return noise.baselines([0], x).expand(1, *x.shape).to(x.device)


def infidelity(of_clip: Reals, noise: Reals, changes: Reals) -> float:
    """Mean of (scale I·map - (E(x) - E(x - I)))², with the scale that makes it smallest (Yeh et al. 2019).

    Args:
        of_clip: the map, (F, T).
        noise: the perturbations I, (N, F, T).
        changes: E(x) - E(x - I) of each, (N,).
    """
    dots = (noise * of_clip).sum(axis=(1, 2))
    scale = (dots * changes).mean() / np.square(dots).mean() if dots.any() else 1.0
    return float(np.square(scale * dots - changes).mean())


def max_sensitivity(of_clip: Reals, of_perturbed: Reals) -> float:
    """The largest ‖map of the perturbed clip - map‖ / ‖map‖; maps (F, T) and (N, F, T); NaN of a map that is 0."""
    norm = np.linalg.norm(of_clip)
    return float(np.linalg.norm(of_perturbed - of_clip, axis=(1, 2)).max() / norm) if norm else np.nan


def _seconds(model: AuditModel, checked: CheckedClip) -> Iterator[_Row]:
    x = checked.x[None, :, : checked.clip.n_frames]
    for method in checked.maps:
        started = time.perf_counter()
        _maps(model, None, x, checked, methods=(method,))
        yield method, SECONDS, None, time.perf_counter() - started


def _maps(
    model: AuditModel,
    network: nn.Module | None,
    x: Tensor,
    checked: CheckedClip,
    *,
    methods: Sequence[str] | None = None,
) -> dict[str, Reals]:
    """The maps (N, F, T) of N inputs of a clip, by a network or the model's own; noise is that of the clip."""
    assert model.explained is not None, "only explained models are checked"
    attribution, row, width = model.attribution, checked.clip.row, checked.x.shape[-1]
    maps = attribute_batch(
        model.explained if network is None else network,
        fill_up(x, width),
        methods=methods or attribution.methods,
        settings=attribution.settings,
        seed=attribution.seed,
        clip_ids=[row["clip_id"]] * len(x),
        n_frames=[x.shape[-1]] * len(x),
        precision=attribution.precision,
        score=model.detector,
        normals=model.trained.normals,
    )
    return {name: map_[..., : x.shape[-1]].cpu().numpy().astype(np.float64) for name, map_ in maps.items()}


def _score(model: AuditModel, checked: CheckedClip) -> ClipScore | None:
    """The score E of inputs that are all made from one clip; None where E is the mean squared error."""
    detector, clip_id = model.detector, checked.clip.row["clip_id"]
    if detector is None:
        return None
    return lambda x, n_frames, clips: detector.pool(detector.cells(x, [clip_id] * len(x))[..., :n_frames])


def _errors(model: AuditModel, checked: CheckedClip, x: Tensor) -> Reals:
    """E of N inputs of a clip, (N, F, frames that hold sound): (N,)."""
    filled = fill_up(x, model.trained.n_frames)
    if (score := _score(model, checked)) is not None:
        with torch.no_grad():
            of_inputs: Reals = score(filled, x.shape[-1], np.zeros(len(x), dtype=np.int64)).double().cpu().numpy()
        return of_inputs
    outputs = _outputs(model.network, filled, model)[..., : x.shape[-1]]
    errors: Reals = (outputs - x).square().mean(dim=(1, 2), dtype=torch.float64).cpu().numpy()
    return errors


def _outputs(network: nn.Module, x: Tensor, model: AuditModel) -> Tensor:
    def evaluate(part: Sequence[int]) -> Tensor:
        with torch.inference_mode():
            return network(x[part[0] : part[-1] + 1])  # type: ignore[no-any-return]

    limit = forwards_at_once(model.audit.micro_batch, model.device)
    batches = MicroBatches(evaluate, limit=limit, device=x.device)
    return torch.cat([result for _, result in batches.results([range(len(x))])])
