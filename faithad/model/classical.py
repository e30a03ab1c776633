"""The model paper's two classical detectors: a one-class SVM and an isolation forest on the flat spectrogram.

Source: "Planing It by Ear" (Deschênes et al. 2025, arXiv 2501.04819) for their use, the SVM with `gamma="auto"`;
Schölkopf et al. 2001 for the one-class SVM, Liu et al. 2008 for the isolation forest. scikit-learn fits them; the
result is held as plain tensors, so that a detector is saved as safetensors, runs on any device and needs no
scikit-learn to score. Their input is that of the networks, with each cell of the spectrogram as one dimension:
normalised if the study's features are, and not scaled further.

They give one score for a clip and no error for each cell: a clip has no worst second, and no explanation.

Shape letters: n clips to fit on, B clips, F mel bands, T frames, D = F x T dimensions, S support vectors, K trees,
N nodes of the largest tree.

Departure: with `gamma="auto"` the decision function of the SVM is the sum of a_i k(x, s_i) over its support vectors,
less an offset, where k(x, s) = exp(-|x - s|² / D). In decibels two clips of a machine lie 40 apart (mean square), so
the sum is near exp(-40), and an offset near 0.5 taken from it leaves rounding errors to compare clips by. The score
here is ln(sum of a_i) - ln(sum of a_i k(x, s_i)): the same ranking, so the same ROC curve, with all digits, and at
least 0, which a gamma fit of the alarm needs. The decision function is exp(-score) times the sum of a_i, less the
offset.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from faithad.errors import ConfigError, StudyError

# Clips that are converted to float64 at a time (66 MB at 80 x 401), and support vectors, which should fit a processor's
# cache.
_CLIPS = 256
_SUPPORT = 64

# Type and dimensions of each detector's tensors; D is F x T, the other sizes are free.
_TENSORS: dict[str, dict[str, tuple[torch.dtype, str]]] = {
    "one_class_svm": {
        "support": (torch.float32, "SD"),
        "mean_square": (torch.float64, "S"),
        "log_weight": (torch.float64, "S"),
    },
    "isolation_forest": {
        "feature": (torch.int64, "KN"),
        "threshold": (torch.float64, "KN"),
        "left": (torch.int64, "KN"),
        "right": (torch.int64, "KN"),
        "exponent": (torch.float64, "KN"),
    },
}


class ClassicalDetector(nn.Module):
    """A fitted detector: spectrograms in, one score for each out. It has buffers and no parameters.

    The one-class SVM holds its S support vectors, `support` (S, D), their `mean_square` (S,), and `log_weight` (S,),
    the logarithms of their coefficients, scaled to a sum of 1. It takes as much room as the clips that it was fitted
    on: 0.55 GB for 4,327 clips of 80 x 401.

    The isolation forest holds (K, N) arrays. Node i of a tree asks whether dimension `feature[i]` is at most
    `threshold[i]`, and goes on at `left[i]` or `right[i]`; a leaf goes on at itself, and its `exponent` is its share in
    that of 2^-Σ, the score: the length of its path over K times the average one (Liu et al. 2008, equations 1 and 2).

    Args:
        name: `one_class_svm` or `isolation_forest`.
        n_mels: F.
        n_frames: T.
        tensors: the buffers, by name.

    Raises:
        ConfigError: a tensor is missing, unknown, or of an impossible type or shape.
    """

    def __init__(self, name: str, n_mels: int, n_frames: int, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.name, self.n_mels, self.n_frames = name, n_mels, n_frames
        _refuse_misfits(name, n_mels * n_frames, tensors)
        for key in _TENSORS[name]:
            self.register_buffer(key, tensors[key])

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """The scores (B,) float64 of spectrograms (B, F, T); higher is more abnormal, NaN where a cell is not finite.

        Raises:
            ConfigError: x has another shape than the detector was fitted on.
        """
        if x.ndim != 3 or x.shape[1:] != (self.n_mels, self.n_frames):
            raise ConfigError(
                f"The detector was fitted on (clips, {self.n_mels} mel bands, {self.n_frames} frames) and was given "
                f"{tuple(x.shape)}. Compute the features with the settings that it was fitted with."
            )
        score = self._svm_scores if self.name == "one_class_svm" else self._forest_scores
        flat = x.flatten(1).float()
        scores = torch.cat([score(rows) for rows in flat.split(_CLIPS)]) if len(x) else flat.new_zeros(0).double()
        return scores.masked_fill(~flat.isfinite().all(dim=1), torch.nan)

    def _svm_scores(self, x: Tensor) -> Tensor:
        support, mean_square, log_weight = (self.get_buffer(key) for key in _TENSORS["one_class_svm"])
        return -torch.logsumexp(log_weight - _squared_distances(x, support, mean_square), dim=1)

    def _forest_scores(self, x: Tensor) -> Tensor:
        feature, threshold, left, right, exponent = (
            self.get_buffer(key)[None].expand(len(x), -1, -1) for key in _TENSORS["isolation_forest"]
        )
        node = feature.new_zeros(len(x), feature.shape[1], 1)  # the root of each tree
        for _ in range(feature.shape[2]):
            below = x.gather(1, feature.gather(2, node)[..., 0])[..., None] <= threshold.gather(2, node)
            following = torch.where(below, left.gather(2, node), right.gather(2, node))
            if torch.equal(following, node):
                break
            node = following
        return torch.exp2(-exponent.gather(2, node).sum(dim=(1, 2)))


def fit_classical(name: str, x: Tensor, *, seed: int) -> ClassicalDetector:
    """Fit a detector on spectrograms of normal clips.

    The SVM's kernel matrix is computed here in blocks: for thousands of clips that takes seconds to minutes, and n² x 8
    bytes. Its fit is not random. The forest draws 100 trees of 256 clips with the seed.

    Args:
        name: `one_class_svm` (gamma 1/D, nu 0.5) or `isolation_forest`: scikit-learn's defaults but for gamma.
        x: (n, F, T), as networks take them, n at least 2.
        seed: of the forest; scikit-learn takes the lowest 32 bits.

    Raises:
        ConfigError: no detector goes by that name.
        StudyError: there are fewer than two clips, or values that are not finite.
    """
    if name not in _TENSORS:
        raise ConfigError(f"There is no detector {name!r} to fit; allowed: {', '.join(_TENSORS)}.")
    if len(x) < 2:
        raise StudyError(f"{name} needs two clips or more to be fitted on, found {len(x)}.")
    n_bad = int((~x.isfinite().flatten(1).all(dim=1)).sum())
    if n_bad:
        raise StudyError(f"{name} cannot be fitted: {n_bad} of {len(x)} training clips hold NaN or infinite values.")
    flat = x.detach().flatten(1).float()
    tensors = _fit_svm(flat) if name == "one_class_svm" else _fit_forest(flat, seed)
    return ClassicalDetector(name, x.shape[1], x.shape[2], tensors).to(x.device)


def _fit_svm(x: Tensor) -> dict[str, Tensor]:
    from sklearn.svm import OneClassSVM  # only fitting needs it

    mean_square = torch.cat([rows.double().square().mean(dim=1) for rows in x.split(_SUPPORT)])
    kernel = torch.cat([torch.exp(-_squared_distances(rows, x, mean_square)) for rows in x.split(_CLIPS)])
    svm = OneClassSVM(kernel="precomputed").fit(kernel.fill_diagonal_(1.0).cpu().numpy())
    weight = torch.from_numpy(svm.dual_coef_[0].copy())
    support = torch.from_numpy(svm.support_).to(x.device)
    return {
        "support": x[support],
        "mean_square": mean_square[support],
        "log_weight": (weight / weight.sum()).log(),
    }


def _fit_forest(x: Tensor, seed: int) -> dict[str, Tensor]:
    from sklearn.ensemble import IsolationForest  # only fitting needs it

    forest = IsolationForest(random_state=seed % 2**32).fit(x.cpu().numpy())
    trees = [estimator.tree_ for estimator in forest.estimators_]
    shape = len(trees), max(tree.node_count for tree in trees)
    itself = np.tile(np.arange(shape[1]), (shape[0], 1))
    feature, left, right = np.zeros_like(itself), itself.copy(), itself.copy()
    threshold, exponent = np.zeros(shape), np.zeros(shape)
    average = _average_path_length(np.array([forest.max_samples_]))
    for k, tree in enumerate(trees):
        inner = np.flatnonzero(tree.children_left >= 0)
        feature[k, inner], threshold[k, inner] = tree.feature[inner], tree.threshold[inner]
        left[k, inner], right[k, inner] = tree.children_left[inner], tree.children_right[inner]
        depth = np.zeros(tree.node_count)
        for node in inner:  # a node stands before its children
            depth[[left[k, node], right[k, node]]] = depth[node] + 1
        length = depth + _average_path_length(tree.n_node_samples)
        exponent[k, : tree.node_count] = length / (len(trees) * average)
    arrays = {"feature": feature, "threshold": threshold, "left": left, "right": right, "exponent": exponent}
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def _average_path_length(n: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Of an unsuccessful search in a tree of n clips (Liu et al. 2008, equation 1)."""
    # Guarded where the formula has no value; there the length is 1 for two clips and 0 for one.
    many = np.maximum(n, 3).astype(np.float64)
    length = 2.0 * (np.log(many - 1.0) + np.euler_gamma) - 2.0 * (many - 1.0) / many
    return np.where(n > 2, length, np.where(n == 2, 1.0, 0.0))


