from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.security.traps import Trap


@pytest.fixture
def trap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trap]:
    """A trap that must not be sprung."""
    trap = Trap(tmp_path_factory.mktemp("trap"))
    yield trap
    assert not trap.sprung


@pytest.fixture
def live_trap(tmp_path: Path) -> Trap:
    """A trap for tests that spring it themselves, to see that it works."""
    return Trap(tmp_path)
