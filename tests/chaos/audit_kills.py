"""An audit whose actors, readers and drivers are killed again and again has the tables of one that was left alone.

Run by hand: `pytest tests/chaos/audit_kills.py -s`. Only processes that descend from the command which this file starts
are ever killed. A kill waits until some more files are written, so that it hits an audit which works.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from tests.chaos.audits import (
    CLIPS,
    CLIPS_PER_SHARD,
    FAITHAD,
    N_KILLS,
    SEED,
    audit_values,
    differences,
    published,
)

KINDS = ("actor", "reader", "driver")
# The longest that anything may take: a whole audit, a wait for the next files, a wait for a process of some kind.
AUDIT_S, PROGRESS_S, VICTIM_S, FAMILY_S = 300.0, 120.0, 10.0, 20.0
# Commands that may end badly without having been killed themselves.
MOST_FAILURES = 5


@dataclass
class Run:
    """One audit, however many commands it takes."""

    config: Path
    out: Path
    witness: Path
    process: subprocess.Popen[str] | None = None
    kills: Counter[str] = field(default_factory=Counter)
    read: set[Path] = field(default_factory=set)
    commands: int = 0
    failures: list[str] = field(default_factory=list)

    def start(self) -> None:
        self.commands += 1
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent / "witness")}
        environment |= {"FAITHAD_WITNESS": str(self.witness), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [FAITHAD, "audit", "--config", self.config],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def wait(self) -> int:
        """Wait for the end of the command, and keep what it says if that is bad."""
        assert self.process is not None
        told, _ = self.process.communicate(timeout=AUDIT_S)
        if self.process.returncode != 0:
            self.failures.append(told[-3000:])
            assert len(self.failures) < MOST_FAILURES, self.failures
        return self.process.returncode

    def family(self) -> list[psutil.Process]:
        """All processes that the command has started."""
        if self.process is None:
            return []
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def end(self) -> None:
        """Kill the command, and see to it that its processes go with it."""
        family = self.family()
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        _, alive = psutil.wait_procs(family, timeout=FAMILY_S)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=FAMILY_S)

    def begun(self, doing: str) -> Counter[str]:
        """How often each shard was begun, `read` or `audit`, by the name of the mark that is left before."""
        lines = self.witness.read_text().splitlines() if self.witness.exists() else []
        names = [Path(line.partition("\t")[2]) for line in lines]
        return Counter(name.stem for name in names if name.parent.name == "attempts" and f"-{doing}-" in name.stem)


@pytest.mark.timeout(1800)
def test_an_audit_that_is_killed_again_and_again(mill_and_model: tuple[Path, Path], tmp_path: Path) -> None:
    calm, wild = (prepared(*mill_and_model, tmp_path / name) for name in ("calm", "wild"))
    calm_s = finish(calm)
    wild_s = finish(wild, kills=planned_kills(len(published(calm.out))))
    report(wild, wild_s, calm_s)
    assert wild.kills.total() >= N_KILLS
    assert not (problems := differences(wild.out, calm.out)), "\n".join(problems)
    assert repeated_clips(wild, "audit") < 0.05 * CLIPS * wild.kills.total()
    # Once more, with nothing left to do.
    finish(wild)
    assert not differences(wild.out, calm.out)


def prepared(mill: Path, model: Path, out: Path) -> Run:
    config = out.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(audit_values(mill, model, out, actors=3)))
    return Run(config, out, out.with_suffix(".log"))


def planned_kills(n_files: int) -> list[tuple[str, float]]:
    """What is killed, and once how many files are written, in order of these."""
    killing = random.Random(SEED)
    kinds = [KINDS[number % len(KINDS)] for number in range(N_KILLS)]
    killing.shuffle(kinds)
    targets = sorted(killing.uniform(0.02, 0.95) * n_files for _ in kinds)
    # Also the driver before there is any shard, when few of them are left for few actors, and over its last files.
    first, few_left, last = (("driver", target) for target in (1, 0.97 * n_files, n_files - 2))
    return [first, *zip(kinds, targets, strict=True), few_left, last]


def finish(run: Run, *, kills: Sequence[tuple[str, float]] = ()) -> float:
    """Run the command to its end, again after each kill of it; how many seconds it took."""
    started = time.monotonic()
    try:
        run.start()
        for kind, target in kills:
            # At least one file after the last kill: what is killed here is an audit that got going again.
            wait_for_files(run, max(target, len(published(run.out)) + 1))
            kill(run, kind)
        while run.wait() != 0:
            run.start()
    finally:
        run.end()
    return time.monotonic() - started


def wait_for_files(run: Run, target: float) -> None:
    """Return once there are so many files, or the command has come to a good end before it could be killed again."""
    deadline = time.monotonic() + PROGRESS_S
    while len(read_new_tables(run)) < target:
        if not run.is_running():
            if run.process is not None and run.process.returncode == 0:
                return
            run.wait()  # it gave up by itself: start it again, as a person would
            run.start()
        assert time.monotonic() < deadline, f"no progress: {len(published(run.out))} of {target:.0f} files"
        time.sleep(0.02)


def read_new_tables(run: Run) -> list[Path]:
    """What is published; each table can be read as soon as it has its name."""
    found = published(run.out)
    for path in found:
        if path.suffix == ".parquet" and path not in run.read:
            with contextlib.suppress(FileNotFoundError):  # removed again in the meantime
                pq.read_metadata(path)
            run.read.add(path)
    return found


def kill(run: Run, kind: str) -> None:
    """Kill one process of a kind; the driver where there is none of it."""
    victim = None if kind == "driver" else find(run, kind)
    if victim is not None:
        run.kills[kind] += 1
        victim.kill()
    elif run.is_running():
        run.kills["driver"] += 1
        run.end()
        run.start()


def find(run: Run, kind: str) -> psutil.Process | None:
    """A worker of the command: Ray names its processes by what they do."""
    title = "ray::MapWorker" if kind == "actor" else "ray::Map("
    deadline = time.monotonic() + VICTIM_S
    while run.is_running() and time.monotonic() < deadline:
        for child in run.family():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if (child.cmdline() or [""])[0].startswith(title):
                    child.suspend()  # so that it is still about it when it is killed
                    return child
        time.sleep(0.01)
    return None


def report(run: Run, wild_s: float, calm_s: float) -> None:
    killed = ", ".join(f"{n} {kind}" for kind, n in sorted(run.kills.items()))
    print(f"\n{run.kills.total()} kills ({killed}), {run.commands} commands, {len(run.failures)} of them failed")
    print(f"{wild_s:.0f} s, {calm_s:.0f} s undisturbed")
    for doing in ("read", "audit"):
        clips = repeated_clips(run, doing)
        print(f"{doing} again: {clips} of {CLIPS} clips, {clips / CLIPS / run.kills.total():.1%} a kill")


def repeated_clips(run: Run, doing: str) -> int:
    return sum(times - 1 for times in run.begun(doing).values()) * CLIPS_PER_SHARD
