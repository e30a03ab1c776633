"""The linear models of `faithad.model.linear` from their definition, slowly, in NumPy and scikit-learn.

Shape letters: N clips, F mel bands, T frames.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

Array = NDArray[Any]


def less_reference(clips: Array, reference: str) -> Array:
    return clips if reference == "none" else clips - np.median(clips, axis=2, keepdims=True)


def frame(clip: Array, t: int) -> Array:
    """Frame t of a clip (F, T), the first or last one beyond its edges."""
    return clip[:, min(max(t, 0), clip.shape[1] - 1)]


def described(clip: Array, t: int, model: str) -> Array:
    """What a model knows of frame t."""
    if model == "frame_pca":
        return np.concatenate([frame(clip, t + step) for step in (-8, -6, -4, -2, 0, 2, 4, 6, 8)])
    before = np.mean([frame(clip, t - step) for step in (2, 3, 4, 5, 6)], axis=0)
    after = np.mean([frame(clip, t + step) for step in (2, 3, 4, 5, 6)], axis=0)
    return np.concatenate([before, after, clip.mean(axis=1)])


class Reference:
    """A model fitted to all frames of the clips (N, F, T)."""

    def __init__(self, model: str, clips: Array, reference: str) -> None:
        self.model, self.reference = model, reference
        normal = less_reference(clips.astype(np.float64), reference)
        rows = [described(clip, t, model) for clip in normal for t in range(clip.shape[1])]
        if model == "frame_pca":
            self.fitted = PCA(40, svd_solver="full").fit(rows)
        else:
            self.fitted = Ridge(10.0).fit(rows, normal.transpose(0, 2, 1).reshape(-1, normal.shape[1]))

    def rebuilt(self, clips: Array) -> tuple[Array, Array]:
        """The reconstruction (N, F, T), and the error of each band over the whole context (of frame_pca)."""
        clips = clips.astype(np.float64)
        n_mels = clips.shape[1]
        output, context_error = np.empty_like(clips), np.empty_like(clips)
        for number, clip in enumerate(less_reference(clips, self.reference)):
            offset = clips[number] - clip
            for t in range(clip.shape[1]):
                row = described(clip, t, self.model)[None]
                if self.model == "frame_pca":
                    back = self.fitted.inverse_transform(self.fitted.transform(row))
                    output[number, :, t] = back[0].reshape(9, n_mels)[4] + offset[:, t]
                    context_error[number, :, t] = ((back - row) ** 2).reshape(9, n_mels).mean(axis=0)
                else:
                    output[number, :, t] = self.fitted.predict(row)[0] + offset[:, t]
        return output, context_error
