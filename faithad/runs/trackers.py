"""What each experiment tracker does with a run; `tracking` decides when.

Every function here exports runs so that the same export again changes nothing. How it knows what it has is up to the
tracker: TensorBoard and wandb have a file or a folder below the root, named or marked by the run's digest; an MLflow
store is asked, because it may be another one than last time.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from faithad import listing, storage
from faithad.runs import layout
from faithad.runs.marks import read_mark


@dataclass(frozen=True)
class TrackedRun:
    """A run as trackers get it.

    Attributes:
        name: unique below a root, such as `training/mae-0`; TensorBoard's folder is called so.
        kind: what it is, such as `training`.
        title: for the user.
        settings: those that stay as long as it is the same run, by dotted name.
        points: metrics by name, after each epoch.
        files: below the root, to be attached to it.
        parent: the name of the run that it belongs to.
        status: a run that is `running` may get more.
    """

    name: str
    kind: Literal["study", "training", "search", "trial"]
    title: str
    settings: Mapping[str, Any]
    points: Mapping[int, Mapping[str, float]]
    files: Sequence[str] = ()
    parent: str | None = None
    status: Literal["running", "finished", "failed"] = "finished"


class TrackedRoot(NamedTuple):
    """The root of a study whose runs are exported.

    Attributes:
        root: its location.
        mark: random hex digits that stay with it, wherever it is moved to.
        title: of all its runs together.
    """

    root: str
    mark: str
    title: str

    def key(self, run: TrackedRun) -> str:
        """Sixteen hex digits that a run keeps while its name and its settings stay."""
        return _digits(self.mark, run.name, run.settings)

    def digest(self, run: TrackedRun) -> str:
        """Sixteen hex digits that change with anything about a run, and with its files."""
        files = [storage.read_bytes(storage.join(self.root, file)) for file in run.files]
        return _digits(self.mark, asdict(run), [hashlib.sha256(file).hexdigest() for file in files])


def _digits(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def to_tensorboard(runs: Sequence[TrackedRun], place: TrackedRoot) -> None:
    """One file of events for each run with epochs, in `tensorboard/<name>` below the root, which may be a URI."""
    from tensorboardX import SummaryWriter
    from tensorboardX.summary import hparams

    for run in runs:
        folder = storage.join(place.root, layout.TENSORBOARD, run.name)
        name = f"events.out.tfevents.{place.digest(run)}"
        if not run.points or storage.exists(storage.join(folder, name)):
            continue
        with tempfile.TemporaryDirectory() as temporary:
            with SummaryWriter(temporary) as writer:
                for epoch, metrics in run.points.items():
                    for metric, value in metrics.items():
                        writer.add_scalar(metric, value, epoch)
                for summary in hparams(dict(run.settings), run.points[max(run.points)]):
                    writer.file_writer.add_summary(summary)
            (events,) = Path(temporary).iterdir()
            storage.write_bytes(storage.join(folder, name), events.read_bytes())
        for other, location in listing.list_files(folder, suffixes=[""]):
            if other != name:  # of fewer epochs, or of other settings
                storage.delete(location)


def mlflow_store(root: str) -> str | None:
    """Where MLflow keeps runs: at MLFLOW_TRACKING_URI, else in a database below the root; None if that is a URI."""
    if address := os.environ.get("MLFLOW_TRACKING_URI"):
        return address
    return None if storage.is_remote(root) else f"sqlite:///{_mlflow_folder(root)}/mlflow.db"


def _mlflow_folder(root: str) -> str:
    """The path of MLflow's own folder below a local root."""
    return storage.locate(storage.join(root, layout.MLFLOW))[1]


def to_mlflow(runs: Sequence[TrackedRun], place: TrackedRoot) -> None:
    """An experiment of the root's title, in which trainings and trials are children of their study or search.

    Parents must come before their children.
    """
    # Nothing is sent to anybody but the server. That one may be gone: the library would try for minutes by default.
    for name, value in _MLFLOW.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    files = None
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        os.makedirs(_mlflow_folder(place.root), exist_ok=True)
        files = f"{_mlflow_folder(place.root)}/files"
    client = MlflowClient(tracking_uri=mlflow_store(place.root))
    title = os.environ.get("MLFLOW_EXPERIMENT_NAME") or place.title
    experiment = client.get_experiment_by_name(title)
    experiment_id = (
        client.create_experiment(title, artifact_location=files) if experiment is None else experiment.experiment_id
    )
    known = {run.data.tags[_KEY]: run for run in _mlflow_runs(client, experiment_id, place)}
    ids: dict[str, str] = {}
    for run in runs:
        key, digest = place.key(run), place.digest(run)
        before = known.get(key)
        if before is None:
            tags = {_ROOT: place.mark, _KEY: key, "kind": run.kind}
            if run.parent is not None:
                tags["mlflow.parentRunId"] = ids[run.parent]
            created = client.create_run(experiment_id, run_name=run.title, tags=tags)
        ids[run.name] = run_id = (before or created).info.run_id
        if before is not None and before.data.tags.get(_DIGEST) == digest:
            continue
        params = [Param(name, str(value)) for name, value in run.settings.items()]
        for part in _parts(params, 100):
            client.log_batch(run_id, params=part)
        exported = {} if before is None else _mlflow_epochs(client, run_id, run)
        now_ms = int(time.time() * 1000)
        metrics = [
            Metric(name, value, now_ms, epoch)
            for epoch, values in run.points.items()
            for name, value in values.items()
            if epoch not in exported.get(name, ())
        ]
        for part in _parts(metrics, 1000):
            client.log_batch(run_id, metrics=part)
        with tempfile.TemporaryDirectory() as temporary:
            for file in run.files:
                copy = Path(temporary, storage.name_of(file))
                copy.write_bytes(storage.read_bytes(storage.join(place.root, file)))
                client.log_artifact(run_id, str(copy))
        client.set_tag(run_id, _DIGEST, digest)
        if run.status != "running":
            client.set_terminated(run_id, status=run.status.upper())


