"""The container file: its steps are carried out, and what they make is used from another folder."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from tests.cluster.containerfile import PROJECT, build, read_steps


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The image's working directory and its environment.

    The environment is new, but sees the packages of this one except faithad: so pip has everything to do but to fetch
    torch and its like again. tests/chaos/container_build.py fetches them.
    """
    root = tmp_path_factory.mktemp("image")
    packages, environment = root / "packages", root / "environment"
    packages.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "faithad" not in entry.name:
            (packages / entry.name).symlink_to(entry)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "packages.pth").write_text(f"{packages}\n")
    build(root / "work", environment)
    return root / "work", environment


def run(environment: Path, *command: str, folder: Path) -> str:
    finished = subprocess.run(
        [environment / "bin" / command[0], *command[1:]], cwd=folder, capture_output=True, text=True, check=True
    )
    return finished.stdout


@pytest.mark.long
def test_the_package_is_baked_in_whole(image: tuple[Path, Path], tmp_path: Path) -> None:
    folder, environment = image
    place = Path(run(environment, "python", "-c", "import faithad; print(faithad.__file__)", folder=folder).strip())
    assert place.is_relative_to(environment), "the working directory hides the package that is baked in"
    wanted = {".py", ".j2", ".typed"}
    source = {path.relative_to(PROJECT / "faithad") for path in (PROJECT / "faithad").rglob("*")}
    baked = {path.relative_to(place.parent) for path in place.parent.rglob("*")}
    assert {path for path in source if path.suffix in wanted} == {path for path in baked if path.suffix in wanted}
    # Every module can be imported from there, from any folder.
    assert "study" in run(environment, "faithad", "--help", folder=tmp_path)
    code = "import faithad.pipelines.study, faithad.report.study_page as page; print(page.__file__)"
    assert Path(run(environment, "python", "-c", code, folder=tmp_path).strip()).is_relative_to(environment)


@pytest.mark.long
def test_jobs_and_configurations_are_beside_it(image: tuple[Path, Path], tmp_path: Path) -> None:
    folder, environment = image
    assert "--config" in run(environment, "python", str(folder / "jobs" / "train.py"), "--help", folder=tmp_path)
    for name in ("jobs", "configs"):
        there = {path.name for path in (folder / name).iterdir()}
        assert there == {path.name for path in (PROJECT / name).iterdir() if path.is_file()}
    code = "from faithad.config.study import load_study; print(load_study('configs/paper.yaml').name)"
    assert run(environment, "python", "-c", code, folder=folder).strip() == "paper"


def test_gpu_and_cpu_by_build_argument_and_no_root() -> None:
    steps = read_steps()
    assert steps[0] == ("ARG", "DEVICE=cpu")
    stages = {step.text.partition(" AS ")[2]: number for number, step in enumerate(steps) if step.instruction == "FROM"}
    assert set(stages) == {"cpu", "gpu", ""}
    assert steps[stages[""]].text == "${DEVICE}"
    assert steps[stages["gpu"]].text == "cpu AS gpu"
    assert any("NVIDIA_VISIBLE_DEVICES=all" in step.text for step in steps[stages["gpu"] : stages[""]])
    assert [step.text for step in steps[stages[""] :] if step.instruction == "USER"] == ["1000"]
    assert "useradd --uid 1000" in " ".join(step.text for step in steps[: stages["gpu"]])


def test_versions_are_the_project_s() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    base = next(step.text for step in read_steps() if step.instruction == "FROM")
    version = re.fullmatch(r"python:(3\.\d+)-slim-\w+ AS cpu", base)
    assert version is not None
    assert f"{version[1]}.0" in SpecifierSet(project["requires-python"])
    installs = [step.command for step in read_steps() if "pip install" in step.text]
    assert installs
    assert all("--constraint constraints.txt" in command for command in installs)
