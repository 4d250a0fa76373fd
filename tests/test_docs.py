"""What the docs name exists: links, their sections, and paths of files."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), ROOT / "benchmarks" / "README.md"]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
SOURCES = [p for room in ("jaxrl", "models", "rollouts", "sandbox", "configs", "benchmarks", "tests") for p in
           sorted((ROOT / room).rglob("*.py"))]  # fmt: skip
LINK = re.compile(r"\]\(([^)\s]+)\)")
# A path of the repository, as it stands in text and commands.
PATH = re.compile(r"(?<![\w./:-])((?:jaxrl|models|rollouts|sandbox|configs|benchmarks|tests|docs)/[\w./-]*\.\w+)")


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def anchors(page: Path) -> set[str]:
    """The names of a page's sections, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_links_lead_somewhere(page):
    for link in LINK.findall(page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{shown(page)}: {link}"
        assert not anchor or anchor in anchors(target), f"{shown(page)}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_paths_that_pages_name_exist(page):
    for path in PATH.findall(page.read_text()):
        assert (ROOT / path.rstrip(".")).exists(), f"{shown(page)}: {path}"


def test_pages_that_the_code_names_exist():
    paths = re.compile(r"(?<![/\w])docs/[\w/.-]+\.\w+")
    named = {path: source for source in SOURCES for path in paths.findall(source.read_text())}
    assert named
    for path, source in named.items():
        assert (ROOT / path).exists(), f"{shown(source)}: {path}"


def test_every_page_is_reached_from_the_readme():
    reached, ahead = set(), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        if page in reached:
            continue
        reached.add(page)
        links = (link.partition("#")[0] for link in LINK.findall(page.read_text()) if "://" not in link)
        ahead += [p for p in ((page.parent / link).resolve() for link in links if link) if p.suffix == ".md"]
    assert set(PAGES) <= reached
