"""The part of a score, fitted to normal clips, that is stored with the model; `faithad.scoring` computes with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# That scores are compared with, at most.
MOST_NORMALS = 5_000


@dataclass(frozen=True)
class FittedScore:
    """A score and what was fitted to N normal clips.

    Attributes:
        choices: the names of its `residual`, `weighting`, `pooling` and `calibration`.
        weights: what the errors of the mel bands are divided by, (F,) float64; None for the weighting "none".
        normals: logarithms of the normal clips' scores (N,) float64, their mean spectra (N, F) float32 and the numbers
            of their recordings (N,) int64; None for the calibration "none".
    """

    choices: dict[str, str]
    weights: Tensor | None
    normals: tuple[Tensor, ...] | None
