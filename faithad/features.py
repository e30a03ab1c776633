"""From clips to log-mel spectrograms, the only input of the models.

Shape letters: B clips, F mel bands, T frames. Frames are centred: the first frame is centred on the clip's first
sample, the last one on its end, so 10 s with hops of 25 ms have 401 frames.

Two settings are used: decibels at 20 kHz (the planer data, "Planing It by Ear", Deschênes et al. 2025, section 3) and
log10 at 16 kHz (the DCASE 2022 Task 2 variant). Both use the mel power spectrogram with HTK's mel scale.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from faithad.clips.access import AccessError
from faithad.clips.recordings import cut_windows, probe_recording, read_clip
from faithad.errors import RecordingError, StudyError
from faithad.settings import FeatureSettings
from faithad.threads import single_threaded

# Added to the mel power before the logarithm: digital silence becomes -100 dB, not minus infinity.
POWER_FLOOR = 1e-10
# A band that is constant in training (silence, a dead microphone) must not be amplified to noise.
MIN_STD = 1e-3
# A band covers few bins, so most products of all bands with all bins would be zero.
_BANDS_AT_ONCE = 10
# How much of a long recording its spectrum rests on: this many seconds, and this many clips where these are long.
_MOST_HEARD_S, _FEWEST_CLIPS = 120.0, 3


def log_mel(waveform: Tensor, settings: FeatureSettings) -> Tensor:
    """Log-mel spectrograms of a batch of waveforms.

    Args:
        waveform: (B, samples), full scale at 1.
        settings: of the spectrogram.

    Returns:
        (B, F, T) float32, T = 1 + samples // hop: decibels relative to a mel power of 1, or log10 of the mel power.

    Raises:
        RecordingError: the shape is wrong, or there are too few samples for one window.
    """
    if waveform.ndim != 2 or waveform.shape[-1] <= settings.n_fft // 2:
        raise RecordingError(
            f"A batch of waveforms has the shape {tuple(waveform.shape)}; needed is (clips, samples) with more than "
            f"{settings.n_fft // 2} samples, half a window."
        )
    window, filters = _window_and_filters(settings, waveform.device)
    waveform, half = waveform.to(torch.float32), settings.n_fft // 2
    # Mirrored at both ends, so that frames are centred; `torch.stft` takes longer for this than for the spectra.
    mirrored = [waveform[:, 1 : half + 1].flip(-1), waveform, waveform[:, -half - 1 : -1].flip(-1)]
    spectra = torch.stft(
        torch.cat(mirrored, dim=-1), settings.n_fft, settings.hop_samples, window=window, center=False,
        return_complex=True,
    )  # fmt: skip
    # Without the root that an absolute value would compute before it is squared.
    power = spectra.real.square().addcmul_(spectra.imag, spectra.imag)
    # The product of a clip that comes alone would be rounded differently by several threads on some processors.
    with single_threaded():
        mel_power = torch.cat([weights @ power[:, bins] for bins, weights in filters], dim=1)
    level = mel_power.add_(POWER_FLOOR).log10_()
    return level.mul_(10.0) if settings.scale == "db" else level


def fill_up(spectrogram: Tensor, n_frames: int) -> Tensor:
    """The spectrogram of a short clip as a network takes it in: its frames, mirrored at the end again and again.

    A network is built for a whole clip and looks at all of it, so the rest must be plausible sound. Frames are mirrored
    and not samples. The spectrum of a sound that is played backwards has the same power, so both sound alike to the
    network. But no frame holds a seam, the clip's own frames are those of its sound alone, and what is made up is a
    linear function of them: an explanation of the filled clip is one of its own frames, completely.

    Args:
        spectrogram: (..., n), n at least 1; log-mels, normalised or not.
        n_frames: T; not below n.

    Returns:
        (..., T); the argument itself where it has T frames already.
    """
    n = spectrogram.shape[-1]
    if n == n_frames:
        return spectrogram
    if n == 1:
        return spectrogram.expand(*spectrogram.shape[:-1], n_frames)
    # The last frame of a run is not repeated: it lies on the mirror.
    runs = [spectrogram.flip(-1)[..., 1:], spectrogram[..., 1:]]
    n_runs = -(-(n_frames - n) // (n - 1))
    return torch.cat([spectrogram, *(runs[k % 2] for k in range(n_runs))], dim=-1)[..., :n_frames]


def clip_log_mel(
    uri: str, *, onset_s: float, duration_s: float, channel: int | None, settings: FeatureSettings
) -> Tensor:
    """The log-mel spectrogram of one clip of a recording, over the frames that hold sound: (F, n).

    Args, Raises: as `read_clip`.
    """
    sound = read_clip(
        uri,
        onset_s=onset_s,
        duration_s=duration_s,
        clip_s=settings.clip_s,
        sample_rate_hz=settings.sample_rate_hz,
        channel=channel,
    )
    return log_mel(torch.from_numpy(sound)[None], settings)[0, :, : settings.frames_in(duration_s)]


def recording_spectrum(uri: str, *, channel: int | None, settings: FeatureSettings) -> Tensor:
    """The median level of each mel band over a recording, (F,): the reference "recording".

    Up to two minutes, it is taken over all clips; of a longer recording, over two minutes of clips that lie evenly
    between the first and the last one. So it depends on nothing but the recording. A clip that cannot be decoded or
    holds no sound is left out where there are others. A recording that is shorter than a clip is filled up, as for a
    model, and so has the median spectrum of its only clip.

    Args:
        uri: of the recording.
        channel: the one that is heard, from 1; None for the mean of all.
        settings: of the features.

    Raises:
        RecordingError: the recording cannot be read, or is too short for a clip.
    """
    windows, _ = cut_windows(probe_recording(uri).duration_s, clip_s=settings.clip_s, remainder="overlap")
    n = min(len(windows), max(_FEWEST_CLIPS, int(_MOST_HEARD_S / settings.clip_s)))
    parts, wrong = list[Tensor](), RecordingError(f"{uri} is too short for a spectrum.")
    for k in range(n):
        onset_s, duration_s = windows[k * (len(windows) - 1) // max(1, n - 1)]
        try:
            own = clip_log_mel(uri, onset_s=onset_s, duration_s=duration_s, channel=channel, settings=settings)
        except AccessError:
            raise
        except RecordingError as error:
            wrong = error
        else:
            parts.append(fill_up(own, settings.n_frames))
    if not parts:
        raise wrong
    return median_over_frames(torch.cat(parts, dim=1))[:, 0]


def median_over_frames(x: Tensor) -> Tensor:
    """The median of each band, (..., F, T) to (..., F, 1); where T is even, the mean of the middle two."""
    ordered = x.sort(dim=-1).values
    n_frames = x.shape[-1]
    lower, upper = (n_frames - 1) // 2, n_frames // 2
    return (ordered[..., lower : lower + 1] + ordered[..., upper : upper + 1]) / 2


# Built once per process and device.
@lru_cache(maxsize=16)
def _window_and_filters(settings: FeatureSettings, device: torch.device) -> tuple[Tensor, list[tuple[slice, Tensor]]]:
    """Hann's window (n_fft,), and the mel filters of groups of neighbouring bands with the bins that they cover."""
    from torchaudio.functional import melscale_fbanks  # takes a second to import, and most processes get log-mels

    all_filters = melscale_fbanks(
        settings.n_fft // 2 + 1, 0.0, settings.sample_rate_hz / 2, settings.n_mels, settings.sample_rate_hz
    )
    filters = []
    for weights in all_filters.T.split(_BANDS_AT_ONCE):
        covered = weights.any(dim=0).nonzero().flatten().tolist() or [0]  # if bands are many, the lowest cover no bin
        bins = slice(covered[0], covered[-1] + 1)
        filters.append((bins, weights[:, bins].contiguous().to(device)))
    return torch.hann_window(settings.n_fft, device=device), filters


