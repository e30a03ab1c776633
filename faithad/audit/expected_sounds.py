"""What a model expects to hear at an event, as sound: its reconstruction, turned back into samples.

    clips around the event → log-mel → network → mel power → power of each bin → Griffin-Lim → samples

The phases are made up, as a spectrogram has none: the sound is rougher than a recording, but level, colour and rhythm
are those that the model expects. 30 s take about 1.5 s of one core.

Griffin and Lim 1984, "Signal estimation from modified short-time Fourier transform"; its fast form with momentum of
Perraudin, Balazs and Søndergaard 2013, "A fast Griffin-Lim algorithm".

Shape letters: F mel bands, T frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faithad.features import POWER_FLOOR, clip_log_mel, fill_up
from faithad.model.checkpoint import TrainedModel
from faithad.model.fast_network import fast_network
from faithad.model.precision import arithmetic
from faithad.scoring.trained_ensemble import AnyModel, TrainedEnsemble
from faithad.settings import FeatureSettings

_ITERATIONS, _MOMENTUM = 32, 0.99
_SEED = 0  # of the phases at the start


class ExpectedSound(NamedTuple):
    """What a model expects to hear: `samples` at the rate of its features, and their log-mel spectrogram (F, T)."""

    samples: npt.NDArray[np.float32]
    log_mel: npt.NDArray[np.float32]


def reconstructing(trained: AnyModel) -> dict[str | None, TrainedModel]:
    """The models that reconstruct, ready for `expected_sound`, by the name that an event's `raised_by` gives; empty for
    a model that only scores.
    """
    members: Mapping[Any, TrainedModel]
    members = trained.members if isinstance(trained, TrainedEnsemble) else {None: trained}
    return {
        name: replace(member, network=fast_network(member.network))
        for name, member in members.items()
        if member.reconstructs
    }


def expected_sound(
    trained: TrainedModel,
    clips: Sequence[Mapping[str, Any]],
    *,
    onset_s: float,
    duration_s: float,
    reference: Tensor | None = None,
) -> ExpectedSound:
    """Some seconds of a recording as a model expects them.

    Args:
        trained: one of `reconstructing`.
        clips: rows of schemas.MANIFEST of this recording, which together cover these seconds. Where they overlap, a
            later one in this order counts.
        onset_s: where the seconds begin, from the start of the recording.
        duration_s: how many there are.
        reference: the spectrum (F,) of the recording, which models with the reference "recording" need.

    Raises:
        RecordingError: the recording cannot be read.
    """
    features = trained.features
    n_samples = round(duration_s * features.sample_rate_hz)
    power = torch.zeros(features.n_mels, 1 + n_samples // features.hop_samples)
    references = None if reference is None else reference[None]
    for clip in clips:
        expected = _expected_power(trained, clip, references)
        first = round((clip["onset_s"] - onset_s) * features.frames_per_s)
        # The last frame of a clip is centred on its end, and not every network takes it in.
        expected = torch.cat([expected, expected[:, -1:]], dim=1)
        inside = slice(max(0, first), max(0, first + expected.shape[1]))
        part = power[:, inside]
        power[:, inside] = expected[:, inside.start - first :][:, : part.shape[1]]
    level = torch.log10(power + POWER_FLOOR) * (10 if features.scale == "db" else 1)
    return ExpectedSound(_griffin_lim(power, features, n_samples).numpy(), level.numpy())


def _expected_power(trained: TrainedModel, clip: Mapping[str, Any], references: Tensor | None) -> Tensor:
    """The mel power (F, T) that the network expects of one clip."""
    features = trained.features
    place = {name: clip[name] for name in ("onset_s", "duration_s")}
    own = clip_log_mel(clip["uri"], **place, channel=clip["channel"], settings=features)
    with arithmetic("float32"), torch.inference_mode():
        expected = trained.network(trained.prepare(fill_up(own, features.n_frames)[None], references))
        level = trained.normalization.invert(expected, references)[0, :, : trained.frames_in(clip["duration_s"])]
    power = 10 ** (level / 10 if features.scale == "db" else level) - POWER_FLOOR
    # A sine at full scale has less: what is beyond comes from a network that fails.
    return power.nan_to_num().clamp(0, features.n_fft**2)


def _griffin_lim(power: Tensor, features: FeatureSettings, n_samples: int) -> Tensor:
    """Samples whose mel power is about `power`, (F, T)."""
    import torchaudio  # takes a second

    # Windows must overlap by half: where those of the features do not, longer ones are used, which hold more power.
    n_fft = max(features.n_fft, 2 * features.hop_samples)
    power = power * (n_fft / features.n_fft)
    # "gelsd" copes with bands that cover no bin.
    to_bins = torchaudio.transforms.InverseMelScale(
        n_fft // 2 + 1, features.n_mels, features.sample_rate_hz, driver="gelsd"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        samples: Tensor = torchaudio.functional.griffinlim(
            to_bins(power),
            torch.hann_window(n_fft),
            n_fft=n_fft,
            hop_length=features.hop_samples,
            win_length=n_fft,
            power=2.0,
            n_iter=_ITERATIONS,
            momentum=_MOMENTUM,
            length=n_samples,
            rand_init=True,
        )
    return samples
