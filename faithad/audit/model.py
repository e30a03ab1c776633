"""A trained model as an audit uses it: on its device, in the forms that score and explain, with all settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from faithad.attribution.methods import choose_methods
from faithad.attribution.point_stream import grad_cam_layer
from faithad.config.sections import Attribution, Audit
from faithad.errors import ConfigError
from faithad.features import Normalization
from faithad.model.checkpoint import TrainedModel
from faithad.model.fast_network import fast_network
from faithad.scoring.score import Detector
from faithad.scoring.trained_ensemble import AnyModel, TrainedEnsemble
from faithad.settings import AS_IN_PAPER, JudgingSettings
from faithad.vocabulary import listed


@dataclass(frozen=True)
class AuditModel:
    """A trained model as the audit uses it.

    Attributes:
        trained: the model itself, with the alarm that is to be raised.
        network: for scores and faithfulness, always in float32.
        explained: for the attributions, in the form that their settings ask for; None if the model is not explained.
        attribution: the settings of the attributions.
        audit: the settings of the audit.
        device: that computes everything.
        training: what the features of its training clips were, in their own unit; None where that is not known.
        detector: what its score is made of; None for the mean squared error.
        beside_paper: whether the mean squared error is written in addition to another score.
        judging: how the maps are judged.
        linear: the linear model whose error is one of the lines; None where there is none.
        inpainter: the MAE that predicts the hidden frames of deep clips; None where there is none.
    """

    trained: TrainedModel
    network: nn.Module
    explained: nn.Module | None
    attribution: Attribution
    audit: Audit
    device: torch.device
    training: Normalization | None = None
    detector: Detector | None = None
    beside_paper: bool = False
    judging: JudgingSettings = AS_IN_PAPER
    linear: TrainedModel | None = None
    inpainter: TrainedModel | None = None

    @classmethod
    def prepare(
        cls,
        trained: TrainedModel,
        *,
        attribution: Attribution,
        audit: Audit,
        device: torch.device,
        training: Normalization | None = None,
        detector: Detector | None = None,
        beside_paper: bool = False,
        judging: JudgingSettings = AS_IN_PAPER,
        linear: TrainedModel | None = None,
        inpainter: TrainedModel | None = None,
    ) -> AuditModel:
        """Prepare a model; call this once for each model, because fast networks hold copies of its weights.

        Raises:
            ConfigError: the clips are to be explained, and the network lacks what one of the methods needs.
        """
        network = trained.network.to(device)
        if inpainter is not None:
            inpainter = replace(inpainter, network=fast_network(inpainter.network.to(device)))
        options: dict[str, Any] = {"training": training, "judging": judging, "linear": linear, "inpainter": inpainter}
        options |= {"detector": detector, "beside_paper": beside_paper}
        if trained.score is not None:
            options["detector"] = Detector.of(trained.score, network, trained.features.frames_per_s)
        if not trained.explained:
            return cls(trained, network, None, attribution, audit, device, **options)
        if audit.explain != "none":
            grad_cam_layer(network, choose_methods(attribution.methods))
        explained = fast = fast_network(network)
        if (attribution.precision, attribution.compile) != ("float32", "none"):
            explained = fast_network(network, attribution.precision, attribution.compile)
        if options["detector"] is not None:
            options["detector"] = replace(options["detector"], network=fast)
        return cls(trained, fast, explained, attribution, audit, device, **options)


@dataclass(frozen=True)
class AuditEnsemble:
    """A trained ensemble as the audit uses it; `members` are in the order of its detectors."""

    trained: TrainedEnsemble
    members: tuple[AuditModel, ...]

    @classmethod
    def prepare(
        cls,
        trained: TrainedEnsemble,
        *,
        attribution: Attribution,
        audit: Audit,
        device: torch.device,
        judging: JudgingSettings = AS_IN_PAPER,
    ) -> AuditEnsemble:
        """As `AuditModel.prepare`."""
        options: dict[str, Any] = {"attribution": attribution, "audit": audit, "device": device, "judging": judging}
        return cls(
            trained,
            tuple(
                AuditModel.prepare(trained.members[name], **options, detector=detector)
                for name, detector in trained.ensemble.members.items()
            ),
        )

    @property
    def device(self) -> torch.device:
        return self.members[0].device


def prepare_audit(
    trained: AnyModel,
    *,
    attribution: Attribution,
    audit: Audit,
    device: torch.device,
    training: Normalization | None = None,
    beside_paper: bool = False,
    judging: JudgingSettings = AS_IN_PAPER,
    linear: TrainedModel | None = None,
    inpainter: TrainedModel | None = None,
) -> AuditModel | AuditEnsemble:
    """A model or an ensemble as the audit uses it; see `AuditModel`.

    Raises:
        ConfigError: as `AuditModel.prepare`; or an ensemble is to be judged by another protocol than the paper's.
    """
    if isinstance(trained, TrainedEnsemble):
        if judging.protocols != AS_IN_PAPER.protocols:
            raise ConfigError(
                f"protocol is {listed(judging.protocols)}, and {trained.name!r} is an ensemble: its clips are "
                "explained by different members, so their faithfulness has no common lines. Judge it by 'paper'."
            )
        return AuditEnsemble.prepare(trained, attribution=attribution, audit=audit, device=device, judging=judging)
    return AuditModel.prepare(
        trained,
        attribution=attribution,
        audit=audit,
        device=device,
        training=training,
        beside_paper=beside_paper,
        judging=judging,
        linear=linear,
        inpainter=inpainter,
    )


def require_baselines(trained: AnyModel, attribution: Attribution) -> None:
    """Return if the model keeps the baselines at which the paths of its explanations begin.

    Raises:
        ConfigError: it keeps no training clips.
    """
    members = trained.members.values() if isinstance(trained, TrainedEnsemble) else (trained,)
    if attribution.baseline == "normals" and any(member.explained and member.normals is None for member in members):
        raise ConfigError(
            f"attribution.baseline is 'normals', and the model {trained.name!r} keeps no training clips to draw from: "
            "it was trained by an earlier version. Train it again, or set attribution.baseline to 'zero'."
        )