@dataclass(frozen=True, eq=False)
class Normalization:
    """Statistics of each band that give spectrograms zero mean and unit variance.

    Attributes:
        mean: (F,) float32, in the unit of the features.
        std: (F,) float32, at least `MIN_STD`.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def identity(cls, n_mels: int) -> Normalization:
        """The statistics that change nothing: the model gets the features themselves, as in the paper."""
        return cls(mean=torch.zeros(n_mels), std=torch.ones(n_mels))

    @classmethod
    def fit(cls, spectrograms: Iterable[Tensor | np.ndarray]) -> Normalization:
        """Mean and standard deviation of each band over all clips and frames.

        Args:
            spectrograms: an array (B, F, T), or an iterable of such arrays or of (F, T) arrays; it is read once.

        Raises:
            StudyError: there is no spectrogram.
        """
        count, mean, squares = 0, np.zeros(()), np.zeros(())
        for item in spectrograms:
            batch = np.asarray(item.detach().cpu() if isinstance(item, Tensor) else item, dtype=np.float64)
            frames = np.moveaxis(batch, -2, 0).reshape(batch.shape[-2], -1)  # (F, B*T)
            n = frames.shape[1]
            if n == 0:
                continue
            # Chan et al. 1979: means and sums of squares of two sets merge without cancellation.
            batch_mean = frames.mean(axis=1)
            shift = batch_mean - mean
            squares = squares + ((frames - batch_mean[:, None]) ** 2).sum(axis=1) + shift**2 * (count * n / (count + n))
            mean = mean + shift * (n / (count + n))
            count += n
        if count == 0:
            raise StudyError("There are no spectrograms to normalise with: the training split holds no clip.")
        std = np.maximum(np.sqrt(squares / count), MIN_STD)
        return cls(mean=torch.tensor(mean, dtype=torch.float32), std=torch.tensor(std, dtype=torch.float32))

    def apply(self, x: Tensor, references: Tensor | None = None) -> Tensor:
        """Features (..., F, T) as normalised spectrograms: minus `references` (..., F) if they are given, else minus
        the mean.
        """
        return (x - self._column(self.mean if references is None else references, x)) / self._column(self.std, x)

    def invert(self, x: Tensor, references: Tensor | None = None) -> Tensor:
        """Normalised spectrograms (..., F, T) as features in their own unit."""
        return x * self._column(self.std, x) + self._column(self.mean if references is None else references, x)

    def offsets(self, references: Tensor | None) -> Tensor | None:
        """By how much `apply` is lower with references (..., F) than without, (..., F); None without references."""
        return None if references is None else self.apply(references[..., None])[..., 0]

    @staticmethod
    def _column(values: Tensor, x: Tensor) -> Tensor:
        return values.to(x.device, x.dtype)[..., None]
