"""How the report's pages are read back: parsed HTML, as a browser would have it."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from html.parser import HTMLParser

import pytest

from faithad import storage
from faithad.report.study_page import render_report

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Tags with their attributes, the text a reader sees, and whether every element was closed in turn."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self.open[-1:] == ["script"] else self.texts).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def check_is_whole(self, html: str) -> None:
        """Well formed, every link has its target, and nothing is fetched from elsewhere."""
        assert html.startswith("<!DOCTYPE html>")
        assert self.open == []
        tags = {tag for tag, _ in self.tags}
        assert not tags & {"link", "iframe", "object", "embed", "base"}
        self.check_scripts(html)
        assert all(value.startswith(("data:", "#")) for value in self.values("src") + self.values("xlink:href"))
        outside = [value for value in self.values("href") if not value.startswith("#")]
        assert outside == ["https://arxiv.org/abs/2601.12660"]
        assert "@import" not in html
        drawn = re.findall(r"url\(['\"]?([^)'\"]*)", html)
        assert all(target.startswith("#") for target in drawn)
        ids = self.values("id")
        assert len(ids) == len(set(ids))
        inside = [value for value in self.values("href") + self.values("xlink:href") + drawn if value[0] == "#"]
        assert {value[1:] for value in inside} <= set(ids)

    def check_scripts(self, html: str) -> None:
        """Only what the policy names by its hash can run, and nothing in the page can run it from elsewhere."""
        policy = next(tag["content"] for name, tag in self.tags if name == "meta" and "http-equiv" in tag)
        assert policy is not None
        attributes = [attributes for tag, attributes in self.tags if tag == "script"]
        run = [
            text for text, own in zip(self.scripts, attributes, strict=True) if own.get("type") != "application/json"
        ]
        hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in run]
        allowed = f" media-src data:; script-src {' '.join(hashes)};" if run else ""
        assert policy == f"default-src 'none'; img-src data:;{allowed} style-src 'unsafe-inline'"
        assert all(set(own) <= {"type", "id"} for own in attributes)
        assert not any(name.startswith("on") for _, own in self.tags for name in own)

    def values(self, attribute: str) -> list[str]:
        return [value for _, attributes in self.tags if (value := attributes.get(attribute)) is not None]


@pytest.fixture(scope="session")
def render() -> Callable[..., tuple[str, Page]]:
    """Writes a page with one of the report's functions and reads it back."""

    def write_and_read(root: str, page: Callable[[str], str] = render_report) -> tuple[str, Page]:
        html = storage.read_text(page(root))
        return html, Page(html)

    return write_and_read
