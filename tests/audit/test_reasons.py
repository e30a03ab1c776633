"""Which explanations of an audit are trusted: by the rule of decisions, on tables as an audit writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from faithad import parquet, schemas, storage
from faithad.audit.reasons import reasons_table, verdict_of, with_method
from faithad.config.sections import Events
from faithad.evaluation.decisions import compare

# By how much each method is more faithful than random frames, in the mean.
EFFECTS = {"error_map": 0.4, "saliency": 0.2, "grad_cam": 0.0, "smooth_grad": 0.3, "gradient_shap": -0.2}


def written(out: str, n_recordings: int) -> dict[str, np.ndarray]:
    """An audit of two explained clips a recording; returns the differences of each method."""
    generator = np.random.default_rng(0)
    differences = {name: generator.normal(effect, 0.05, 2 * n_recordings) for name, effect in EFFECTS.items()}
    clips = [
        {"clip_id": f"{k:03d}", "recording": f"{k // 2}.wav", "uri": "", "onset_s": 10.0 * (k % 2), "duration_s": 10.0,
         "split": "test", "annotated": False}
        for k in range(2 * n_recordings)
    ]  # fmt: skip
    faithfulness, controls = [], []
    for k, clip in enumerate(clips):
        keys = {"clip_id": clip["clip_id"], "model": "mae", "seed": 0, "protocol": "paper"}
        random = generator.uniform(0.1, 0.3)
        for percentile in (90.0, 95.0):
            of_row = {"percentile": percentile, "replaced_fraction": 0.05, "error_before": 1.0, "error_after": 1.0}
            for name in EFFECTS:
                frame = random + (differences[name][k] if percentile == 95.0 else -1.0)
                for mode, value in (("frame", frame), ("segment", -9.0)):
                    faithfulness.append(keys | of_row | {"method": name, "mode": mode, "faithfulness": value})
        for line, value in (("random", random), ("oracle", 0.9)):
            controls.append(keys | {"metric": "faithfulness", "line": line, "percentile": 95.0, "value": value})
        controls.append(controls[-2] | {"metric": "normalized_faithfulness", "value": 0.0})
    tables = {
        "manifest.parquet": pa.Table.from_pylist(clips, schema=schemas.MANIFEST),
        "faithfulness/part-00000.parquet": pa.Table.from_pylist(faithfulness, schema=schemas.FAITHFULNESS),
        "controls/part-00000.parquet": pa.Table.from_pylist(controls, schema=schemas.CONTROLS),
    }
    for name, table in tables.items():
        parquet.write_table(table, storage.join(out, name), schema=table.schema)
    return differences


def test_a_method_is_trusted_where_it_is_more_faithful_than_random_frames(tmp_path: Path) -> None:
    differences = written(str(tmp_path), 24)
    reasons = reasons_table(str(tmp_path), 95.0)
    names = sorted(EFFECTS)
    expected = compare(np.stack([differences[name] for name in names], axis=1), np.arange(48) // 2)
    rows = {row["method"]: row for row in reasons.to_pylist()}
    assert sorted(rows) == names
    for name, comparison in zip(names, expected, strict=True):
        row = rows[name]
        assert (row["question"], row["model_a"], row["model_b"]) == ("against_chance", "mae", "random")
        assert (row["percentile"], row["mode"], row["scope"], row["protocol"]) == (95.0, "frame", "all", "paper")
        assert row["estimate"] == pytest.approx(comparison.estimate)
        assert (row["verdict"], row["n_recordings"], row["n_clips"]) == (comparison.verdict, 24, 48)
    assert {name: rows[name]["verdict"].partition(" ")[0] for name in names} == {
        "error_map": "yes", "saliency": "yes", "smooth_grad": "yes", "grad_cam": "no", "gradient_shap": "no",
    }  # fmt: skip
    assert verdict_of(reasons, "saliency") == "yes"
    assert verdict_of(reasons, "occlusion") is None

    chosen = with_method(Events(method="trusted"), reasons, ("error_map", "saliency"))
    assert chosen.method == "smooth_grad"  # the error map is no explanation
    assert with_method(Events(method="grad_cam"), reasons, ("error_map",)).method == "grad_cam"


def test_with_few_recordings_none_is_trusted(tmp_path: Path) -> None:
    written(str(tmp_path), 6)
    reasons = reasons_table(str(tmp_path), 95.0)
    assert set(reasons["verdict"].to_pylist()) == {"undecided: 6 recordings, 20 are needed"}
    assert with_method(Events(method="trusted"), reasons, ("error_map", "saliency")).method == "error_map"


def test_where_random_frames_were_not_measured_nothing_is_asked(tmp_path: Path) -> None:
    written(str(tmp_path), 6)
    reasons: Any = reasons_table(str(tmp_path), 90.0)
    assert reasons.num_rows == 0
    assert verdict_of(reasons, "saliency") is None
