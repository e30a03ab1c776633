"""Copies of a network whose layers are as before any training, for the check `randomisation` of its explanations."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from faithad.evaluation.checks import RESET_SHARES
from faithad.model.fast_network import fast_network


def reset_networks(network: nn.Module, x: Tensor) -> Iterator[tuple[float, nn.Module]]:
    """Copies of a network with more and more layers reset, from the output inwards, each with the share of reset
    layers.

    Layers are modules that hold parameters of their own, in the order in which they are called for a clip x (F, T). A
    fitted model has none, and gives no copies.
    """
    called: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: called.append(name))
        for name, module in network.named_modules()
        if _holds_parameters(module)
    ]
    try:
        # With gradients, because a transformer layer may compute without calling its parts otherwise.
        with torch.enable_grad():
            network(x[None])
    finally:
        for hook in hooks:
            hook.remove()
    order = list(dict.fromkeys(reversed(called)))
    for share in RESET_SHARES if order else ():
        copied = copy.deepcopy(network).eval()
        modules = dict(copied.named_modules())
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            for name in order[: round(share * len(order))]:
                # Attention uses the weights of its last layer without calling it.
                for part, module in modules[name].named_modules(prefix=name):
                    if _holds_parameters(module) and (part == name or part not in called):
                        _reset(module)
        yield share, fast_network(copied)


def _holds_parameters(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


def _reset(module: nn.Module) -> None:
    """Reset a module as before any training; without a reset of its own, it gets normal values of the same spread."""
    for name in ("reset_parameters", "_reset_parameters"):
        if hasattr(module, name):
            getattr(module, name)()
            return
    for parameter in module.parameters(recurse=False):
        parameter.normal_(0.0, float(parameter.std(correction=0)) or 1.0)
