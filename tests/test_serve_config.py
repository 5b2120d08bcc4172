"""Options of the server from a file, and what is said where they are wrong or Ray is not to be had."""

from __future__ import annotations

import importlib.util
import socket
import sys
from typing import Any

import pytest
import typer

from unveil import cli
from unveil.cli.serve import count, named

WHOLE = """
model = "my-dlm"      # everything but the model is an option of the command
ray = true
replicas = "1-4"
busy = 8
max-tokens = 100
api_keys = "keys.txt"
cors = ["https://a.org", "https://b.org"]
page = false
timeout = 5

[adapter]
formal = "adapters/formal"
brief = "adapters/brief"
"""


def parsed(*words: str) -> dict[str, Any]:
    """What the command is called with."""
    command = typer.main.get_command(cli.app).commands["serve"]
    return command.make_context("serve", list(words)).params


def refused(monkeypatch, capsys, *options: str) -> str:
    monkeypatch.setattr(sys, "argv", ["unveil", "serve", *options])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    return capsys.readouterr().err.splitlines()[-1]


def test_a_file_of_options(tmp_path):
    path = tmp_path / "serve.toml"
    path.write_text(WHOLE)
    found = parsed("--config", str(path), "--busy", "2", "--port", "9")
    assert (found["model"], found["ray"], found["replicas"], found["max_tokens"]) == ("my-dlm", True, "1-4", 100)
    assert (found["busy"], found["port"]) == (2, 9), "the command line goes before the file"
    assert (found["api_keys"], found["page"], found["timeout"]) == ("keys.txt", False, 5.0)
    assert list(found["cors"]) == ["https://a.org", "https://b.org"]
    assert list(found["adapter"]) == ["formal=adapters/formal", "brief=adapters/brief"]
    assert found["host"] == "127.0.0.1", "what neither names has its default"
    path.write_text("replicas = 3\n")
    assert parsed("other", "--config", str(path))["replicas"] == "3"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("workers = 3", "no option called 'workers'; there are: model, name, host"),
        ("json = true", "no option called 'json'"),
        ("busy = [", "serve.toml is not valid TOML"),
    ],
)
def test_files_that_cannot_be(monkeypatch, capsys, tmp_path, content, said):
    path = tmp_path / "serve.toml"
    path.write_text(content)
    assert said in refused(monkeypatch, capsys, "--config", str(path))


def test_files_that_are_not_there_or_hold_another_kind(monkeypatch, capsys, tmp_path):
    assert "no such file or directory" in refused(monkeypatch, capsys, "--config", str(tmp_path / "no.toml"))
    (tmp_path / "serve.toml").write_text('port = "first"')
    monkeypatch.setattr(sys, "argv", ["unveil", "serve", "--config", str(tmp_path / "serve.toml")])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert "'--port'" in capsys.readouterr().err


def test_numbers_and_names():
    assert [count(each) for each in ("1", "2-2", " 1-40 ")] == [(1, 1), (2, 2), (1, 40)]
    for wrong in ("0", "3-2", "two", "1-", "-1", ""):
        with pytest.raises(ValueError, match="--replicas is .*; expected a number such as 2, or a range such as 1-4"):
            count(wrong)
    assert named(" a = b ")[0] == "a"


def test_ray_that_is_not_installed(monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else real(name))
    told = refused(monkeypatch, capsys, "--ray")
    assert told == "unveil: unveil serve --ray needs what its extra brings: pip install 'unveil[serve,ray]'"


def test_ray_that_cannot_be_reached(monkeypatch, capsys):
    pytest.importorskip("ray.serve")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{nobody.getsockname()[1]}"
        told = refused(monkeypatch, capsys, "--ray", "--port", "0", "--ray-address", place)
    assert f"no Ray cluster answers at {place}" in told
    for wrong in ("ray://host:1", "host"):
        told = refused(monkeypatch, capsys, "--ray", "--port", "0", "--ray-address", wrong)
        assert f"{wrong!r} is no address of a Ray cluster: expected HOST:PORT of its head" in told
    assert "--busy is 0" in refused(monkeypatch, capsys, "--ray", "--busy", "0")
    assert "--replicas is '0'" in refused(monkeypatch, capsys, "--ray", "--replicas", "0")
    assert "there is no folder" in refused(monkeypatch, capsys, "nowhere/at/all", "--ray", "--port", "0")


def test_a_port_in_use(monkeypatch, capsys, tmp_path):
    pytest.importorskip("ray.serve")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        told = refused(monkeypatch, capsys, "--ray", "--port", str(taken.getsockname()[1]))
    assert "address already in use; try another --port" in told
