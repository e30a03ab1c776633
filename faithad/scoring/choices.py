"""A score as four choices, without torch: a configuration names them.

`PAPER` is the score of the paper (Deschênes et al. 2026, arXiv 2601.12660), the mean squared error of a clip. `robust`
names the recommended one for each model: the events of a machine last a second or less of ten, and a mean over the clip
dilutes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from itertools import product

from faithad.errors import ConfigError
from faithad.model.table import MODELS
from faithad.scoring.calibration import CALIBRATIONS
from faithad.scoring.pooling import POOLINGS, WEIGHTINGS
from faithad.scoring.residuals import RESIDUALS


@dataclass(frozen=True)
class Score:
    """One row of each of the four tables, by name.

    Raises:
        ConfigError: there is no such row.
    """

    residual: str = "reconstruction"
    weighting: str = "none"
    pooling: str = "mean"
    calibration: str = "none"

    def __post_init__(self) -> None:
        for name, table in TABLES.items():
            if getattr(self, name) not in table:
                raise ConfigError(f"There is no {name} {getattr(self, name)!r}; allowed: {', '.join(table)}.")

    def require_fits(self, model: str) -> None:
        """Return if a model has the residual.

        Raises:
            ConfigError: the model lacks the residual; the text names the models that have it.
        """
        fits = RESIDUALS[self.residual].fits
        if not fits(MODELS[model]):
            allowed = ", ".join(name for name, row in MODELS.items() if row.reconstructs and fits(row))
            raise ConfigError(f"residual {self.residual!r} is for {allowed}, and not for {model}.")


TABLES: dict[str, Mapping[str, object]] = {
    "residual": RESIDUALS,
    "weighting": WEIGHTINGS,
    "pooling": POOLINGS,
    "calibration": CALIBRATIONS,
}
PAPER = Score()
PAPER_NAME, ROBUST, OWN = "paper", "robust", "own"
_ROBUST = {
    "frame_pca": Score("context", "none", "worst_window", "local"),
    "mae": Score("inpainting", "band", "worst_window", "local"),
}


def all_scores(model: str) -> list[Score]:
    """Every combination of the four choices that a model has, the paper's first."""
    return [Score(*names) for names in product(*TABLES.values()) if RESIDUALS[names[0]].fits(MODELS[model])]


def robust(model: str) -> Score:
    """The recommended score of a model that reconstructs."""
    return _ROBUST.get(model, Score("reconstruction", "band", "worst_window", "local"))


def chosen_score(choice: str | Score, model: str) -> Score:
    """The score of a model that reconstructs, of `paper`, `robust` or the choices themselves."""
    if isinstance(choice, Score):
        return choice
    return robust(model) if choice == ROBUST else PAPER


def score_name(score: Score | None, model: str) -> str:
    """`paper`, `robust`, the four choices of another score, such as `inpainting, band, top_share, none`, or `own` of a
    model that gives a score only.
    """
    if not MODELS[model].reconstructs:
        return OWN
    if score is None or score == PAPER:
        return PAPER_NAME
    return ROBUST if score == robust(model) else ", ".join(astuple(score))
