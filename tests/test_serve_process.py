"""Whole servers: faults that they survive, signals that end them, and what is said of wrong options."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import scripted
import torch
import uvicorn
from models import TINY

from unveil import cli, hub
from unveil.attention import Attention
from unveil.cli.serve import keys, size
from unveil.codecs.train import train_tokenizer
from unveil.nn.shift import Shifted
from unveil.nn.transformer import Transformer
from unveil.serve import listen
from unveil.serve.journal import Journal
from unveil.serve.limits import Limits

TOP = Path(__file__).parent.parent
PATIENCE = 30.0  # seconds; a loaded machine is slow
KEY = {"headers": {"Authorization": "Bearer sesame"}}


class Server:
    """A server in a process of its own."""

    def __init__(self, command: list[str], errors, **environment: str):
        self.errors = errors
        with open(errors, "w") as told:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=told, cwd=TOP, env={**os.environ, **environment}
            )
        line = self.process.stdout.readline()
        assert line, errors.read_text()
        self.url = json.loads(line)["url"]
        self.port = int(self.url.rpartition(":")[2])

    def ask(self, tokens: int = 3, prompt=(0,), **more):
        body = {"model": "scripted", "prompt": list(prompt), "max_tokens": tokens, **more}
        return httpx.post(f"{self.url}/v1/completions", json=body, timeout=30, **KEY)

    def asking(self, tokens: int, prompt=(0,), **more):
        body = {"model": "scripted", "prompt": list(prompt), "max_tokens": tokens, "stream": True, **more}
        return httpx.stream("POST", f"{self.url}/v1/completions", json=body, timeout=30, **KEY)

    def metric(self, name: str) -> float:
        lines = httpx.get(f"{self.url}/metrics", timeout=30, **KEY).text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    def await_metric(self, name: str, value: float, seconds: float = PATIENCE) -> None:
        end = time.monotonic() + seconds
        while (found := self.metric(name)) != value:
            assert time.monotonic() < end, f"{name} is {found}, not {value}"
            time.sleep(0.02)

    def await_refusal(self, seconds: float = PATIENCE) -> None:
        """Until new connections are refused."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                httpx.get(f"{self.url}/health", timeout=30)
            except httpx.TransportError:
                return
            time.sleep(0.02)
        raise AssertionError("it still accepts connections")

    @property
    def engine(self) -> int:
        """The process id of the engine."""
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def kill_engine(self) -> None:
        os.kill(self.engine, signal.SIGKILL)

    def end(self) -> int:
        """Its exit status."""
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def started():
    """Starts servers, none of which outlives a test that fails."""
    servers: list[Server] = []

    def start(*given, **environment: str) -> Server:
        servers.append(Server(*given, **environment))
        return servers[-1]

    yield start
    for each in servers:
        each.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """With a scripted engine, and a log on a disk that is full."""
    place = tmp_path_factory.mktemp("scripted")
    found = Server(scripted.command(place, "/dev/full", call="serve"), place / "errors")
    yield found
    with found.asking(2000) as answer:
        lines = answer.iter_lines()
        next(lines)
        found.process.terminate()
        found.await_refusal()
        began = time.monotonic()
        found.process.send_signal(signal.SIGINT)
        assert found.end() == 1, "a second signal stops at once"
        assert time.monotonic() - began < 10
    errors = (place / "errors").read_text()
    assert errors.count("no space left on device") == 1
    assert "Traceback" not in errors


def fine(server) -> None:
    """A normal request is answered."""
    found = server.ask(3)
    assert found.status_code == 200, found.text
    assert found.json()["usage"]["completion_tokens"] == 3


def test_a_log_on_a_full_disk_is_counted(server):
    fine(server)
    assert server.metric("unveil_log_lines_dropped_total") >= 2


def test_connections_left_idle(server):
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(500)]
    idle[0].sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Le")
    fine(server)
    for each in idle:
        each.close()
    fine(server)


def test_a_client_that_goes_away_frees_its_slot(server):
    left = server.metric("unveil_abandoned_requests_total")
    with server.asking(2000) as answer:
        lines = answer.iter_lines()  # closed with its last reference
        next(lines)
        server.await_metric("unveil_running_requests", 1)
    server.await_metric("unveil_abandoned_requests_total", left + 1)
    server.await_metric("unveil_running_rows", 0)
    fine(server)


