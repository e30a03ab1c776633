"""Keyed dropout: as often and as much as PyTorch's, whatever the batch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from faithad.model.keyed_dropout import KeyedDropout, key_dropout

CLIPS = torch.arange(8) * 1_000_003


def keyed(p: float, layer: int = 5, clips: Tensor = CLIPS) -> KeyedDropout:
    dropout = KeyedDropout(p, layer)
    dropout.clips = clips
    return dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_each_cell_is_dropped_with_the_probability_and_the_mean_is_kept(p: float) -> None:
    x = torch.ones(8, 100, 403)
    y = keyed(p)(x)
    deviation = (p * (1 - p) / x.numel()) ** 0.5
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=5 * deviation)
    assert y[y != 0].unique().tolist() == pytest.approx([1 / (1 - p)], rel=1e-3)
    shares = (y == 0).float().mean(dim=(0, 1))  # of the cells of a row: none is favoured
    assert (shares - p).abs().max() < 5 * (p * (1 - p) / 800) ** 0.5


def test_the_noise_follows_from_clip_and_layer_alone() -> None:
    x = torch.ones(8, 3, 50)
    y = keyed(0.5)(x)
    assert torch.equal(keyed(0.5, clips=CLIPS[[6, 1]])(x[:2]), y[[6, 1]])
    assert not torch.equal(keyed(0.5, layer=6)(x), y)
    assert len({each.numpy().tobytes() for each in y}) == 8
    windows = keyed(0.5)(x.flatten(0, 1))  # three windows of each clip as a batch of their own
    assert torch.equal(windows, y.flatten(0, 1))


def test_it_is_still_in_eval_mode_and_at_the_ends_of_its_range() -> None:
    x = torch.randn(8, 3, 50)
    assert torch.equal(keyed(0.5).eval()(x), x)
    assert torch.equal(keyed(0.0)(x), x)
    assert torch.equal(keyed(1.0)(x), torch.zeros_like(x))


def test_gradients_flow_where_cells_were_kept() -> None:
    x = torch.ones(8, 3, 50, requires_grad=True)
    y = keyed(0.5)(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_transformer_layers_compute_what_pytorch_computes_with_the_same_noise(kind: str) -> None:
    """Nothing is dropped in PyTorch's layer, and hardly anything in ours; batches and names of weights are the same."""
    layer: nn.Module = (nn.TransformerEncoderLayer if kind == "encoder" else nn.TransformerDecoderLayer)(
        12, 3, dim_feedforward=16, dropout=1e-9, batch_first=True
    )
    x, memory = torch.randn(8, 5, 12), torch.randn(8, 5, 12)
    inputs = (x,) if kind == "encoder" else (x, memory)
    network = nn.Sequential(copy.deepcopy(layer))
    dropouts = key_dropout(network)
    assert len(dropouts) == (4 if kind == "encoder" else 6)
    assert len({dropout.layer for dropout in dropouts}) == len(dropouts)
    assert list(network[0].state_dict()) == list(layer.state_dict())
    for dropout in dropouts:
        dropout.clips = CLIPS
    torch.testing.assert_close(network[0](*inputs), layer(*inputs))
    network.eval()
    layer.eval()
    torch.testing.assert_close(network[0](*inputs), layer(*inputs))


@pytest.mark.parametrize("average", [True, False])
def test_attention_gives_its_weights_where_they_are_wanted(average: bool) -> None:
    attention = nn.MultiheadAttention(12, 3, dropout=1e-9, batch_first=True)
    network = nn.Sequential(copy.deepcopy(attention))
    (dropout,) = key_dropout(network)
    dropout.clips = CLIPS
    x = torch.randn(8, 5, 12)
    ours, theirs = (each(x, x, x, average_attn_weights=average) for each in (network[0], attention))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    mask = torch.zeros(5, 5, dtype=torch.bool).fill_diagonal_(True)
    masked = (each(x, x, x, attn_mask=mask)[0] for each in (network[0], attention))
    torch.testing.assert_close(*masked)


def test_a_batch_that_is_not_made_of_the_clips_is_dropped_as_by_pytorch() -> None:
    x = torch.ones(9, 4_000)
    torch.manual_seed(0)
    y = keyed(0.5)(x)
    torch.manual_seed(0)
    assert torch.equal(y, nn.functional.dropout(x, 0.5))
