"""The page of a study in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from faithad.report.study_page import render_report
from tests.report.browser.conftest import Open
from tests.report.browser.test_audit_page import WIDTHS, wait
from tests.report.study.conftest import build_study, write_sounds

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def study_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two example clips, of which one can be heard."""
    root = build_study(tmp_path_factory.mktemp("study"), seeds=(0,), n_recordings=6)
    write_sounds(root)
    return Path(render_report(root))


def n_visible(page: Any, query: str) -> int:
    return sum(part.is_visible() for part in page.locator(query).all())


def test_curves_bands_and_published_ones_are_shown_and_hidden(open_page: Open, study_page: Path) -> None:
    page = open_page(study_page)
    band, line = "#localization figure .band", "#localization figure .line"
    assert n_visible(page, band) == 0
    assert n_visible(page, "#localization figure .published") == 0  # these recordings are not the paper's
    assert n_visible(page, line) == 12
    page.check("#show-f-score-bands")
    assert n_visible(page, band) == 12
    assert n_visible(page, "#faithfulness figure .band") == 0
    page.uncheck("#show-f-score-saliency")
    assert n_visible(page, band) == n_visible(page, line) == 10
    assert n_visible(page, f"{line}.saliency") == 0
    page.uncheck("#show-f-score-ae")
    assert n_visible(page, line) == 5
    page.check("#show-f-score-published")
    assert n_visible(page, "#localization figure .published") == 5
    assert n_visible(page, "#faithfulness figure .line") == 24


def test_the_sound_plays_and_a_cursor_moves_through_all_maps(open_page: Open, study_page: Path) -> None:
    page = open_page(study_page)
    heard, silent = page.locator("article").all()
    assert "No sound: gone &lt;b&gt;" in silent.inner_html()
    assert n_visible(page, ".cursor") == 0
    heard.locator("audio").evaluate("audio => audio.play()")
    wait(page, "document.querySelector('audio').currentTime > 0.3")
    assert heard.locator(".cursor").count() == 2 * 8 == n_visible(page, ".cursor")
    lefts = heard.locator(".cursor").evaluate_all("all => all.map(cursor => parseFloat(cursor.style.left))")
    assert len(set(lefts)) == 1
    # A tenth of the picture is left of it; the clip lasts 10 s.
    assert 10 + 88 * 0.03 <= lefts[0] <= 10 + 88 * 0.3
    wait(page, f"parseFloat(document.querySelector('.cursor').style.left) > {lefts[0]}")


def test_maps_can_be_aligned(open_page: Open, study_page: Path) -> None:
    page = open_page(study_page)
    panels = page.locator("article").first.locator(".maps figure")
    assert len({panel.bounding_box()["y"] for panel in panels.all()}) == 4
    page.locator(".aligned").first.check()
    boxes = [panel.bounding_box() for panel in panels.all()]
    assert len({box["x"] for box in boxes}) == 2  # one column for each model
    assert [box["y"] for box in boxes[:8]] == [box["y"] for box in boxes[8:]]


@pytest.mark.parametrize("width", WIDTHS)
def test_everything_fits_the_screen(open_page: Open, study_page: Path, width: int) -> None:
    page = open_page(study_page, viewport={"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for legend in page.locator(".legend label").all():
        box = legend.bounding_box()
        assert 0 <= box["x"] <= box["x"] + box["width"] <= width


def test_choices_are_not_printed(open_page: Open, study_page: Path) -> None:
    page = open_page(study_page)
    page.emulate_media(media="print")
    assert n_visible(page, ".choices") == n_visible(page, "audio") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_screen_reader_can_read_it(open_page: Open, study_page: Path, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = open_page(study_page, color_scheme=scheme)
    found = axe.Axe().run(page).response["violations"]
    serious = {row["id"]: row["nodes"][0]["html"] for row in found if row["impact"] in ("serious", "critical")}
    assert serious == {}
