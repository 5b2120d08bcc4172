"""`unveil map` on Ray: the same shards as in one process, whatever dies in the middle, and sentences for what is wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import toy

from unveil import bulk, cli, hub

pytest.importorskip("ray")

ROWS = 120
WORDS = ["--length", "24", "--block", "4", "--shard", "4", "--decoder", "confidence(temperature=1.0)"]
PATIENCE = 120  # seconds, for machines that are busy with other things


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A tiny model and a file of rows, two of them bad."""
    folder = tmp_path_factory.mktemp("map")
    toy.checkpoint(folder / "model")
    rows: list[dict] = [{"id": i, "prompt": toy.LETTERS[i % 7 : i % 7 + 3], "weight": i / 3} for i in range(ROWS)]
    rows[5] = {"id": 5, "question": "what?"}
    rows[50] = {"id": 50, "prompt": "half a letter: \ud800"}
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def command(place: Path, out: Path, *words: str) -> list[str]:
    source = ["--in", str(place / "rows.jsonl"), "--out", str(out)]
    return [sys.executable, "-m", "unveil", "map", str(place / "model"), *source, *WORDS, *words]


def around() -> dict[str, str]:
    """Workers of full priority, which finish among other tests."""
    path = os.pathsep.join(sys.path)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0", "RAY_ADDRESS": ""}


def descendants(process: int) -> dict[int, str]:
    """What runs below a process, with its title."""
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat, title = (folder / "stat").read_text(), (folder / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
        titles[int(folder.name)] = title.replace(b"\0", b" ").decode(errors="replace")
    found = {process}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return {each: titles[each] for each in found - {process}}


def until(met, what: str):
    """What `met` returns once that is something."""
    last = time.monotonic() + PATIENCE
    while not (found := met()):
        assert time.monotonic() < last, f"no {what} within {PATIENCE} s"
        time.sleep(0.01)
    return found


def alive(process: int) -> bool:
    """Zombies, which nobody here can bury, do not count."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def parts(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("[!.]*")}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the actors under /proc")
def test_an_actor_and_then_the_driver_are_killed(place, tmp_path):
    """Every id is there once, the files are those of one process, and nothing stays behind."""
    out, expected = tmp_path / "ray", tmp_path / "local"
    subprocess.run(command(place, expected, "--local"), env=around(), check=True, capture_output=True)
    with subprocess.Popen(
        command(place, out, "--actors", "2"), env=around(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as driver:
        until(lambda: len(list(out.glob("part-*"))) > 1, "shards")
        below = descendants(driver.pid)
        engines = [process for process, title in below.items() if "MapWorker" in title and "Engine" in title]
        os.kill(engines[0], signal.SIGKILL)
        seen = len(list(out.glob("part-*")))
        until(lambda: len(list(out.glob("part-*"))) > seen + 2, "shards after an actor was killed")
        below |= descendants(driver.pid)
        driver.kill()
    until(lambda: not any(map(alive, below)), "end of what the driver started")
    written = len(list(out.glob("part-*")))
    assert written < ROWS / 4, "it was killed in the middle"

    again = subprocess.run(command(place, out, "--json"), env=around(), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    told = json.loads(again.stdout.splitlines()[-1])
    assert (told["rows"], told["errors"], told["shards"]) == (ROWS - 2, 2, ROWS / 4)
    assert told["answered"] + told["failed"] == ROWS - 4 * written
    assert parts(out) == parts(expected)
    lines = [json.loads(line) for name, content in parts(out).items() if name != bulk.ABOUT for line in content.split(b"\n") if line]
    assert Counter(line["id"] for line in lines) == Counter(range(ROWS))
    assert {line["id"] for line in lines if "error" in line} == {5, 50}
