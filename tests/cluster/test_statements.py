"""What every file in cluster/ says: a token, a dashboard on loopback, no credentials, the project's versions."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
FILES = {path.name: path.read_text() for path in sorted((PROJECT / "cluster").iterdir()) if path.is_file()}
VERSION = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
PINS = dict(line.split("==") for line in (PROJECT / "constraints.txt").read_text().split())


def starts(name: str) -> list[str]:
    """The commands that start Ray, each with what stands before it in its file and its own options."""
    whole = re.sub(r"\\?\n\s+", " ", FILES[name])  # continued lines
    lines = whole.splitlines()
    return [
        "\n".join(lines[: number + 1])
        for number, line in enumerate(lines)
        if re.search(r"(?<![`\w])ray start ", line) and not line.lstrip().startswith("#")
    ]


def test_the_starts_are_found() -> None:
    found = {name: len(starts(name)) for name in FILES}
    assert {name: n for name, n in found.items() if n} == {
        "aws.yaml": 2,
        "on-premise.yaml": 2,
        "slurm.sh": 1,
        "two-nodes.sh": 2,
    }


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith((".yaml", ".sh"))])
def test_ray_starts_with_a_token_and_its_dashboard_on_loopback(name: str) -> None:
    for start in starts(name):
        command = start.splitlines()[-1]
        exported = re.search(r"^export RAY_AUTH_MODE=token\b", start, re.M) and name.endswith(".sh")
        assert exported or "RAY_AUTH_MODE=token ray start" in command, command
    hosts = re.findall(r"dashboard-host[=:] *(\S+)", FILES[name])
    if name.startswith("kuberay"):
        # The operator and the submitter are other pods. The comment above it says so.
        assert hosts == ["0.0.0.0"]
        assert re.search(r"# Not loopback: .*\n(\s*#.*\n)+\s*dashboard-host: 0.0.0.0", FILES[name])
        assert re.search(r"authOptions: \{mode: token, secretName: \S+\}", FILES[name])
        assert "serviceType: ClusterIP" in FILES[name]
    elif starts(name):
        assert hosts == ["127.0.0.1"]


def test_the_image_has_the_token_mode_set() -> None:
    assert "RAY_AUTH_MODE=token" in FILES["Containerfile"]


@pytest.mark.parametrize("name", FILES)
def test_no_credentials(name: str) -> None:
    named = r"(AWS_ACCESS_KEY_ID|AWS_SECRET_ACCESS_KEY|AWS_SESSION_TOKEN|RAY_AUTH_TOKEN|auth_token|password)"
    assert not re.search(rf"\b{named}\s*[=:]\s*[\"']?[A-Za-z0-9+/]{{8,}}", FILES[name], re.I), "a secret in a file"
    assert not re.search(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b|\b[0-9a-f]{32,}\b|BEGIN [A-Z ]*PRIVATE KEY", FILES[name])


def test_versions_are_the_project_s() -> None:
    for name in FILES:
        for version in re.findall(r"faithad:(\d[\w.]*)-(?:cpu|gpu)", FILES[name]):
            assert version == VERSION, name
        for version in re.findall(r"rayVersion: \"(.*)\"", FILES[name]):
            assert version == PINS["ray"], name
    assert all(
        f"faithad:{VERSION}-gpu" in FILES[name] for name in ("aws.yaml", "kuberay-cluster.yaml", "Containerfile")
    )


def test_the_page_names_every_file() -> None:
    unnamed = [name for name in FILES if name != "README.md" and name not in FILES["README.md"]]
    assert not unnamed
