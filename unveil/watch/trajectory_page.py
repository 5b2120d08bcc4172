"""One self-contained HTML page about trajectories: what settles when, as a map to point at, and all figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .curves import Chart, legend, svg
from .report import document
from .scenes import Scene
from .trajectory_script import SCRIPT

COLUMNS = (
    "cell", "positions", "right in the end, %", "mean commitment", "AUROC of entropy", "ECE first", "ECE last",
    "claims that hold",
)  # fmt: skip
MORE = """
body { max-width: 76rem; } td, th { font-size: .88rem; } .table { overflow-x: auto; }
.plots { display: grid; gap: 1rem 1.6rem; grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr)); }
.plots svg { padding-top: .4rem; overflow: visible; } .plots svg text { font-size: 17px; }
.plots h3 { margin: .4rem 0 .2rem; }
.say, th.say { text-align: left; } td.verdict { white-space: nowrap; font-weight: 600; }
.holds { color: var(--good); } .reversed { color: var(--bad); } .not { color: var(--soft); }
:root { --good: #1d7a46; --bad: #b3372b; --low: #eef1f4; --high: #1f5f9e; --wrong: #c2571a; --edge: #1d1f21; }
@media (prefers-color-scheme: dark) { :root { --good: #66c796; --bad: #f0806f; --low: #22272c; --high: #6ab0f3;
  --wrong: #f2995c; --edge: #ffffff; } }
.map { overflow-x: auto; } .map canvas { cursor: crosshair; touch-action: pan-y; }
.map canvas:focus-visible { outline: 2px solid var(--c0); outline-offset: -2px; }
.bar { display: inline-block; height: .6rem; background: var(--c0); border-radius: 2px; vertical-align: middle; }
.controls { display: flex; flex-wrap: wrap; gap: .8rem 1.2rem; margin: .5rem 0; }
select { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line); border-radius: .3rem;
  padding: .15rem .4rem; }
#said { min-height: 3.2em; margin: .4rem 0; } #words { line-height: 1.7; } #words span.blank { color: var(--soft); }
#words span.open { border-bottom: 2px dotted var(--soft); } #words span.right { border-bottom: 3px solid var(--high); }
#words span.wrong { border-bottom: 3px solid var(--wrong); } #words span.here { background: var(--line); }
td.cell { min-width: 2.6rem; text-align: center; }
"""


def page(about: Mapping[str, Any], seen: Sequence[Scene]) -> str:
    """One HTML document that needs nothing else. `about` is what `trajectory.json` holds."""
    head = "".join(f"<th>{escape(name)}</th>" for name in COLUMNS)
    rows = "".join("<tr>" + "".join(f"<td>{escape(x)}</td>" for x in line(cell)) + "</tr>" for cell in about["cells"])
    data = json.dumps([scene.plain() for scene in seen], ensure_ascii=False, separators=(",", ":")).replace(
        "</", "<\\/"
    )
    facts = {name.replace("_", " "): value for name, value in about.items() if name not in ("cells", "files")}
    said = "".join(
        f"<tr><td>{escape(name)}</td><td class='say'>{escape(shown(v))}</td></tr>" for name, v in facts.items()
    )
    cells = "".join(part(cell, index == 0) for index, cell in enumerate(about["cells"]))
    title = f"How {about['model']} fills in text"
    body = (
        f'<h1>{escape(title)}</h1><p class="lead">{escape(lead(about))}</p>'
        f'<div class="table"><table><tr>{head}</tr>{rows}</table></div>'
        f"{MAP}{cells}<h2>How it was measured</h2><div class='table'><table>{said}</table></div>"
        f'<script id="scenes" type="application/json">{data}</script>'
        f"<script>{SCRIPT}</script>"
    )
    return document(title, body, MORE)


MAP = (
    "<h2>Step by step</h2>"
    '<p class="lead">A column is a masked position, a row a step, from top to bottom. Point at a cell, or move with '
    "the arrow keys. A ring marks the step at which the last answer stands for good, a dot the step that wrote it.</p>"
    '<div class="controls"><label>Text <select id="scene"></select></label>'
    '<label>Colour <select id="colour"><option value="probability">confidence</option>'
    '<option value="entropy">entropy</option><option value="right">right or wrong</option></select></label></div>'
    '<div class="map"><canvas id="map" tabindex="0" role="img" '
    'aria-label="Map of steps and masked positions; the line below tells what is pointed at"></canvas></div>'
    '<p id="said" aria-live="polite"></p><p class="lead">The text as it stood before that step:</p>'
    '<pre id="words"></pre><noscript><p>The map is drawn by a script in this file.</p></noscript>'
)


def lead(about: Mapping[str, Any]) -> str:
    """What was done."""
    read = "full attention" if about["attention"] == "full" else f"{about['attention']} attention"
    return (
        f"Text with a share of its tokens masked is filled in {about['steps']} steps, under {read}. "
        f"Every prediction of every step is kept. Classes of words: {about['labels_are']}."
    )


def shown(value: object) -> str:
    """A fact as text."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def line(cell: Mapping[str, Any]) -> list[str]:
    """A row of the table; see COLUMNS."""
    right, errors = cell["right_in_the_end"], cell["sureness"]["calibration"]["kept, step"]["ece"]
    claims = cell["claims"]
    return [
        cell["cell"],
        f"{cell['positions']:,}",
        f"{100 * right['mean']:.1f} ({100 * right['low']:.1f} to {100 * right['high']:.1f})",
        f"{cell['settling']['mean']['mean']:.1f}",
        f"{cell['sureness']['separation']['kept']['auroc_of_mean']['mean']:.3f}",
        f"{errors[0]['mean']:.3f}",
        f"{errors[-1]['mean']:.3f}",
        f"{sum(claim['verdict'] == 'holds' for claim in claims)} of {len(claims)}",
    ]


def part(cell: Mapping[str, Any], first: bool) -> str:
    """Everything about one cell."""
    plots = "".join(f"<figure><h3>{escape(c.title)}</h3>{svg(c)}{legend(c)}</figure>" for c in charts(cell))
    return (
        f"<details{' open' if first else ''}><summary><h2 style='display:inline'>{escape(cell['cell'])}</h2></summary>"
        f"{verdicts(cell['claims'])}<div class='plots'>{plots}</div>{classes(cell)}{layers(cell)}</details>"
    )


def verdicts(claims: Sequence[Mapping[str, Any]]) -> str:
    """Published claims beside what was found."""
    rows = []
    for claim in claims:
        effect = claim["effect"]
        number = (
            "" if claim["verdict"] == "not measured" else "{mean:+.3g} ({low:+.3g} to {high:+.3g})".format(**effect)
        )
        note = f" ({claim['note']})" if claim["note"] else ""
        rows.append(
            f"<tr><td>{escape(claim['claim'])}</td>"
            f"<td class='verdict {claim['verdict'].split()[0]}'>{escape(claim['verdict'])}</td><td>{number}</td>"
            f"<td class='say'>{escape(claim['what'] + note)}</td><td class='say'>{escape(claim['published'])}</td></tr>"
        )
    head = "<tr><th>claim</th><th>here</th><th>effect (95 %)</th>"
    head += "<th class='say'>of what</th><th class='say'>published</th></tr>"
    return f"<div class='table'><table>{head}{''.join(rows)}</table></div>"


def charts(cell: Mapping[str, Any]) -> list[Chart]:
    """The curves of a cell."""
    sure, settled = cell["sureness"], cell["settling"]
    kept, again = sure["separation"]["kept"], sure["separation"]["reread"]
    calibration = sure["calibration"]
    found = [
        Chart(
            "What has settled",
            "step",
            "share of positions",
            {
                "committed": steps(settled["committed_by_step"]),
                "revealed": steps(settled["revealed_by_step"]),
                "right": steps(means(cell["right_by_step"])),
            },
        ),
        Chart(
            "Entropy by how it ends",
            "step",
            "nats",
            {
                "wrong": steps(kept["entropy_wrong"]),
                "right": steps(kept["entropy_right"]),
                "wrong, read again": steps(again["entropy_wrong"]),
                "right, read again": steps(again["entropy_right"]),
            },
        ),
        Chart(
            "How well entropy tells errors",
            "step",
            "AUROC",
            {"kept": steps(means(kept["auroc_by_step"])), "read again": steps(means(again["auroc_by_step"]))},
            {"chance": 0.5},
        ),
        Chart(
            "Calibration error",
            "step",
            "ECE",
            {name.replace("reread", "read again"): steps(means(each["ece"])) for name, each in calibration.items()},
        ),
        Chart(
            "Brier score",
            "step",
            "mean squared distance",
            {name.replace("reread", "read again"): steps(means(each["brier"])) for name, each in calibration.items()},
        ),
        Chart(
            "Calibration curve",
            "confidence",
            "share right",
            {
                "first step": [(c, a) for c, a, _ in calibration["kept, step"]["first"]],
                "last step": [(c, a) for c, a, _ in calibration["kept, step"]["last"]],
                "last step, read again": [(c, a) for c, a, _ in calibration["reread, step"]["last"]],
                "as it should be": [(0.0, 0.0), (1.0, 1.0)],
            },
        ),
    ]
    for rule, each in cell.get("sensitivity", {}).items():
        series = {
            name: list(zip(each["steps"], [100 * x for x in means(each[name])], strict=True))
            for name in ("drop", "direct", "collateral")
        }
        found.append(Chart(f"Masked again: {each['rule']} ({rule})", "step", "points of accuracy lost", series))
    if "recovery" in cell:
        read = cell["recovery"]
        series = {
            name: list(zip(read["steps"], means(each["last_layer"]), strict=True))
            for name, each in read["targets"].items()
        }
        found.append(Chart("Probes of the last layer", "step", "normalised accuracy", series))
    return found


def steps(values: Sequence[float]) -> list[tuple[float, float]]:
    return [(float(i), value) for i, value in enumerate(values)]


def means(many: Sequence[Mapping[str, float]]) -> list[float]:
    return [each["mean"] for each in many]


def classes(cell: Mapping[str, Any]) -> str:
    """Commitment by class, with bars."""
    found = []
    for title, key in (("by class", "by_class"), ("by coarse class", "by_coarse_class")):
        rows, most = [], max((x["commitment"]["mean"] for x in cell["settling"][key].values()), default=1) or 1
        for name, each in sorted(cell["settling"][key].items(), key=lambda pair: pair[1]["commitment"]["mean"]):
            when = each["commitment"]
            rows.append(
                f"<tr><td>{escape(name)}</td><td>{each['positions']:,}</td><td class='say'>"
                f"<span class='bar' style='width:{7 * when['mean'] / most:.2f}rem'></span> {when['mean']:.2f} "
                f"({when['low']:.2f} to {when['high']:.2f})</td><td>{each['median']:g}</td>"
                f"<td>{each['revealed']['mean']:.2f}</td><td>{100 * each['right']['mean']:.1f}</td></tr>"
            )
        head = (
            "<tr><th>class</th><th>positions</th><th class='say'>mean commitment step (95 %)</th><th>median</th>"
            "<th>mean reveal step</th><th>right, %</th></tr>"
        )
        found.append(f"<h3>Commitment {title}</h3><div class='table'><table>{head}{''.join(rows)}</table></div>")
    return "".join(found)


def layers(cell: Mapping[str, Any]) -> str:
    """Normalised probe scores by layer and step."""
    if "recovery" not in cell:
        return ""
    read, found = cell["recovery"], []
    for name, each in read["targets"].items():
        head = "".join(f"<th>{step}</th>" for step in read["steps"])
        rows = []
        for layer, values in reversed(list(enumerate(each["normalised"], 1))):
            cells = "".join(
                f"<td class='cell' style='background:color-mix(in srgb, var(--c0) "
                f"{round(70 * min(max(value, 0), 1))}%, transparent)'>{value:.2f}</td>"
                for value in values
            )
            rows.append(f"<tr><td>layer {layer}</td>{cells}</tr>")
        told = f"{each['classes']} classes, {each['fitted']:,} positions fitted, {each['tested']:,} tested"
        late = f"; {each['unconverged']} fits stopped early" if each["unconverged"] else ""
        found.append(
            f"<figure><h3>{escape(name)}</h3><table><tr><th>step</th>{head}</tr>{''.join(rows)}</table>"
            f"<figcaption>{told}; most frequent class {100 * each['majority']:.1f} %{late}</figcaption></figure>"
        )
    note = "0: no better than the most frequent class; 1: always right."
    return f"<h3>Probes by layer and step</h3><p class='lead'>{note}</p><div class='plots'>{''.join(found)}</div>"
