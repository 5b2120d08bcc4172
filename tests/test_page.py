"""The page in a real browser: what a visitor writes, watches and compares, and how it looks."""

from __future__ import annotations

import re

import pytest
from browsing import TWO, chromium, ended, expect, ready, run, scripted, visiting, words
from page_server import PAGE, Script


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def place():
    with scripted() as place:
        yield place


@pytest.fixture
def script(place):
    place[0].__dict__.update(Script().__dict__)
    return place[0]


@pytest.fixture
def visit(browser, place, script):
    with visiting(browser, place[1]) as visit:
        yield visit


# Writing


def test_a_visitor_finds_an_example_and_one_clear_button(visit):
    page = ready(visit())
    assert "[[8]]" in page.input_value("#text")
    assert page.locator("button.main:visible").count() == 1
    expect(page.locator("#watch .canvas .blank")).to_have_count(10)
    expect(page.locator("#watch .about")).to_contain_text("10 blanks to fill")
    panes = run(page)
    expect(panes.locator(".blank")).to_have_count(0)
    expect(panes.locator(".token")).to_have_count(10)
    expect(panes.locator(".forwards")).to_have_text("5")
    expect(panes.locator(".rate")).to_have_text("2.00")
    expect(panes.locator(".seconds")).to_have_text("0.15")


def test_a_prompt_is_typed_and_continued(visit, script):
    page = ready(visit())
    page.fill("#text", "")
    page.locator("#text").press_sequentially("import os")
    expect(page.locator("#verb")).to_have_text("Continue")
    page.click("summary")
    page.fill("#length", "6")
    page.fill("#seed", "3")
    page.fill("#temperature", "0.5")
    page.select_option("#decoder", "threshold")
    page.fill("#decoder-tau", "0.7")
    page.select_option("#cache", "causal")
    page.fill("#block", "4")
    pane = run(page)
    (body,) = script.bodies
    assert body == {
        "model": "toy-dlm", "prompt": "import os", "logprobs": 5, "max_tokens": 6, "decoder": "threshold(tau=0.7)",
        "cache": "causal", "block": 4, "temperature": 0.5, "seed": 3, "stream": True, "stream_mode": "denoise",
    }  # fmt: skip
    assert words(pane).startswith("import os")
    assert pane.locator("[data-at]").count() == 6


def test_two_blanks_are_marked_with_the_mouse_and_filled(visit, script):
    page = ready(visit())
    page.fill("#text", "alpha beta gamma delta")
    box = page.locator("#text").bounding_box()
    assert box is not None
    page.mouse.dblclick(box["x"] + 75, box["y"] + 22)  # selects "beta"
    page.click("#here")
    assert re.fullmatch(r"alpha\[\[\d\]\] gamma delta", page.input_value("#text"))
    page.keyboard.type("2")  # the number is selected
    page.evaluate("document.getElementById('text').setSelectionRange(17, 22)")
    page.click("#blank")
    assert page.input_value("#text").startswith("alpha[[2]] gamma[[")
    page.get_by_label("Tokens in blank 2").fill("3")
    assert page.input_value("#text") == "alpha[[2]] gamma[[3]]"
    expect(page.locator("#mirror mark")).to_have_text(["[[2]]", "[[3]]"])
    pane = run(page)
    assert script.bodies[0]["prompt"] == "alpha[[2]] gamma[[3]]"
    assert script.bodies[0]["blanks"] is True
    assert pane.locator("[data-at]").count() == 5
    page.get_by_role("button", name="Remove blank 1").click()
    assert page.input_value("#text") == "alpha gamma[[3]]"
    page.keyboard.press("Control+z")


def test_a_chat_model_is_asked(visit, script):
    script.chat = True
    page = ready(visit())
    expect(page.locator("#verb")).to_have_text("Ask")
    pane = run(page, "Why?")
    assert script.bodies[0]["messages"] == [{"role": "user", "content": "Why?"}]
    assert "prompt" not in script.bodies[0]
    assert pane.locator("[data-at]").count() == 48
    page.uncheck("#chat")
    expect(page.locator("#verb")).to_have_text("Continue")
    run(page)
    assert script.bodies[1]["prompt"] == "Why?"


def test_a_text_is_shown_as_text_whatever_it_spells(visit):
    page = ready(visit())
    pane = run(page, "<img src=x onerror=alert(1)>[[2]]<b>")
    assert page.locator(".canvas img, .canvas b").count() == 0
    assert words(pane).startswith("<img src=x")


# Watching


