"""`unveil plan`: whether a recipe fits on so many GPUs, how fast it may go, what it costs and how often to save."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .learn import Goal, Length, More, Rows, combined
from .say import Json, result, table

if TYPE_CHECKING:
    from ..nn.transformer import Shape
    from ..train.plan import Plan
    from ..train.recipe import Recipe

UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def plan(
    recipe: Annotated[str, typer.Argument(help="A name from unveil list recipes, or a .toml file.")] = "leader",
    gpus: Annotated[int, typer.Option(help="GPUs in all.")] = 1,
    memory: Annotated[str, typer.Option(help="Of one GPU, as in 80G.")] = "80G",
    params: Annotated[
        list[str] | None,
        typer.Option(help="Of the parent: 0.1B 0.5B 1B 3B 7B 14B 32B 70B; default: each."),
    ] = None,
    parent: Annotated[str | None, typer.Option(help="A checkpoint or a folder with its config.json, in place.")] = None,
    own: Annotated[bool, typer.Option("--own", help="The shape that the recipe itself describes.")] = False,
    objective: Goal = None,
    rows: Rows = None,
    length: Length = None,
    tokens: Annotated[float | None, typer.Option(help="Of the whole run, as in 5e9; default: the recipe's.")] = None,
    machine: Annotated[int, typer.Option(help="GPUs in one machine.")] = 8,
    dtype: Annotated[str, typer.Option(help="Of matrix products: bfloat16 or float32.")] = "bfloat16",
    peak: Annotated[float, typer.Option(help="Operations a second of a GPU; default: H100, bfloat16.")] = 989e12,
    mfu: Annotated[float, typer.Option(help="Assumed share of it that is reached.")] = 0.4,
    price: Annotated[float, typer.Option(help="Assumed price of a GPU hour.")] = 2.5,
    mtbf: Annotated[float, typer.Option(help="Assumed GPU hours between failures.")] = 50_000,
    set_: More = None,
    json: Json = False,
) -> None:
    """Memory, speed, cost and checkpoint interval of a recipe on a cluster, on paper: nothing is run."""
    from .. import spec
    from ..train.plan import LADDER, MODES, Cluster
    from ..train.plan import plan as planned

    if dtype not in ("bfloat16", "float32"):
        raise ValueError(f"--dtype of a plan is bfloat16 or float32, got {dtype!r}")
    flags = {"objective": objective, "rows": rows, "length": length, "tokens": tokens}
    chosen = combined(recipe, flags, None, set_)
    goal = spec.build("objectives", chosen.objective)
    cluster = Cluster(gpus, size(memory), machine, dtype == "bfloat16", peak, mfu, price=price, mtbf=mtbf)
    if (params is not None) + (parent is not None) + own > 1:
        raise ValueError("--params, --parent and --own each say which network: give one of them")
    shapes: dict[str, Shape] = {}
    if own:
        shapes["recipe"] = blank(chosen)
    elif name := parent or ("" if params else chosen.parent):
        shapes[name] = described(name)
    else:
        for name in params or LADDER:
            if name not in LADDER:
                raise ValueError(f"no parent of {name} parameters is listed; there are: {', '.join(LADDER)}")
            shapes[name] = LADDER[name]
    found = {name: {mode: planned(s, chosen, goal, cluster, mode) for mode in MODES} for name, s in shapes.items()}
    lines = heading(chosen, cluster.gpus, memory, dtype, mfu)
    for name, modes in found.items():
        lines += ["", *shown(name, modes, chosen.tokens or chosen.steps * chosen.rows * chosen.length, gpus, price)]
    plans = {name: {mode: numbers(each) for mode, each in modes.items()} for name, modes in found.items()}
    result({"recipe": chosen.plain(), "plans": plans}, json, lines)


def size(text: str) -> float:
    """Bytes: 80G is 80e9, as makers count them."""
    unit = text.strip().upper().removesuffix("B")[-1:]
    unit = unit if unit in UNITS else ""
    try:
        return float(text.strip().upper().removesuffix("B").removesuffix(unit)) * UNITS[unit]
    except ValueError:
        raise ValueError(f"memory is a number with K, M, G or T, as in 80G; got {text!r}") from None


def described(parent: str) -> Shape:
    """The shape of a checkpoint, of which only config.json is read."""
    from pathlib import Path

    from .. import families
    from ..folder import locate, read_config

    folder = Path(parent) if (Path(parent) / "config.json").is_file() else locate(parent)
    config = read_config(folder)
    return families.find(config).shape(config)


def blank(recipe: Recipe) -> Shape:
    """The shape of a recipe without a parent."""
    from ..nn.transformer import Shape

    if recipe.parent:
        raise ValueError(f"this recipe has the parent {recipe.parent} and describes no shape of its own")
    return Shape(
        vocab=recipe.vocab,
        width=recipe.width,
        layers=recipe.layers,
        heads=recipe.heads,
        kv_heads=recipe.kv_heads or recipe.heads,
        hidden=recipe.hidden or -(-recipe.width * 8 // 3 // 64) * 64,
        head_size=recipe.width // recipe.heads,
        tied=recipe.tied,
    )


def heading(recipe: Recipe, gpus: int, memory: str, dtype: str, mfu: float) -> list[str]:
    """What is planned."""
    more = ", activations computed twice" if recipe.checkpointing else ""
    micro = f", accumulate = {recipe.accumulate}" if recipe.accumulate > 1 else ""
    return [
        f"{recipe.objective}: {recipe.rows} rows of {recipe.length} positions a step{micro}{more}",
        f"{gpus} GPUs of {memory}, products in {dtype}, {mfu:.0%} of their peak assumed",
    ]


def shown(name: str, modes: dict[str, Plan], tokens: float, gpus: int, price: float) -> list[str]:
    """A network's table: the memory of one GPU by mode, then speed and the rest for the first mode that fits."""
    first = next(iter(modes.values()))
    parts = ("weights", "optimiser", "average", "gradients", "gathered", "activations", "logits")
    lines = [f"{name}: {first.weights / 1e9:.2f} B parameters. GB on one GPU:"]
    lines.append(f"{'':6}" + "".join(f"{part:>12}" for part in (*parts, "peak")) + "  fits")
    for mode, plan in modes.items():
        found = [getattr(plan.bytes, part) / 1e9 for part in (*parts, "peak")]
        lines.append(f"{mode:6}" + "".join(f"{each:12.1f}" for each in found) + ("  yes" if plan.fits else "  no"))
    best = next((plan for plan in modes.values() if plan.fits), None)
    if best is None:
        return [*lines, "nothing fits: more GPUs, checkpointing = true, shorter rows, or a larger accumulate"]
    told: list[tuple[str, object]] = [
        ("mode", best.mode),
        ("tokens/s", f"{best.speed:,.0f}, {best.speed / gpus:,.0f} a GPU"),
        ("bandwidth", f"{best.bandwidth / 1e9:.1f} GB/s a GPU, if communication is to hide behind work"),
        ("host memory", f"{best.host / 1e9:.0f} GB a machine"),
        ("checkpoint", f"stops training for {best.stop:.1f} s, on disk after {best.write:.0f} s"),
        ("failures", f"every {best.failures / 3600:,.0f} h, so save every {best.every / 60:.0f} min"),
        ("lost", f"{best.lost:.2%} of the time to saving, repeating and starting again"),
    ]
    if tokens:
        hours = best.hours(tokens)
        spent = hours * gpus
        told.append((f"{tokens:.3g} tokens", f"{hours:,.2f} h, {spent:,.1f} GPU hours, {spent * price:,.2f}"))
    return [*lines, *table(told)]


def numbers(plan: Plan) -> dict[str, object]:
    """All of a plan, for machines."""
    return {**vars(plan), "bytes": {**vars(plan.bytes), "peak": plan.bytes.peak}}
