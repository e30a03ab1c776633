"""Explains two clips on a device that is not the CPU and computes nothing: run by test_on_a_device.

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
from faithad.attribution.methods import METHODS, AttributionSettings
from faithad.model.masking import apply_mask, masked_mse, patch_masks
from faithad.model.skip_cae_transformer import SkipCAETransformer

DEVICE = "elsewhere"
N_MELS, N_FRAMES = 16, 40
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
        before, after = (
            {each.device.type for each in tree_leaves(tensors) if isinstance(each, torch.Tensor)}
            for tensors in ((args, kwargs), found)
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


def learnt(network: SkipCAETransformer) -> list[Any]:
    """The loss of a masked batch, its masks drawn on the device."""
    x = torch.empty(4, N_MELS, N_FRAMES, device=DEVICE)
    mask = patch_masks(torch.arange(4, device=DEVICE), N_MELS, N_FRAMES, patch=4, ratio=0.3, key=1)
    losses = masked_mse(network.train()(apply_mask(x, mask)), x, mask)
    losses.mean().backward()
    gradients = [weight.grad for weight in network.parameters()]
    return [losses.device.type, *{str(None if each is None else each.device.type) for each in gradients}]


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