def test_steps_are_scrubbed_and_played(visit):
    page = ready(visit(reduced_motion="no-preference"))
    page.select_option("#watch .speed select", "16")
    pane = run(page, TWO)
    scrub = page.locator("#watch .scrub")
    expect(page.locator("#watch .pane")).to_have_class(re.compile("complete"))
    expect(scrub).to_have_attribute("aria-valuetext", "step 4 of 4, block 1")
    scrub.focus()
    page.keyboard.press("Home")
    expect(pane.locator(".canvas .blank")).to_have_count(7)
    page.keyboard.press("ArrowRight")
    expect(pane.locator(".canvas .blank")).to_have_count(5)
    expect(pane.locator(".forwards")).to_have_text("1")
    expect(pane.locator(".fresh")).to_have_count(2)
    page.select_option("#watch .speed select", "0.25")
    page.get_by_role("button", name="Play").click()
    page.get_by_role("button", name="Pause").click()
    expect(pane.locator(".canvas .blank")).not_to_have_count(0)
    page.select_option("#watch .speed select", "16")
    page.get_by_role("button", name="Play").click()
    expect(pane.locator(".canvas .blank")).to_have_count(0)
    expect(page.get_by_role("button", name="Play")).to_be_visible()


def test_what_is_taken_back_is_shown_as_it_goes(visit):
    page = ready(visit())
    page.click("summary")
    page.select_option("#decoder", "wino")
    pane = run(page, TWO)
    page.locator("#watch .scrub").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(pane.locator(".canvas .gone")).to_have_count(1)
    assert pane.locator(".canvas .gone").evaluate("e => getComputedStyle(e).animationName") == "none"  # reduced motion
    page.emulate_media(reduced_motion="no-preference")
    assert pane.locator(".canvas .gone").evaluate("e => getComputedStyle(e).animationName") == "blink"


def test_a_token_tells_its_alternatives_and_when_it_was_written(visit):
    page = ready(visit())
    page.click("summary")
    page.select_option("#decoder", "wino")
    pane = run(page, TWO)
    again = pane.locator(".fresh").first  # it was taken back once
    again.hover()
    tip = page.get_by_role("tooltip")
    expect(tip.locator("li")).to_have_count(5)
    expect(tip).to_contain_text(re.compile(r"\d+(\.\d)? % sure"))
    expect(tip).to_contain_text("written in block 1, step 1 (forward 1)")
    expect(tip).to_contain_text("taken back in block 1, step 2")
    assert again.get_attribute("aria-describedby") == "tip"
    tip.hover()
    page.wait_for_timeout(300)
    expect(tip).to_be_visible()  # it can be hovered itself
    page.mouse.move(2, 2)
    expect(tip).to_be_hidden()


