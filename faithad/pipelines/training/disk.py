"""Whether a disk has room for what trainings write, asked before the first of them starts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

from faithad.config.study import Study
from faithad.errors import StudyError
from faithad.model.table import MODELS
from faithad.pipelines.training.task import network_of
from faithad.vocabulary import count

# Weights, the best weights and AdamW's two moments.
WEIGHTS_IN_STATE = 4
_GIB = 1 << 30


def weights_bytes(study: Study, model: str) -> int:
    """Bytes of a network's weights; 0 for a model that is fitted, which keeps no state."""
    if MODELS[model].fitted:
        return 0
    network = network_of(study, model)
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())


def require_disk(root: str, weights: Sequence[int], *, at_once: int, keeps_states: bool) -> None:
    """Refuse trainings whose states and models a local disk does not hold; an object store is not asked.

    Args:
        root: of the study.
        weights: bytes of the weights of each training that is left.
        at_once: how many trainings run side by side; each writes a new state before it removes the old one.
        keeps_states: whether the last state of each stays.

    Raises:
        StudyError: there is too little space; the text says how much is needed.
    """
    if "://" in root:
        return
    os.makedirs(root, exist_ok=True)
    written = sum(sorted(weights)[-at_once:])
    states = written + (sum(weights) if keeps_states else written)
    needed, free = sum(weights) + WEIGHTS_IN_STATE * states, shutil.disk_usage(root).free
    if needed > free:
        raise StudyError(
            f"The states and models of {count(len(weights), 'training')} ({at_once} at once) take "
            f"{needed / _GIB:.2f} GiB, and the disk of {root} has {free / _GIB:.2f} GiB free. Free some space, give "
            "another root, or run fewer at once (train.trainings_at_once, search.trials_at_once)."
        )
