"""Export trainings and trials to experiment trackers: TensorBoard, MLflow, Weights & Biases.

A run is exported when it has ended, from the tables that it wrote, and not epoch by epoch: a point that comes from a
table can be neither lost nor doubled by a kill, and a slow server holds up no epoch. The same export again adds what is
new and repeats nothing: each run has a key that follows from its root's mark, its name and its settings.

By default everything stays below the root. The libraries' own environment variables, on the driver's machine, say where
a server is and who may use it (MLFLOW_TRACKING_URI, WANDB_MODE). A tracker that fails costs one line and nothing else.
"""

from __future__ import annotations

import importlib.util
import json
import uuid
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from faithad import storage
from faithad.errors import ConfigError, masked
from faithad.progress import console
from faithad.runs import layout
from faithad.runs.marks import read_mark
from faithad.runs.trackers import (
    TrackedRoot,
    TrackedRun,
    mlflow_store,
    to_mlflow,
    to_tensorboard,
    to_wandb,
)
from faithad.vocabulary import TrackerName


class Tracker(NamedTuple):
    """An experiment tracker.

    Attributes:
        modules: that must be installed; `faithad[<name>]` brings them.
        export: the runs of a root, parents before their children.
    """

    modules: tuple[str, ...]
    export: Callable[[Sequence[TrackedRun], TrackedRoot], None]


TRACKERS: dict[TrackerName, Tracker] = {
    "tensorboard": Tracker(("tensorboardX",), to_tensorboard),
    "mlflow": Tracker(("mlflow", "sqlalchemy", "alembic"), to_mlflow),
    "wandb": Tracker(("wandb",), to_wandb),
}

# The root and the tracker of each export that failed: it gets nothing more from this process.
_failed: set[tuple[str, str]] = set()


def require_trackers(names: Collection[TrackerName], root: str) -> None:
    """Refuse what cannot be tracked, before anything starts.

    Raises:
        ConfigError: a tracker is not installed on this machine, or has no place to write to.
    """
    problems = [
        f'track: {name!r} needs a package that is not installed here. Install it (pip install "faithad[{name}]"), or '
        f"leave {name!r} out."
        for name in names
        if not all(importlib.util.find_spec(module) for module in TRACKERS[name].modules)
    ]
    if "mlflow" in names and mlflow_store(root) is None:
        problems.append(
            f"track: 'mlflow' keeps runs in a database below the root, which cannot be in an object store ({root}). "
            "Set MLFLOW_TRACKING_URI to a server's address, or leave 'mlflow' out."
        )
    if problems:
        raise ConfigError("\n".join(problems))


def export(names: Collection[TrackerName], root: str, title: str, runs: Callable[[], Sequence[TrackedRun]]) -> None:
    """Export runs to some trackers, as far as they do not have them.

    Args:
        names: of the trackers.
        root: below which the runs' tables are.
        title: of all runs of the root together.
        runs: gives them, from tables below the root; parents before their children.
    """
    for name in names:
        if (root, name) in _failed:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what the libraries say about themselves
                TRACKERS[name].export(runs(), TrackedRoot(root, _mark(root), title))
        except Exception as error:  # of the library, its server, a table: the results are in the root
            _failed.add((root, name))
            text = masked(" ".join(f"{type(error).__name__}: {error}".split()))
            console.print(f"track: {name} failed, and the run goes on without it: {text:.300}")


def _mark(root: str) -> str:
    """The hex digits that tell a root from all others; drawn at the first export."""
    location = storage.join(root, layout.TRACKING)
    mark = (read_mark(location) or {}).get("mark")
    if not isinstance(mark, str):
        mark = uuid.uuid4().hex
        storage.write_text(location, json.dumps({"mark": mark}))
    return mark
