"""Recordings and waveforms as a model takes them in: log-mel spectrograms, and the spectrum of a recording."""

from __future__ import annotations

import warnings
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from faithad import features
from faithad.clips.channels import heard_channels
from faithad.clips.recordings import SHORTEST_CLIP_S, AudioHeader, Remainder, cut_windows, examine_recording, read_clip
from faithad.errors import RecordingError
from faithad.library.arrays import Array, as_tensor
from faithad.settings import FeatureSettings
from faithad.vocabulary import ChannelChoice, count


def log_mel(
    sound: str | Path | Array,
    settings: FeatureSettings,
    *,
    remainder: Remainder = "overlap",
    channel: ChannelChoice = "auto",
) -> npt.NDArray[np.float32]:
    """Log-mel spectrograms of a recording or of waveforms.

    Args:
        sound: a WAV or FLAC file of any rate and number of channels, a local path or a URI, which is cut into clips of
            `settings.clip_s`; or waveforms at `settings.sample_rate_hz`, (samples,) or (B, samples), full scale at 1,
            which are clips already.
        settings: what a spectrogram is; `model.features` for a trained model.
        remainder: what becomes of the end of a recording that is shorter than a clip: `overlap`, `pad` or `drop`.
        channel: which channel of a recording is heard: a number from 1, `first`, `loudest`, `mean`, or `auto`, the mean
            where all channels hold the same sound, else one without a fault.

    Returns:
        (B, F, T), T = 1 + samples of the longest clip // hop; NaN after the end of a shorter last clip.

    Raises:
        RecordingError: the file cannot be read, gives no clip or lacks the channel, or a waveform is too short or not
            finite.
    """
    if isinstance(sound, str | Path):
        return _log_mels_of(str(sound), settings, remainder, channel)
    waveforms = torch.atleast_2d(as_tensor(sound))
    if not torch.isfinite(waveforms).all():
        raise RecordingError("The waveform holds NaN or infinite samples. Check how it was made.")
    return features.log_mel(waveforms, settings).cpu().numpy()


def recording_spectrum(
    recording: str | Path, settings: FeatureSettings, *, channel: ChannelChoice = "auto"
) -> npt.NDArray[np.float32]:
    """The median level of each mel band over a recording, which models with `features.reference: recording` need.

    Args:
        recording: a WAV or FLAC file, a local path or a URI.
        settings: `model.features`.
        channel: as for `log_mel`.

    Returns:
        (F,), in the unit of the features.

    Raises:
        RecordingError: as `log_mel`.
    """
    _, heard = _opened(str(recording), channel)
    return features.recording_spectrum(str(recording), channel=heard, settings=settings).numpy()


def _opened(uri: str, choice: ChannelChoice) -> tuple[AudioHeader, int | None]:
    """The header of a recording, and the channel that is heard."""
    header = examine_recording(uri)
    channels = heard_channels(choice, header.channels, header.health)
    if len(channels) != 1:
        has = f"{uri} has {count(header.channels, 'channel')}"
        raise RecordingError(f"{has}, and channel is {choice!r}: give the number of one, first, loudest, mean or auto.")
    return header, channels[0]


def _log_mels_of(
    uri: str, settings: FeatureSettings, remainder: Remainder, choice: ChannelChoice
) -> npt.NDArray[np.float32]:
    """The log-mels of a recording's clips, see `log_mel`."""
    header, channel = _opened(uri, choice)
    if header.unheard is not None:
        raise RecordingError(header.unheard)
    if header.remark is not None:
        warnings.warn(header.remark, stacklevel=3)
    duration_s = header.duration_s
    windows, _ = cut_windows(duration_s, clip_s=settings.clip_s, remainder=remainder)
    if not windows and duration_s < SHORTEST_CLIP_S:
        raise RecordingError(f"{uri} is too short to judge: {duration_s:g} s, where {SHORTEST_CLIP_S:g} s are needed.")
    if not windows:
        raise RecordingError(f"{uri} is shorter than a clip of {settings.clip_s:g} s. Set remainder to 'pad'.")
    parts = []
    for length_s, equally_long in groupby(windows, key=lambda window: window.duration_s):
        clips = [
            read_clip(uri, onset_s=onset_s, duration_s=length_s, clip_s=settings.clip_s,
                      sample_rate_hz=settings.sample_rate_hz, channel=channel)
            for onset_s, _ in equally_long
        ]  # fmt: skip
        log_mels = features.log_mel(torch.from_numpy(np.stack(clips)), settings)
        parts.append(log_mels[..., : settings.frames_in(length_s)].numpy())
    width = max(part.shape[-1] for part in parts)
    padded = [np.pad(part, ((0, 0), (0, 0), (0, width - part.shape[-1])), constant_values=np.nan) for part in parts]
    return np.concatenate(padded)
