"""The files of `ray up`: Ray's own schema and checks, and what EC2 takes for a machine."""

from __future__ import annotations

import copy
import subprocess
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.cluster.containerfile import read_steps

PROJECT = Path(__file__).parents[2]
FILES = ["aws.yaml", "on-premise.yaml"]


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((PROJECT / "cluster" / name).read_text())


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_the_file(name: str) -> None:
    validate_config(prepare_config(load(name)))


@pytest.mark.parametrize("name", FILES)
def test_ray_refuses_a_key_that_it_does_not_know(name: str) -> None:
    for place in ([], ["auth"], *([["docker"], ["available_node_types", "gpu"]] if name == "aws.yaml" else [])):
        config = load(name)
        below = config
        for step in place:
            below = below[step]
        below["max_worker"] = 1
        with pytest.raises(ValidationError, match="max_worker"):
            validate_config(prepare_config(config))


def test_all_own_machines_are_started_at_once() -> None:
    config = prepare_config(load("on-premise.yaml"))
    n_workers = len(config["provider"]["worker_ips"])
    (node_type,) = config["available_node_types"].values()
    assert (node_type["min_workers"], node_type["max_workers"]) == (n_workers, n_workers)


def test_gpu_and_decode_workers_scale_within_bounds() -> None:
    config = prepare_config(load("aws.yaml"))
    types = config["available_node_types"]
    assert set(types) == {"head", "gpu", "decode"}
    assert config["head_node_type"] == "head"
    assert types["head"]["resources"] == {"CPU": 0}
    workers = [types["gpu"], types["decode"]]
    assert all(worker["min_workers"] < worker["max_workers"] for worker in workers)
    assert sum(worker["max_workers"] for worker in workers) == config["max_workers"]
    assert types["gpu"]["docker"]["worker_image"].endswith("-gpu")
    assert config["docker"]["image"].endswith("-cpu")


def test_ec2_takes_the_machines() -> None:
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    counted = {"MinCount": 1, "MaxCount": 1}
    for node_type in load("aws.yaml")["available_node_types"].values():
        machine = node_type["node_config"]
        assert not ParamValidator().validate(machine | counted, shape).has_errors()
        bad = copy.deepcopy(machine)
        bad["BlockDeviceMappings"][0]["Ebs"]["Size"] = 100
        assert "Size" in ParamValidator().validate(bad | counted, shape).generate_report()
        assert bad["MetadataOptions"]["HttpTokens"] == "required"
        assert bad["BlockDeviceMappings"][0]["Ebs"]["Encrypted"] is True
        assert bad["IamInstanceProfile"]["Name"], "credentials come from the instance profile"


@pytest.mark.parametrize("name", FILES)
def test_the_token_goes_to_every_machine(name: str) -> None:
    mounts = load(name)["file_mounts"]
    (target,) = (remote for remote, local in mounts.items() if local == "~/.ray/auth_token")
    image = next(step.text for step in read_steps() if step.instruction == "ENV" and step.text.startswith("HOME="))
    home = image.split()[0].removeprefix("HOME=") if name == "aws.yaml" else "~"
    assert target == f"{home}/.ray/auth_token", "where Ray looks for it by itself"


def test_own_machines_tell_every_shell_what_they_share(tmp_path: Path) -> None:
    config = load("on-premise.yaml")
    (once,) = [command for command in config["setup_commands"] if ".bashrc" in command]
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    for _ in range(2):  # `ray up` may be called again
        subprocess.run(["bash", "-c", once], env=environment, check=True)
    assert (tmp_path / ".bashrc").read_text().count("export") == 1
    # As Ray runs what follows.
    shell = ["bash", "--login", "-c", "-i", "source ~/.bashrc; env"]
    told = subprocess.run(shell, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {"RAY_AUTH_MODE=token", "FAITHAD_SHARED=/mnt/faithad", "FAITHAD_HOME=/mnt/faithad"} <= set(told)
    assert next(line for line in told if line.startswith("PATH=")).startswith(f"PATH={tmp_path}/faithad/bin:")
