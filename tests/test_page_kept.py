"""The page in a real browser: what is kept of a run, what goes wrong, and a real server behind it."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as xml
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import TWO, chromium, ended, expect, ready, run, scripted, visiting, words
from page_server import MASK, Script

from unveil.codecs.text import Text
from unveil.folder import locate
from unveil.watch.trace import read

TOP = Path(__file__).parent.parent


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


# Keeping


def test_a_shared_link_gives_the_same_text(visit, script):
    page = ready(visit())
    page.click("summary")
    page.fill("#seed", "7")
    page.select_option("#with", "wino")
    said = words(run(page, TWO + " # 100 % & #[[2]]").first)
    link = page.url.partition("#")[2]
    page.click("#link")
    assert page.locator("#link").text_content() == "Link copied" or page.input_value("#address").endswith(link)
    other = visit(f"#{link}")
    panes = ended(other)
    assert words(panes.first) == said
    assert script.bodies[0] == script.bodies[2]
    assert script.bodies[1] == script.bodies[3]
    other.reload()
    assert words(ended(other).first) == said
    script.name = "another-dlm"
    third = visit(f"#{link}")
    expect(third.locator("#notice")).to_contain_text("made with the model toy-dlm; this server runs another-dlm")
    assert words(ended(third).first) == said


@pytest.mark.parametrize("decoder", ["confidence", "wino"])
def test_a_saved_trace_is_read_by_unveil_watch(visit, tmp_path, decoder):
    page = ready(visit())
    page.click("summary")
    page.select_option("#decoder", decoder)
    page.fill("#temperature", "0.4")
    pane = run(page, TWO)
    with page.expect_download() as saved:
        pane.get_by_role("button", name="Save trace").click()
    path = tmp_path / "run.jsonl"
    saved.value.save_as(path)
    trace = read(path)
    header = trace.header
    assert (header.model, header.tokenizer, header.mask_id, header.seeds) == ("toy-dlm", "toy-dlm", MASK, [0])
    assert (header.decoder, header.cache) == (f"{decoder}(temperature=0.4)", "recompute")
    assert header.rows[0].count(MASK) == 7
    frames = list(trace.frames())
    assert len(frames) == 5
    assert MASK not in frames[-1].tokens[0]
    assert sum(len(frame.taken_back[0]) for frame in frames) == (decoder == "wino")
    assert all(0 < p <= 1 for frame in frames for p in frame.written[0].values())


def test_a_saved_animation_is_a_picture_by_itself(visit, tmp_path):
    page = ready(visit())
    page.click("summary")
    page.select_option("#decoder", "wino")
    pane = run(page, "a <b> & 'c'[[5]]\n\x0b\ttail[[4]]" + " long line" * 12)
    with page.expect_download() as saved:
        pane.get_by_role("button", name="Save animation").click()
    assert saved.value.suggested_filename == "unveil-Decoder-wino.svg"
    path = tmp_path / "run.svg"
    saved.value.save_as(path)
    root = xml.parse(path).getroot()
    name = "{http://www.w3.org/2000/svg}"
    moves = root.findall(f".//{name}animate")
    assert len(moves) > 9
    assert {each.get("repeatCount") for each in moves} == {"indefinite"}
    for each in moves:
        times = [float(time) for time in (each.get("keyTimes") or "").split(";")]
        assert len(times) == len((each.get("values") or "").split(";"))
        assert times[0] == 0
        assert times == sorted(set(times))
        assert times[-1] <= 1
    assert "href" not in path.read_text()
    assert "<script" not in path.read_text()
    assert "tail" in "".join(root.itertext())


# Trouble


def test_stop_ends_the_request(visit, script):
    script.delay = 0.3
    page = ready(visit())
    page.fill("#text", TWO)
    page.click("#go")
    expect(page.locator("#watch .token").nth(6)).to_be_attached()  # the first step, beside the legend
    page.click("#stop")
    pane = ended(page)
    expect(pane.locator(".outcome")).to_have_text("Stopped.")
    expect(pane.locator(".canvas .blank")).not_to_have_count(0)
    page.wait_for_timeout(700)
    assert script.left == 1
    script.delay = 0.0
    run(page)
    expect(pane.locator(".canvas .blank")).to_have_count(0)


def test_what_goes_wrong_is_said_in_the_servers_words(visit, script):
    page = ready(visit())
    script.refuse = (400, "temperature is -1; expected 0 or more.")
    page.click("#go")
    notice = page.get_by_role("alert")
    expect(notice).to_have_text("temperature is -1; expected 0 or more.")
    script.refuse = (429, "The queue is full.")
    page.click("#go")
    expect(notice).to_contain_text("The queue is full.")
    script.refuse, script.breaks = None, True
    page.click("#go")
    expect(notice).to_contain_text("before the run was finished")
    script.breaks = False
    run(page)
    expect(notice).to_be_empty()


def test_a_server_that_is_away_is_waited_for(visit, script):
    script.down = True
    page = visit()
    expect(page.get_by_role("alert")).to_have_text("The model's process stopped and is being started again.")
    script.down = False
    ready(page)
    expect(page.get_by_role("alert")).to_be_empty()
    page.route("**/v1/completions", lambda route: route.abort("connectionrefused"))
    page.click("#go")
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")


def test_a_key_is_asked_for_and_kept_in_memory(visit, script):
    script.key = "sesame"
    page = visit()
    page.fill("#key", "wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("This key is not known here.")
    page.fill("#key", "sesame")
    page.keyboard.press("Enter")
    run(ready(page))
    kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])")
    assert "sesame" not in kept


# A real server


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Iterator[str]:
    pytest.importorskip("fastapi", reason="a server needs the extra serve")
    command = [sys.executable, "-m", "unveil", "serve", "stdlib-dlm", "--port", "0", "--threads", "1", "--json"]
    with (tmp_path_factory.mktemp("server") / "errors").open("w") as errors:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, cwd=TOP)
        assert server.stdout is not None
        try:
            yield json.loads(server.stdout.readline())["url"]
        finally:
            server.terminate()
            server.wait(30)
            server.stdout.close()


def test_the_embedded_model_fills_its_example(visit, real, tmp_path):
    page = visit(base_url=real)
    pane = run(ready(page))
    said = words(pane)
    assert said.startswith("def read(path):\n    try:\n        with open(")
    assert said.endswith("\n        return None")
    assert "\n            return f.read()\n    except" in said
    expect(pane.locator("[data-at]")).to_have_count(10)
    pane.locator("[data-at]").first.hover()
    expect(page.get_by_role("tooltip").locator("li")).to_have_count(5)
    with page.expect_download() as saved:
        pane.get_by_role("button", name="Save trace").click()
    saved.value.save_as(tmp_path / "run.jsonl")
    trace = read(tmp_path / "run.jsonl")
    text = Text.load(locate(trace.header.tokenizer))
    assert text.decode(list(trace.frames())[-1].tokens[0]) == said
    page.click("#tab-race")
    page.click("summary")
    page.fill("#length", "12")
    page.fill("#steps", "3")
    panes = run(page)
    fewer, all_ = (int(each) for each in panes.locator(".forwards").all_text_contents())
    assert fewer < all_ == 12
    assert all(words(each).startswith("def read(path):\n    try:\n        with open(") for each in panes.all())
    race = [words(each) for each in panes.all()]
    other = visit(page.url[page.url.index("#") :], base_url=real)
    assert [words(each) for each in ended(other).all()] == race
