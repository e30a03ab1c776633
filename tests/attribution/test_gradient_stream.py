"""The stream against Captum one clip at a time, and against itself in other batches, orders and micro-batches."""

from __future__ import annotations

import gc
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from faithad.attribution import point_stream
from faithad.attribution.gradient_stream import attribute_batch
from faithad.attribution.methods import METHODS, Method, NetworkEvaluation, Points
from faithad.errors import ConfigError
from faithad.model.fast_network import CompiledNetwork, fast_network
from faithad.model.skip_cae_transformer import SkipCAETransformer
from faithad.settings import AttributionSettings
from tests.attribution import captum_oracle

SETTINGS = AttributionSettings(7, 0.1, 11, 5, 0.09, occlusion_bands=5, occlusion_frames=13)
IDS = ["a0", "b1", "c2", "d3"]
F, T = 16, 40


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: on a busy machine, threads that wait for each other make this module many times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def four_threads() -> Iterator[None]:
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(1)


def spectrograms(n_clips: int, n_mels: int = F, n_frames: int = T) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(n_clips, 1, n_mels + 4, n_frames + 4, generator=generator)
    return nn.functional.avg_pool2d(noise, 5, stride=1)[:, 0] * 4


def fitted(network: SkipCAETransformer, steps: int = 30) -> SkipCAETransformer:
    """Trained a little, so that its gradients have the size that they have in earnest."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    x = spectrograms(6, network.n_mels, network.n_frames).to(network.conv1.weight.dtype)
    for _ in range(steps):
        optimizer.zero_grad()
        (network(x) - x).square().mean().backward()
        optimizer.step()
    network.zero_grad()
    return network.eval()


@pytest.fixture(scope="module")
def network() -> SkipCAETransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return fitted(SkipCAETransformer(F, T))


@pytest.fixture(scope="module")
def double(network: SkipCAETransformer) -> SkipCAETransformer:
    """In float64, where rounding does not push an activation over its kink."""
    double = SkipCAETransformer(F, T).double().eval()
    double.load_state_dict(network.state_dict())
    return double


@pytest.fixture(scope="module")
def x() -> Tensor:
    return spectrograms(4)


def attribute_all(
    network: nn.Module,
    x: Tensor,
    ids: list[str] = IDS,
    *,
    methods: tuple[str, ...] = tuple(METHODS),
    seed: int = 0,
    micro_batch: int | None = None,
    reconstruction: Tensor | None = None,
) -> dict[str, Tensor]:
    return attribute_batch(
        network,
        x,
        methods=methods,
        settings=SETTINGS,
        seed=seed,
        clip_ids=ids,
        micro_batch=micro_batch,
        reconstruction=reconstruction,
    )


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """Relative to the largest value of each clip's map."""
    scale = expected.abs().amax(dim=(1, 2), keepdim=True)
    return ((found - expected).abs() / scale).max().item()


def by_captum(network: SkipCAETransformer, x: Tensor) -> dict[str, Tensor]:
    maps = [
        captum_oracle.attribute(network, clip, methods=METHODS, settings=SETTINGS, seed=0, clip_id=clip_id)
        for clip, clip_id in zip(x, IDS, strict=True)
    ]
    return {name: torch.stack([each[name] for each in maps]) for name in METHODS}


def test_every_map_is_captums(network: SkipCAETransformer, double: SkipCAETransformer, x: Tensor) -> None:
    found, expected = attribute_all(network, x), by_captum(network, x)
    exact, expected_exact = attribute_all(double, x.double()), by_captum(double, x.double())
    for name in METHODS:
        assert found[name].shape == x.shape
        # In float32 two ways of computing round an activation to different sides of its kink now and then.
        assert largest_difference(found[name], expected[name]) < 5e-3, name
        # Not closer, since Captum rounds weights to float32.
        assert largest_difference(exact[name], expected_exact[name]) < 1e-6, name


@pytest.mark.long
@pytest.mark.parametrize("shape", [(24, 61), (80, 400)])
def test_every_map_is_captums_at_other_shapes(shape: tuple[int, int]) -> None:
    settings = AttributionSettings(2, 0.1, 3, 2, 0.09, occlusion_bands=50, occlusion_frames=70)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = fitted(SkipCAETransformer(*shape), steps=1)
    x = spectrograms(2, *shape)
    maps = attribute_batch(network, x, methods=METHODS, settings=settings, seed=3, clip_ids=["p", "q"])
    for row, clip_id in enumerate(["p", "q"]):
        expected = captum_oracle.attribute(network, x[row], methods=METHODS, settings=settings, seed=3, clip_id=clip_id)
        for name in METHODS:
            assert largest_difference(maps[name][row, None], expected[name][None]) < 5e-3, name