def test_clients_that_do_not_read(server):
    request = {"model": "scripted", "prompt": [0, scripted.FLOOD], "max_tokens": 3000, "stream": True}
    body = json.dumps({**request, "stream_mode": "denoise"}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # or the system itself would take the whole answer
        slow.connect(("127.0.0.1", server.port))
        slow.sendall(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        assert slow.recv(12) == b"HTTP/1.1 200"  # it is being answered, and nothing more is read
        fine(server)
    server.await_metric("unveil_running_rows", 0)


def test_the_death_of_the_engine_mid_stream(server):
    with server.asking(2000) as answer:
        lines = answer.iter_lines()
        next(lines)
        server.kill_engine()
        rest = [line for line in lines if line]
    assert "engine" in json.loads(rest[-2].removeprefix("data: "))["error"]["message"]
    assert rest[-1] == "data: [DONE]"
    found = server.ask()
    assert found.status_code in (200, 503)
    server.await_metric("unveil_up", 1)
    assert server.metric("unveil_engine_restarts_total") == 1
    fine(server)


def test_three_deaths_end_the_server(started, tmp_path):
    server = started(scripted.command(tmp_path, str(tmp_path / "log"), "fragile", call="serve"), tmp_path / "errors")
    with server.asking(2000) as answer:
        lines = answer.iter_lines()
        next(lines)
        server.kill_engine()
        assert "data: [DONE]" in list(lines)
    assert server.end() == 1
    told = server.errors.read_text().splitlines()
    assert told[-1] == (
        "unveil: the engine's process ended with status 4; that is 3 times within 60 s, so it is not started again"
    )
    assert "Traceback" not in "".join(told)


# A real one


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny checkpoint, and a file with a key."""
    place = tmp_path_factory.mktemp("real")
    text = train_tokenizer(["def f(x):\n    return x\n"], 270)
    mask = text.add_mask()
    torch.manual_seed(0)
    model = Transformer(replace(TINY, vocab=text.vocab, mask_id=mask, context=2048, qk_norm=None))
    model.attention, model.mask_id = Attention("leader", 8), mask
    hub.save(Shifted(model), place / "scripted", text)
    (place / "keys").write_text("# ours\n\nsesame\n")
    return place


def test_a_server_from_its_start_through_a_death_to_its_drain(started, place):
    command = [sys.executable, "-m", "unveil", "serve", str(place / "scripted"), "--port", "0", "--json"]
    options = ["--threads", "1", "--memory", "64MB", "--api-keys", str(place / "keys"), "--log", str(place / "log")]
    server = started([*command, *options], place / "errors", OMP_NUM_THREADS="1")
    assert httpx.post(f"{server.url}/v1/completions", json={}).status_code == 401
    fine(server)
    with server.asking(1800) as answer:
        lines = answer.iter_lines()  # closed with its last reference
        next(lines)
        server.await_metric("unveil_running_requests", 1)
    server.await_metric("unveil_running_rows", 0)
    with server.asking(1800) as answer:
        lines = answer.iter_lines()
        next(lines)
        server.kill_engine()
        assert any("engine" in line for line in lines)
    server.await_metric("unveil_up", 1)
    fine(server)
    with server.asking(200) as answer:
        lines = answer.iter_lines()
        next(lines)
        server.process.terminate()
        server.await_refusal()
        rest = [line for line in lines if line]
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] in ("length", "stop")
    assert rest[-1] == "data: [DONE]"
    assert server.end() == 0
    assert "Traceback" not in server.errors.read_text()
    log = (place / "log").read_text()
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert [each for each in events if each not in ("request", "answer")] == ["ready", "died", "ready", "drain", "end"]
    assert "sesame" not in log


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["nowhere/at/all"], "there is no folder"),
        (["--decoder", "best"], "no decoder called 'best'; there are: ahd"),
        (["--cache", "big"], "no cache called 'big'"),
        (["--decoder", "confidence(tau"], "expected name"),
        (["--steps", "0"], "--steps is 0; expected more than 0"),
        (["--timeout", "nan"], "--timeout is nan"),
        (["--drain", "-1"], "--drain is -1"),
        (["--stream-interval", "-1"], "--stream-interval is -1"),
        (["--port", "70000"], "--port is 70000"),
        (["--host", "192.0.2.1"], "cannot listen at 192.0.2.1 port 8000: cannot assign"),
        (["--host", "no host"], "is not an address of this machine"),
        (["--memory", "lots"], "expected a size such as 500MB"),
        (["--max-body", "0"], "expected a size such as"),
        (["--cors", "https://a.org/page"], "without a path"),
        (["--api-keys", "/dev/null"], "/dev/null holds no key"),
        (["--api-keys", "missing"], "no such file or directory: missing"),
        (["--chat-template", "missing"], "no such file or directory: missing"),
        (["--log", "/missing/log", "--port", "0"], "no such file or directory: /missing/log"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(monkeypatch, capsys, options, sentence):
    assert refused(monkeypatch, *options) == 2
    told = capsys.readouterr().err.splitlines()
    assert sentence in told[-1]


def refused(monkeypatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["unveil", "serve", *options])
    with pytest.raises(SystemExit) as found:
        cli.main()
    return found.value.code


def test_a_port_in_use(monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert refused(monkeypatch, "--port", str(port)) == 2
    assert f"cannot listen at 127.0.0.1 port {port}: address already in use" in capsys.readouterr().err


def test_beyond_loopback_without_keys_is_said(monkeypatch, capsys, tmp_path):
    (tmp_path / "template").write_text("{{ raise_exception('no') }}")
    options = ["--host", "0.0.0.0", "--port", "0", "--chat-template", str(tmp_path / "template")]
    assert refused(monkeypatch, *options) == 2  # for the template, once it listens nowhere yet
    told = capsys.readouterr().err.splitlines()
    assert "whoever reaches 0.0.0.0 may use this server" in told[0]
    assert "the chat template refuses" in told[1]


def test_keys_of_the_environment(monkeypatch):
    monkeypatch.setenv("UNVEIL_API_KEYS", " one, two ,")
    assert keys(None) == {"one", "two"}
    for wrong in ("", " , ", "a b", "schlüssel"):
        monkeypatch.setenv("UNVEIL_API_KEYS", wrong)
        with pytest.raises(ValueError, match="UNVEIL_API_KEYS"):
            keys(None)


def test_sizes():
    given = ["4096", "500MB", "4GB", "4 GiB", "1.5kB", "1mib"]
    assert [size("--memory", each) for each in given] == [4096, 5 * 10**8, 4 * 10**9, 1 << 32, 1500, 1 << 20]


def test_defaults_that_do_not_suit_the_model(tmp_path):
    """One token is written with them before anybody is let in."""

    async def begun():
        create, announce = None, None
        limits = Limits(decoder="wrong")
        with socket.socket() as sock:
            return await listen.serve(
                scripted.command(tmp_path), limits, create, sock, announce, drain=1, journal=Journal()
            )

    with pytest.raises(ValueError, match="no decoder called 'wrong'"):
        asyncio.run(begun())


def test_connections_that_never_ask_or_never_read_are_closed(monkeypatch):
    monkeypatch.setattr(listen, "HEADERS", 0.3)
    monkeypatch.setattr(listen, "UNREAD", 0.3)

    async def test():
        left, ready = asyncio.Event(), asyncio.Event()

        async def endless(scope, receive, send):
            async def watch():
                while (await receive())["type"] != "http.disconnect":
                    pass
                left.set()

            watching = asyncio.create_task(watch())
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while not left.is_set():
                await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
            await watching

        sock = listen.bind("127.0.0.1", 0)
        config = uvicorn.Config(endless, http=listen.Patient, lifespan="off", ws="none", log_config=None)
        server = listen.Server(config, ready.set)
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        await ready.wait()
        address = sock.getsockname()
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection(*address)
            assert await reader.read() == b""
            writer.close()
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await left.wait()
            writer.close()
        server.should_exit = True
        await serving

    asyncio.run(test())
