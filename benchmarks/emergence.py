"""Temporal emergence on models trained here: each published claim beside what was measured, with intervals."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from measure import RESULTS, ROOT, Report


def study(model: str, data: str | None, out: Path, options: Sequence[str]) -> dict:
    """One `unveil trajectory`, or what an earlier one left; its figures."""
    done = out / "trajectory.json"
    if not done.exists():
        command = [sys.executable, "-m", "unveil", "trajectory", model, "--out", str(out), *options]
        subprocess.run([*command, *(["--data", data, "--held-out"] if data else [])], check=True, cwd=ROOT)
    found = json.loads(done.read_text(encoding="utf-8"))
    return found | {"model": Path(model).name, "data": Path(found["data"]).name}  # names, not places


def spread(found: dict | None, scale: float = 1.0, digits: int = 3) -> str:
    """An interval in a cell of a table."""
    if found is None or found["mean"] is None or found["low"] is None:
        return "-"
    return "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(*(scale * found[x] for x in ("mean", "low", "high")), d=digits)


def tables(report: Report, name: str, found: dict) -> None:
    """The tables of one model."""
    cells = found["cells"]
    columns = ["", *(cell["cell"] for cell in cells)]
    rows = [["right in the end, %", *(spread(cell["right_in_the_end"], 100, 1) for cell in cells)]]
    rows.append(["mean commitment step", *(spread(cell["settling"]["mean"], 1, 2) for cell in cells)])
    names = list(dict.fromkeys(each for cell in cells for each in cell["settling"]["by_coarse_class"]))
    for each in names:
        mine = [cell["settling"]["by_coarse_class"].get(each) for cell in cells]
        rows.append([f"commitment, {each}", *(spread(one and one["commitment"], 1, 2) for one in mine)])
    rows.append(["wrong among early ones, %", *(spread(c["settling"]["early"]["wrong"], 100, 1) for c in cells)])
    for key in ("kept", "reread"):
        errors = [cell["sureness"]["calibration"][f"{key}, step"]["ece"] for cell in cells]
        rows += [[f"ECE, {key}, {when}", *(spread(e[i]) for e in errors)] for when, i in (("first", 0), ("last", -1))]
    kept = [cell["sureness"]["separation"]["kept"] for cell in cells]
    rows.append(["AUROC of mean entropy", *(spread(each["auroc_of_mean"]) for each in kept)])
    for target in cells[0].get("recovery", {"targets": {}})["targets"]:
        each = [cell["recovery"]["targets"][target]["last_layer"] for cell in cells]
        rows += [[f"probe, {target}, {w}", *(spread(e[i]) for e in each)] for w, i in (("first", 0), ("last", -1))]
    for rule in cells[0].get("sensitivity", {}):
        each = [cell["sensitivity"][rule] for cell in cells]
        worst = [max(range(len(e["steps"])), key=lambda i, e=e: e["drop"][i]["mean"]) for e in each]
        rows.append([f"largest drop, points ({rule})", *(spread(e["drop"][i], 100, 2) for e, i in pairs(each, worst))])
        rows.append([f"at step ({rule})", *(f"{e['steps'][i]}" for e, i in pairs(each, worst))])
        rows.append([f"direct ({rule})", *(spread(e["direct"][i], 100, 2) for e, i in pairs(each, worst))])
        rows.append([f"collateral ({rule})", *(spread(e["collateral"][i], 100, 2) for e, i in pairs(each, worst))])
    report.table(f"{name}: what was measured", columns, rows)
    claims = dict.fromkeys(claim["claim"] for cell in cells for claim in cell["claims"])
    told = {cell["cell"]: {claim["claim"]: claim for claim in cell["claims"]} for cell in cells}
    rows = [[name, *(verdict(told[cell["cell"]].get(name)) for cell in cells)] for name in claims]
    report.table(f"{name}: published claims", columns, rows)


def pairs(first: Sequence, second: Sequence) -> zip:
    return zip(first, second, strict=True)


def verdict(claim: dict | None) -> str:
    """Does it hold, and by how much?"""
    if claim is None or claim["verdict"] == "not measured":
        return "not measured"
    effect = claim["effect"]
    return f"{claim['verdict']}: {effect['mean']:+.3g} ({effect['low']:+.3g} to {effect['high']:+.3g})"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", help="folders of diffusion models, or names of embedded ones")
    parser.add_argument("--data", help="text, of which the part that training held out is used; default: the model's")
    parser.add_argument("--work", type=Path, required=True, help="folder of the studies; run again, it goes on")
    parser.add_argument("--name", default="emergence", help="of the result files")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--pictures", type=Path, default=ROOT / "docs", help="folder of the PNG files")
    given, options = parser.parse_known_args(words)
    if given.data and not Path(given.data).exists():
        raise SystemExit(f"no such text: {given.data}; name another with --data")
    report = Report(given.name, given.results)
    numbers = {}
    for model in given.models:
        name, out = Path(model).name, given.work / Path(model).name
        found = numbers[name] = study(model, given.data, out, options)
        tables(report, name, found)
        for picture in ("trajectory.png", "map.png"):
            if (out / picture).exists():
                given.pictures.mkdir(parents=True, exist_ok=True)
                kind = "" if picture == "trajectory.png" else "-map"
                shutil.copy(out / picture, given.pictures / f"{given.name}-{name}{kind}.png")
    report.write({"models": numbers, "options": options})


if __name__ == "__main__":
    main()
