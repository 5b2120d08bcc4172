"""Drives the page in Debian's browser, as a visitor would."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from page_server import Script, address, serve

api = pytest.importorskip("playwright.sync_api", reason="playwright is not there to drive a browser")
expect = api.expect
if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

PATIENCE = 20_000  # milliseconds; a loaded machine is slow
TWO = "def f(x):[[4]]\n    return[[3]]"  # a text with two blanks


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window; skips where there is none."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("chromium is not there to show the page: apt-get install chromium")
    expect.set_options(timeout=PATIENCE)
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def scripted() -> Iterator[tuple[Script, str]]:
    """A server of scripted runs, and where it is."""
    script = Script()
    server = serve(script)
    yield script, address(server)
    server.shutdown()
    server.server_close()


@contextmanager
def visiting(browser: Browser, url: str):
    """A way to open the page; at the end nothing may have gone wrong in it, nor been refused by its security policy."""
    wrong: list[str] = []
    contexts = []

    def visit(fragment: str = "", **options) -> Page:
        calm = {"base_url": url, "reduced_motion": "reduce", "viewport": {"width": 1280, "height": 820}}
        contexts.append(browser.new_context(**{**calm, **options}))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if "Security Policy" in said.text else None)
        page.goto(f"/{fragment}")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert wrong == []


def ready(page: Page) -> Page:
    """The page once it has met its server."""
    expect(page.locator("#go")).to_be_enabled()
    return page


def run(page: Page, text: str | None = None) -> Locator:
    """Run, and wait for the end; the panes that are seen."""
    if text is not None:
        page.fill("#text", text)
    page.click("#go")
    return ended(page)


def ended(page: Page) -> Locator:
    """The panes that are seen, once their runs are over."""
    expect(page.locator("#live")).to_contain_text(re.compile("^(Done|Stopped)"))
    expect(page.locator("#go")).to_be_enabled()
    return page.locator(".pane:visible")


def words(pane: Locator) -> str:
    """The text of a run, as a screen reader finds it."""
    return (pane.locator(".words").text_content() or "").removeprefix("The text: ")
