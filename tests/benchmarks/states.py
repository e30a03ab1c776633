"""What the alarm for what lasts hears, on real sound (../shared/data/field_sounds) and on a synthesised mill of a day.

    python -m tests.benchmarks.states [--threads N]

Steady changes of 3, 6 and 12 dB in five mel bands side by side, at random, are added to the median spectra of clips:
over one clip of a minute, over the minute, and over ten minutes in a row. Of each, the share of these minutes that
alarm is reported, at promised rates of 5 % and 2.5 % of minutes, and how often a change begins where nothing was added.

    field    recordings of a minute without a clock: each test minute beside the training's
    mill     every fourth minute of a day: half of the day is normal sound, and the other half is followed from its
             first minute; once for either half

The mill's spectra take 6 minutes to make, and are kept in runs/bench/mill_day.npy. The exit status is 1 if a figure is
outside its bar: what was measured, with room. The figures go to runs/bench/states.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

from faithad.demo.mill import DEMO_START, plan_recordings
from faithad.demo.sounds import planer_sound
from faithad.features import log_mel
from faithad.model.state_alarm import StateAlarm
from faithad.model.training_sound import median_spectrum
from faithad.scoring.state import Floats, centred, fit_state, follow
from tests.field_sounds import FOLDER, SETTINGS, read_split

OUTPUT = Path("runs/bench")
RATES = {"05": 0.05, "025": 0.025}
CHANGES_DB, BANDS = (3.0, 6.0, 12.0), 5
DAY_MINUTES, EVERY, LONG = 1_440, 4, 10
MOST = {"mill_05_begin": 0.05, "mill_025_begin": 0.025}
LEAST = {"mill_05_minute_6": 0.95, "mill_025_minute_6": 0.95, "mill_05_ten_6": 0.9, "mill_025_ten_6": 0.9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    figures: dict[str, float] = {}
    for name, rate in RATES.items():
        figures |= {f"mill_{name}_{key}": value for key, value in mill_figures(mill_day(), rate).items()}
        if FOLDER.is_dir():
            figures |= {f"field_{name}_{key}": value for key, value in field_figures(rate).items()}
    for key, value in figures.items():
        print(f"{key:28} {value:.3f}")
    (OUTPUT / "states.json").write_text(json.dumps(figures, indent=2))
    outside = [f"{name} is {figures[name]:.3f}, above {bar}" for name, bar in MOST.items() if figures[name] > bar]
    outside += [f"{name} is {figures[name]:.3f}, below {bar}" for name, bar in LEAST.items() if figures[name] < bar]
    if outside:
        sys.exit("\n".join(outside))


def mill_day() -> Floats:
    """The median spectra of the clips of each fourth minute, (360, 6, F)."""
    location = OUTPUT / "mill_day.npy"
    if not location.exists():
        planned = plan_recordings(
            Path("mill"), train_recordings=DAY_MINUTES, test_recordings=0, seed=7, start=DEMO_START, recording_s=60.0
        )
        spectra = []
        for recording in planned[::EVERY]:
            clips = torch.from_numpy(planer_sound(recording.timeline)).view(6, -1)
            spectra.append([median_spectrum(clip, SETTINGS).numpy() for clip in log_mel(clips, SETTINGS)])
        np.save(location, np.array(spectra))
    return np.asarray(np.load(location), dtype=np.float64)


def mill_figures(clips: Floats, rate: float) -> dict[str, float]:
    half = len(clips) // 2
    folds = [(clips[:half], clips[half:]), (clips[half:], clips[:half])]
    figures: dict[str, list[float]] = {}
    for normal, new in folds:
        alarm = fit(np.median(normal, axis=1), [str(k) for k in range(len(normal))], rate)
        minutes = centred(np.median(new, axis=1))
        compared, changes = follow(minutes, alarm)
        figures.setdefault("begin", []).append(len(changes) / len(minutes))
        figures.setdefault("alarmed", []).append(float(np.mean([minute.alarms for minute in compared])))
        for change_db in CHANGES_DB:
            for name, n, n_clips in (("clip", 1, 1), ("minute", 1, 6), ("ten", LONG, 6)):
                shares = []
                for first, low in places(len(new) - LONG):
                    changed = new[: first + n].copy()
                    changed[first:, :n_clips, low : low + BANDS] += change_db
                    last = follow(centred(np.median(changed, axis=1)), alarm)[0][-n:]
                    shares.append(float(np.mean([minute.alarms for minute in last])))
                figures.setdefault(f"{name}_{change_db:g}", []).append(float(np.mean(shares)))
    return {key: float(np.mean(values)) for key, values in figures.items()}


def field_figures(rate: float) -> dict[str, float]:
    train, test = (read_split(name) for name in ("train", "test"))
    spectra = [np.array([median_spectrum(clip, SETTINGS).numpy() for clip in part.log_mels]) for part in (train, test)]
    names = [np.array(part.recordings) for part in (train, test)]
    normal, new = (
        [values[own == name] for name in dict.fromkeys(own)] for values, own in zip(spectra, names, strict=True)
    )
    alarm = fit(np.array([np.median(clips, axis=0) for clips in normal]), list(dict.fromkeys(names[0])), rate)
    figures = {"begin": share(new, alarm)}
    rng = np.random.default_rng(0)
    for change_db in CHANGES_DB:
        for name, n_clips in (("clip", 1), ("minute", None)):
            changed = [clips.copy() for clips in new]
            for clips in changed:
                low = int(rng.integers(0, clips.shape[1] - BANDS + 1))
                clips[:n_clips, low : low + BANDS] += change_db
            figures[f"{name}_{change_db:g}"] = share(changed, alarm)
    return figures


def fit(minutes: Floats, names: list[str], rate: float) -> StateAlarm:
    alarm = fit_state([centred(minutes)], [names], false_alarm_rate=rate, share=0.5)
    assert alarm is not None
    return alarm


def share(minutes: list[Floats], alarm: StateAlarm) -> float:
    """Of minutes without a past, those that alarm."""
    return float(np.mean([follow(centred(np.median(clips, axis=0))[None], alarm)[0][0].alarms for clips in minutes]))


def places(last: int, *, first: int = 40, n: int = 60) -> list[tuple[int, int]]:
    """Where changes are added: the number of a minute, and the lowest band."""
    rng = np.random.default_rng(1)
    return list(zip(rng.integers(first, last, n).tolist(), rng.integers(0, 81 - BANDS, n).tolist(), strict=True))


if __name__ == "__main__":
    main()
