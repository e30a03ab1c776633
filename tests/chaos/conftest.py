"""What the chaos tests of audits work on, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.audits import make_mill, train_model

# Of a test that does not name its own limit: longer than that of other tests.
LONGEST_S = 1800


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LONGEST_S))


@pytest.fixture(scope="session")
def mill_and_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of a mill of a few hundred clips and of a small model, trained for an epoch."""
    folder = tmp_path_factory.mktemp("chaos")
    mill = make_mill(folder / "mill")
    return mill, train_model(mill, folder / "study")
