"""The linear models: against their definition, on any gain, in any batch, and from a bounded sample of frames."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from faithad.errors import ConfigError, StudyError
from faithad.features import Normalization
from faithad.model import linear
from faithad.model.linear import REFERENCES, fit_linear
from faithad.model.table import MODELS, build_network
from tests.field_sounds import FOLDER, needs_field_sounds, read_split
from tests.model.linear_reference import Reference

LINEAR = [name for name, row in MODELS.items() if row.linear]
F, T = 16, 30


def clips(n: int, *, seed: int = 0, n_frames: int = T) -> Tensor:
    """Decibels of sound that goes on from frame to frame, each clip at a level of its own."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, F, n_frames + 4, generator=generator).unfold(2, 5, 1).mean(dim=-1)
    return -60 + 5 * torch.randn(n, 1, 1, generator=generator) + torch.linspace(0, 20, F)[:, None] + 4 * noise


def fitted(name: str, x: Tensor, *, reference: str = "none", seed: int = 0) -> Any:
    network: Any = build_network(name, x.shape[1], x.shape[2], reference=reference).eval()
    fit_linear(network, x.split(3), n_clips=len(x), seed=seed)
    return network


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("n_frames", [16, 30, 31])
def test_a_linear_model_is_that_of_its_definition(name: str, reference: str, n_frames: int) -> None:
    train, x = clips(7, n_frames=n_frames), clips(4, seed=1, n_frames=n_frames)
    network, slow = fitted(name, train, reference=reference), Reference(name, train.numpy(), reference)
    output, context_error = slow.rebuilt(x.numpy())
    np.testing.assert_allclose(network(x), output, atol=1e-3)
    if name == "frame_pca":
        np.testing.assert_allclose(network.context_error(x), context_error, atol=1e-3)


@pytest.mark.parametrize("name", LINEAR)
def test_less_gain_and_another_microphone_change_no_error_of_a_clip_less_its_median(name: str) -> None:
    x = clips(4, seed=1)
    coloured = x - 12 + 3 * torch.randn(F, 1, generator=torch.Generator().manual_seed(3))
    for reference, same in (("clip", True), ("none", False)):
        network = fitted(name, clips(7), reference=reference)
        before, after = ((network(part) - part).square().mean(dim=(1, 2)) for part in (x, coloured))
        assert torch.allclose(before, after, rtol=1e-3) == same


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("reference", REFERENCES)
def test_a_clip_has_the_same_error_in_every_batch_to_the_last_bit(name: str, reference: str) -> None:
    network, x = fitted(name, clips(7), reference=reference), clips(9, seed=1)
    alone = torch.cat([network(clip[None]) for clip in x])
    assert torch.equal(network(x), alone)
    assert torch.equal(network(x.flip(0)), alone.flip(0))


@pytest.mark.parametrize("name", LINEAR)
def test_the_sample_of_frames_is_bounded_seeded_and_the_same_however_the_clips_come(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "MOST_FRAMES", 400)
    x, held = clips(100), list[int]()
    inputs = linear.FramePCA.inputs if name == "frame_pca" else linear.FrameRidge.inputs

    def counted(model: nn.Module, z: Tensor) -> Tensor:
        held.append(len(z))
        return inputs(model, z)  # type: ignore[arg-type]

    monkeypatch.setattr(MODELS[name].load(), "inputs", counted)
    states = []
    for parts, seed in ((x.split(3), 0), (x.split(41), 0), (x.split(41), 1)):
        network: Any = build_network(name, F, T)
        sizes = list[int]()
        fit = network.fit
        network.fit = lambda inputs, targets, fit=fit, sizes=sizes: (
            sizes.append(inputs.shape[1]),
            fit(inputs, targets),
        )
        fit_linear(network, iter(parts), n_clips=100, seed=seed)
        assert sizes == [400]
        states.append(network.state_dict())
    assert set(held) == {1}
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[1][key], states[2][key]) for key in states[1])


def test_few_frames_leave_components_unused() -> None:
    for x, n_used in ((torch.full((1, F, 16), -100.0), 0), (clips(1, n_frames=16), 15)):
        network = fitted("frame_pca", x)
        assert network.components.any(dim=1).tolist() == [k < n_used for k in range(40)]
        torch.testing.assert_close(network(x), x, atol=1e-3, rtol=0)


def test_what_a_linear_model_cannot_be_fitted_to_is_said() -> None:
    network: Any = build_network("frame_pca", F, T)
    with pytest.raises(StudyError, match="to 5 clips and was given 3"):
        fit_linear(network, [clips(3)], n_clips=5, seed=0)
    with pytest.raises(StudyError, match="NaN or infinite"):
        fit_linear(network, [torch.full((3, F, T), torch.nan)], n_clips=3, seed=0)
    with pytest.raises(ConfigError, match="no reference 'recorder'; allowed: none, clip"):
        build_network("frame_pca", F, T, reference="recorder")


@pytest.fixture(scope="module")
def reference_module() -> Iterator[Any]:
    """The slow reference that came with the field sounds."""
    path = FOLDER.parents[1] / "reference" / "scoring_reference.py"
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    spec = importlib.util.spec_from_file_location("scoring_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_field_sounds
@pytest.mark.long
@pytest.mark.parametrize("reference", REFERENCES)
def test_the_linear_models_are_those_of_the_reference_on_field_sounds(reference_module: Any, reference: str) -> None:
    """Fitted to 50 clips of 400 frames, the 20,000 frames that either takes: no sample differs."""
    train, test = (read_split(name, most=50).log_mels[..., :400] for name in ("train", "test"))
    normalization = Normalization.fit([train])
    train, test = normalization.apply(train), normalization.apply(test)
    # In double precision: in single, the fit of the reference itself is off by 1e-3 on some processors.
    slow_clips = [part.double().numpy() for part in (train, test)]
    if reference == "clip":
        slow_clips = [reference_module.without_median(part, np.arange(len(part))) for part in slow_clips]
    pca, ridge = fitted("frame_pca", train, reference=reference), fitted("frame_ridge", train, reference=reference)
    weights = (ridge(train) - train).square().mean(dim=(0, 2))[:, None]
    found = {
        "frame_pca": torch.cat([pca.context_error(part).mean(dim=1) for part in test.split(10)]),
        "frame_ridge": ((ridge(test) - test).square() / weights).mean(dim=1),
    }
    for name, frame_errors in found.items():
        expected = getattr(reference_module, name)(slow_clips[0])(slow_clips[1])
        np.testing.assert_allclose(frame_errors, expected, rtol=1e-3, err_msg=name)
