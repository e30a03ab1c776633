"""What Ray and the driver take for a shard of an audit, by the number of actors, and whether the simulation knows.

    python tests/benchmarks/scheduling.py [--actors 1 4 16 64] [--quick]

Passes as an audit makes them (`audit.passes.stream`) through readers and actors that do nothing, or that only wait: so
many more actors than cores can be busy at a time as on a cluster. Ray is told that it has a core for each actor. All
figures are of the stretch between the moment at which all actors are there, a quarter of the shards at least, and the
one from which on some have nothing to do.

idle      nothing is done: milliseconds for each shard, and of them those that driver, reader and actor compute. It is
          the driver that all wait for. Plans take its share with 4 actors for any number of them.
waiting   each actor waits for 0.4 s with each shard, as if it computed on a core of its own.

`simulated` is what `plan.simulation` makes of these figures; `error`: simulated over real, less one. The figures go to
runs/bench/scheduling.json, flat.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import ray

from faithad.config.sections import Audit
from faithad.pipelines.audit.passes import Spread, spread, stream
from faithad.pipelines.cluster.session import usable_cores
from faithad.pipelines.plan.idle import Idle, pass_on, task_seconds
from faithad.pipelines.plan.simulation import Crew, Shard, simulate

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
    os.environ.setdefault("RAY_worker_register_timeout_seconds", "600")  # many start at once, on few cores
    figures: dict[str, float] = {"cores": usable_cores(), "load": os.getloadavg()[0]}
    ray.init(address="local", num_cpus=max(arguments.actors), include_dashboard=False, log_to_driver=False,
             logging_level="error", object_store_memory=1 << 30)  # fmt: skip
    try:
        for n in arguments.actors:
            found = measure(Idle, n, 400 if arguments.quick else max(1600, 80 * n))
            figures |= report({f"idle_{name}_{n}": value for name, value in found.items()})
        for n in arguments.actors:
            n_shards = (20 if arguments.quick else 40) * max(n, 4)
            figures |= report({f"waiting_ms_{n}": measure(Waiting, n, n_shards)["ms"]})
        for (name, wait_s), n in itertools.product({"idle": 0.0, "waiting": WAIT_S}.items(), arguments.actors):
            simulated = simulated_ms(figures, n, wait_s)
            figures |= report({f"{name}_simulated_ms_{n}": simulated})
            figures |= report({f"{name}_error_{n}": simulated / figures[f"{name}_ms_{n}"] - 1})
    finally:
        ray.shutdown()
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(figures, indent=2) + "\n")


def crew_of(n: int) -> Spread:
    """Readers enough: an actor that waits has no need of a core, so there are some left."""
    found = spread(Audit(actors=n), cpus=float(ray.cluster_resources()["CPU"]), gpus=0, n_shards=10**6)
    return found._replace(readers=max(2, n // 4))


def measure(actor: type[Idle], n: int, n_shards: int) -> dict[str, float]:
    """Milliseconds for each shard, as they pass and as they are computed, with n actors."""
    rows: list[dict[str, Any]] = [{"work": 0, "shard": number} for number in range(n_shards)]
    came: list[dict[str, Any]] = []
    clocks: list[tuple[float, float]] = []
    seen: set[str] = set()
    first = n_shards // 4
    for row in stream(rows, pass_on, {}, actor, {}, spread=crew_of(n), gpus_per_actor=0).iter_rows():
        if row["actor"] not in seen:
            seen.add(row["actor"])
            first = max(first, len(came))
        came.append(row)
        clocks.append((time.monotonic(), time.process_time()))
    last = n_shards - n
    if first >= last:
        raise SystemExit(f"{n} actors were not all there before the last of {n_shards} shards: leave out --quick.")
    wall_s, driver_s = (clocks[last][k] - clocks[first][k] for k in range(2))
    stretch = came[first:last]
    return {
        "ms": 1e3 * wall_s / (last - first),
        "driver_ms": 1e3 * driver_s / (last - first),
        "reader_ms": 1e3 * task_seconds(stretch, "reader"),
        "actor_ms": 1e3 * task_seconds(stretch, "actor"),
    }


def simulated_ms(figures: dict[str, float], n: int, wait_s: float) -> float:
    """The same, simulated. Those who wait need no core, so that there are enough."""
    crew = Crew(
        actors=n,
        readers=crew_of(n).readers or 1,
        cores=1e9 if wait_s else usable_cores(),
        dispatch_s=figures["idle_driver_ms_4"] / 1e3,
    )
    shard = Shard(figures[f"idle_reader_ms_{n}"] / 1e3, wait_s + figures[f"idle_actor_ms_{n}"] / 1e3)
    few, many = (simulate([shard] * number * n, crew) for number in (50, 100))
    return 1e3 * (many - few) / (50 * n)


def report(figures: dict[str, float]) -> dict[str, float]:
    for key, value in figures.items():
        print(f"{key:32s} {value:,.3f}", flush=True)
    return figures


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", nargs="+", type=int, default=[1, 4, 16, 64], help="4 among them")
    parser.add_argument("--quick", action="store_true", help="fewer shards")
    return parser.parse_args()


if __name__ == "__main__":
    main()
