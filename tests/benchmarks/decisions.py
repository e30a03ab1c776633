"""How often the decision rule errs, and how often it finds what is there, for six methods that correlate.

    python -m tests.benchmarks.decisions [draws] [resamples]

Where no method differs, at most 5 of 100 studies should say "yes" to any. The power is the share of methods that get
a "yes" where all differ by the given number of standard deviations of one clip's difference.
"""

from __future__ import annotations

import sys

import numpy as np

from faithad.evaluation.decisions import compare
from tests.simulated_differences import SHAPES, null_differences

EFFECTS = (0.3, 0.5, 0.8)


def main() -> None:
    draws, resamples = (int(number) for number in [*sys.argv[1:], "400", "9999"][:2])
    print(f"{draws} draws, {resamples:,} resamples\n")
    print("| differences | recordings | coverage | any yes | " + " | ".join(f"power at {d:g}" for d in EFFECTS) + " |")
    print("|---|---|---|---|" + "---|" * len(EFFECTS))
    for shape in SHAPES:
        for n_recordings in (8, 12, 20, 40, 80):
            generator = np.random.default_rng(0)
            covered, any_yes, power = [], 0, np.zeros(len(EFFECTS))
            for draw in range(draws):
                values, recordings = null_differences(generator, n_recordings, shape)
                found = compare(values, recordings, resamples=resamples, seed=draw)
                covered += [(one.ci_low or -np.inf) <= 0 <= (one.ci_high or np.inf) for one in found]
                any_yes += any(one.verdict == "yes" for one in found)
                for position, effect in enumerate(EFFECTS):
                    shifted = compare(values + effect, recordings, resamples=resamples, seed=draw)
                    power[position] += np.mean([one.verdict == "yes" for one in shifted])
            shares = " | ".join(f"{share:.0%}" for share in power / draws)
            print(
                f"| {shape} | {n_recordings} | {np.mean(covered):.3f} | {any_yes / draws:.1%} | {shares} |", flush=True
            )


if __name__ == "__main__":
    main()
