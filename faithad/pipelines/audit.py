"""Test clips x models → the audit tables: Ray Data streams shards through readers and actors that hold the models.

Each (model, seed, shard) is one row of work and writes one file of a fixed name into every table. The ledger's is
written last, so it marks the shard as done: a run that was killed goes on with the shards that lack one, and nothing is
written twice under two names.
"""

from __future__ import annotations

import warnings

import pyarrow as pa
import pyarrow.compute as pc
import torch
from ray.data import ActorPoolStrategy
from ray.util.annotations import RayDeprecationWarning

from faithad import storage
from faithad.config import Study, parse_study
from faithad.config_sections import Audit
from faithad.errors import StudyError
from faithad.features import FeatureSettings
from faithad.model.alarm import AlarmThreshold
from faithad.model.checkpoint import TrainedModel, load_model
from faithad.pipelines.audit_shard import AuditModel, audit_clips, table_schemas, to_table
from faithad.pipelines.session import cluster_total, ray_session
from faithad.pipelines.shards import (
    Row,
    add_log_mels,
    consume,
    dataset,
    from_bytes,
    ledger_table,
    log_mels_of,
    shard_name,
    shards,
    to_bytes,
)
from faithad.pipelines.stages import Stage, flatten
from faithad.pipelines.train import fit_study_alarm, model_folder, validation_scores_location

# An actor computes nearly all of the time, a reader hardly ever. So each actor claims most of a core and leaves a part
# of it to the readers: were the cores all claimed by actors, none could be read for them and all would wait for ever.
_CPUS_PER_ACTOR = 0.75
_CPUS_PER_READER = 0.25

# Settings that say how an audit is spread, not what it writes.
_SPREAD = {"actors", "readers", "gpus_per_actor", "micro_batch"}


def audit_stage(study: Study, model: str, seed: int, train: Stage, clips_digest: str) -> Stage:
    settings = flatten("attribution", study.attribution.model_dump(mode="json"))
    settings |= flatten("audit", study.audit.model_dump(mode="json", exclude=_SPREAD))
    settings |= flatten("alarm", study.alarm.model_dump(mode="json"))
    settings |= {
        "train": train.fingerprint,
        "clips": clips_digest,
    }
    folder = f"audit/{model}-{seed}"
    return Stage(study.root, f"audit-{model}-{seed}", settings, (folder,), result=f"{folder}/ledger")


def audit_folder(root: str, model: str, seed: int) -> str:
    return storage.join(root, "audit", f"{model}-{seed}")


def audit_models(study: Study, manifest: pa.Table, stages: dict[tuple[str, int], Stage], *, redo: bool) -> None:
    """Audit every test clip with every model of the study, as far as that is not done yet.

    Raises:
        StudyError: there are no test clips, an actor asks for more than the cluster has, or what was written cannot
            be seen here.
        CheckpointError: a model is missing, damaged or does not fit the study.
    """
    todo = [run for run in study.runs if stages[run].begin(redo=redo)]
    if not todo:
        return
    clips = manifest.filter(pc.equal(manifest["split"], "test"))
    if not clips.num_rows:
        raise StudyError("There are no test clips to audit: check data.test, or the split, and the index's ledger.")
    for model, seed in todo:
        _load(study, model, seed)  # a model that does not fit is better found here than on a hundred workers
    clips = clips.append_column("keep_maps", _keep_maps(clips, study.audit.maps))
    rows: list[Row] = [
        {"model": model, "seed": seed, "shard": number, "clips": to_bytes(shard)}
        for model, seed in todo
        for number, shard in enumerate(shards(clips, clips_per_shard=study.audit.clips_per_shard))
    ]
    rows = [row for row in rows if not storage.exists(_ledger(study.root, row))]
    if rows:
        n_clips = sum(from_bytes(row["clips"]).num_rows for row in rows)
        with ray_session():
            n_actors = min(_n_actors(study.audit), len(rows))
            readable = dataset(rows).map(
                _read_shard, fn_kwargs={"settings": study.feature_settings}, num_cpus=_CPUS_PER_READER
            )
            with warnings.catch_warnings():
                # Bounds on restarts have no named parameter yet, and without them a clip that kills its process
                # would be tried for ever.
                warnings.filterwarnings("ignore", message=".*ray_remote_args", category=RayDeprecationWarning)
                results = readable.map(
                    Auditor,
                    fn_constructor_kwargs={"study": study.to_yaml(), "threads": _threads(n_actors)},
                    compute=ActorPoolStrategy(size=n_actors),
                    num_cpus=_CPUS_PER_ACTOR,
                    num_gpus=study.audit.gpus_per_actor or None,
                    max_restarts=2,
                    max_task_retries=2,
                )
            consume(results, title="audit", n_clips=n_clips)
    missing = [row for row in rows if not storage.exists(_ledger(study.root, row))]
    if missing:
        raise StudyError(
            f"{len(missing)} of {len(rows)} shards of the audit cannot be found in {study.root}. If the cluster has "
            "several machines, the root must be a folder that all of them share, or a URI such as s3://bucket/folder."
        )
    for run in todo:
        stages[run].finish()


