"""Run the authors' own solutions of HumanEval, its single-line infilling and MBPP in the sandbox: all should pass.

    python benchmarks/canonical.py --tasks-dir ../shared/data/eval

What fails, fails for a reason of the set, of the sandbox or of its limits; each is printed with how it ended.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

from unveil import sandbox, spec

TASKS = ("humaneval", "humaneval_infill", "mbpp")


def main() -> None:
    """One line of JSON for each set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks-dir", required=True, help="folder with the published files")
    parser.add_argument("--tasks", nargs="*", default=TASKS, choices=TASKS)
    parser.add_argument("--limit", type=int, help="the first so many of each set")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    print(json.dumps({"guards": sandbox.guards()}))
    for name in asked.tasks:
        task = spec.build("tasks", f"{name}(data={asked.tasks_dir!r})")
        splits = ("test", "train") if name == "mbpp" else ("test",)
        for split in splits:
            there = task.available(split)
            examples = task.examples(min(asked.limit or there, there), split)
            began = time.perf_counter()
            with ThreadPoolExecutor(asked.workers) as pool:
                found = list(pool.map(task.tried, examples, [each.answer for each in examples]))
            failed = {i: f"{each}: {each.message}" for i, each in enumerate(found) if not each.passed}
            seconds = {"seconds": round(time.perf_counter() - began, 1), "slowest": max(e.seconds for e in found)}
            print(json.dumps({"task": name, "split": split, "of": len(found), "failed": failed, **seconds}), flush=True)


if __name__ == "__main__":
    main()
