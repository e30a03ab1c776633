"""The example of docs/decisions.md, run as it stands on a table as it describes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "decisions.md").read_text(encoding="utf-8")


def test_the_example_prints_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    header, code, output = re.findall(r"```(?:python)?\n(.*?)```", PAGE, flags=re.DOTALL)
    generator = np.random.default_rng(0)
    gains = generator.normal(0, [0.05, 0.02, 0.25], (72, 3))
    gains += np.array([0.10, 0.003, 0.05]) - gains.mean(axis=0)
    rows = []
    for recording in range(24):
        shared = generator.normal(0, 0.1, 3)
        for clip in range(1, 4):
            old = 0.5 + shared + generator.normal(0, 0.05, 3)
            new = old + gains[3 * recording + clip - 1]
            for name, values in (("old", old), ("new", new)):
                rows.append([f"hall-{recording:02d}", clip, name, *values])
    table = pd.DataFrame(rows, columns=header.splitlines()[0].split(","))
    table.loc[1, "overlap"] = np.nan
    table.to_csv(tmp_path / "detectors.csv", index=False)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/decisions.md", "exec"), {})
    assert capsys.readouterr().out == output