def test_a_clip_alone_has_the_maps_it_has_in_any_batch(network: SkipCAETransformer, x: Tensor) -> None:
    together = attribute_all(network, x)
    order = [2, 0, 3, 1]
    shuffled = attribute_all(network, x[order], [IDS[clip] for clip in order])
    for name in METHODS:
        assert torch.equal(shuffled[name], together[name][order])
    for clip in range(len(x)):
        alone = attribute_all(network, x[clip : clip + 1], [IDS[clip]])
        for name in METHODS:
            assert torch.equal(alone[name][0], together[name][clip])


@pytest.mark.parametrize("name", METHODS)
def test_a_map_does_not_depend_on_the_methods_beside_it(network: SkipCAETransformer, x: Tensor, name: str) -> None:
    together = attribute_all(network, x)
    alone = attribute_all(network, x, methods=(name,))
    assert list(alone) == [name]
    # f(x) with and without its gradient: the same operations, but nothing promises the last bit
    assert largest_difference(alone[name], together[name]) < 1e-6


@pytest.mark.usefixtures("four_threads")
def test_threads_change_no_bit(network: SkipCAETransformer, x: Tensor) -> None:
    several = attribute_all(network, x, micro_batch=3)
    assert torch.get_num_threads() == 4
    torch.set_num_threads(1)
    alone = attribute_all(network, x, micro_batch=3)
    for name in METHODS:
        assert torch.equal(several[name], alone[name])


@pytest.mark.long
@pytest.mark.parametrize("micro_batch", [1, 4, 1_000])
def test_micro_batches_of_any_size_give_the_same_maps(
    network: SkipCAETransformer, double: SkipCAETransformer, x: Tensor, micro_batch: int
) -> None:
    expected, expected_exact = attribute_all(network, x), attribute_all(double, x.double())
    found = attribute_all(network, x, micro_batch=micro_batch)
    exact = attribute_all(double, x.double(), micro_batch=micro_batch)
    for name in METHODS:
        assert largest_difference(found[name], expected[name]) < 1e-5, name
        assert largest_difference(exact[name], expected_exact[name]) < 1e-12, name


