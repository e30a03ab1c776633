"""The table of models: a new model is its module and one row here. Without torch, until a network is built.

`ae` and `mae` are one network, the Skip-CAE-Transformer, trained in two ways. The others are the baselines of the model
paper ("Planing It by Ear", Deschênes et al. 2025, arXiv 2501.04819): three networks that are trained as the AE is, and
two classical detectors that are fitted (see `classical`). Two linear models are fitted as well (see `linear`), and
scored and explained as networks are.

An installed package adds a model by an entry point of the group `faithad.models`, see `faithad.extensions`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from faithad.errors import ConfigError
from faithad.extensions import MODELS_GROUP, ExtensibleTable

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ModelRow:
    """One model.

    Attributes:
        name: in configurations, tables and names of folders.
        title: in reports.
        location: `module:Class`, imported when a network is built. The class takes (n_mels, n_frames) and maps
            spectrograms (B, F, T) to reconstructions (B, F, T); one that does not reconstruct is a `ClassicalDetector`.
        fitted: in one go, instead of trained by gradient. Of faithad's own rows only: a package's model is trained by
            gradient.
        reconstructs: false if it gives a score for each clip and no reconstruction. Of faithad's own rows only.
        takes_reference: its class takes `features.reference` as the option `reference`.
        masked: trained with patches hidden from it, so that the patch size must divide the frames that it takes.
        seedless: chance plays no part in its training, so one seed stands for all.
        explained: its scores are explained by attributions; `faithad.model.fast_network` says what the class may define
            for that, such as the layer that Grad-CAM explains.
        frames_multiple: the network takes as many frames of a clip as this number divides.
        sized: its class takes the settings of a study's section `model` as options.
    """

    name: str
    title: str
    location: str
    fitted: bool = False
    reconstructs: bool = True
    takes_reference: bool = False
    masked: bool = False
    seedless: bool = False
    explained: bool = False
    frames_multiple: int = 1
    sized: bool = False

    @property
    def linear(self) -> bool:
        """Whether it is one of the linear models, which are fitted to a sample of frames."""
        return self.fitted and self.reconstructs

    def load(self) -> Callable[..., nn.Module]:
        """The class."""
        module, _, name = self.location.partition(":")
        network_class: Callable[..., nn.Module] = getattr(importlib.import_module(module), name)
        return network_class


_SKIP_CAE_TRANSFORMER = "faithad.model.skip_cae_transformer:SkipCAETransformer"
_CLASSICAL = "faithad.model.classical:ClassicalDetector"
_LINEAR = "faithad.model.linear"

MODELS = ExtensibleTable(
    "model",
    MODELS_GROUP,
    ModelRow,
    [
        ModelRow("ae", "AE", _SKIP_CAE_TRANSFORMER, explained=True, sized=True),
        ModelRow("mae", "MAE", _SKIP_CAE_TRANSFORMER, masked=True, explained=True, sized=True),
        ModelRow("dense_ae", "Dense AE", "faithad.model.baselines:DenseAE"),
        ModelRow("cae", "CAE", "faithad.model.baselines:CAE", explained=True),
        ModelRow("skip_cae", "Skip-CAE", "faithad.model.baselines:SkipCAE", explained=True),
        ModelRow("one_class_svm", "One-class SVM", _CLASSICAL, fitted=True, reconstructs=False, seedless=True),
        ModelRow("isolation_forest", "Isolation forest", _CLASSICAL, fitted=True, reconstructs=False),
        ModelRow("frame_pca", "Frame PCA", f"{_LINEAR}:FramePCA", fitted=True, takes_reference=True, explained=True),
        ModelRow(
            "frame_ridge", "Frame ridge", f"{_LINEAR}:FrameRidge", fitted=True, takes_reference=True, explained=True
        ),
    ],
)


def build_network(model: str, n_mels: int, n_frames: int, **options: float | str) -> nn.Module:
    """An untrained network, or an unfitted linear model, that maps spectrograms (B, F, T) to reconstructions (B, F, T).

    It has the attributes `n_mels` and `n_frames`. Its weights come from PyTorch's global generator.

    Args:
        model: the name of a model that reconstructs.
        n_mels: F, at least 16.
        n_frames: T, at least 16.
        options: what only some take: `dropout`, `width`, `depth` (ae, mae), `reference` (frame_pca, frame_ridge).

    Raises:
        ConfigError: there is no such model, or it cannot be built for that shape.
    """
    if model not in MODELS or not MODELS[model].reconstructs:
        allowed = ", ".join(name for name, row in MODELS.items() if row.reconstructs)
        raise ConfigError(f"There is no network {model!r} to train; allowed: {allowed}.")
    network = MODELS[model].load()(n_mels, n_frames, **options)
    network.n_mels, network.n_frames = n_mels, n_frames  # type: ignore[assignment]
    return network
