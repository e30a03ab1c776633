"""Maps of a short clip explain its score, which is a function of the frames that hold sound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from faithad.attribution import point_stream
from faithad.attribution.gradient_stream import attribute_batch
from faithad.attribution.methods import METHODS
from faithad.errors import ConfigError
from faithad.model.skip_cae_transformer import SkipCAETransformer
from faithad.settings import AttributionSettings
from tests.attribution import captum_oracle

SETTINGS = AttributionSettings(7, 0.1, 11, 5, 0.09, occlusion_bands=5, occlusion_frames=13)
IDS = ["a0", "b1", "c2", "d3"]
F, T = 16, 40
LENGTHS = [40, 11, 29, 40]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def x() -> Tensor:
    """Smooth clips; what stands after the end of a short one is sound that must not matter."""
    noise = torch.randn(4, 1, F + 4, T + 4, generator=torch.Generator().manual_seed(1))
    return functional.avg_pool2d(noise, 5, stride=1)[:, 0] * 4


@pytest.fixture(scope="module")
def network(x: Tensor) -> SkipCAETransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SkipCAETransformer(F, T)
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
        for _ in range(20):
            optimizer.zero_grad()
            (network(x) - x).square().mean().backward()
            optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def double(network: SkipCAETransformer) -> SkipCAETransformer:
    double = SkipCAETransformer(F, T).double().eval()
    double.load_state_dict(network.state_dict())
    return double


class OfPiece(nn.Module):
    """The network as a function of the n frames of a piece, with the definition's mirror."""

    def __init__(self, network: nn.Module, n: int) -> None:
        super().__init__()
        self.network, self.n = network, n
        there_and_back = [*range(n), *range(n - 2, 0, -1)]
        self.places = [there_and_back[frame % len(there_and_back)] for frame in range(T)]

    def forward(self, piece: Tensor) -> Tensor:
        rebuilt: Tensor = self.network(piece[..., self.places])
        return rebuilt[..., : self.n]


def attribute_all(
    network: nn.Module, x: Tensor, ids: list[str], lengths: list[int] | None, settings: AttributionSettings = SETTINGS
) -> dict[str, Tensor]:
    return attribute_batch(network, x, methods=METHODS, settings=settings, seed=0, clip_ids=ids, n_frames=lengths)


def test_every_map_is_captums_for_the_function_of_the_piece(double: SkipCAETransformer, x: Tensor) -> None:
    found = attribute_all(double, x.double(), IDS, LENGTHS)
    names = [name for name in METHODS if name != "grad_cam"]
    for clip, (clip_id, n) in enumerate(zip(IDS, LENGTHS, strict=True)):
        expected = captum_oracle.attribute(
            OfPiece(double, n), x[clip, :, :n].double(), methods=names, settings=SETTINGS, seed=0, clip_id=clip_id
        )
        for name in names:
            difference = (found[name][clip, :, :n] - expected[name]).abs().max() / expected[name].abs().max()
            assert difference < 1e-6, (name, n)
        assert all(not of_method[clip, :, n:].any() for of_method in found.values())


def test_grad_cam_is_cut_where_the_clip_ends(double: SkipCAETransformer, x: Tensor) -> None:
    """The layer sees the filled clip, so its map spreads over all T frames, of which the first n are the clip's."""
    n = 11
    found = attribute_all(double, x.double(), IDS, LENGTHS)["grad_cam"][1]
    outputs: list[Tensor] = []
    hook = double.conv10.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    piece = x[1:2, :, :n].double()
    error = (OfPiece(double, n)(piece) - piece).square().mean()
    hook.remove()
    (gradient,) = torch.autograd.grad(error, outputs[0])
    coarse = (gradient.mean(dim=(2, 3), keepdim=True) * outputs[0]).sum(dim=1, keepdim=True)
    expected = functional.interpolate(coarse, (F, T), mode="bilinear", align_corners=False)[0, 0, :, :n]
    torch.testing.assert_close(found[:, :n], expected.detach(), rtol=1e-6, atol=1e-12)


@pytest.mark.long
def test_integrated_gradients_of_a_short_clip_are_complete(double: SkipCAETransformer, x: Tensor) -> None:
    """Their sum over the clip's own frames is its score less that of the baseline."""
    many = replace(SETTINGS, integrated_gradients_steps=400)
    maps = attribute_batch(
        double, x.double(), methods=["integrated_gradients"], settings=many, seed=0, clip_ids=IDS, n_frames=LENGTHS
    )["integrated_gradients"]
    for clip, n in enumerate(LENGTHS):
        piece = x[clip : clip + 1, :, :n].double()
        with torch.inference_mode():
            of_clip, of_zero = (
                (OfPiece(double, n)(at) - at).square().mean().item() for at in (piece, torch.zeros_like(piece))
            )
        assert maps[clip, :, :n].sum().item() == pytest.approx(of_clip - of_zero, rel=2e-3)


def test_neither_what_follows_the_end_nor_other_clips_change_a_map(network: SkipCAETransformer, x: Tensor) -> None:
    expected = attribute_all(network, x, IDS, LENGTHS)
    spoilt = x.clone()
    for clip, n in enumerate(LENGTHS):
        spoilt[clip, :, n:] = torch.nan
    again = attribute_all(network, spoilt, IDS, LENGTHS)
    whole = attribute_all(network, x[[0, 3]], ["a0", "d3"], None)
    for name in METHODS:
        assert torch.equal(again[name], expected[name]), name
        assert torch.equal(whole[name], expected[name][[0, 3]]), name
    for clip in (1, 2):
        alone = attribute_all(network, x[clip : clip + 1], [IDS[clip]], [LENGTHS[clip]])
        for name in METHODS:
            assert torch.equal(alone[name][0], expected[name][clip]), name


def test_on_a_gpu_clips_of_one_length_share_a_micro_batch(
    double: SkipCAETransformer, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = attribute_all(double, x.double(), IDS, LENGTHS)
    monkeypatch.setattr(point_stream, "_spans_clips", lambda device: True)
    found = attribute_all(double, x.double(), IDS, LENGTHS)
    for name in METHODS:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12)


def test_a_reconstruction_that_is_known_is_cut_as_well(network: SkipCAETransformer, x: Tensor) -> None:
    with torch.inference_mode():
        filled = torch.stack([clip[:, OfPiece(network, n).places] for clip, n in zip(x, LENGTHS, strict=True)])
        reconstruction = network(filled)
    options = {"settings": SETTINGS, "seed": 0, "clip_ids": IDS, "n_frames": LENGTHS}
    (found,) = attribute_batch(
        network, filled, methods=["error_map"], reconstruction=reconstruction, **options
    ).values()  # type: ignore[arg-type]
    for clip, n in enumerate(LENGTHS):
        assert torch.equal(found[clip, :, :n], (reconstruction[clip] - filled[clip]).square()[:, :n])
        assert not found[clip, :, n:].any()


@pytest.mark.parametrize("lengths", [[40, 40, 40], [40, 0, 40, 40], [40, 41, 40, 40]])
def test_lengths_that_do_not_fit_are_named(network: SkipCAETransformer, x: Tensor, lengths: list[int]) -> None:
    with pytest.raises(ConfigError, match="4 clips need as many n_frames, from 1 to 40"):
        attribute_all(network, x, IDS, lengths)
