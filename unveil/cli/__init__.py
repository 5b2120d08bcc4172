"""The command line: one function per command, its signature the options."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import typer

from . import (
    bench,
    calibrate,
    chat,
    demo,
    describe,
    evaluate,
    harness,
    learn,
    map,
    measure,
    plan,
    quality,
    replay,
    serve,
    sft,
    task,
    texts,
    trajectory,
    write,
)

ROOT = str(Path(__file__).parent.parent)

app = typer.Typer(
    name="unveil",
    help="Diffusion language models: adapt any autoregressive checkpoint, then fill, generate and score with it.",
    epilog="Example: unveil fill 'def area(radius):[[24]]return result'",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command, examples in {
    demo.demo: ["unveil demo", "unveil demo --minutes 1 --out report.html"],
    learn.adapt: ["unveil adapt stdlib-ar --minutes 3 --out my-dlm", "unveil adapt PARENT --data notes/ --out my-dlm"],
    learn.train: ["unveil train --recipe stdlib-ar --out my-ar", "unveil train --data a.txt --minutes 10 --out my-ar"],
    sft.sft: [
        "unveil sft my-dlm --data chats.jsonl --out my-chat",
        "unveil sft my-dlm --data chats.jsonl --lora r=8,alpha=16 --out my-adapter",
        "unveil sft my-chat --recipe preference --data pairs.jsonl --out my-preferred",
    ],
    plan.plan: ["unveil plan leader --gpus 64 --params 7B --rows 512 --length 4096", "unveil plan --gpus 8 --json"],
    write.generate: ["unveil generate 'def mean(values):' --length 48", "echo 'import os' | unveil generate"],
    write.fill: ["unveil fill 'def area(radius):[[24]]return result'", "unveil fill 'x = [[2-8]]\\n' --json"],
    chat.chat: ["unveil chat my-chat", "echo 'Who are you?' | unveil chat my-chat --temperature 0.7 --json"],
    replay.watch: ["unveil watch run.jsonl --speed 0.2", "unveil watch run.jsonl --json"],
    serve.serve: [
        "unveil serve",
        "unveil serve my-dlm --port 0 --memory 4GB --api-keys keys.txt --json",
        "unveil serve my-dlm --ray --replicas 2",
    ],
    map.map_: [
        "unveil map my-chat --in prompts.jsonl --out answers --local",
        "unveil map my-chat --in prompts.jsonl --out answers --address head:6379 --actors 1-16 --device cuda",
    ],
    bench.bench: [
        "unveil bench tasks-dlm --task sudoku --out bench",
        "unveil bench my-dlm --task countdown --decoders 'threshold;factor(f=1)' --caches 'prefix;dual' --count 50",
    ],
    evaluate.eval_: [
        "unveil eval stdlib-dlm --tasks infill,arithmetic --limit 20",
        "unveil eval my-dlm --tasks hellaswag,piqa,lambada --tasks-dir eval/ --compare my-ar --limit 200 --out report",
    ],
    measure.score: ["unveil score stdlib-dlm", "unveil score my-dlm --data notes/ --json"],
    quality.quality: [
        "unveil quality my-dlm --scorer another-ar --steps 8,16,32,64 --out quality",
        "unveil quality my-ar --scorer another-ar --data notes/ --prompt 32 --json",
    ],
    texts.texts: [
        "unveil texts dlm.jsonl ar.jsonl --reference books.txt",
        "unveil texts answers/ --scorer stdlib-ar --tokenizer stdlib-ar --out report",
    ],
    trajectory.trajectory: [
        "unveil trajectory stdlib-dlm --out trajectory",
        "unveil trajectory my-dlm --data notes/ --steps 32 --mask 0.5,0.8 --seeds 3 --sequences 200 --out study",
    ],
    task.task: ["unveil task sudoku countdown arithmetic --rows 30000 --out train.jsonl"],
    describe.list_: ["unveil list", "unveil list decoders"],
    describe.info: ["unveil info stdlib-dlm", "unveil info my-dlm --check"],
    describe.export: ["unveil export stdlib-dlm plain-llama --parent --dtype bfloat16"],
}.items():
    shown = "[dim]Examples[/dim]\n\n" + "\n\n".join(f"  {line}".replace("[[", "\\[[") for line in examples)
    app.command(command.__name__.rstrip("_"), epilog=shown, no_args_is_help=False)(command)
app.add_typer(calibrate.app, name="calibrate")
app.command(
    "harness",
    epilog="[dim]Examples[/dim]\n\n  unveil harness --model_args pretrained=my-dlm --tasks hellaswag --limit 100",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(harness.harness)


def version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        from .. import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(False, "--version", callback=version, is_eager=True, help="Print the version."),
) -> None:
    """Options before the command."""


def main() -> None:
    """Run one command. A user's mistake is one sentence on stderr and exit code 2; a bug is a traceback."""
    try:
        app()
    except (ValueError, OSError, FloatingPointError) as error:
        if not mistake(error):
            raise
        if os.environ.get("RANK", "0") == "0":  # what one process refuses, all refuse: the first says it
            print(f"unveil: {' '.join(str(sentence(error)).split())}", file=sys.stderr)
        sys.exit(2)


def mistake(error: Exception) -> bool:
    """Did the library refuse something, or the system fail it, rather than code go wrong underneath?

    The library says what it refuses in its own words: such an error was raised in its own files.
    """
    if not isinstance(error, ValueError):
        return True
    return traceback.extract_tb(error.__traceback__)[-1].filename.startswith(ROOT)


def sentence(error: Exception) -> str:
    """What went wrong, without the number that systems put before it."""
    if isinstance(error, OSError) and error.strerror and not isinstance(error, ConnectionError):
        return f"{error.strerror[0].lower()}{error.strerror[1:]}" + (f": {error.filename}" if error.filename else "")
    return str(error)
