"""Explains and trains on a device that is not the CPU and computes nothing: run by test_on_a_device.

PyTorch's fake tensors have a shape, a type and a device. They refuse to meet tensors of another device, and to tell a
value to the host, which on a GPU would make it wait. This device is not CUDA's: CUDA's backward pass needs a driver
even then. It is registered for the whole process, hence a process of its own. Prints a JSON object.
"""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from faithad.attribution.gradient_stream import attribute_batch
from faithad.attribution.methods import METHODS
from faithad.model.skip_cae_transformer import SkipCAETransformer
from faithad.model.training import Training
from faithad.settings import AttributionSettings, TrainingSettings

DEVICE = "elsewhere"
N_MELS, N_FRAMES = 16, 40
TRAINING = TrainingSettings(
    epochs=1,
    batch_size=4,
    learning_rate=1e-3,
    minimum_learning_rate=1e-5,
    weight_decay=0.01,
    restart_period=5,
    patience=1,
    minimum_improvement=0.0,
    mask_ratio=0.3,
    patch=4,
    seed=0,
)
SETTINGS = AttributionSettings(occlusion_bands=8, occlusion_frames=20)


class Operations(TorchDispatchMode):
    """Counts what a GPU would be told: launches, and copies that its host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: collections.Counter[str] = collections.Counter()
        self.to_host = self.from_host = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = operation(*args, **(kwargs or {}))
        # copy_ changes what it is given first.
        given, changed = (args[1:], args[0]) if operation is torch.ops.aten.copy_.default else ((args, kwargs), found)
        before, after = (
            {each.device.type for each in tree_leaves(tensors) if isinstance(each, torch.Tensor)}
            for tensors in (given, changed)
        )
        if DEVICE in after and not operation.is_view:
            self.launches[operation.__name__] += 1
        self.to_host += before == {DEVICE} and after == {"cpu"}
        self.from_host += before == {"cpu"} and after == {DEVICE}
        return found


def explained(network: SkipCAETransformer, n_clips: int, methods: Sequence[str]) -> dict[str, Any]:
    x = torch.empty(n_clips, N_MELS, N_FRAMES, device=DEVICE)
    ids = [f"clip{number}" for number in range(n_clips)]
    with Operations() as operations:
        maps = attribute_batch(network, x, methods=methods, settings=SETTINGS, seed=0, clip_ids=ids)
    return {
        "maps": {name: [*each.shape, each.device.type] for name, each in maps.items()},
        "passes": operations.launches["convolution.default"] / n_convolutions(network),
        "launches": operations.launches.total(),
        "to_host": operations.to_host,
        "from_host": operations.from_host,
    }


def learnt(network: SkipCAETransformer) -> dict[str, Any]:
    """Three steps of an epoch of an MAE, clips and masks on the device."""
    clips = torch.empty(12, N_MELS, N_FRAMES, device=DEVICE)
    training = Training(network.train(), clips, clips[:2], TRAINING)
    for layer in training._dropout:
        layer.clips = torch.arange(4, device=DEVICE)
    with Operations() as operations:
        numbers = [torch.arange(4) + 4 * batch for batch in range(3)]
        patches = training._hidden_patches(torch.cat(numbers), "masks", 1)
        steps = [training._learn(x, mask, batch_size=4) for x, mask in training._inputs(clips, numbers, patches)]
    return {
        "losses": [*{(*losses.shape, losses.device.type) for losses, _ in steps}],
        "norms": [*{(*norm.shape, norm.device.type) for _, norm in steps}],
        "to_host": operations.to_host,
        "from_host": operations.from_host,
    }


def n_convolutions(network: SkipCAETransformer) -> int:
    kinds = torch.nn.Conv2d | torch.nn.ConvTranspose2d
    return sum(isinstance(module, kinds) for module in network.modules())


def main() -> None:
    _setup_privateuseone_for_python_backend(DEVICE)
    torch.backends.mha.set_fastpath_enabled(False)  # one operation without a shape known to fake tensors
    with FakeTensorMode():
        with torch.device(DEVICE):
            network = SkipCAETransformer(N_MELS, N_FRAMES).eval()
        gradients = [name for name, method in METHODS.items() if method.needs != "forward"]
        outcome = {
            "all": explained(network, 2, list(METHODS)),
            "one_clip": explained(network, 1, gradients),
            "two_clips": explained(network, 2, gradients),
            "learnt": learnt(network),
        }
    print(json.dumps(outcome), flush=True)
    # The thread that PyTorch keeps for such a device would sometimes abort the process at its end.
    os._exit(0)


if __name__ == "__main__":
    main()
