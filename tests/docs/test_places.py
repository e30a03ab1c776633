"""The files that README and the pages name are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    gone = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not gone


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_that_are_named_exist(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    names = set(re.findall(r"`((?:\w+/)+(?:\w+\.(?:py|md|ipynb))?|\w+\.py)`", text))
    folders = [PROJECT / "faithad", PROJECT, *(PROJECT / "faithad" / name for name in ("evaluation", "pipelines"))]
    folders.append(PROJECT / "tests")
    written = {
        "models/",
        "best/",
        "best_ensemble/",
        "training/",
        "stages/",
        "summary/",
        "audit/",
        "ledger/",
        "train/",
        "test/",
        "supplemental/",
    }
    gone = [name for name in names - written if not any((folder / name).exists() for folder in folders)]
    assert not gone
