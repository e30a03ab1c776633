"""How often the decision rule errs, and how often it finds what is there, for six methods that correlate.

    python -m tests.benchmarks.decisions [draws] [resamples]

Coverage is that of 95 % intervals: percentile bootstrap of recordings, Student's t with the jackknife error, and
bootstrap-t, which the rule uses. "Any yes" is the share of studies in which a method is called larger though none is:
by t and Holm alone at 0.05, and by all three tests at 0.05 and at 0.01, with any number of recordings. It should stay
at 5 % or below. The power is the share of methods that get a "yes" of the rule, which needs 20 recordings, where all
differ by the given number of standard deviations of one clip's difference.
"""

from __future__ import annotations

import sys

import numpy as np
from scipy import stats

from faithad.evaluation.arrays import Integers, Reals
from faithad.evaluation.decisions import compare, holm
from faithad.evaluation.statistics import bootstrap_intervals
from tests.simulated_differences import SHAPES, null_differences

EFFECTS = (0.3, 0.5, 0.8)
ALL_TESTS = ("p_t", "p_boot", "p_flip")
TESTS = ((("p_t",), 0.05), (ALL_TESTS, 0.05), (ALL_TESTS, 0.01))


def main() -> None:
    draws, resamples = (int(number) for number in [*sys.argv[1:], "400", "9999"][:2])
    print(f"{draws} draws, {resamples:,} resamples\n")
    columns = ["differences", "recordings", "coverage: percentile", "t", "bootstrap-t"]
    columns += ["any yes: t at 0.05", "all three at 0.05", "at 0.01", *(f"power at {effect:g}" for effect in EFFECTS)]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for shape in (*SHAPES, "zeros"):
        for n_recordings in (5, 8, 12, 20, 40, 80):
            generator = np.random.default_rng(0)
            covered, any_yes, power = [], np.zeros(len(TESTS)), np.zeros(len(EFFECTS))
            for draw in range(draws):
                values, recordings = null_differences(generator, n_recordings, shape)
                covers, found = judged(values, recordings, resamples, draw)
                covered.append(covers)
                any_yes += found
                for position, effect in enumerate(EFFECTS):
                    shifted = compare(values + effect, recordings, resamples=resamples, seed=draw)
                    power[position] += np.mean([one.verdict == "yes" for one in shifted])
            coverage = " | ".join(f"{share:.3f}" for share in np.mean(covered, axis=0))
            shares = " | ".join([*(f"{share:.1%}" for share in any_yes / draws), *(f"{p:.0%}" for p in power / draws)])
            print(f"| {shape} | {n_recordings} | {coverage} | {shares} |", flush=True)


def judged(values: Reals, recordings: Integers, resamples: int, seed: int) -> tuple[Reals, Reals]:
    """The share of methods whose intervals hold 0, by kind of interval; and whether each of `TESTS` says any yes."""
    found = compare(values, recordings, resamples=resamples, seed=seed)
    estimates, errors = (np.array([getattr(one, name) for one in found], np.float64) for name in ("estimate", "se"))
    low, high = bootstrap_intervals(values, recordings, seed=seed)
    half = stats.t.ppf(0.975, len(np.unique(recordings)) - 1) * errors
    inside = [
        (low <= 0) & (high >= 0),
        np.abs(estimates) <= half,
        [(one.ci_low or -np.inf) <= 0 <= (one.ci_high or np.inf) for one in found],
    ]
    said = []
    for names, limit in TESTS:
        p = holm([[getattr(one, name) for one in found] for name in names]).max(axis=0)
        said.append(bool(((p <= limit) & (estimates > 0)).any()))
    return np.mean(inside, axis=1), np.array(said, np.float64)


if __name__ == "__main__":
    main()
