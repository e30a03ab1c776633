"""The method written once more, in plain float64 NumPy and without any code of faithad: `expected.json` is its output.

    python tests/parity/generate.py

Everything is taken from the paper (Deschênes et al. 2026, arXiv 2601.12660) and the constants of its experiment, with
fewer samples. Weights, clip and noise come from formulas, so that no generator of random numbers matters. The network
halves both axes with one convolution and doubles them again: y = W2 ⋆ᵀ leaky(W1 ⋆ x + b1) + b2.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

F, T, CHANNELS = 16, 48, 3
FRAMES_PER_S = 8.0
INTERVALS = [(1.0, 2.5), (4.0, 4.5)]
PERCENTILES = list(range(90, 100))
SAMPLES, STEPS = 4, 6
SIGMA_SMOOTH, SIGMA_SHAP = 0.1, 0.09
SLOPE = 0.01
EXPECTED = Path(__file__).with_name("expected.json")
Array = np.ndarray[Any, np.dtype[np.float64]]


def formula(*shape: int, phase: float) -> Array:
    """Values of a sine of a quadratic phase: fixed, and without a pattern."""
    k = np.arange(np.prod(shape), dtype=np.float64)
    return np.sin(0.7 * k + 0.013 * k * k + phase).reshape(shape)


W1, B1 = 0.5 * formula(CHANNELS, 3, 3, phase=0.1), 0.2 * formula(CHANNELS, phase=0.5)
W2, B2 = 0.6 * formula(CHANNELS, 2, 2, phase=1.3), 0.05
X = formula(F, T, phase=2.0) + 2.0 * np.outer(np.hanning(F), np.exp(-0.5 * ((np.arange(T) - 14.0) / 2.0) ** 2))


def normal(sample: int) -> Array:
    """What stands for standard normal noise."""
    return 1.4 * formula(F, T, phase=3.0 + sample)


def alpha(sample: int) -> float:
    return (0.37 + 0.23 * sample) % 1.0


def hidden(x: Array) -> Array:
    """The first convolution's output, before its activation: (CHANNELS, F / 2, T / 2)."""
    padded = np.pad(x, 1)
    out = np.zeros((CHANNELS, F // 2, T // 2))
    for c in range(CHANNELS):
        for i in range(F // 2):
            for j in range(T // 2):
                out[c, i, j] = (W1[c] * padded[2 * i : 2 * i + 3, 2 * j : 2 * j + 3]).sum() + B1[c]
    return out


def reconstruct(x: Array) -> Array:
    a = hidden(x)
    h = np.where(a > 0, a, SLOPE * a)
    y = np.full((F, T), B2)
    for c in range(CHANNELS):
        for i in range(F // 2):
            for j in range(T // 2):
                y[2 * i : 2 * i + 2, 2 * j : 2 * j + 2] += W2[c] * h[c, i, j]
    return y


def score(x: Array) -> float:
    return float(((reconstruct(x) - x) ** 2).mean())


def gradients(x: Array) -> tuple[Array, Array]:
    """Of the score: with respect to the clip, and to the first convolution's output."""
    a, residual = hidden(x), reconstruct(x) - x
    of_y = 2.0 * residual / (F * T)
    of_a = np.zeros_like(a)
    of_padded = np.zeros((F + 2, T + 2))
    for c in range(CHANNELS):
        for i in range(F // 2):
            for j in range(T // 2):
                of_h = (of_y[2 * i : 2 * i + 2, 2 * j : 2 * j + 2] * W2[c]).sum()
                of_a[c, i, j] = of_h * (1.0 if a[c, i, j] > 0 else SLOPE)
                of_padded[2 * i : 2 * i + 3, 2 * j : 2 * j + 3] += of_a[c, i, j] * W1[c]
    return of_padded[1:-1, 1:-1] - of_y, of_a


def resized(small: Array) -> Array:
    """Bilinear, to (F, T), corners not aligned; beyond the outermost centres the edge is repeated."""

    def weights(n_out: int, n_in: int) -> Array:
        matrix = np.zeros((n_out, n_in))
        for k in range(n_out):
            place = min(max((k + 0.5) * n_in / n_out - 0.5, 0.0), n_in - 1.0)
            below = int(place)
            above = min(below + 1, n_in - 1)
            matrix[k, below] += 1.0 - (place - below)
            matrix[k, above] += place - below
        return matrix

    return weights(F, small.shape[0]) @ small @ weights(T, small.shape[1]).T


def maps() -> dict[str, Array]:
    gradient, of_a = gradients(X)
    nodes, weights = np.polynomial.legendre.leggauss(STEPS)
    path = sum(w / 2 * gradients((node + 1) / 2 * X)[0] for node, w in zip(nodes, weights, strict=True))
    shap = np.zeros((F, T))
    for n in range(SAMPLES):
        noisy = X + SIGMA_SHAP * normal(n)
        shap += noisy * gradients(alpha(n) * noisy)[0] / SAMPLES
    smooth = sum(np.abs(gradients(X + SIGMA_SMOOTH * normal(n))[0]) for n in range(SAMPLES)) / SAMPLES
    return {
        "error_map": (reconstruct(X) - X) ** 2,
        "saliency": np.abs(gradient),
        "smooth_grad": smooth,
        "integrated_gradients": X * path,
        "gradient_shap": shap,
        "grad_cam": resized((of_a.mean(axis=(1, 2))[:, None, None] * hidden(X)).sum(axis=0)),
    }


def threshold(curve: Array, percentile: float) -> float:
    """The percentile with linear interpolation."""
    ordered = sorted(curve.tolist())
    place = percentile * (len(ordered) - 1) / 100
    below = int(place)
    return ordered[below] + (place - below) * (ordered[min(below + 1, len(ordered) - 1)] - ordered[below])


def judged(attribution: Array) -> dict[str, list[float]]:
    """F-score, frame and segment faithfulness at each percentile."""
    curve, rebuilt, before = attribution.sum(axis=0), reconstruct(X), score(X)
    n_seconds = int(T / FRAMES_PER_S)
    positive = [any(s + 1 > on and s < off for on, off in INTERVALS) for s in range(n_seconds)]
    inside = np.array([any(on <= t / FRAMES_PER_S < off for on, off in INTERVALS) for t in range(T)])
    result: dict[str, list[float]] = {"f_score": [], "frame": [], "segment": []}
    for percentile in PERCENTILES:
        peaks = curve >= threshold(curve, percentile)
        flagged = [bool(peaks[int(s * FRAMES_PER_S) : int((s + 1) * FRAMES_PER_S)].any()) for s in range(n_seconds)]
        tp = sum(p and q for p, q in zip(positive, flagged, strict=True))
        wrong = sum(p != q for p, q in zip(positive, flagged, strict=True))
        result["f_score"].append(2 * tp / (2 * tp + wrong) if tp else 0.0)
        seconds = np.repeat(flagged, int(FRAMES_PER_S))
        for mode, mask in (("frame", peaks), ("segment", seconds & inside)):
            result[mode].append(max(0.0, 1.0 - score(np.where(mask, rebuilt, X)) / before))
    return result


def expected() -> dict[str, Any]:
    attributions = maps()
    return {
        "reconstruction": reconstruct(X).tolist(),
        "score": score(X),
        "maps": {method: values.tolist() for method, values in attributions.items()},
        "judged": {method: judged(values) for method, values in attributions.items()},
    }


if __name__ == "__main__":
    EXPECTED.write_text(json.dumps(expected()))