_MLFLOW = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
# Tags of runs: which root and which run of it they are of, and what of it they have.
_ROOT, _KEY, _DIGEST = "faithad.root", "faithad.key", "faithad.digest"


def _mlflow_runs(client: Any, experiment_id: str, place: TrackedRoot) -> list[Any]:
    """What an earlier export from this root created."""
    runs: list[Any] = []
    token = None
    while True:
        page = client.search_runs([experiment_id], f"tags.`{_ROOT}` = '{place.mark}'", page_token=token)
        runs += page
        if not (token := page.token):
            return runs


def _mlflow_epochs(client: Any, run_id: str, run: TrackedRun) -> dict[str, set[int]]:
    """For each metric the epochs that the store has; an export that was killed left some of them."""
    names = {name for metrics in run.points.values() for name in metrics}
    return {name: {point.step for point in client.get_metric_history(run_id, name)} for name in names}


def _parts(items: Sequence[Any], most: int) -> list[Sequence[Any]]:
    """As many at a time as one request may have."""
    return [items[start : start + most] for start in range(0, len(items), most)]


def to_wandb(runs: Sequence[TrackedRun], place: TrackedRoot) -> None:
    """A folder for each run, in `wandb/` below the root, which may be a URI; `wandb sync` sends it to a server.

    With WANDB_MODE=online the library sends it at once, and the folder only says that it did.
    """
    earlier = {run.name: _wandb_folders(place.root, place.key(run)) for run in runs}
    digests = {run.name: place.digest(run) for run in runs}
    todo = [run for run in runs if digests[run.name] not in map(_wandb_digest, earlier[run.name])]
    if not todo:
        return
    for name, value in _WANDB.items():
        os.environ.setdefault(name, value)
    import wandb

    titles = {run.name: run.title for run in runs}
    with tempfile.TemporaryDirectory() as temporary:
        try:
            for run in todo:
                with wandb.init(
                    project=os.environ.get("WANDB_PROJECT") or place.title,
                    group=f"{titles[run.parent] if run.parent else run.title} {place.mark[:6]}",
                    job_type=run.kind,
                    name=run.title,
                    id=place.key(run),
                    config=dict(run.settings),
                    dir=temporary,
                    mode=os.environ.get("WANDB_MODE", "offline"),
                    resume="allow",
                    settings=wandb.Settings(**_WANDB_SETTINGS),
                ) as opened:
                    for epoch, metrics in run.points.items():
                        opened.log(dict(metrics), step=epoch)
                    for file in run.files:
                        copy = Path(opened.dir, storage.name_of(file))
                        copy.write_bytes(storage.read_bytes(storage.join(place.root, file)))
                        opened.save(str(copy), base_path=opened.dir, policy="end")
                    opened.finish(exit_code=int(run.status == "failed"))
        finally:
            wandb.teardown()  # the library's own process may still write
        for run in todo:
            (made,) = Path(temporary, "wandb").glob(f"*run-*-{place.key(run)}")
            folder = storage.join(place.root, layout.WANDB, made.name)
            for path in (*made.glob("*.wandb"), *(made / "files").rglob("*")):
                if path.is_file():
                    storage.write_bytes(storage.join(folder, str(path.relative_to(made))), path.read_bytes())
            mark = json.dumps({"digest": digests[run.name]})
            storage.write_text(storage.join(folder, layout.WANDB_MARK), mark)
            for other in earlier[run.name]:  # of fewer epochs, or cut off by a kill
                if other != folder:
                    storage.delete(other)


_WANDB = {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
# Neither the machine nor the command line nor the code is part of a run. A server may be gone.
_WANDB_SETTINGS = {
    **{"silent": True, "console": "off", "disable_git": True, "disable_code": True, "disable_job_creation": True},
    **{"x_disable_meta": True, "x_disable_stats": True, "x_disable_machine_info": True, "x_save_requirements": False},
    **{"init_timeout": 30.0, "finish_timeout": 120.0, "finish_timeout_raises": True},
    **{"x_graphql_retry_max": 3, "x_file_stream_retry_max": 3, "x_file_transfer_retry_max": 3},
}


def _wandb_folders(root: str, key: str) -> list[str]:
    """Where earlier exports wrote a run to."""
    folder = storage.join(root, layout.WANDB)
    names = {relative.split("/")[0] for relative, _ in listing.list_files(folder, suffixes=[""])}
    return [storage.join(folder, name) for name in sorted(names) if name.endswith(f"-{key}")]


def _wandb_digest(folder: str) -> str | None:
    """The digest of the run that a folder holds completely."""
    return (read_mark(storage.join(folder, layout.WANDB_MARK)) or {}).get("digest")
