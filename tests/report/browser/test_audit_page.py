"""The page of an audit in a real browser."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from faithad import parquet
from faithad.pipelines.evaluate import review_audit_and_report
from faithad.report.audit_page import render_audit_report
from tests.report.audit.conftest import build_audit
from tests.report.browser.conftest import Open

pytestmark = pytest.mark.long

NASTY = "<script>alert(\"x\")<script> & 'board' {{ 7 * 7 }} $x_1$"
WIDTHS = (390, 800, 1400)


def wait(page: Any, condition: str) -> None:
    """Playwright's own wait would evaluate the text in the page, which the page does not allow."""
    end = time.monotonic() + 15
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(50)


def rows_of(page: Any, attribute: str) -> list[str]:
    query = f"rows => rows.filter(row => !row.hidden).map(row => row.dataset.{attribute})"
    found: list[str] = page.locator("table.events tbody tr").evaluate_all(query)
    return found


def test_the_sound_plays_and_a_cursor_moves_with_it(open_page: Open) -> None:
    page = open_page()
    article = page.locator("article").first
    assert not article.locator(".strip .cursor").is_visible()
    article.locator("audio").evaluate("audio => audio.play()")
    wait(page, "document.querySelector('article audio').currentTime > 0.3")
    left = "document.querySelector('article .strip .cursor').style.left"
    before = float(page.evaluate(left).removesuffix("%"))
    wait(page, f"parseFloat({left}) > {before}")
    # The cursor is also in the score, the explanation and each map.
    assert article.locator(".cursor").count() == 3 + article.locator(".maps figure").count() > 3
    page.locator("article audio").nth(1).evaluate("audio => audio.play()")
    wait(page, "document.querySelectorAll('article audio')[0].paused")


def test_heard_and_expected_sound_take_turns(open_page: Open) -> None:
    page = open_page()
    article = page.locator("article:has([aria-pressed])").first
    audio, expected = article.locator("audio"), article.get_by_role("button", name="As expected")
    at = f"document.querySelector('#{article.get_attribute('id')} audio').currentTime"
    audio.evaluate("audio => audio.play()")
    wait(page, f"{at} > 0.5")
    picture = article.locator(".strip img")
    heard, spectrogram = audio.get_attribute("src"), picture.get_attribute("src")
    expected.click()
    assert audio.get_attribute("src") == expected.get_attribute("data-sound") != heard
    assert picture.get_attribute("src") == expected.get_attribute("data-picture") != spectrogram
    wait(page, f"{at} > 0.6")  # it goes on where it was, and plays
    page.keyboard.press("e")
    assert audio.get_attribute("src") == heard
    assert picture.get_attribute("src") == spectrogram
    assert expected.get_attribute("aria-pressed") == "false"


