"""A configuration is checked on the spot: neither the numerical libraries nor Ray are loaded for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "pyarrow", "scipy", "sklearn", "pandas", "ray")
CODE = f"""
import sys, time
started = time.process_time()
import faithad.config.audit, faithad.config.study
took = time.process_time() - started
loaded = [name for name in {HEAVY} if name in sys.modules]
study = faithad.config.study.parse_study(
    "{{name: s, root: r, models: [mae, cae], data: {{train: [a], test: [b]}}, attribution: {{methods: [occlusion]}}}}",
    name="x.yaml",
)
assert study.n_frames("mae") == 400
loaded += [name for name in {HEAVY} if name in sys.modules]
print(took, *loaded)
"""


@pytest.mark.parametrize(
    ("module", "table"), [("faithad.attribution.methods", "METHODS"), ("faithad.model.table", "MODELS")]
)
def test_titles_are_read_without_a_numerical_library(module: str, table: str) -> None:
    code = f"""
import sys
from {module} import {table}
print(*(row.title for row in {table}.values()), sep="|")
sys.exit(any(name in sys.modules for name in {HEAVY}))
"""
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert len(set(output.split("|"))) > 5


def test_importing_and_checking_a_study_loads_no_numerical_library() -> None:
    # Processor time, so that a busy machine does not fail it; the best of three, so that the files are in memory.
    outputs = [
        subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True).stdout.split()
        for _ in range(3)
    ]
    assert {tuple(output[1:]) for output in outputs} == {()}
    assert min(float(output[0]) for output in outputs) < 0.6  # 0.2 s where nothing else runs
