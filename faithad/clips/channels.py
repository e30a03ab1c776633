"""Which channel of a recording is heard.

Microphones of one recorder hear the same sound at different times: their mean is a comb filter, and a dead channel
makes it quieter, an inverted one silent. So channels are averaged only where they hold the same sound.

Conventions
    A channel is a number from 1, or None for the mean of all. Of a recording that is audited channel by channel, each
    has a name of its own: `week/20240506_070000.wav (channel 2)`.
"""

from __future__ import annotations

import math
import re

from faithad.clips.health import Health
from faithad.vocabulary import ChannelChoice

_NAME = re.compile(r"(.*) \(channel (\d+)\)", re.DOTALL)


def heard_channels(choice: ChannelChoice, n_channels: int, health: Health | None) -> list[int | None]:
    """The channels of a recording that are heard, each by itself; [None] for the mean of all.

    Args:
        choice: a number, or `first`; `loudest`; `mean`; `each`, all channels one by one; `auto`, the mean where all
            channels hold the same sound, else the first channel without a fault (see `Health.reference`).
        n_channels: of the recording.
        health: of the recording; None if nothing of it could be sampled.

    Returns:
        None of them if the recording lacks the channel that is asked for.
    """
    if isinstance(choice, int):
        return [choice] if choice <= n_channels else []
    if n_channels == 1 or choice == "mean":
        return [None]
    if choice == "each":
        return list(range(1, n_channels + 1))
    if choice == "first" or (health is None and choice == "loudest"):
        return [1]
    if choice == "loudest" and health is not None:
        levels = [-math.inf if level is None else level for level in health.level_dbfs]
        return [1 + levels.index(max(levels))]
    return [None] if health is None or health.is_alike else [1 + health.reference]


def channel_name(recording: str, channel: int) -> str:
    """The name of one channel of a recording that is audited channel by channel."""
    return f"{recording} (channel {channel})"


def split_name(name: str) -> tuple[str, int | None]:
    """The recording of such a name and the channel; None for a whole recording."""
    match = _NAME.fullmatch(name)
    return (name, None) if match is None else (match[1], int(match[2]))
