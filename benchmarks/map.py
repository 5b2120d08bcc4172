"""A job of many rows on Ray whose actor and driver are killed in the middle, beside the same job in one process."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from measure import RESULTS, ROOT, Report

from unveil import bulk, hub
from unveil.nn.grow import bare
from unveil.nn.transformer import Transformer

T = TypeVar("T")
SIZES = {"width": 32, "layers": 2, "heads": 2, "kv_heads": 2, "hidden": 64, "head_size": 16}
DECODER = "confidence(temperature=1.0)"  # drawn, so that an answer shows whose noise it had
POLL = 0.01  # seconds


def tiny(folder: Path) -> Path:
    """A network of random weights with the embedded model's tokenizer: what it writes is noise, and quickly written."""
    model, text = hub.load("stdlib-dlm")
    torch.manual_seed(0)
    small = Transformer(replace(bare(model).s, **SIZES)).eval()
    small.attention, small.bos_id = model.attention, text.start_id
    return hub.save(small, folder, text)


def asked(file: Path, count: int, bad: int) -> Path:
    """Prompts with ids from 0; `bad` of them are none, or hold half a letter."""
    wrong = {count * i // bad: i for i in range(1, bad)} | {0: 0} if bad else {}
    with file.open("w", encoding="utf-8") as rows:
        for i in range(count):
            row = {"id": i, "prompt": f"def function_{i}(values):\n    return values[{i % 13}]", "weight": i / 3}
            if i in wrong:
                row = {"id": i, "prompt": "\ud800"} if wrong[i] % 2 else {"id": i, "question": "what?"}
            rows.write(json.dumps(row) + "\n")
    return file


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


def alive(process: int) -> bool:
    """Does it still run? Zombies, which nobody here can bury, do not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(met: Callable[[], T], what: str, patience: float) -> T:
    """What `met` returns once that is something; RuntimeError when it takes too long."""
    last = time.monotonic() + patience
    while not (found := met()):
        if time.monotonic() > last:
            raise RuntimeError(f"no {what} within {patience:g} s")
        time.sleep(POLL)
    return found


def parts(out: Path) -> list[Path]:
    return sorted(out.glob("part-*"))


def timed(command: Sequence[str], around: dict[str, str]) -> tuple[float, dict]:
    """Seconds of a run of the command, and the object that it prints."""
    began = time.perf_counter()
    done = subprocess.run([*command, "--json"], env=around, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()[-2000:]}")
    return time.perf_counter() - began, json.loads(done.stdout.splitlines()[-1])


def killed(command: Sequence[str], out: Path, around: dict[str, str], shards: int, patience: float) -> dict:
    """Run the command; kill an actor when a quarter of the shards is there, and the command itself at half of them."""
    began = time.perf_counter()
    with subprocess.Popen(command, env=around, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        until(lambda: len(parts(out)) >= shards // 4, "quarter of the shards", patience)
        below = descendants(driver.pid)
        engines = [process for process, title in below.items() if "MapWorker" in title and "Engine" in title]
        os.kill(engines[0], signal.SIGKILL)
        first = len(parts(out))
        until(lambda: len(parts(out)) >= max(shards // 2, first + 3), "half of the shards", patience)
        below |= descendants(driver.pid)
        driver.kill()
    seconds = time.perf_counter() - began
    until(lambda: not any(map(alive, below)), "end of what the driver had started", patience)
    return {"actors": len(engines), "shards_at_first_kill": first, "seconds": seconds, "shards": len(parts(out))}


def compared(out: Path, expected: Path, count: int) -> dict[str, object]:
    """Is every id there once, and every file that of the other folder?"""
    names = [{path.name for path in folder.glob("[!.]*")} for folder in (out, expected)]
    found: Counter[int] = Counter()
    for path in out.glob("[pe]*.jsonl"):
        found.update(row["id"] for row in bulk.decode(path.read_bytes()))
    same = [name for name in names[0] & names[1] if (out / name).read_bytes() == (expected / name).read_bytes()]
    return {
        "every_id_once": found == Counter(range(count)),
        "files": len(names[0]),
        "files_equal": len(same),
        "equal": names[0] == names[1] and len(same) == len(names[0]),
    }


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--bad", type=int, default=10, help="rows that cannot be answered")
    parser.add_argument("--length", type=int, default=8, help="tokens to write")
    parser.add_argument("--shard", type=int, default=64)
    parser.add_argument("--actors", default="2")
    parser.add_argument("--model", help="default: a tiny network of random weights")
    parser.add_argument("--patience", type=float, default=3600, help="seconds for each half of the job")
    parser.add_argument("--work", type=Path, help="keep both folders of shards there")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="map") as spare:  # short: names of Ray's sockets may not be long
        work = given.work or Path(spare) / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        report = Report("map", given.results)
        report.write(study(given, work, Path(spare), report))


def study(given: argparse.Namespace, work: Path, spare: Path, report: Report) -> dict[str, object]:
    """All three runs, and what came of them."""
    model = given.model or str(tiny(work / "model"))
    source = asked(work / "rows.jsonl", given.rows, given.bad)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    around = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    # As many threads and as much priority as the run in one process has; what the killed leave goes with `spare`.
    around |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0", "TMPDIR": str(spare)}
    shards = -(-given.rows // given.shard)

    def command(out: Path, *more: str) -> list[str]:
        words = ["--in", str(source), "--out", str(out), "--length", str(given.length), "--shard", str(given.shard)]
        return [sys.executable, "-m", "unveil", "map", model, *words, "--decoder", DECODER, *more]

    alone, out = work / "local", work / "ray"
    seconds, told = timed(command(alone, "--local"), around)
    local = {"seconds": seconds, **told}
    spread = command(out, "--actors", given.actors)
    first = killed(spread, out, around, shards, given.patience)
    seconds, told = timed(spread, around)
    second = {"seconds": seconds, **told}
    found = compared(out, alone, given.rows)
    rows = [
        ["in one process", local["shards"], local["answered"], local["failed"], local["seconds"]],
        ["on Ray, until it was killed", first["shards"], None, None, first["seconds"]],
        ["on Ray again", shards - first["shards"], second["answered"], second["failed"], second["seconds"]],
    ]
    title = (
        f"{given.rows:,} rows, {given.length} tokens each; an actor killed at {first['shards_at_first_kill']} shards"
    )
    report.table(title, ["run", "shards", "answered", "set aside", "seconds, with start"], rows)
    said = [["every id once", found["every_id_once"]], ["files equal", f"{found['files_equal']} of {found['files']}"]]
    report.table("The folder of both runs on Ray beside that of one process", ["", "found"], said)
    plan = {name: getattr(given, name) for name in ("rows", "bad", "length", "shard", "actors", "model")}
    return {"plan": plan, "decoder": DECODER, "local": local, "killed": first, "again": second, **found}


if __name__ == "__main__":
    main()