def _squared_distances(x: Tensor, y: Tensor, mean_square: Tensor) -> Tensor:
    """Mean squared differences of all pairs of rows, (B, D) and (S, D) float32 → (B, S) float64.

    `mean_square` (S,) is that of the rows of y. By matrix products in float64, whose digits outlast the cancellation.
    """
    rows = x.double()
    product = rows.new_empty(len(x), len(y))
    for part, columns in zip(y.split(_SUPPORT), product.split(_SUPPORT, dim=1), strict=True):
        columns.copy_(rows @ part.double().T)
    return (rows.square().mean(dim=1)[:, None] + mean_square - product * (2.0 / x.shape[1])).clamp(min=0.0)


def _refuse_misfits(name: str, n_dimensions: int, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors with which scoring would read beyond an array or never end, whatever file they come from."""
    expected = _TENSORS[name]
    problems = [f"{key} is missing" for key in expected if key not in tensors]
    problems += [f"{key} is unknown" for key in tensors if key not in expected]
    sizes = {"D": n_dimensions}
    for key, (dtype, letters) in expected.items():
        if key not in tensors:
            continue
        shape = tuple(tensors[key].shape)
        if len(shape) == len(letters):
            sizes |= {letter: size for letter, size in zip(letters, shape, strict=True) if letter not in sizes}
        wanted = tuple(sizes.get(letter, 1) for letter in letters)
        if tensors[key].dtype != dtype or shape != wanted or not all(shape):
            problems.append(f"{key} is {tensors[key].dtype} {shape} instead of {dtype} {wanted}")
    if not problems and name == "isolation_forest":
        limits = {"feature": n_dimensions, "left": sizes["N"], "right": sizes["N"]}
        problems += [
            f"{key} points outside its {limit} values"
            for key, limit in limits.items()
            if tensors[key].min() < 0 or tensors[key].max() >= limit
        ]
    if problems:
        raise ConfigError(f"These are not the tensors of {name} for {n_dimensions} dimensions: {'; '.join(problems)}.")
