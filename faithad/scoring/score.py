"""A detector: a model whose score, four choices, is fitted to normal clips.

Shape letters: N normal clips, B clips, F mel bands, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from faithad.model.fitted_score import FittedScore
from faithad.scoring.calibration import CALIBRATIONS, NormalScores, mean_spectrum
from faithad.scoring.choices import Score
from faithad.scoring.pooling import POOLINGS, WEIGHTINGS, frame_errors, weighted
from faithad.scoring.residuals import RESIDUALS


class ClipBatch(NamedTuple):
    """Clips as a model takes them in.

    Attributes:
        x: (B, F, T).
        clip_ids: B names, which key the patches that inpainting hides.
        recordings: the recording of each clip, B names.
        n_frames: how many frames of each clip hold sound, (B,); None for all T.
        offsets: (B, F), what was subtracted from x, see `Normalization.offsets`; None for nothing.
    """

    x: Tensor
    clip_ids: Sequence[str]
    recordings: Sequence[str]
    n_frames: Sequence[int] | None = None
    offsets: Tensor | None = None


@dataclass(frozen=True)
class Detector:
    """A model with a fitted score. `fit_detector` makes it.

    Attributes:
        network: maps (B, F, T) to reconstructions (B, F, T).
        score: the four choices.
        frames_per_s: of the features.
        weights: what the errors of the bands are divided by, (F,); None for the weighting "none".
        normals: what scores are compared with; None for the calibration "none".
    """

    network: nn.Module
    score: Score
    frames_per_s: float
    weights: Tensor | None = field(default=None, repr=False)
    normals: NormalScores | None = field(default=None, repr=False)

    def cells(self, x: Tensor, clip_ids: Sequence[str]) -> Tensor:
        """The weighted error of each cell, (B, F, T) to (B, F, T). It has a gradient."""
        return weighted(RESIDUALS[self.score.residual].compute(self.network, x, clip_ids), self.weights)

    def pool(self, cells: Tensor) -> Tensor:
        """The scores before calibration, from the weighted errors of the frames that hold sound: (B, F, n) to (B,)."""
        pool = POOLINGS[self.score.pooling].compute
        return torch.stack([pool(frame_errors(of_clip), self.frames_per_s) for of_clip in cells])

    def raw(self, x: Tensor, clip_ids: Sequence[str], n_frames: Sequence[int] | None = None) -> Tensor:
        """The scores before calibration, (B, F, T) to (B,) float64.

        Each clip is computed alone, so that its score does not depend on the others to the last bit. It has a gradient.

        Args:
            x: clips; short ones are filled up.
            clip_ids: B names.
            n_frames: how many frames of each clip hold sound, (B,); None for all T.
        """
        return torch.cat(
            [
                self.pool(self.cells(x[k : k + 1], [clip_id])[..., :n_heard])
                for k, (clip_id, n_heard) in enumerate(zip(clip_ids, _lengths(x, n_frames), strict=True))
            ]
        )

    @classmethod
    def of(cls, fitted: FittedScore, network: nn.Module, frames_per_s: float) -> Detector:
        """The detector of a score that was stored with its model."""
        normals = fitted.normals
        return cls(
            network,
            Score(**fitted.choices),
            frames_per_s,
            fitted.weights,
            None if normals is None else NormalScores(*normals),
        )

    def stored(self) -> FittedScore:
        """The part of the detector that is stored with its model."""
        normals = self.normals
        kept = None if normals is None else (normals.scores, normals.places, normals.recordings)
        return FittedScore(asdict(self.score), self.weights, kept)

    def calibrate(self, raw: Tensor, places: Tensor, recordings: Tensor | None = None) -> Tensor:
        """Calibrated scores from raw ones, (B,), or (W, B) of windows, and the clips' mean spectra (B, F); see
        `NormalScores.calibrated`.
        """
        return raw if self.normals is None else self.normals.calibrated(raw, places, recordings)

    def calibrated(
        self,
        x: Tensor,
        clip_ids: Sequence[str],
        n_frames: Sequence[int] | None = None,
        offsets: Tensor | None = None,
    ) -> Tensor:
        """The scores of clips that the detector was not fitted to, (B, F, T) to (B,) float64; arguments as `raw`, and
        `places_of`.
        """
        return self.calibrate(self.raw(x, clip_ids, n_frames), places_of(x, n_frames, offsets))


def places_of(x: Tensor, n_frames: Sequence[int] | None = None, offsets: Tensor | None = None) -> Tensor:
    """The mean spectrum of each clip (B, F, T), over the frames that hold sound: (B, F).

    It is the spectrum of the sound as it was recorded. Without the recording's spectrum, clips of all machines and
    states would be neighbours (AUC 0.82 and not 0.89 on the field sounds).

    Args:
        x: the clips.
        n_frames: how many frames of each clip hold sound, (B,); None for all T.
        offsets: what was subtracted from x, (B, F); None for nothing.
    """
    lengths = _lengths(x, n_frames)
    places = torch.cat([mean_spectrum(x[k : k + 1, :, :n]) for k, n in enumerate(lengths)])
    return places if offsets is None else places + offsets.to(places.device)


def _lengths(x: Tensor, n_frames: Sequence[int] | None) -> Sequence[int]:
    return [x.shape[-1]] * len(x) if n_frames is None else n_frames


def fit_detector(
    network: nn.Module, score: Score, normals: Callable[[], Iterable[ClipBatch]], *, frames_per_s: float
) -> tuple[Detector, Tensor]:
    """Fit the weights and the calibration of a score to normal clips.

    Args:
        network: a trained or fitted model.
        score: the four choices.
        normals: gives the normal clips in parts, always in the same order; called once, or twice for weights.
        frames_per_s: of the features.

    Returns:
        The detector, and its scores of the normal clips, (N,) float64: with the calibration "local" those of at most
        `MOST_NORMALS`, each compared with clips of other recordings.

    Raises:
        StudyError: there are no clips, or they cannot be weighted or calibrated.
    """
    detector = Detector(network, score, frames_per_s)
    with torch.no_grad():  # not inference mode, whose tensors have no gradients later on
        if (fit := WEIGHTINGS[score.weighting].fit) is not None:
            detector = Detector(network, score, frames_per_s, fit(_errors(detector, normals())))
        raw, places, recordings = list[Tensor](), list[Tensor](), list[str]()
        for part in normals():
            raw.append(detector.raw(part.x, part.clip_ids, part.n_frames))
            places.append(places_of(part.x, part.n_frames, part.offsets))
            recordings += part.recordings
        scores = torch.cat(raw)
        if (calibrate := CALIBRATIONS[score.calibration].fit) is None:
            return detector, scores
        held = calibrate(scores, torch.cat(places), recordings)
        return Detector(network, score, frames_per_s, detector.weights, held), held.of_themselves()


def _errors(detector: Detector, parts: Iterable[ClipBatch]) -> Iterator[Tensor]:
    for part in parts:
        for k, (clip_id, n) in enumerate(zip(part.clip_ids, _lengths(part.x, part.n_frames), strict=True)):
            yield detector.cells(part.x[k : k + 1], [clip_id])[0, :, :n]
