"""A job that comes before the job: would it run here? Which code, which versions, and who sees the storage.

    python -m faithad.pipelines.submit.check REQUEST

REQUEST is JSON: `distributions` (names), `job` and `arguments` as `faithad submit` got them. Answers are lines of the
log that start with `MARK`, a JSON object each: `machines` and `versions` for every kind of machine, `problem` in words.
Until the first answer nothing is imported that a bare Python lacks, so that it says what is missing.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faithad
from faithad.errors import ConfigError, FaithadError
from faithad.pipelines.submit.home import settle_home

MARK = "faithad-check: "
STUDY_JOBS = ("full_study", "train", "search")
JOBS = (*STUDY_JOBS, "audit")

_ANSWER_S = 60.0


def options(job: str) -> argparse.ArgumentParser:
    """What one of our jobs takes: the options of its command."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", "-c")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--redo", action="store_true")
    if job == "audit":
        parser.add_argument("--model")
        parser.add_argument("--recordings", action="append", default=[])
        parser.add_argument("--out")
        parser.add_argument("--retry-failed", action="store_true")
    return parser


def named(job: str, arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments of one of our jobs, by their names.

    Raises:
        ConfigError: there is no such option, or one lacks its value.
    """
    parser = options(job)
    if joined := [argument for argument in arguments if argument.startswith("-c=")]:
        raise ConfigError(f"The job's arguments: {joined[0]!r} is read as the file {joined[0][2:]!r}; write -c FILE.")
    try:
        given, others = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ConfigError(f"The job's arguments: {error}") from error
    if others:
        allowed = [name for action in parser._actions for name in action.option_strings]
        other = others[0].partition("=")[0] if others[0].startswith("-") else others[0]
        close = difflib.get_close_matches(other, allowed, n=1)
        hint = f"did you mean {close[0]!r}? Allowed" if close else "allowed"
        raise ConfigError(f"The job {job} takes no {other!r}; {hint}: {', '.join(allowed)}.")
    return given


def load(job: str, given: argparse.Namespace, *, config: str | None) -> Any:
    """The validated `Study` or `AuditRun` that one of our jobs is about.

    Raises:
        ConfigError: it is impossible, or there is none.
    """
    from faithad.config.audit import is_study, load_audit_run
    from faithad.config.study import load_study

    if job == "audit" and (config is None or given.model or given.recordings or given.out or not is_study(config)):
        return load_audit_run(
            config, model=given.model, recordings=given.recordings, out=given.out, overrides=given.overrides
        )
    if config is None:
        raise ConfigError(f"{job} needs a study: --config configs/demo.yaml, say, after the job's name.")
    if job == "audit" and given.retry_failed:
        raise ConfigError("--retry-failed has no meaning with a study.")
    return load_study(config, overrides=given.overrides)


def versions(distributions: Sequence[str]) -> dict[str, Any]:
    """What a Python process of a job finds on its machine."""
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "faithad": faithad.__version__,
        "travels": Path(faithad.__file__).resolve().is_relative_to(Path.cwd()),
        "baked": _baked(),
        "distributions": {name: _version(name) for name in distributions},
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _baked() -> str | None:
    """The version of the faithad that a process without the job's working directory would import."""
    here, paths = os.getcwd(), os.environ.get("PYTHONPATH", "").split(os.pathsep)
    elsewhere = [path for path in paths if path and os.path.realpath(path) != here]
    answer = subprocess.run(
        [sys.executable, "-c", "import faithad; print(faithad.__version__)"],
        cwd="/",
        env=os.environ | {"PYTHONPATH": os.pathsep.join(elsewhere)},
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout.strip() or None


def check(request: dict[str, Any]) -> int:
    """Answer in the log; the exit status is 0 where nothing was found."""
    here = versions(request["distributions"])
    _tell(machines=["the head"], versions=here)
    if None in here["distributions"].values():
        return 1
    settle_home()
    from faithad.pipelines.cluster.session import ray_session

    try:
        loaded = None  # of a script of the user's own nothing is known
        if request["job"] in JOBS:
            given = named(request["job"], request["arguments"])
            loaded = load(request["job"], given, config=given.config)
        with ray_session():
            _ask_other_machines(request["distributions"])
            _require_visible(loaded)
    except FaithadError as error:
        _tell(problem=f"{type(error).__name__}: {error}")
        return 1
    return 0


def _ask_other_machines(distributions: Sequence[str]) -> None:
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    asked: dict[Any, str] = {}
    for node in ray.nodes():
        if node["Alive"] and node["NodeID"] != here:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            look = ray.remote(versions).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
            asked[look.remote(distributions)] = f"{node['NodeManagerAddress']} (node {node['NodeID'][:8]})"
    # A machine that goes away or keeps silent is no reason to stop; the storage check names it.
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S) if asked else ([], [])
    kinds: dict[str, list[str]] = {}
    for task in answered:
        try:
            kinds.setdefault(json.dumps(ray.get(task)), []).append(asked[task])
        except RayTaskError as error:
            _tell(problem=f"{asked[task]} cannot run the job's code: {str(error).strip().splitlines()[-1]}")
        except RayError:
            continue
    for found, machines in kinds.items():
        _tell(machines=sorted(machines), versions=json.loads(found))


def _require_visible(loaded: Any) -> None:
    from faithad.config.study import Study
    from faithad.pipelines.cluster.shared_paths import require_visible
    from faithad.pipelines.index import require_study_visible

    if isinstance(loaded, Study):
        require_study_visible(loaded)
    elif loaded is not None:
        require_visible([loaded.model, *loaded.recordings], [loaded.out])


def _tell(**answer: Any) -> None:
    print(MARK + json.dumps(answer), flush=True)


if __name__ == "__main__":
    sys.exit(check(json.loads(sys.argv[1])))
