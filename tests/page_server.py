"""A small server for the page's tests: it serves the page as it is and answers with scripted runs, no model needed."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import unveil.serve
from unveil.codecs.blanks import BLANK

PAGE = Path(unveil.serve.__file__).parent / "page"
KINDS = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
START, MASK = 0, 99
WORDS = [" self", " value", "(", ")", ":", "\n    ", " return", " None", " =", " items", ".", "append", " if", " not"]
DECODERS = [
    {
        "name": "confidence",
        "about": "Commit the surest tokens, an equal share every step.",
        "options": {"temperature": "0.0", "top_p": "1.0"},
    },
    {
        "name": "threshold",
        "about": "Commit every token that is sure enough.",
        "options": {"tau": "0.9", "top_p": "1.0"},
    },
    {
        "name": "wino",
        "about": "Write generously, verify, and take back what no longer fits.",
        "options": {"tau": "0.6"},
    },
]
CACHES = [
    {"name": "recompute", "about": "Keep nothing.", "options": {}},
    {"name": "causal", "about": "Exact.", "options": {}},
]


@dataclass
class Script:
    """How the server behaves; a test changes it."""

    name: str = "toy-dlm"
    key: str = ""  # that a request must bring
    delay: float = 0.0  # seconds before each step
    refuse: tuple[int, str] | None = None  # status and sentence of every completion
    breaks: bool = False  # does the stream end after two steps, without a word?
    down: bool = False  # is the worker away?
    attention: str = "leader"
    chat: bool = False
    bodies: list[dict[str, Any]] = field(default_factory=list)  # requests for text, as they came
    left: int = 0  # streams whose reader went away

    def models(self) -> dict[str, Any]:
        about = {
            "attention": self.attention, "block": 4, "context_length": 512, "vocab": 99, "parameters": 5_000_000,
            "device": "cpu", "dtype": "float32", "decoders": DECODERS, "caches": CACHES, "guides": [],
            "chat": self.chat, "autoregressive": self.attention == "leader",
            "defaults": {"decoder": "confidence", "cache": None, "block": None, "steps": None},
        }  # fmt: skip
        return {"object": "list", "data": [{"id": self.name, "object": "model", "unveil": about}]}

    def events(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """A run: the canvas, its steps and its end. What is written follows from the text, the seed and the place."""
        tokens: list[dict[str, Any]] = [{"text": "", "blank": False, "token": START}]
        prompt, end = body["prompt"] if "prompt" in body else body["messages"][0]["content"], 0
        for found in BLANK.finditer(prompt) if body.get("blanks") else ():
            tokens += given(prompt[end : found.start()])
            tokens += [{"text": "", "blank": True}] * int(found[1] or body["max_tokens"])
            end = found.end()
        tokens += given(prompt[end:])
        if not body.get("blanks"):
            tokens += [{"text": "", "blank": True}] * body["max_tokens"]
        blanks = [at for at, token in enumerate(tokens) if token["blank"]]
        yield {"object": "unveil.canvas", "id": "r", "choices": [{"index": 0, "mask_id": MASK, "tokens": tokens}]}
        spec, seed = body["decoder"], body["seed"]
        width = 1 if body.get("block") == 1 else {"threshold": 3, "wino": 4}.get(spec.split("(")[0], 2)
        order = blanks if width == 1 else sorted(blanks, key=lambda at: (at * 7 + seed) % 11)
        steps: list[tuple[list[int], list[int]]] = [(order[i : i + width], []) for i in range(0, len(order), width)]
        if spec.startswith("wino") and len(order) > 2:
            steps[1:1] = [([], order[:1])]
            steps.append((order[:1], []))
        final = {at: WORDS[(at * 5 + seed * 3 + len(prompt)) % len(WORDS)] for at in blanks}
        for number, (places, back) in enumerate(steps, 1):
            written = [write(at, final[at], (at * 13 + number * 7) % 10) for at in places]
            yield {"object": "unveil.step", "id": "r", "choices": [{
                "index": 0, "block": 1, "step": number, "forwards": number, "final": 0, "seconds": 0.03 * number,
                "written": written, "taken_back": back,
            }]}  # fmt: skip
        told = range(len(tokens)) if body.get("blanks") else blanks
        text = "".join(final.get(at, tokens[at]["text"]) for at in told)
        rate = len(blanks) / len(steps)
        usage = {"completion_tokens": len(blanks), "forwards": len(steps), "tokens_per_forward": rate}
        yield {"object": "unveil.done", "id": "r", "choices": [{"index": 0, "text": text, "finish_reason": "length"}],
               "usage": usage}  # fmt: skip


def given(text: str) -> list[dict[str, Any]]:
    return [{"text": each, "blank": False, "token": 1 + len(each)} for each in re.findall(r"\s*\S+|\s+", text)]


def write(at: int, text: str, unsure: int) -> dict[str, Any]:
    """One written token with five alternatives."""
    first = 0.99 - 0.09 * unsure
    words = [text, *(word for word in WORDS if word != text)][:5]
    shares = [first, *((1 - first) / 2**k for k in range(1, 5))]
    top = [
        {"token": 10 + WORDS.index(word), "text": word, "logprob": math.log(share)}
        for word, share in zip(words, shares, strict=True)
    ]
    return {"at": at, **top[0], "top": top}


class Answer(BaseHTTPRequestHandler):
    script: Script
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        """A test prints nothing."""

    def whole(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", "default-src 'self'")
        self.end_headers()
        self.wfile.write(content)

    def error(self, status: int, message: str) -> None:
        self.whole(status, json.dumps({"error": {"message": message}}).encode(), "application/json")

    def barred(self) -> bool:
        wrong = bool(self.script.key) and self.headers["Authorization"] != f"Bearer {self.script.key}"
        if wrong:
            self.error(401, "This key is not known here.")
        return wrong

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            if self.script.down:
                self.error(503, "The model's process stopped and is being started again.")
            elif not self.barred():
                self.whole(200, json.dumps(self.script.models()).encode(), "application/json")
            return
        name = "index.html" if self.path == "/" else self.path.removeprefix("/page/")
        if (file := PAGE / name).is_file():
            self.whole(200, file.read_bytes(), KINDS[file.suffix])
        else:
            self.error(404, "There is nothing here.")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.barred():
            return
        self.script.bodies.append(body)
        if self.script.refuse:
            self.error(*self.script.refuse)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            for number, event in enumerate(self.script.events(body)):
                if number:
                    time.sleep(self.script.delay)
                if self.script.breaks and number == 3:
                    return
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                self.wfile.flush()
            self.wfile.write(b"data: [DONE]\n\n")
        except (BrokenPipeError, ConnectionResetError):
            self.script.left += 1


class Server(ThreadingHTTPServer):
    daemon_threads = True


def serve(script: Script) -> Server:
    """A running server on a free port; `shutdown` and `server_close` end it."""
    server = Server(("127.0.0.1", 0), type("Scripted", (Answer,), {"script": script}))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server


def address(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_port}/"
