"""`unveil map` on Ray: the shards of one process whatever dies in the middle, and a sentence for what is wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import toy

from unveil import bulk, cli, hub

cluster = pytest.importorskip("unveil.cluster.bulk", reason="Ray is not installed")

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


@pytest.fixture
def around() -> Iterator[dict[str, str]]:
    """Workers of full priority, which finish among other tests, and a folder that the killed cannot clear away."""
    path = os.pathsep.join(sys.path)
    with tempfile.TemporaryDirectory(prefix="map") as folder:  # near the root: names of sockets are short
        more = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0", "TMPDIR": folder}
        yield {**{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}, **more}


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
def test_an_actor_and_then_the_driver_are_killed(place, tmp_path, around):
    """Every id is there once, the files are those of one process, and nothing stays behind."""
    out, expected = tmp_path / "ray", tmp_path / "local"
    subprocess.run(command(place, expected, "--local"), env=around, check=True, capture_output=True)
    with subprocess.Popen(
        command(place, out, "--actors", "2"), env=around, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
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

    again = subprocess.run(command(place, out, "--json"), env=around, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    told = json.loads(again.stdout.splitlines()[-1])
    assert (told["rows"], told["errors"], told["shards"]) == (ROWS - 2, 2, ROWS / 4)
    assert told["answered"] + told["failed"] == ROWS - 4 * written
    assert parts(out) == parts(expected)
    lines = [line for name, content in parts(out).items() if name != bulk.ABOUT for line in bulk.decode(content)]
    assert Counter(line["id"] for line in lines) == Counter(range(ROWS))
    assert {line["id"] for line in lines if "error" in line} == {5, 50}


# What follows starts no Ray.


def job(place: Path, **options) -> bulk.Job:
    return bulk.Job(**{"model": str(place / "model"), "source": "rows", "length": 4, "shard": 4, **options})


def rows(count: int = 10) -> list[dict]:
    return [{"id": i, "prompt": toy.LETTERS[i % 7 : i % 7 + 3]} for i in range(count)]


@pytest.fixture
def pretended(monkeypatch):
    """Actors in this process, which an Attempts of its own counts; a row with the id 6 takes them with it."""

    def through(work, pieces):
        attempts = cluster.Attempts()
        remote = SimpleNamespace(begin=SimpleNamespace(remote=attempts.begin))
        engine = cluster.Engine(work.job, work.model, work.device, 1, remote)
        for piece in reversed(pieces):
            batch = {name: SimpleNamespace(tolist=lambda v=value: [v]) for name, value in piece._asdict().items()}
            for _ in range(cluster.RETRIES + 2 if any(row["id"] == 6 for row in bulk.decode(piece.rows)) else 1):
                found = engine(batch)
            yield cluster.Answered(*(found[name][0] for name in cluster.Answered._fields))

    monkeypatch.setattr(cluster.Work, "through", through)
    monkeypatch.setattr(cluster.ray, "get", lambda value: value)


def test_a_row_that_takes_its_process_with_it_is_set_aside(place, tmp_path, pretended):
    seen = []
    found = cluster.spread(job(place), rows, tmp_path / "out", report=lambda *told: seen.append(told))
    assert found == (9, 1)
    assert seen == [(2, 0), (6, 0), (9, 1)], "shards are written as they come, the fatal one at the end"
    network, text = hub.load(place / "model")
    errors = bulk.decode((tmp_path / "out" / "errors-000001.jsonl").read_bytes())
    assert [row["id"] for row in errors] == [6]
    assert errors[0]["error"] == f"RuntimeError: the process that answers this row ended, {1 + cluster.RETRIES} times"
    whole = {row["id"]: row for row in bulk.Answering(network, text, job(place)).answered(rows())[0]}
    for file in sorted((tmp_path / "out").glob("part-*")):
        assert all(row == whole[row["id"]] for row in bulk.decode(file.read_bytes()))
    assert cluster.spread(job(place), rows, tmp_path / "out") == (0, 0)


def test_what_the_actors_refuse_is_a_sentence_and_writes_nothing(place, tmp_path, pretended):
    for changes, said in (
        ({"model": str(tmp_path / "nowhere")}, "nowhere"),
        ({"cache": "causal"}, "full attention"),
    ):
        with pytest.raises(ValueError, match=said):
            cluster.spread(job(place, **changes), rows, tmp_path / "out")
        assert not list(tmp_path.iterdir())


def test_a_pool_fits_its_cluster(monkeypatch):
    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {"CPU": 8.0})
    pool = cluster.Pool(cpus=2).fitted()
    assert (pool.min_size, pool.max_size) == (1, 4)
    pool = cluster.Pool(2, 40, cpus=0.5).fitted()
    assert (pool.min_size, pool.max_size) == (2, 40)
    for wanted, there in ((cluster.Pool(5, cpus=2), "8 CPUs"), (cluster.Pool(gpus=1), "0 GPUs")):
        with pytest.raises(ValueError, match=f"do not fit .*{there}"):
            wanted.fitted()


MISTAKES = {
    ("--actors", "many"): "--actors is a number or a range, as 4, 1-8 or 2-; got 'many'",
    ("--actors", "4-2"): "a pool grows from at least 1 actor to no fewer, got 4 to 2",
    ("--actors", "0"): "a pool grows from at least 1 actor to no fewer, got 0",
    ("--cpus", "0"): "an actor reserves a part of a CPU or GPU, got 0.0 CPUs and 0.0 GPUs",
    ("--address", "localhost:1"): "no Ray cluster answers at localhost:1",
    ("--address", "ray://head:10001"): "'ray://head:10001' is no address of a Ray cluster: expected HOST:PORT",
    ("--decoder", "best"): "no decoder called 'best'",
    ("--length", "0"): "at least 1 token",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_sentence(place, tmp_path, monkeypatch, capsys, words):
    code, error = wrong(place, tmp_path / "out", monkeypatch, capsys, *words)
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith("unveil: ")
    assert MISTAKES[words] in error
    assert not list(tmp_path.iterdir())


def wrong(place: Path, out: Path, monkeypatch, capsys, *words: str) -> tuple[object, str]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(sys, "argv", ["unveil", *command(place, out, *words)[3:]])
    with pytest.raises(SystemExit) as found:
        cli.main()
    return found.value.code, capsys.readouterr().err


def test_a_folder_of_another_job_is_refused_before_ray_is_started(place, tmp_path, monkeypatch, capsys):
    bulk.claim(tmp_path / "out", job(place))
    before = parts(tmp_path / "out")
    code, error = wrong(place, tmp_path / "out", monkeypatch, capsys)
    assert code == 2
    assert "holds the shards of another job; it differs in source" in error
    assert parts(tmp_path / "out") == before
    (tmp_path / "diary").mkdir()
    (tmp_path / "diary" / "monday.txt").touch()
    code, error = wrong(place, tmp_path / "diary", monkeypatch, capsys)
    assert (code, "is no folder of shards" in error) == (2, True)


def test_without_ray_it_says_what_to_install(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, error = wrong(place, tmp_path / "out", monkeypatch, capsys)
    assert code == 2
    assert "pip install 'unveil[ray]', or say --local" in error
    assert not list(tmp_path.iterdir())


def test_nothing_of_ray_is_read_before_it_is_needed():
    code = "import sys; sys.argv = ['unveil', 'map', '--help']\nfrom unveil import bulk, cli\n"
    code += "try: cli.main()\nfinally: print('ray' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "False"
    assert "unveil map" in found.stdout.split("Examples")[1]
