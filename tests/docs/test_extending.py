"""The examples of `docs/extending.md`, each run as it stands: in files of an installed package, or as a script."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
# Of a section: what is done with the row that its example adds.
METHOD = """
import numpy as np, faithad
model = faithad.load_model("study/models/mae-0")
x = np.random.default_rng(0).normal(-40, 10, (2, 16, 40)).astype(np.float32)
maps = faithad.attribute(model, x, methods=["saliency", "squared_gradient"])
np.testing.assert_allclose(maps["squared_gradient"], maps["saliency"] ** 2, rtol=1e-5)
from faithad.config.sections import Attribution
assert Attribution(methods=["squared_gradient"]).methods == ("squared_gradient",)
"""
MODEL = """
import torch, faithad
from dataclasses import replace
from faithad.config.study import parse_study
from faithad.model.checkpoint import TrainedModel, save_model
from faithad.model.table import build_network
parse_study("name: a\\nroot: a\\nmodels: [narrow_ae]\\ndata: {root: b, train: [c], test: [d]}", name="study")
mae = faithad.load_model("study/models/mae-0")
torch.manual_seed(0)  # of 30 untrained networks one has a Grad-CAM of zeros: its narrow layer is silent
trained = TrainedModel(build_network("narrow_ae", 16, 40), mae.normalization, mae.features, name="narrow_ae", seed=0,
                       alarm=mae.alarm, best_epoch=1, config_hash="0")
save_model(trained, "narrow")
x = torch.randn(3, 16, 40)
y = trained.network(trained.prepare(x))
expected = (y - trained.prepare(x)).square().mean(dim=(1, 2)).tolist()
found = faithad.score(faithad.load_model("narrow"), x)["score"].tolist()
assert all(abs(a - b) < 1e-5 * b for a, b in zip(found, expected, strict=True)), (found, expected)
maps = faithad.attribute(faithad.load_model("narrow"), x, methods=["error_map", "saliency", "grad_cam"])
assert all(each.shape == x.shape and abs(each).max() > 0 for each in maps.values())
"""
SUMMARY = """
import faithad
from faithad.audit.exports import export_events
from faithad.audit.reference import evaluate_audit
export_events("audit", "labels", format="audacity")
evaluate_audit("audit", "labels")
rows = faithad.read_table("audit", "summary/alarm_rates").to_dict("records")
assert rows == [{"model": "mae", "protocol": "audit", "rate": 1.0}], rows
"""
LAYOUT = """
import numpy as np, soundfile
from pathlib import Path
import my_package.layout
from faithad.clips.layouts import LAYOUTS
from faithad.config.study import parse_study
for name in ("good/fan_1.wav", "good/fan_2.wav", "bad/pump_3.wav", "bad/pump_4.mp3"):
    Path("data", name).parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".wav"):
        soundfile.write(Path("data", name), np.zeros(100), 8000)
    else:
        Path("data", name).touch()
study = parse_study("name: a\\nroot: a\\ndata: {root: data, layout: good_and_bad}", name="study")
found = LAYOUTS["good_and_bad"].find(study.data.folders)
rows = sorted((one.path, one.split, one.label, one.machine) for one in found.recordings)
assert rows == [("data/bad/pump_3.wav", "test", 1, "pump"), ("data/good/fan_1.wav", "train", 0, "fan"),
                ("data/good/fan_2.wav", "test", 0, "fan")], rows
assert [row["recording"] for row in found.ledger] == ["data/bad/pump_4.mp3"]
"""
RULE = """
import numpy as np
from faithad.config.sections import Alarm
from faithad.evaluation.alarms import fit_alarm
scores = np.random.default_rng(0).normal(5, 1, 4000)
settings = Alarm(rule="robust").model_dump()
assert abs(fit_alarm(scores, **settings, clip_s=10).threshold - 6.645) < 0.1
"""


def blocks(section: str, language: str) -> list[str]:
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def install_entry_points(folder: Path, blocks_of_toml: list[str]) -> None:
    """What pip would leave of these parts of a `pyproject.toml`."""
    information = folder / "my_package-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Name: my_package\nVersion: 1.0\n")
    entry_points = [
        f"[{group}]\n{name} = {location}\n"
        for text in blocks_of_toml
        for group, rows in tomllib.loads(text)["project"]["entry-points"].items()
        for name, location in rows.items()
    ]
    (information / "entry_points.txt").write_text("".join(entry_points))


@pytest.mark.parametrize(
    ("section", "use"),
    [
        ("Attribution method", METHOD),
        ("Model", MODEL),
        ("Summary metric", SUMMARY),
        ("Data layout", LAYOUT),
        ("Alarm rule", RULE),
    ],
)
def test_an_example_does_what_the_page_says(
    section: str, use: str, released_study: Path, released_audit: Path, tmp_path: Path
) -> None:
    (example,) = blocks(section, "python")
    (tmp_path / "study").symlink_to(released_study)
    package = re.match(r"# (my_package/\w+\.py)\n", example)
    if package is None:
        script = example + use
    else:
        installed = tmp_path / package[1]
        installed.parent.mkdir()
        installed.write_text(example)
        install_entry_points(tmp_path, blocks(section, "toml"))
        script = use
    # The current folder is on the path of modules, as an installed package's folder is.
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)


def test_every_section_has_its_test() -> None:
    tested = ["Attribution method", "Model", "Summary metric", "Data layout", "Alarm rule"]
    assert re.findall(r"\n## (.*)\n", PAGE) == tested