def test_the_time_line_zooms_to_a_second_and_back(open_page: Open) -> None:
    page = open_page()
    whole = page.locator("#span").text_content()
    assert whole == "06:00:00 to 07:00:00"
    for _ in range(14):
        page.get_by_role("button", name="Zoom in").click()
    assert page.locator("#span").text_content() == "06:29:59.5 to 06:30:00.5"
    page.get_by_role("button", name="Later").click()
    assert page.locator("#span").text_content() == "06:30:00.0 to 06:30:01.0"
    page.get_by_role("button", name="All").click()
    assert page.locator("#span").text_content() == whole
    box = page.locator(".u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 60, steps=4)
    page.mouse.up()
    assert page.locator("#span").text_content()[:5] in ("06:14", "06:15")
    page.mouse.wheel(0, 100)
    page.locator(".u-over").dblclick()
    assert page.locator("#span").text_content() == whole


def test_the_slider_counts_as_python_does(open_page: Open, report: Path) -> None:
    points = parquet.read_table(str(report.parent / "operating_points.parquet")).to_pylist()
    events = parquet.read_table(str(report.parent / "events.parquet")).to_pylist()
    page = open_page()
    slider, counts = page.locator("#threshold"), page.locator("#counts")
    (raised,) = [number for number, point in enumerate(points) if point["threshold"] == events[0]["threshold"]]
    assert slider.input_value() == str(raised)
    assert len(points) > 10
    for number, point in enumerate(points):
        slider.fill(str(number))
        noun = "event" if point["n_events"] == 1 else "events"
        text = counts.text_content()
        assert f": {point['n_events']:,} {noun} ({point['n_alarms']:,} alarmed clip" in text
        assert float(text.split("; ")[1].split(" ")[0].replace(",", "")) == pytest.approx(
            point["false_alarms_per_hour"], rel=0.005
        )
        below = page.locator("table.events tr.below").count()
        assert below == sum(event["score"] <= point["threshold"] for event in events)


def test_the_table_sorts_and_filters(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("button", name="Strength").click()
    scores = [float(score) for score in rows_of(page, "score")]
    assert scores == sorted(scores, reverse=True)
    page.get_by_role("button", name="No.").click()
    assert rows_of(page, "n") == [str(number + 1) for number in range(len(scores))]
    page.locator("#grade").select_option("good")
    assert set(rows_of(page, "grade")) == {"good"}
    page.locator("#words").fill("no such recording")
    assert rows_of(page, "n") == []
    assert page.locator("#filtered").text_content() == f"0 of {len(scores)}"


def test_keys_decide_and_decisions_come_back(open_page: Open, report: Path, tmp_path: Path) -> None:
    page = open_page()
    order = page.locator("article").evaluate_all("all => all.map(article => article.dataset.event)")
    for key in ("j", "1", "j", "2", "j", "3", "k"):
        page.keyboard.press(key)
    page.keyboard.press("Space")
    wait(page, "!document.querySelectorAll('article audio')[1].paused")
    page.keyboard.press("Space")
    wait(page, "document.querySelectorAll('article audio')[1].paused")
    article = page.locator("article").nth(1)
    article.locator("[name=kind]").fill("a board, <b>stuck</b> 123 jk")  # keys that are typed decide nothing
    article.locator("[name=note]").fill("at the saw")
    article.locator("[name=note]").press("Enter")
    words = ["confirmed", "rejected: a board, <b>stuck</b> 123 jk", "unsure"]

    def check(page: Any) -> None:
        assert [page.locator(f"#row-{number} .decision").text_content() for number in order[:3]] == words
        assert page.locator("#progress").text_content() == f"3 of {len(order)} events decided"
        assert page.locator("article").nth(1).locator("[value=reject]").is_checked()

    check(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save decisions").click()
    saved = tmp_path / "decisions.json"
    download.value.save_as(saved)
    page.reload()
    check(page)
    fresh = open_page()
    assert fresh.locator("#progress").text_content().startswith("0 of")
    fresh.locator("#load").set_input_files(saved)
    wait(fresh, "document.getElementById('progress').textContent.startsWith('3')")
    check(fresh)
    assert [row["verdict"] for row in json.loads(saved.read_text())["decisions"]] == ["confirm", "reject", "unsure"]
    reviewed = shutil.copytree(report.parent, tmp_path / "reviewed")
    assert "Review: of 2 events, 1 is confirmed (1 unsure" in review_audit_and_report(str(reviewed), str(saved))
    check(open_page(reviewed / "report.html"))
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"decisions": [{"event_id": "nobody", "verdict": "confirm"}]}))
    fresh.locator("#load").set_input_files(other)
    wait(fresh, "document.getElementById('problem').textContent.startsWith('1 of 1 decisions')")
    other.write_text("[")
    fresh.locator("#load").set_input_files(other)
    wait(fresh, "document.getElementById('problem').textContent.startsWith('This file holds no')")


def test_names_stay_text(open_page: Open, tmp_path: Path) -> None:
    report = Path(render_audit_report(build_audit(tmp_path, hours=0.5, boards=1, recording=NASTY)))
    page = open_page(report)
    assert page.locator("script").count() == 3
    assert NASTY in page.locator("h1").text_content()
    assert NASTY in page.locator("td.text").first.text_content()
    page.keyboard.press("j")
    page.keyboard.press("1")


@pytest.mark.parametrize("width", WIDTHS)
def test_everything_fits_the_screen(open_page: Open, width: int) -> None:
    page = open_page(viewport={"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for cell in (*page.locator(".meter").all(), *page.locator("#ledger td").all(), *page.locator("figcaption").all()):
        box = cell.bounding_box()
        assert 0 <= box["x"] <= box["x"] + box["width"] <= width
    assert page.locator("figcaption").first.bounding_box()["width"] > 250
    page.get_by_role("button", name="Strength").click()
    assert page.locator("table.events tbody tr").first.is_visible()
    page.locator("#words").fill("no such recording")
    assert not page.locator("table.events tbody tr").first.is_visible()


def test_dark_and_printed(open_page: Open) -> None:
    page = open_page(color_scheme="dark")
    color = "getComputedStyle(document.body).backgroundColor"
    shadow = "getComputedStyle(document.querySelector('.wide')).backgroundImage"
    dark, light_shadow = page.evaluate(color), page.evaluate(shadow)
    assert "rgba(0, 0, 0" in light_shadow
    page.emulate_media(color_scheme="light")
    assert page.evaluate(color) != dark
    assert not page.locator("figure.plain").first.is_visible()
    page.emulate_media(media="print")
    assert page.locator("figure.plain").first.is_visible()
    assert not any(part.is_visible() for part in page.locator("audio, .bar, fieldset").all())
    assert page.locator(".strip img").first.is_visible()


def test_without_script_the_page_is_plain(open_page: Open) -> None:
    """As in the preview of a mail."""
    page = open_page(java_script_enabled=False)
    assert page.locator("figure.plain").first.is_visible()
    assert page.locator("audio").first.is_visible()
    assert not page.locator("#timeline").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_screen_reader_can_read_it(open_page: Open, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = open_page(color_scheme=scheme)
    found = axe.Axe().run(page).response["violations"]
    serious = {row["id"]: row["nodes"][0]["html"] for row in found if row["impact"] in ("serious", "critical")}
    assert serious == {}
