"""What the documentation says can be typed and followed: specs build, recipes and linked places exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from unveil import spec

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "unveil/models").rglob("*.md"))]
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")
SPEC = re.compile(r"--(decoder|cache|guide|objective)s? ('[^']+'|\"[^\"]+\"|[a-z_0-9]+(?:\([^)\n]*\))?)")
RECIPE = re.compile(r"--recipe ([a-z0-9-]+)(?![\w./])")
TRAINED = {"sensor"}  # options that name a file which has to be there


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def headings(page: Path) -> set[str]:
    """The anchors that a page has, as they are made on the web from its headings."""
    lines = re.sub(r"```.*?```", "", page.read_text(), flags=re.S).splitlines()
    titles = [line.lstrip("#").strip().lower() for line in lines if line.startswith("#")]
    titles = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in titles]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for place, anchor in LINK.findall(page.read_text()):
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), place
        if anchor and target.suffix == ".md":
            assert anchor in headings(target), f"{place}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_specs_can_be_built(page):
    for kind, said in SPEC.findall(page.read_text()):
        for each in said.strip("'\"").split(";"):
            if not any(f"{option}=" in each for option in TRAINED):
                spec.build(f"{kind}s", each)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_recipes_exist(page):
    for recipe in RECIPE.findall(page.read_text()):
        assert (ROOT / "recipes" / f"{recipe}.toml").is_file(), recipe
