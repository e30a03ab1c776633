"""What Ray and the driver take for a shard of an audit, by the number of actors, and whether the simulation knows.

    python tests/benchmarks/scheduling.py [--actors 1 4 16 64] [--quick]

Passes as an audit makes them (`audit.passes.stream`) through readers and actors that do nothing, or that only wait: so
many more actors than cores can be busy at a time as on a cluster. Ray is told that it has a core for each actor.

idle      nothing is done: CPU milliseconds of the driver, of reader and actor for each shard. The driver's share is
          fitted as `driver + driver_per_actor * actors`: what `faithad plan` takes for clusters.
waiting   each actor waits for 0.4 s with each shard: milliseconds for each, from the moment on at which all actors are
          there, and those of `plan.simulation` with the figures above. `error`: simulated over real, less one.

The figures go to runs/bench/scheduling.json, flat.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray

from faithad.config_sections import Audit
from faithad.pipelines.audit.passes import Spread, spread, stream
from faithad.pipelines.cluster.session import usable_cores
from faithad.pipelines.plan.simulation import Crew, Shard, simulate
from faithad.pipelines.plan.speed import idle_pass
from faithad.pipelines.plan.worker import Idle, pass_on

OUTPUT = Path("runs/bench/scheduling.json")
WAIT_S = 0.4


class Waiting(Idle):
    """An actor that is busy without computing."""

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        time.sleep(WAIT_S)
        return super().__call__(row)


def main() -> None:
    arguments = parse_arguments()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    figures: dict[str, float] = {"cores": usable_cores(), "load": os.getloadavg()[0]}
    ray.init(address="local", num_cpus=max(arguments.actors), include_dashboard=False, log_to_driver=False,
             logging_level="error", object_store_memory=1 << 30)  # fmt: skip
    try:
        for n in arguments.actors:
            found = idle(n, 150 if arguments.quick else 600)
            figures |= report({f"idle_{name}_{n}": value for name, value in found.items()})
        figures |= report(fit(figures, arguments.actors))
        for n in arguments.actors:
            n_shards = (16 if arguments.quick else 40) * n
            real, simulated = waiting_ms(n, n_shards), simulated_ms(figures, n, n_shards)
            found = {f"waiting_ms_{n}": real, f"simulated_ms_{n}": simulated, f"error_{n}": simulated / real - 1}
            figures |= report(found)
    finally:
        ray.shutdown()
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(figures, indent=2) + "\n")


def crew_of(n: int) -> Spread:
    """Readers enough: an actor that waits has no need of a core, so there are some left."""
    found = spread(Audit(actors=n), cpus=float(ray.cluster_resources()["CPU"]), gpus=0, n_shards=10**6)
    return found._replace(readers=max(2, n // 4))


def idle(n: int, n_shards: int) -> dict[str, float]:
    """Milliseconds of computing for a shard to which nothing is done, starting included."""
    found = idle_pass(n_shards, Idle, spread=crew_of(n))
    return {
        "driver_ms": 1e3 * found.driver_s / n_shards,
        "reader_ms": 1e3 * found.reader_s,
        "actor_ms": 1e3 * found.actor_s,
    }


def waiting_ms(n: int, n_shards: int) -> float:
    """Milliseconds for each shard, of n actors that wait, once all of them are there."""
    rows: list[dict[str, Any]] = [{"work": 0, "shard": number} for number in range(n_shards)]
    at: list[float] = []
    seen: set[str] = set()
    complete = 0
    for row in stream(rows, pass_on, {}, Waiting, {}, spread=crew_of(n), gpus_per_actor=0).iter_rows():
        at.append(time.monotonic())
        if row["actor"] not in seen:
            seen.add(row["actor"])
            complete = len(at)
    last = n_shards - n  # then some have nothing to do
    return 1e3 * (at[last] - at[complete]) / (last - complete) if last > complete else float("nan")


def fit(figures: dict[str, float], actors: list[int]) -> dict[str, float]:
    """The driver's share of a shard over the number of actors, as a line."""
    shares = [figures[f"idle_driver_ms_{n}"] for n in actors]
    slope, start = np.polyfit(actors, shares, 1) if len(actors) > 1 else (0.0, shares[0])
    return {"driver_ms": float(start), "driver_per_actor_ms": float(slope)}


def simulated_ms(figures: dict[str, float], n: int, n_shards: int) -> float:
    """The same, simulated: all shards were read while the actors started, and one half of the driver's work is left."""
    driver_ms = figures["driver_ms"] + n * figures["driver_per_actor_ms"]
    crew = Crew(actors=n, readers=10**6, cores=1e9, dispatch_s=driver_ms / 2e3)
    shard = Shard(0.0, WAIT_S + figures[f"idle_actor_ms_{n}"] / 1e3)
    return 1e3 * (simulate([shard] * 2 * n_shards, crew) - simulate([shard] * n_shards, crew)) / n_shards


def report(figures: dict[str, float]) -> dict[str, float]:
    for key, value in figures.items():
        print(f"{key:32s} {value:,.3f}", flush=True)
    return figures


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--quick", action="store_true", help="fewer shards")
    return parser.parse_args()


if __name__ == "__main__":
    main()