class Auditor:
    """Holds the models that it has met and audits one shard after another."""

    def __init__(self, study: str, threads: int) -> None:
        self._study = parse_study(study, name="study.yaml")
        self._models: dict[tuple[str, int], AuditModel] = {}
        self._device = torch.device("cuda" if self._study.audit.gpus_per_actor else "cpu")
        torch.set_num_threads(threads)

    def __call__(self, row: Row) -> Row:
        """Audit one shard and write its files; says how many clips it did and how many failed."""
        model, seed, shard = row["model"], row["seed"], row["shard"]
        if (model, seed) not in self._models:
            trained = _load(self._study, model, seed)
            trained.alarm = _alarm(self._study, model, seed)
            self._models[model, seed] = AuditModel.prepare(trained, self._study, self._device)
        held = self._models[model, seed]
        clips = from_bytes(row["clips"])
        log_mels = torch.from_numpy(log_mels_of(clips, self._study.feature_settings).copy())
        failed: list[Row] = from_bytes(row["failed"]).to_pylist()
        tables = audit_clips(held, clips.drop_columns(["log_mel"]).to_pylist(), log_mels, self._study)
        tables["ledger"] += failed
        for table, schema in table_schemas(held.trained).items():
            if tables[table] or table == "ledger":
                location = _location(self._study.root, model, seed, table, shard)
                storage.write_table(to_table(tables[table], schema), location, schema=schema)
        n_failed = sum(entry["status"] == "failed" for entry in tables["ledger"])
        return {"n_done": len(tables["ledger"]) - n_failed, "n_failed": n_failed}


def _read_shard(row: Row, *, settings: FeatureSettings) -> Row:
    torch.set_num_threads(1)
    clips, failed = add_log_mels(from_bytes(row["clips"]), settings)
    return {**row, "clips": to_bytes(clips), "failed": to_bytes(ledger_table(failed))}


def _load(study: Study, model: str, seed: int) -> TrainedModel:
    expect = {
        "name": model,
        "seed": seed,
        "n_mels": study.features.n_mels,
        "n_frames": study.n_frames(model),
        "features": study.feature_settings,
    }
    return load_model(model_folder(study.root, model, seed), expect=expect)


def _alarm(study: Study, model: str, seed: int) -> AlarmThreshold:
    """Fitted anew: the study's alarm may have changed since the training, which it does not concern."""
    return fit_study_alarm(study, storage.read_table(validation_scores_location(study.root, model, seed)))


def _location(root: str, model: str, seed: int, table: str, shard: int) -> str:
    return storage.join(audit_folder(root, model, seed), table, shard_name(shard))


def _ledger(root: str, row: Row) -> str:
    """The file that says that a shard is done."""
    return _location(root, row["model"], row["seed"], "ledger", row["shard"])


def _n_actors(audit: Audit) -> int:
    """As many as the cluster's GPUs or CPUs carry beside one reader, or fewer where the study says so."""
    most = int((cluster_total("CPU") - _CPUS_PER_READER) / _CPUS_PER_ACTOR)
    if audit.gpus_per_actor:
        gpus = cluster_total("GPU")
        if gpus < audit.gpus_per_actor:
            raise StudyError(
                f"An audit actor asks for {audit.gpus_per_actor:g} GPU, the cluster has {gpus:g}. Lower "
                "audit.gpus_per_actor; 0 audits on CPUs."
            )
        most = min(most, int(gpus / audit.gpus_per_actor))
    return max(1, min(most, audit.actors or most))


def _threads(n_actors: int) -> int:
    """Cores for one actor: one, because many small convolutions run best side by side, or its share where few run."""
    return max(1, int(cluster_total("CPU") / n_actors))


def _keep_maps(clips: pa.Table, n: int) -> pa.Array:
    """Which clips' maps are kept: all for -1, else n examples, each anomaly type in turn and one normal clip."""
    if n < 0:
        return pa.array([True] * clips.num_rows)
    groups: dict[str, list[int]] = {}
    for position, clip in enumerate(clips.select(["annotated", "label", "anomaly_type"]).to_pylist()):
        if clip["annotated"]:
            groups.setdefault(f"a {clip['anomaly_type']}", []).append(position)
        elif not clip["label"]:
            groups.setdefault("normal", []).append(position)
    chosen: set[int] = set()
    queues = [groups[name] for name in sorted(groups)]
    while len(chosen) < min(n, clips.num_rows) and any(queues):
        for queue in queues:
            if queue and len(chosen) < n:
                # From the middle: the first clip of a day is the least typical one.
                chosen.add(queue.pop(len(queue) // 2))
    return pa.array([position in chosen for position in range(clips.num_rows)])
