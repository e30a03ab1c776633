"""`docs/library.ipynb` runs from its first cell to its last, as a reader would run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "library.ipynb"
# A notebook shows each figure by itself.
BEFORE = """
import matplotlib.pyplot
figures = []
matplotlib.pyplot.show = lambda: (figures.append(len(matplotlib.pyplot.gcf().axes)), matplotlib.pyplot.close())
"""
# What must have come of it.
RESULTS = """
assert "ray" not in __import__("sys").modules
assert normal.shape == (36, 32, 101)
assert training.history[-1].train_loss < training.history[0].train_loss / 2
assert scores["score"][audible].median() > scores["score"][~scores["disturbed"]].median()
assert scores["alarm"][worst]
assert judged["faithfulness"].between(0, 1).all() and judged["faithfulness"].max() > 0.05
assert judged["f_score"].max() >= 0.5
assert figures == [1, 1, 4]
"""


@pytest.mark.long
def test_it_runs(tmp_path: Path) -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in cells if cell["cell_type"] == "code"), "outputs are not kept"
    script = "\n".join([BEFORE, *code, RESULTS])
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, env=os.environ | {"MPLBACKEND": "agg"})
