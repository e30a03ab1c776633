"""Published figures for the planer data. The report shows them beside a study's own, labelled as published.

Sources: `the paper`, arXiv 2601.12660 (ICASSP 2026), and the `model paper` that it builds on, arXiv 2501.04819 (ICASSP
2025). They hold for the planer recordings and the `paper` protocol only.
"""

from __future__ import annotations

import io
from importlib import resources
from typing import NamedTuple

import pandas as pd


class Figure(NamedTuple):
    value: float
    source: str


class Detection(NamedTuple):
    auc: tuple[Figure, ...]
    pauc: tuple[Figure, ...]


# For the score of the whole clip, by our names of the models.
DETECTION: dict[str, Detection] = {
    "ae": Detection((Figure(0.916, "the paper"), Figure(0.875, "model paper")), (Figure(0.786, "the paper"),)),
    "mae": Detection((Figure(0.902, "best seed"), Figure(0.830, "later rerun")), (Figure(0.747, "later rerun"),)),
    "skip_cae": Detection((Figure(0.901, "the paper"), Figure(0.846, "model paper")), (Figure(0.811, "the paper"),)),
    "one_class_svm": Detection((Figure(0.797, ""),), (Figure(0.721, ""),)),
    "cae": Detection((Figure(0.772, ""),), (Figure(0.707, ""),)),
    "isolation_forest": Detection((Figure(0.742, ""),), (Figure(0.659, ""),)),
    "dense_ae": Detection((Figure(0.520, ""),), (Figure(0.477, ""),)),
}

# Table 2 of the paper: test AUC of the MAE by (mask ratio, patch). Whether its larger patch is 8 or 16 is not clear.
SMALL_PATCH, LARGER_PATCH = "4", "larger patch"
SEARCH: dict[tuple[float, str], float] = {
    (0.15, SMALL_PATCH): 0.821,
    (0.15, LARGER_PATCH): 0.569,
    (0.30, SMALL_PATCH): 0.902,
    (0.30, LARGER_PATCH): 0.636,
    (0.50, SMALL_PATCH): 0.842,
    (0.50, LARGER_PATCH): 0.710,
    (0.75, SMALL_PATCH): 0.864,
    (0.75, LARGER_PATCH): 0.710,
    (0.90, SMALL_PATCH): 0.842,
    (0.90, LARGER_PATCH): 0.808,
}


def curves(metric: str, mode: str) -> pd.DataFrame:
    """The curves of the paper's figures 4 and 5, by the percentile of the peaks: model, method, percentile, value.

    Read off the vector plots of arXiv 2601.12660, to about 0.001. The paper draws no intervals.

    Args:
        metric: `f_score` or `faithfulness`.
        mode: `frame`; of the faithfulness also `segment`.
    """
    text = resources.files("faithad.report").joinpath("paper_curves.csv").read_text(encoding="utf-8")
    table = pd.read_csv(io.StringIO(text), comment="#")
    chosen = table[(table["metric"] == metric) & (table["mode"] == mode)]
    return chosen[["model", "method", "percentile", "value"]]
