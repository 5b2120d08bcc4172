"""The page of `unveil texts`: verdicts first, then every figure with its interval, drawn and in numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

from ..evaluate.texts.compare import Compared, Described, title
from ..evaluate.texts.resampling import Difference, Estimate
from .report import document

WIDTH, ROW, LABEL = 760, 22, 250
REACH = 2.0  # effects beyond are drawn at the edge
MORE = """
body { max-width: 64rem; } td, th { font-size: .9rem; } .table { overflow-x: auto; }
svg .name { fill: var(--ink); } svg .zero { stroke: var(--soft); } svg .up { stroke: var(--c2); fill: var(--c2); }
svg .down { stroke: var(--c1); fill: var(--c1); } svg .none { stroke: var(--c5); fill: var(--c5); }
svg .bar { stroke-width: 3; stroke-linecap: round; } .say { text-align: left; }
td.word { font-weight: 600; text-align: left; white-space: nowrap; }
"""


def page(one: Described, compared: Compared | None, facts: Mapping[str, object]) -> str:
    """One HTML document that needs nothing else. `facts`: how it was measured, in the order to be shown."""
    name = one.name if compared is None else f"{one.name} and {compared.other.name}"
    told = {key: ", ".join(value) if isinstance(value, list) else str(value) for key, value in facts.items() if value}
    said = "".join(
        f"<tr><td>{escape(key)}</td><td class='say'>{escape(value)}</td></tr>" for key, value in told.items()
    )
    body = (
        f"<h1>{escape(name)}</h1>"
        f"{verdicts(compared) if compared else ''}"
        f"<h2>All figures</h2>{table(one, compared)}"
        '<p class="lead">Intervals are 95 %, by a bootstrap over texts. An effect is a difference over what single '
        "texts vary by (Cohen's d). Entropies, distinct-n and the Zipf exponent count equal numbers of tokens.</p>"
        f'<h2>How it was measured</h2><div class="table"><table>{said}</table></div>'
    )
    return document("Texts", body, MORE)


def verdicts(compared: Compared) -> str:
    """What the texts say of the published claims, and the picture of all effects."""
    rows = "".join(
        f"<tr><td>{escape(each.claim.name)}</td><td class='word'>{escape(each.word)}</td>"
        f"<td class='say'>{escape(each.numbers(compared.differences))}</td></tr>"
        for each in compared.verdicts
    )
    drawn = svg(compared.differences)
    effects = f"<h2>A less B, as effect sizes</h2><figure>{drawn}</figure>" if drawn else ""
    return (
        '<p class="lead">Published of texts by diffusion models as compared with autoregressive ones '
        "(arXiv 2605.12522), asked here of A as compared with B:</p>"
        f'<div class="table"><table>{rows}</table></div>{effects}'
    )


def table(one: Described, compared: Compared | None) -> str:
    sides = [one] if compared is None else [one, compared.other]
    head = ["", *(f"{letter}: {side.name}" for letter, side in zip("AB", sides, strict=False))]
    head += [] if compared is None else ["A - B", "95 %", "effect"]
    lines = [["texts", *(f"{side.texts:,}" for side in sides)], ["tokens", *(f"{side.tokens:,}" for side in sides)]]
    for name in one.figures:
        cells = [span(side.figures.get(name)) for side in sides]
        less = None if compared is None else compared.differences.get(name)
        if less is not None:
            cells += [f"{less.value:+.3f}", f"{less.low:+.3f} to {less.high:+.3f}", less.size]
        lines.append([title(name), *cells])
    row = "<tr>{}</tr>".format
    top = row("".join(f"<th>{escape(cell)}</th>" for cell in head))
    body = "".join(
        row("".join(f"<td>{escape(cell)}</td>" for cell in [*line, *[""] * (len(head) - len(line))])) for line in lines
    )
    return f'<div class="table"><table>{top}{body}</table></div>'


def span(found: Estimate | None) -> str:
    return "-" if found is None else f"{found.value:z.3f} ({found.low:z.3f} to {found.high:z.3f})"


def svg(differences: Mapping[str, Difference]) -> str:
    """Every difference as an effect size with its interval, around a line at 0."""
    known = {name: each for name, each in differences.items() if math.isfinite(each.effect) and each.value}
    if not known:
        return ""
    height = ROW * len(known) + 34
    middle, scale = (LABEL + WIDTH) / 2, (WIDTH - LABEL - 20) / 2 / REACH

    def across(effect: float) -> float:
        return middle + scale * max(-REACH, min(REACH, effect))

    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="effect sizes with intervals">']
    for mark in (-2, -1, 0, 1, 2):
        kind = "grid" if mark else "zero"
        parts.append(
            f'<line class="{kind}" x1="{across(mark):.1f}" x2="{across(mark):.1f}" y1="4" y2="{height - 26}"/>'
        )
        parts.append(f'<text x="{across(mark):.1f}" y="{height - 10}" text-anchor="middle">{mark:+d}</text>')
    for i, (name, each) in enumerate(known.items()):
        y, one = ROW * i + 16, each.effect / each.value
        ends = sorted((across(each.low * one), across(each.high * one)))
        kind = {1: "up", -1: "down", 0: "none"}[each.sign]
        told = f"{title(name)}: {each.value:+.3f} ({each.low:+.3f} to {each.high:+.3f})"
        parts.append(f'<text class="name" x="{LABEL - 10}" y="{y + 4}" text-anchor="end">{escape(title(name))}</text>')
        parts.append(
            f'<g class="{kind}"><title>{escape(told)}</title>'
            f'<line class="bar" x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{y}" y2="{y}"/>'
            f'<circle cx="{across(each.effect):.1f}" cy="{y}" r="4"/></g>'
        )
    return "".join([*parts, "</svg>"])
