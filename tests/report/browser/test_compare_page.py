"""The page of a comparison in a real browser."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

import tests.report.audit.conftest as audits
from faithad.report.compare import compare_runs
from tests.report.audit.conftest import build_audit
from tests.report.browser.conftest import Open
from tests.report.browser.test_audit_page import WIDTHS
from tests.report.test_compare import write_levels

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def compare_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two weeks of one recorder, which is louder in the end."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        weeks = []
        for name, louder_db in (("week-47", 0.0), ("week-48", 6.0)):
            weeks.append(build_audit(folder / name, hours=0.5, boards=2))
            write_levels(weeks[-1], louder_db=louder_db)
            patch.setattr(audits, "START", audits.START + timedelta(days=7))
    compare_runs(weeks, str(folder / "to"))
    return folder / "to/compare.html"


@pytest.mark.parametrize("width", WIDTHS)
def test_everything_fits_the_screen(open_page: Open, compare_page: Path, width: int) -> None:
    page = open_page(compare_page, viewport={"width": width, "height": 900})
    assert "6 dB louder since" in page.locator(".answers").text_content()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for cell in page.locator("#drift td, #events td").all():
        box = cell.bounding_box()
        assert 0 <= box["x"] <= box["x"] + box["width"] <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_screen_reader_can_read_it(open_page: Open, compare_page: Path, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = open_page(compare_page, color_scheme=scheme)
    found = axe.Axe().run(page).response["violations"]
    serious = {row["id"]: row["nodes"][0]["html"] for row in found if row["impact"] in ("serious", "critical")}
    assert serious == {}
