"""The KubeRay manifests: fields that exist, the study that they run, and the same cluster in both."""

from __future__ import annotations

import copy
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from faithad.config.study import parse_study
from faithad.storage import is_remote

PROJECT = Path(__file__).parents[2]
FILES = ["kuberay-cluster.yaml", "kuberay-job.yaml"]
SCHEMA = Draft202012Validator(json.loads((Path(__file__).parent / "kuberay.schema.json").read_text()))


def documents(name: str) -> dict[str, Any]:
    return {one["kind"]: one for one in yaml.safe_load_all((PROJECT / "cluster" / name).read_text())}


def clusters() -> list[Any]:
    job = documents("kuberay-job.yaml")["RayJob"]
    return [documents("kuberay-cluster.yaml")["RayCluster"]["spec"], job["spec"]["rayClusterSpec"]]


@pytest.mark.parametrize("name", FILES)
def test_only_fields_that_exist(name: str) -> None:
    for document in documents(name).values():
        SCHEMA.validate(document)


def test_a_field_that_does_not_exist_is_found_at_any_depth() -> None:
    good = documents("kuberay-job.yaml")["RayJob"]
    places = list(mappings(good))
    assert len(places) > 40
    for path in places:
        bad = copy.deepcopy(good)
        place = bad
        for step in path:
            place = place[step]
        place["maxReplica"] = 1  # no text, so that it is wrong where any name may stand as well
        assert not SCHEMA.is_valid(bad), f"nothing was wrong with maxReplica below {path}"


def mappings(value: Any, path: tuple[Any, ...] = ()) -> Any:
    """The paths of all mappings in a document."""
    if isinstance(value, dict):
        yield list(path)
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, below in steps:
        yield from mappings(below, (*path, step))


def test_both_have_the_same_machines() -> None:
    standing, of_the_job = clusters()
    pod = of_the_job["headGroupSpec"]["template"]["spec"]
    del pod["volumes"], pod["containers"][0]["volumeMounts"]
    for cluster in (standing, of_the_job):  # each lets its own pods in, and no others
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            del group["template"]["metadata"]["labels"]
    assert of_the_job == standing


def test_groups_of_gpu_and_decode_workers_scale_within_bounds() -> None:
    for cluster in clusters():
        assert cluster["enableInTreeAutoscaling"] is True
        groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
        assert set(groups) == {"gpu", "decode"}
        for group in groups.values():
            assert group["minReplicas"] == group["replicas"] < group["maxReplicas"]
            (container,) = group["template"]["spec"]["containers"]
            # Ray takes a pod's limits for what it has.
            assert container["resources"]["limits"] == container["resources"]["requests"]
            assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (group["groupName"] == "gpu")
            assert container["image"].endswith("-gpu" if group["groupName"] == "gpu" else "-cpu")


def test_every_pod_is_without_rights() -> None:
    for cluster in clusters():
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            assert pod["securityContext"]["runAsNonRoot"] is True
            for container in pod["containers"]:
                assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_others_reach_the_job_server_at_most() -> None:
    for name, cluster in zip(FILES, clusters(), strict=True):
        policy = documents(name)["NetworkPolicy"]["spec"]
        inside = {"podSelector": policy["podSelector"]}
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            assert group["template"]["metadata"]["labels"] == policy["podSelector"]["matchLabels"]
        own, others = policy["ingress"]
        assert own == {"from": [inside]}
        assert others["ports"] == [{"port": 8265}]


def test_the_job_is_retried_and_goes_on_from_its_store() -> None:
    found = documents("kuberay-job.yaml")
    job, config = found["RayJob"]["spec"], found["ConfigMap"]
    assert job["backoffLimit"] >= 1
    assert job["shutdownAfterJobFinishes"] is True
    head = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (volume,) = head["volumes"]
    (mount,) = head["containers"][0]["volumeMounts"]
    assert volume == {"name": mount["name"], "configMap": {"name": config["metadata"]["name"]}}
    python, script, option, place = shlex.split(job["entrypoint"])
    assert (python, option) == ("python", "--config")
    assert (PROJECT / script).is_file()
    folder, name = place.rsplit("/", 1)
    assert folder == mount["mountPath"]
    study = parse_study(config["data"][name], name="study.yaml")
    assert is_remote(study.root)
    assert is_remote(study.data.root)
    assert study.train.gpus_per_worker == 1
    assert study.audit.gpus_per_actor == 1