def test_everything_can_be_done_by_keyboard(visit, script):
    page = ready(visit())
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the text")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#text")).to_be_focused()
    page.keyboard.press("Control+a")
    page.keyboard.type("one two")
    page.keyboard.press("Control+Shift+ArrowLeft")
    page.keyboard.press("Control+b")
    page.keyboard.type("4")
    assert page.input_value("#text") == "one[[4]]"
    page.keyboard.press("Control+Enter")
    ended(page)
    assert script.bodies[0]["prompt"] == "one[[4]]"
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.at"):
            break
    first = page.locator(":focus").get_attribute("data-at")
    page.keyboard.press("ArrowRight")
    assert page.locator(":focus").get_attribute("data-at") != first
    expect(page.get_by_role("tooltip")).to_be_visible()
    outline = page.locator(":focus").evaluate("e => getComputedStyle(e).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Escape")
    expect(page.get_by_role("tooltip")).to_be_hidden()
    page.keyboard.press("Enter")
    expect(page.get_by_role("tooltip")).to_be_visible()
    page.locator("#tab-watch").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-race")).to_be_focused()
    expect(page.locator("#race")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#watch [data-at]")).to_have_count(4)  # the run is still there


def test_a_screen_reader_hears_the_beginning_and_the_end(visit):
    page = ready(visit())
    page.evaluate("""() => {
        window.heard = [];
        const live = document.getElementById("live");
        new MutationObserver(() => heard.push(live.textContent)).observe(live, { childList: true });
    }""")
    run(page)
    heard = page.evaluate("heard")
    assert heard == ["Running.", "Done, Decoder confidence: 10 tokens in 5 forwards, 2.0 a forward, 0.15 seconds."]
    tokens = page.locator("#watch .canvas [role=button]")
    assert re.fullmatch(r"“.+”, \d+(\.\d)? %", tokens.first.get_attribute("aria-label") or "")
    for control in page.locator("button:visible, input:visible, select:visible, textarea:visible").all():
        name = control.evaluate("e => e.ariaLabel || e.labels?.[0]?.textContent || e.textContent")
        assert name.strip(), control.evaluate("e => e.outerHTML")


# Comparing


def test_two_decoders_run_side_by_side(visit, script):
    page = ready(visit(reduced_motion="no-preference"))
    for stage in ("#watch", "#race"):
        page.locator(f"{stage} .speed select").evaluate("e => { e.value = 16; e.dispatchEvent(new Event('change')) }")
    page.select_option("#with", "threshold")
    page.fill("#with-tau", "0.5")
    panes = run(page, TWO)
    expect(panes).to_have_count(2)
    assert [body["decoder"] for body in script.bodies] == ["confidence", "threshold(tau=0.5)"]
    expect(panes.nth(1)).to_have_class(re.compile("complete"))
    expect(panes.locator(".forwards")).to_have_text(["4", "3"])
    expect(panes.locator(".rate")).to_have_text(["1.75", "2.33"])
    expect(panes.locator(".seconds")).to_have_text(["0.12", "0.09"])
    expect(page.locator("#watch .sum")).to_contain_text("1.3 times more forwards and 1.3 times more time")
    page.locator("#watch .scrub").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    expect(panes.locator(".forwards")).to_have_text(["1", "1"])  # in step


def test_the_second_tab_compares_with_one_token_at_a_time(visit, script):
    page = ready(visit())
    page.fill("#text", TWO)
    page.click("#tab-race")
    expect(page.locator("#race .about")).to_contain_text("both continue the text before the first")
    expect(page.locator("#race .about")).to_contain_text("confidence writes one token a forward unless")
    page.click("summary")
    page.fill("#length", "8")
    panes = run(page)
    expect(panes).to_have_count(2)
    first, second = script.bodies
    assert first["prompt"] == second["prompt"] == "def f(x):"
    assert (second["block"], second["cache"], second["decoder"]) == (1, "causal", "confidence")
    expect(panes.locator(".forwards")).to_have_text(["4", "8"])
    expect(page.locator("#race .sum")).to_contain_text("2.0 times fewer forwards and 2.0 times less time")
    expect(page.locator("#race .verdict")).to_contain_text("characters typed a second")


def test_a_model_without_such_a_mode_says_so(visit, script):
    script.attention = "full"
    page = ready(visit())
    page.click("#tab-race")
    expect(page.locator("#race .about")).to_contain_text("no autoregressive mode")
    expect(page.locator("#go")).to_be_disabled()
    script.attention = "block"
    page = ready(visit())
    expect(page.locator("#blank")).to_be_disabled()
    expect(page.locator("#how")).to_contain_text("cannot see what follows a blank")
    assert "[[" not in page.input_value("#text")


# Looks


def luminance(colour: str) -> float:
    """Of `rgb(r, g, b)`, as WCAG defines it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(front: str, back: str) -> float:
    low, high = sorted(map(luminance, (front, back)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_themes_can_be_read(visit, scheme):
    page = ready(visit(color_scheme=scheme))
    run(page)
    found = page.evaluate("""() => {
        const solid = (e) => { const c = getComputedStyle(e).backgroundColor; return c === "rgba(0, 0, 0, 0)"
            ? (e.parentElement ? solid(e.parentElement) : "rgb(255, 255, 255)") : c; };
        const seen = [...document.querySelectorAll("main *, header *, footer *")].filter((e) => e.checkVisibility()
            && !e.disabled && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())
            && !e.closest(".unseen, #mirror"));
        return seen.map((e) => [e.className + " " + e.textContent.slice(0, 20), getComputedStyle(e).color, solid(e)]);
    }""")
    assert len(found) > 40
    poor = [(name, round(contrast(front, back), 2)) for name, front, back in found if contrast(front, back) < 4.5]
    assert poor == []
    dark = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) < 0.5
    assert dark == (scheme == "dark")
    page.click("#theme")
    assert dark != (luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) < 0.5)
    page.reload()
    assert dark != (luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) < 0.5)


def test_a_phone_shows_everything_without_scrolling_sideways(visit):
    page = ready(visit(viewport={"width": 375, "height": 740}, has_touch=True))
    wide = "document.documentElement.scrollWidth"
    assert page.evaluate(wide) <= 375
    page.click("summary")
    page.select_option("#with", "wino")
    assert page.evaluate(wide) <= 375
    panes = run(page, TWO + "x" * 120)
    assert page.evaluate(wide) <= 375
    panes.first.locator("[data-at]").first.tap()
    expect(page.get_by_role("tooltip")).to_be_visible()
    assert page.evaluate(wide) <= 375
    page.click("#tab-race")
    run(page)
    assert page.evaluate(wide) <= 375


def test_files_are_small_and_ask_nobody_else():
    for file in PAGE.iterdir():
        lines = file.read_text(encoding="utf-8").split("\n")
        assert len(lines) <= 400, file.name
        assert max(map(len, lines)) <= 120, file.name
        said = "".join(lines)
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", said), file.name
        assert not re.search(r"\son\w+=|style=|\beval\(|innerHTML|insertAdjacentHTML", said), file.name
