"""Imitated shards take the space of real ones, of any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from faithad import schemas, storage
from faithad.pipelines.plan.bytes import file_bytes, imitate

METHODS = ("error_map", "saliency", "smooth_grad", "integrated_gradients", "gradient_shap", "grad_cam")
T, F, PERCENTILES = 400, 80, 10


def attributions(first: int, n: int, *, with_maps: bool = False) -> pa.Table:
    generator = np.random.default_rng(first)
    rows = [
        {
            **keys(clip),
            "method": method,
            "curve": generator.gamma(1, 1e-3, T).astype(np.float32),
            "profile": generator.gamma(1, 1e-3, F).astype(np.float32),
            "map": generator.gamma(1, 0.1, F * T).astype(np.float16) if with_maps else None,
            "map_scale": generator.random() if with_maps else None,
            "degenerate": False,
        }
        for clip in range(first, first + n)
        for method in METHODS
    ]
    return pa.Table.from_pylist(rows, schema=schemas.attributions(F, T))


def faithfulness(first: int, n: int, *, modes: tuple[str, ...] = ("frame",)) -> pa.Table:
    generator = np.random.default_rng(first)
    rows = []
    for clip in range(first, first + n):
        before = generator.random()
        for method in METHODS:
            for mode in modes:
                for place in range(PERCENTILES):
                    after = before * generator.random()
                    rows.append(
                        {**keys(clip), "method": method, "mode": mode, "percentile": 90.0 + place,
                         "replaced_fraction": 0.01 * (10 - place), "error_before": before, "error_after": after,
                         "faithfulness": 1 - after / before}
                    )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=schemas.FAITHFULNESS)


def keys(clip: int) -> dict[str, object]:
    return {"clip_id": f"{clip * 0x9E3779B97F4A7C15 % 2**64:016x}", "model": "mae", "seed": 0}


def on_disk(table: pa.Table, folder: Path) -> int:
    location = folder / "part.parquet"
    storage.write_table(table, str(location), schema=table.schema)
    return location.stat().st_size


@pytest.mark.parametrize("n", [1, 2, 4, 8, 32])
@pytest.mark.parametrize("make", [attributions, faithfulness])
def test_three_clips_tell_how_large_a_shard_of_many_is(make: object, n: int, tmp_path: Path) -> None:
    assert callable(make)
    found = file_bytes(make(0, 3), size=max(n, 2))
    assert found.file + n * found.clip == pytest.approx(on_disk(make(100, n), tmp_path), rel=0.07)


def test_intervals_and_maps_come_on_top(tmp_path: Path) -> None:
    both = file_bytes(faithfulness(0, 3), annotated=faithfulness(3, 2, modes=("frame", "segment")), size=16)
    real = on_disk(faithfulness(50, 16, modes=("frame", "segment")), tmp_path)
    assert both.file + 16 * (both.clip + both.annotated) == pytest.approx(real, rel=0.1)
    kept = file_bytes(attributions(0, 3), with_maps=attributions(7, 1, with_maps=True), size=16)
    real = on_disk(attributions(50, 1, with_maps=True), tmp_path)
    assert kept.file + kept.clip + kept.maps == pytest.approx(real, rel=0.02)


def test_a_table_of_annotated_clips_alone() -> None:
    found = file_bytes(None, annotated=faithfulness(0, 2), size=16)
    assert (found.clip, found.maps) == (0, 0)
    assert found.annotated == file_bytes(faithfulness(0, 2), size=16).clip
    assert file_bytes(None, size=8).model_dump() == {"file": 0, "clip": 0, "annotated": 0, "maps": 0}


def test_an_imitation_has_as_many_rows_for_each_of_its_clips() -> None:
    table = faithfulness(0, 2)
    many = imitate(table, 5)
    assert many.num_rows == 5 * table.num_rows // 2
    assert len(set(many["clip_id"].to_pylist())) == 5
    assert many.schema == table.schema
    assert set(many["percentile"].to_pylist()) == set(table["percentile"].to_pylist())
    assert many.schema.metadata == table.schema.metadata
