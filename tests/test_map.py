"""`unveil map` on Ray: the shards of one process whatever dies in the middle, and a sentence for what is wrong."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import toy

from unveil import bulk, cli, hub

cluster = pytest.importorskip("unveil.cluster.bulk", reason="Ray is not installed")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A tiny model and a file of rows."""
    folder = tmp_path_factory.mktemp("map")
    toy.checkpoint(folder / "model")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return folder


def command(place: Path, out: Path, *words: str) -> list[str]:
    return ["unveil", "map", str(place / "model"), "--in", str(place / "rows.jsonl"), "--out", str(out), *words]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the actors under /proc")
def test_an_actor_and_then_the_driver_are_killed(tmp_path, monkeypatch):
    """The benchmark's study on few rows: nothing is lost, twice there or left behind, and files are byte for byte."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    study = importlib.import_module("map")
    words = ["--rows", "120", "--bad", "2", "--length", "24", "--shard", "4", "--actors", "1", "--patience", "200"]
    study.main([*words, "--work", str(tmp_path / "work"), "--results", str(tmp_path)])
    found = json.loads((tmp_path / "map.json").read_text())
    assert (found["every_id_once"], found["equal"]) == (True, True)
    assert found["killed"]["actors"] > 0
    assert 7 < found["killed"]["shards"] < 30, "it was killed in the middle"
    assert (found["again"]["rows"], found["again"]["errors"], found["again"]["shards"]) == (118, 2, 30)
    assert found["again"]["answered"] + found["again"]["failed"] == 120 - 4 * found["killed"]["shards"]
    out = tmp_path / "work" / "ray"
    lines = [row for path in out.glob("*-*.jsonl") for row in bulk.decode(path.read_bytes())]
    assert sorted(row["id"] for row in lines) == list(range(120))
    assert {row["id"] for row in lines if "error" in row} == {0, 60}


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
    monkeypatch.setattr(sys, "argv", command(place, out, *words))
    with pytest.raises(SystemExit) as found:
        cli.main()
    return found.value.code, capsys.readouterr().err


def test_a_folder_of_another_job_is_refused_before_ray_is_started(place, tmp_path, monkeypatch, capsys):
    bulk.claim(tmp_path / "out", job(place))
    code, error = wrong(place, tmp_path / "out", monkeypatch, capsys)
    assert code == 2
    assert "holds the shards of another job; it differs in source" in error
    assert [path.name for path in (tmp_path / "out").iterdir()] == [bulk.ABOUT]
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