def test_points_of_many_clips_may_share_a_micro_batch(
    network: SkipCAETransformer, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layout of a GPU, where one clip's points are too few."""
    expected = attribute_all(network, x)
    sizes: list[int] = []
    fast = fast_network(network)
    fast.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    monkeypatch.setattr(point_stream, "_spans_clips", lambda device: True)
    found = attribute_all(fast, x, micro_batch=16)
    for name in METHODS:
        assert largest_difference(found[name], expected[name]) < 1e-5, name
    # 4 clips, 4 x 16 occlusions, 4 x 23 gradients
    assert sizes == [4] + [16] * 4 + [15, 15, 16] * 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_a_compiled_network_gives_the_same_maps(double: SkipCAETransformer, x: Tensor) -> None:
    gradients: list[int] = []

    def traced(graph: torch.fx.GraphModule, examples: list[Tensor]) -> Callable[..., object]:
        def run(*inputs: object) -> object:
            gradients.extend(len(each) for each in inputs if isinstance(each, Tensor) and each.requires_grad)
            return graph.forward(*inputs)

        return run

    expected = attribute_all(double, x.double())
    found = attribute_all(CompiledNetwork(double, "default", backend=traced), x.double())
    for name in METHODS:
        assert largest_difference(found[name], expected[name]) < 1e-12, name
    # Of all points but the clips themselves, where Grad-CAM watches a layer.
    assert sum(gradients) == len(x) * (7 + 11 + 5)


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from faithad.attribution.gradient_stream import attribute_batch
from faithad.attribution.methods import METHODS
from faithad.model.skip_cae_transformer import SkipCAETransformer
from faithad.settings import AttributionSettings
saved = torch.load(sys.argv[1], weights_only=True)
network = SkipCAETransformer(16, 40).eval()
network.load_state_dict(saved["weights"])
settings = AttributionSettings(7, 0.1, 11, 5, 0.09, occlusion_bands=5, occlusion_frames=13)
maps = attribute_batch(network, saved["x"], methods=METHODS, settings=settings, seed=0, clip_ids=["c2"])
torch.save(maps, sys.argv[2])
"""


def test_another_process_gets_the_same_bits(network: SkipCAETransformer, x: Tensor, tmp_path: Path) -> None:
    torch.save({"weights": network.state_dict(), "x": x[2:3].clone()}, tmp_path / "in.pt")
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "in.pt"), str(tmp_path / "out.pt")], check=True)
    found, here = torch.load(tmp_path / "out.pt", weights_only=True), attribute_all(network, x)
    for name in METHODS:
        assert torch.equal(found[name][0], here[name][2])


@pytest.mark.parametrize(("seed", "ids"), [(1, IDS), (0, ["other", *IDS[1:]])])
def test_noise_is_that_of_the_seed_and_the_clip(
    network: SkipCAETransformer, x: Tensor, seed: int, ids: list[str]
) -> None:
    mine, others = attribute_all(network, x), attribute_all(network, x, ids, seed=seed)
    changed = {name for name in METHODS if not torch.equal(mine[name][0], others[name][0])}
    assert changed == {name for name, method in METHODS.items() if method.stochastic}
    assert all(torch.equal(mine[name][1], others[name][1]) for name in METHODS) == (seed == 0)


def test_saliency_and_grad_cam_share_a_pass_and_the_reconstruction_is_computed_once(
    network: SkipCAETransformer, x: Tensor
) -> None:
    fast = fast_network(network)
    sizes: list[int] = []
    fast.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    shared = ("error_map", "saliency", "grad_cam", "input_x_gradient")
    attribute_all(fast, x, methods=shared)
    assert sizes == [1] * len(x)
    sizes.clear()
    with torch.no_grad():
        reconstruction = network(x)
    maps = attribute_all(fast, x, methods=("error_map",), reconstruction=reconstruction)
    assert sizes == []
    assert torch.equal(maps["error_map"], (reconstruction - x).square())
    known = attribute_all(fast, x, reconstruction=reconstruction)
    assert torch.equal(known["error_map"], maps["error_map"])


def test_a_new_method_is_a_row_of_the_table(
    network: SkipCAETransformer, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def halfway(clip: Tensor, samples: object, settings: object, noise: object) -> Points:
        return Points(clip[None] / 2, torch.ones(1, 1, 1))

    def squares(points: Points, found: NetworkEvaluation, clip: NetworkEvaluation | None) -> Tensor:
        assert found.gradient is not None
        return found.gradient.square().sum(dim=0)

    row = Method("halfway", "Halfway", "here", False, "gradient", squares, halfway, lambda settings, shape: 1)
    monkeypatch.setitem(METHODS.built_in, "halfway", row)
    found = attribute_all(network, x, methods=("halfway", "error_map"))["halfway"]
    points = (x / 2).requires_grad_()
    network.requires_grad_(False)
    (gradient,) = torch.autograd.grad((network(points) - points).square().mean(dim=(1, 2)).sum(), points)
    network.requires_grad_(True)
    assert largest_difference(found, gradient.square()) < 1e-4


def test_nothing_is_left_behind(x: Tensor) -> None:
    network = SkipCAETransformer(F, T).train()
    network.bn3.eval()
    network.conv5.weight.requires_grad_(False)
    x = x.clone()

    def state() -> list[object]:
        values: list[object] = [module.training for module in network.modules()]
        values += [(parameter.requires_grad, parameter.grad is None) for parameter in network.parameters()]
        values += [tensor.clone() for tensor in network.state_dict().values()]
        values += [torch.get_rng_state(), x.requires_grad, x.grad is None, x.clone(), torch.is_grad_enabled()]
        values += [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.get_num_threads()]
        return values + [len(module._forward_hooks) for module in network.modules()]

    before = state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        maps = attribute_all(network, x)
    for now, then in zip(state(), before, strict=True):
        assert torch.equal(now, then) if isinstance(now, Tensor) else now == then  # type: ignore[arg-type]
    assert all(found.grad_fn is None and not found.requires_grad for found in maps.values())
    assert [thing for thing in gc.get_objects() if type(thing) is Tensor and thing.grad_fn is not None] == []


def test_no_graph_outlives_its_micro_batch(network: SkipCAETransformer, x: Tensor) -> None:
    fast = network.fast_form()
    graphs: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def watch(module: nn.Module, inputs: object, output: Tensor) -> None:
        alive.append(sum(graph() is not None for graph in graphs))
        graphs.append(weakref.ref(output))

    fast.get_submodule(network.grad_cam_layer).register_forward_hook(watch)
    attribute_all(fast, x, micro_batch=2)
    assert len(graphs) > 40
    # The layer's output at the clip itself is what Grad-CAM needs; nothing older than the previous pass is there.
    assert max(alive) <= 1


@pytest.mark.long
def test_memory_depends_on_the_micro_batch_not_on_the_clips(network: SkipCAETransformer) -> None:
    fast = network.fast_form()
    x = spectrograms(12)
    held: list[int] = []

    def count(module: nn.Module, inputs: object) -> None:
        if len(held) % 7 == 0:  # looking at all objects takes its time
            gc.collect()
            held.append(sum(thing.numel() for thing in gc.get_objects() if type(thing) is Tensor))
        else:
            held.append(0)

    fast.register_forward_pre_hook(count)
    methods = ("error_map", "smooth_grad", "grad_cam", "occlusion")
    peaks = []
    for n_clips in (2, 12):
        held.clear()
        attribute_all(fast, x[:n_clips], [str(clip) for clip in range(n_clips)], methods=methods, micro_batch=4)
        peaks.append(max(held))
    # Of each clip more: x, its copy, f(x), a map per method, and views of them. Its 23 points would be 23 F T at least.
    assert peaks[1] - peaks[0] < 10 * 12 * F * T


class SmallGpu(SkipCAETransformer):
    """Holds three spectrograms."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 3:
            raise torch.cuda.OutOfMemoryError(f"CUDA out of memory with {len(x)}")
        return super().forward(x)


def test_a_full_gpu_halves_the_micro_batch_and_goes_on(double: SkipCAETransformer, x: Tensor) -> None:
    small = SmallGpu(F, T).double().eval()
    small.load_state_dict(double.state_dict())
    with pytest.warns(RuntimeWarning, match="does not hold") as caught:
        found = attribute_all(small, x.double(), micro_batch=8)
    # 7 samples: 7 -> 4 -> 2, then for good
    assert len(caught) == 2
    expected = attribute_all(double, x.double(), micro_batch=8)
    for name in METHODS:
        assert largest_difference(found[name], expected[name]) < 1e-12, name


def test_a_gpu_too_small_for_one_spectrogram_is_an_error(x: Tensor) -> None:
    class NoGpu(SkipCAETransformer):
        def forward(self, x: Tensor) -> Tensor:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        attribute_all(NoGpu(F, T), x, methods=("saliency",))


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_the_callers_grad_mode_does_not_matter(network: SkipCAETransformer, x: Tensor, context: type) -> None:
    expected = attribute_all(network, x)
    with context():
        inside = attribute_all(network, x + 0)
    for name in METHODS:
        assert torch.equal(inside[name], expected[name])


def test_bfloat16_is_near(x: Tensor) -> None:
    # Fitted in float64: in float32, processors that round differently come to different networks, and the maps of some
    # lie at kinks.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = fitted(SkipCAETransformer(F, T).double()).float()
    exact = attribute_all(network, x)
    rough = attribute_batch(network, x, methods=METHODS, settings=SETTINGS, seed=0, clip_ids=IDS, precision="bfloat16")
    for name in METHODS:
        assert rough[name].dtype == torch.float32
        similarity = torch.cosine_similarity(rough[name].flatten(1), exact[name].flatten(1))
        assert 0.9 < similarity.min() < 1, name


def test_wrong_input_is_refused(network: SkipCAETransformer, x: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"lime\. Allowed: error_map, "):
        attribute_all(network, x, methods=("saliency", "lime"))
    with pytest.raises(ConfigError, match="16 mel bands x 40 frames"):
        attribute_all(network, x[0])
    with pytest.raises(ConfigError, match="4 clips need as many ids"):
        attribute_all(network, x, IDS[:3])
    with pytest.raises(ConfigError, match="reconstruction"):
        attribute_all(network, x, reconstruction=x[:1])
    with pytest.raises(ConfigError, match="micro_batch"):
        attribute_all(network, x, micro_batch=0)
    assert all(found.shape == (0, F, T) for found in attribute_all(network, x[:0], []).values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_maps_on_a_gpu(network: SkipCAETransformer, x: Tensor) -> None:
    expected = attribute_all(network, x)
    on_gpu = SkipCAETransformer(F, T).eval().cuda()
    on_gpu.load_state_dict(network.state_dict())
    found = attribute_all(on_gpu, x.cuda())
    for name in METHODS:
        assert largest_difference(found[name].cpu(), expected[name]) < 1e-3, name
