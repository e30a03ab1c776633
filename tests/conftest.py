"""Fixtures of all tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The published annotation table and a few real recordings; they lie beside the checkout, not ours to copy."""
    folder = Path(__file__).parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the published table and the real recordings are not here: no folder {folder}")
    return folder
