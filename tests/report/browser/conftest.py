"""A browser that all tests share, and the page of an audit in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from faithad.report.audit_page import render_audit_report
from tests.report.audit.conftest import build_audit

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
_QUIET += ["--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required"]

Open = Callable[..., Any]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install -e .[dev]")
    if CHROMIUM is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=_QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An hour with some events, two clips that failed and one file that is no recording."""
    return Path(render_audit_report(build_audit(tmp_path_factory.mktemp("audit"), hours=1.0)))


@pytest.fixture
def open_page(browser: Any, report: Path) -> Iterator[Open]:
    """Opens a page in a browser that knows nothing yet; it must stay without an error and without a request."""
    contexts, problems = [], []

    def open_(path: Path = report, *, context: Any = None, **options: Any) -> Any:
        if context is None:
            context = browser.new_context(accept_downloads=True, **options)
            contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: _refuse_request(request.url, path, problems))
        page.goto(path.as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert problems == []


def _refuse_request(url: str, path: Path, problems: list[str]) -> None:
    if url != path.as_uri() and not url.startswith(("data:", "blob:")):
        problems.append(f"request: {url}")
