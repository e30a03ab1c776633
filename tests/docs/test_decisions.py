"""The examples of docs/decisions.md, run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from faithad import parquet, schemas
from faithad.evaluation.summary import Experiment, summarize

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "decisions.md").read_text(encoding="utf-8")


def test_the_example_prints_what_the_page_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    header, code, output, _ = re.findall(r"```(?:python)?\n(.*?)```", PAGE, flags=re.DOTALL)
    monkeypatch.chdir(DOCS)
    assert Path("detectors.csv").read_text(encoding="utf-8").startswith(header.removesuffix("...\n"))
    exec(compile(code, "docs/decisions.md", "exec"), {})
    assert capsys.readouterr().out == output


def test_pandas_alone_gives_the_numbers_of_the_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    clip = {"uri": "", "onset_s": 0.0, "duration_s": 10.0, "split": "test", "label": 1, "intervals": [(0.0, 1.0)]}
    clips = [
        {**clip, "clip_id": f"clip {k}", "recording": f"recording {k // 2}", "annotated": k % 3 > 0} for k in range(30)
    ]
    rows: dict[tuple[str, int], list[dict[str, object]]] = {}
    for model in ("ae", "mae"):
        for seed in (0, 1):
            rows[model, seed] = [
                {"clip_id": each["clip_id"], "model": model, "seed": seed, "method": method, "protocol": protocol,
                 "mode": mode, "percentile": percentile, "replaced_fraction": 0.1, "error_before": 1.0,
                 "error_after": 1.0, "faithfulness": generator.normal(), "normalized": None}
                for each in clips
                for method in ("error_map", "saliency")
                for protocol in ("paper", "corrected")
                for mode in ("frame", "segment")
                for percentile in (90.0, 95.0)
                # The curve of one clip is flat under one model.
                if (each["clip_id"], method, model) != ("clip 1", "saliency", "ae")
            ]  # fmt: skip
    manifest = pa.Table.from_pylist(clips, schemas.MANIFEST)
    parquet.write_table(manifest, f"{tmp_path}/manifest.parquet", schema=schemas.MANIFEST)
    tables = {run: pa.Table.from_pylist(of_run, schemas.FAITHFULNESS) for run, of_run in rows.items()}
    for (model, seed), table in tables.items():
        location = f"{tmp_path}/audit/{model}-{seed}/faithfulness/part-00000.parquet"
        parquet.write_table(table, location, schema=schemas.FAITHFULNESS)
    *_, code = re.findall(r"```(?:python)?\n(.*?)```", PAGE, flags=re.DOTALL)
    names = {"root": str(tmp_path), "seeds": [0, 1]}
    exec(compile(code, "docs/decisions.md", "exec"), names)
    capsys.readouterr()
    difference: pd.Series = names["difference"]  # type: ignore[assignment]

    sources = {"faithfulness": pa.concat_tables(tables.values())}
    others = {"localization": "LOCALIZATION", "controls": "CONTROLS", "checks": "CHECKS", "scores": "SCORES"}
    sources |= {name: getattr(schemas, schema).empty_table() for name, schema in others.items()}
    experiment = Experiment(manifest, protocol="corrected", n_frames={}, frames_per_s=40.0)
    compared = summarize("comparison", sources, experiment).to_pandas()
    compared = compared[(compared["scope"] == "annotated") & (compared["mode"] == "frame")]
    compared = compared[compared["percentile"].isna()].set_index("method")
    for method in ("error_map", "saliency"):
        assert compared.loc[method, "estimate"] == pytest.approx(difference[method].mean())
        assert compared.loc[method, "n_clips"] == len(difference[method]) == 20 - (method == "saliency")
