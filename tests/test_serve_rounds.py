"""What an engine says in one round reaches a client in one piece: in order, whatever happens in the middle."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator

import pytest
from toy_http import Toy

from unveil.serve.messages import Admitted, Done, Event, Step, Submit, Write

BETWEEN = 0.0  # rounds


@pytest.fixture
def toy():
    found = Toy()
    found.link.quick = True
    return found


def rounds(toy: Toy, length: int = 4, wrong: tuple[int, int] | None = None) -> Callable[[Submit], Iterator]:
    """Every row writes a token a round from left to right; `wrong` is a round and a row that fails in it."""

    def script(order: Submit) -> Iterator[Event | float]:
        yield Admitted(order.id, [0] * len(order.rows))
        for number in range(length):
            yield BETWEEN
            for row, each in enumerate(order.rows):
                at = each.tokens.index(toy.text.mask_id) + number
                token = toy.link.spoken[(number + row) % len(toy.link.spoken)]
                if (number, row) == wrong:
                    yield Done(order.id, row, "failed", number, 0.1, 0.0)
                yield Step(order.id, row, number + 1, 1, number + 1, [Write(at, token, -0.5)], [], at + 1)
        for row in range(len(order.rows)):
            yield Done(order.id, row, "length", length, 0.1, 0.0)

    return script


def sent(toy: Toy, leaves: int | None = None, **body) -> list[bytes]:
    """The pieces in which a stream goes out; the client leaves after so many of them."""
    content = json.dumps({"prompt": "def", "max_tokens": 4, "stream": True, **body}).encode()
    pieces: list[bytes] = []
    head = [(b"content-type", b"application/json"), (b"host", b"localhost")]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": head, "query_string": b""}
    scope |= {"http_version": "1.1", "scheme": "http", "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1)}

    async def run() -> None:
        gone = asyncio.Event()
        asked = iter([{"type": "http.request", "body": content}])

        async def receive() -> dict:
            if (message := next(asked, None)) is not None:
                return message
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict) -> None:
            pieces.append(message.get("body", b""))
            if leaves is not None and len(pieces) > leaves:
                gone.set()
                await asyncio.sleep(0)  # as a socket would
                await asyncio.sleep(0)

        async with asyncio.timeout(20):
            await toy.app(scope, receive, send)

    asyncio.run(run())
    return [piece for piece in pieces if piece]


def chunks(pieces: list[bytes]) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in b"".join(pieces).decode().split("\n\n") if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@pytest.mark.parametrize("mode", ["text", "denoise"])
def test_a_round_is_one_piece_and_says_the_same(toy, mode):
    toy.link.script = rounds(toy)
    together = sent(toy, n=3, seed=1, stream_mode=mode)
    toy.link.quick = False
    apart = sent(toy, n=3, seed=1, stream_mode=mode)
    assert len(apart) > 3 * 4
    # Four rounds and [DONE]; the canvas before and the finished text after, where every step is told.
    assert len(together) == (5 if mode == "text" else 7)
    steps = [each for each in chunks(together) if each["object"] != "unveil.done"]
    rows = [each["choices"][0]["index"] for each in steps if len(each["choices"]) == 1]
    assert rows == [0, 1, 2] * 4
    if mode == "denoise":
        same = [[{**each, "id": "", "created": 0} for each in chunks(found)] for found in (together, apart)]
    else:
        same = [joined(chunks(found)) for found in (together, apart)]
    assert same[0] == same[1]


def joined(found: list[dict]) -> list[tuple[str, list]]:
    """Each choice's text, and what is said at its end; pieces that come together are one chunk."""
    choices = [choice for each in found for choice in each["choices"]]
    rows = [[choice for choice in choices if choice["index"] == row] for row in range(3)]
    assert all(row[-1]["finish_reason"] and not any(one["finish_reason"] for one in row[:-1]) for row in rows)
    return [("".join(one["text"] for one in row), [row[-1]["finish_reason"], row[-1]["seed"]]) for row in rows]


def test_a_stop_string_ends_one_row_in_the_middle_of_a_round(toy):
    toy.link.script = rounds(toy, 6)
    whole = toy.text.decode(toy.link.spoken[:6])
    stop = toy.text.decode(toy.link.spoken[:3])[len(toy.text.decode(toy.link.spoken[:2])) :]
    found = chunks(sent(toy, n=2, max_tokens=6, stop=stop))
    texts = ["".join(c["text"] for e in found for c in e["choices"] if c["index"] == row) for row in (0, 1)]
    assert texts[0] == whole[: whole.index(stop)]
    other = toy.text.decode(toy.link.spoken[1:7])
    assert texts[1] == other[: other.index(stop)]
    assert [e["choices"][0]["finish_reason"] for e in found if e["choices"][0]["finish_reason"]] == ["stop", "stop"]
    assert {row for _, row in toy.link.cancelled} == {0, 1}
    assert toy.link.open == 0


@pytest.mark.parametrize("mode", ["text", "denoise"])
def test_what_came_before_a_failure_is_told(toy, mode):
    toy.link.script = rounds(toy, wrong=(1, 1))
    found = chunks(sent(toy, n=3, stream_mode=mode))
    *told, error = [each for each in found if each.get("object") != "unveil.canvas"]
    assert [each["choices"][0]["index"] for each in told] == [0, 1, 2, 0]
    assert "something went wrong" in error["error"]["message"]
    assert toy.link.open == 0


def test_a_client_that_leaves_in_the_middle_of_a_round_is_forgotten(toy):
    toy.link.script = rounds(toy, 40)
    pieces = sent(toy, leaves=3, n=2, max_tokens=40)
    assert 3 <= len(pieces) < 10
    assert toy.link.open == 0
    assert len(sent(toy, n=2, max_tokens=40)) == 41
