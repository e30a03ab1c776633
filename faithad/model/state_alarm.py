"""The alarm for what lasts, as it is stored with a model; `faithad.scoring.state` fits it and computes with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

# Minutes that an audit's minutes are compared with, at most: 1.6 MB of 80 bands.
MOST_MINUTES = 5_000


@dataclass(frozen=True)
class StateThreshold:
    """A minute alarms above `threshold_db`.

    Attributes:
        threshold_db: distance of a minute's spectrum from what it is compared with.
        false_alarm_rate: the share of normal minutes with which a change is expected to begin, at most.
        n_minutes: how many normal minutes it was fitted to.
    """

    threshold_db: float
    false_alarm_rate: float
    n_minutes: int


@dataclass(frozen=True, eq=False)
class StateAlarm:
    """The alarm for what lasts.

    Attributes:
        spectra: of N normal minutes, (N, F) float32 in decibels, each less its mean over the bands; N is at most
            `MOST_MINUTES`.
        share: of the promised false alarms; the alarm of clips has the rest.
        asked_rate: the share of normal minutes that may begin a change; too few minutes promise more.
        against_normals: of minutes that are compared with these.
        against_past: of minutes that are compared with their recorder's own past; None where the normal recordings are
            too short to fit one, and all minutes are compared with the normal ones.
    """

    spectra: Tensor
    share: float
    asked_rate: float
    against_normals: StateThreshold
    against_past: StateThreshold | None

    @classmethod
    def from_json(cls, values: Mapping[str, Any], spectra: Tensor) -> StateAlarm:
        """The alarm that `as_json` wrote, with its spectra."""
        normals, past = values["against_normals"], values["against_past"]
        return cls(
            spectra,
            values["share"],
            values["asked_rate"],
            StateThreshold(**normals),
            None if past is None else StateThreshold(**past),
        )

    def as_json(self) -> dict[str, Any]:
        """All but the spectra."""
        return {
            "share": self.share,
            "asked_rate": self.asked_rate,
            "against_normals": asdict(self.against_normals),
            "against_past": None if self.against_past is None else asdict(self.against_past),
        }
