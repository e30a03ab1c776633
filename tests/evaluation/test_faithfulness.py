from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from faithad.evaluation import faithfulness
from faithad.evaluation.peaks import peak_frames

repeatable = settings(max_examples=25, deadline=None, derandomize=True)

B, F, T = 4, 8, 41


class CountingNetwork(nn.Module):
    """A small convolutional autoencoder with batch norm and dropout, which counts the clips that pass through it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.LeakyReLU(),
            nn.Dropout(),
            nn.Conv2d(4, 1, 3, padding=1),
        )
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        assert not torch.is_grad_enabled()
        return self.layers(x[:, None])[:, 0]


@pytest.fixture
def network() -> CountingNetwork:
    torch.manual_seed(0)
    network = CountingNetwork()
    for buffer in (network.layers[1].running_mean, network.layers[1].running_var):
        buffer.uniform_(0.5, 1.5)
    return network.eval()


@pytest.fixture
def clips() -> Tensor:
    return torch.randn(B, F, T, generator=torch.Generator().manual_seed(1))


def forward(network: CountingNetwork, x: Tensor) -> Tensor:
    with torch.no_grad():
        return network(x)


def masks_and_clips(n_masks: int, seed: int = 2) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.random((n_masks, T)) < 0.2, generator.integers(0, B, n_masks)


def error_from_definition(network: CountingNetwork, x: Tensor, mask: np.ndarray) -> float:
    """E(x'), one clip, one mask, cell by cell in float64."""
    reconstruction = forward(network, x[None])[0]
    replaced = x.clone()
    for t in range(T):
        if mask[t]:
            replaced[:, t] = reconstruction[:, t]
    again = forward(network, replaced[None])[0]
    total = 0.0
    for f in range(F):
        for t in range(T):
            total += (float(again[f, t]) - float(replaced[f, t])) ** 2
    return total / (F * T)


def replaced_errors(
    network: CountingNetwork, clips: Tensor, masks: np.ndarray, index: np.ndarray, micro_batch: int = 8
) -> np.ndarray:
    reconstruction = forward(network, clips)
    before = (reconstruction - clips).square().mean(dim=(1, 2))
    network.batches.clear()
    return faithfulness.errors_after_replacement(
        network, clips, reconstruction, masks, index, error_before=before, micro_batch=micro_batch
    )


def test_errors_equal_their_definition(network: CountingNetwork, clips: Tensor) -> None:
    masks, index = masks_and_clips(12)
    masks[3], masks[5] = False, True
    expected = [error_from_definition(network, clips[b], mask) for b, mask in zip(index, masks, strict=True)]
    found = replaced_errors(network, clips, masks, index)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("micro_batch", [1, 2, 5, 64])
def test_micro_batch_changes_nothing(network: CountingNetwork, clips: Tensor, micro_batch: int) -> None:
    masks, index = masks_and_clips(23)
    found = replaced_errors(network, clips, masks, index, micro_batch)
    np.testing.assert_allclose(found, replaced_errors(network, clips, masks, index, 23), rtol=1e-5)
    replaced_errors(network, clips, masks, index, micro_batch)
    assert max(network.batches) <= micro_batch


def test_equal_masks_are_evaluated_once(network: CountingNetwork, clips: Tensor) -> None:
    masks, index = masks_and_clips(5)
    index[:] = [0, 1, 2, 3, 0]
    masks[4] = ~masks[0]
    order = np.array([0, 1, 2, 3, 4, 4, 0, 3, 0])
    found = replaced_errors(network, clips, masks[order], index[order])
    assert network.batches == [5]
    np.testing.assert_array_equal(found, found[[0, 1, 2, 3, 4, 4, 0, 3, 0]])
    # The same mask on another clip is another question.
    other = replaced_errors(network, clips, masks[[0, 0]], np.array([0, 1]))
    assert network.batches == [2]
    assert other[0] != other[1]


def test_empty_masks_need_no_forward(network: CountingNetwork, clips: Tensor) -> None:
    masks = np.zeros((3, T), dtype=np.bool_)
    before = np.array([0.5, 0.25, 2.0, 1.0])
    found = faithfulness.errors_after_replacement(
        network, clips, clips, masks, np.array([2, 0, 0]), error_before=before, micro_batch=4
    )
    assert found.tolist() == [2.0, 0.5, 0.5]
    assert network.batches == []
    none = faithfulness.errors_after_replacement(
        network, clips, clips, masks[:0], np.zeros(0, int), error_before=before, micro_batch=4
    )
    assert none.shape == (0,)


def test_single_clip_is_a_batch_of_one(network: CountingNetwork, clips: Tensor) -> None:
    masks, _ = masks_and_clips(6)
    reconstruction = forward(network, clips[1:2])[0]
    found = faithfulness.errors_after_replacement(
        network, clips[1], reconstruction, masks, error_before=3.0, micro_batch=4
    )
    np.testing.assert_allclose(found, replaced_errors(network, clips, masks, np.ones(6, int)), rtol=1e-5)


def test_eval_mode_is_forced_and_restored(network: CountingNetwork, clips: Tensor) -> None:
    masks, index = masks_and_clips(6)
    expected = replaced_errors(network, clips, masks, index)
    reconstruction = forward(network, clips)
    network.train()
    network.layers[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = faithfulness.errors_after_replacement(
        network, clips, reconstruction, masks, index, error_before=np.ones(B), micro_batch=8
    )
    np.testing.assert_array_equal(found, expected)
    assert network.training
    assert not network.layers[1].training
    assert network.layers[3].training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_memory_that_does_not_suffice_halves_the_micro_batch(clips: Tensor) -> None:
    masks, index = masks_and_clips(11)

    def small(x: Tensor) -> Tensor:
        if len(x) > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return x / 2

    with pytest.warns(RuntimeWarning, match="does not hold"):
        found = faithfulness.errors_after_replacement(
            small, clips, clips / 2, masks, index, error_before=np.ones(B), micro_batch=8
        )
    scale = np.where(masks, 0.5, 1.0)[:, None, :]
    expected = ((0.5 * scale * clips.numpy()[index]) ** 2).mean(axis=(1, 2))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_any_callable_is_a_network(clips: Tensor) -> None:
    masks, index = masks_and_clips(6)
    # f(x) = x / 2: replaced frames halve twice.
    found = faithfulness.errors_after_replacement(
        lambda x: x / 2, clips, clips / 2, masks, index, error_before=np.ones(B), micro_batch=8
    )
    scale = np.where(masks, 0.5, 1.0)[:, None, :]
    expected = ((0.5 * scale * clips.numpy()[index]) ** 2).mean(axis=(1, 2))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("masks", "clip_index", "message"),
    [
        (np.ones((2, T)), np.zeros(2, int), "masks must be bool"),
        (np.ones((2, T + 1), bool), np.zeros(2, int), "masks must be bool"),
        (np.ones((2, T), bool), None, "is missing"),
        (np.ones((2, T), bool), np.array([0, B]), "numbers from 0 to 3"),
        (np.ones((2, T), bool), np.array([0]), "must hold 2 numbers"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    clips: Tensor, masks: np.ndarray, clip_index: np.ndarray | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        faithfulness.errors_after_replacement(
            lambda x: x, clips, clips, masks, clip_index, error_before=np.ones(B), micro_batch=2
        )
    with pytest.raises(ValueError, match="one error_before each"):
        faithfulness.errors_after_replacement(
            lambda x: x, clips, clips, np.ones((1, T), bool), np.zeros(1, int), error_before=1.0, micro_batch=2
        )


def test_score_by_hand() -> None:
    found = faithfulness.faithfulness_score([4.0, 4.0, 4.0, 0.0, 0.0], [1.0, 4.0, 5.0, 0.0, 1.0])
    assert found.tolist() == [0.75, 0.0, 0.0, 0.0, 0.0]
    assert faithfulness.faithfulness_score(2.0, np.array([1.0, 0.0])).tolist() == [0.5, 1.0]
    assert np.isnan(faithfulness.faithfulness_score(1.0, np.nan))
    assert np.isnan(faithfulness.faithfulness_score(np.nan, 1.0))


@repeatable
@given(st.floats(0, 1e12), st.floats(0, 1e12))
def test_score_lies_between_0_and_1(before: float, after: float) -> None:
    with np.errstate(over="ignore"):
        score = float(faithfulness.faithfulness_score(before, after))
    assert 0.0 <= score <= 1.0


def segment_mask_from_definition(
    peaks: np.ndarray, intervals: list[tuple[float, float]], frames_per_s: float, n_seconds: int
) -> np.ndarray:
    second = [min(int(t / frames_per_s), n_seconds - 1) for t in range(len(peaks))]
    hit = {second[t] for t in range(len(peaks)) if peaks[t]}
    annotated = [any(start <= t / frames_per_s < end for start, end in intervals) for t in range(len(peaks))]
    return np.array([second[t] in hit and annotated[t] for t in range(len(peaks))])


@pytest.mark.parametrize(("n_frames", "frames_per_s"), [(400, 40.0), (401, 40.0), (313, 31.25)])
@repeatable
@given(
    seed=st.integers(0, 2**32 - 1),
    intervals=st.sampled_from([[], [(1, 2)], [(1, 3), (7, 10)], [(0, 10)], [(2.5, 3.25), (4.0, 4.5)]]),
)
def test_segment_masks_equal_their_definition(
    n_frames: int, frames_per_s: float, seed: int, intervals: list[tuple[float, float]]
) -> None:
    peaks = peak_frames(np.random.default_rng(seed).standard_normal(n_frames), [90, 95, 98, 99])
    found = faithfulness.segment_masks(peaks, intervals, frames_per_s)
    for row in range(4):
        expected = segment_mask_from_definition(peaks[row], intervals, frames_per_s, 10)
        np.testing.assert_array_equal(found[row], expected)
    assert (found[1:] <= found[:-1]).all()


def test_segment_mask_may_leave_its_peak_out() -> None:
    peaks = np.zeros((1, 400), dtype=np.bool_)
    peaks[0, 45] = True
    found = faithfulness.segment_masks(peaks, [(1.5, 2.0)], 40.0)
    assert np.flatnonzero(found[0]).tolist() == list(range(60, 80))


def test_signed_score_by_hand() -> None:
    score = faithfulness.signed_faithfulness([2.0, 2.0, 0.0], [1.0, 3.0, 1.0])
    np.testing.assert_array_equal(score, [0.5, -0.5, np.nan])


def test_normalised_score_by_hand() -> None:
    random, best = [0.1, 0.2], [0.5, 0.6]
    values = [[0.1, 0.2], [0.5, 0.6], [0.3, 0.1], [0.9, 0.4]]
    normalized = faithfulness.normalized_faithfulness(values, random, best)
    np.testing.assert_allclose(normalized, [[0, 0], [1, 1], [0.5, -0.25], [2, 0.5]], atol=1e-12)
    even = faithfulness.normalized_faithfulness(values, random, [0.5, 0.209])
    assert np.isnan(even).all()


def test_known_answers_are_not_computed_again(network: CountingNetwork, clips: Tensor) -> None:
    masks, index = masks_and_clips(12)
    reconstruction = forward(network, clips)
    before = (reconstruction - clips).square().mean(dim=(1, 2))
    options = {"error_before": before, "micro_batch": 4}
    whole = faithfulness.errors_after_replacement(network, clips, reconstruction, masks, index, **options)
    known = faithfulness.MaskErrors(masks[:7], index[:7], np.arange(7.0))
    network.batches.clear()
    errors = faithfulness.errors_after_replacement(
        network, clips, reconstruction, masks[3:], index[3:], **options, known=known
    )
    assert sum(network.batches) == 5
    np.testing.assert_array_equal(errors[:4], known.errors[3:])
    np.testing.assert_allclose(errors[4:], whole[7:], rtol=1e-6)
