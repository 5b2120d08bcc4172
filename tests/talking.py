"""A tiny checkpoint with a tokenizer and a chat template, and a real server of it, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import torch

from unveil import hub
from unveil.attention import Attention
from unveil.codecs.train import train_tokenizer
from unveil.nn.shift import Shifted
from unveil.nn.transformer import Shape, Transformer

TOP = Path(__file__).parent.parent
CORPUS = ["hello world 😀 日本語 naïve café\n    return x", "def f(x):\n    return x + 1\n\nprint('a', \"b\", {1: 2})"]
TEMPLATE = (
    "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant:{% endif %}"
)


def checkpoint(folder: Path, kind: str = "leader", context: int = 512) -> Path:
    """Random weights, large enough for tokens to matter to each other."""
    text = train_tokenizer(CORPUS, 320, special=("<|endoftext|>", "<|turn|>"))
    mask = text.add_mask()
    text.template = TEMPLATE
    torch.manual_seed(5)
    shape = Shape(
        vocab=text.vocab, width=32, layers=2, heads=4, kv_heads=2, hidden=64, head_size=8, mask_id=mask, context=context
    )  # fmt: skip
    model = Transformer(shape).eval()
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() > 1:
                weights.mul_(6)
    model.attention = Attention(kind, None if kind == "full" else 8)
    model.bos_id = model.eos_id = text.eos_id
    return hub.save(Shifted(model) if kind == "leader" else model, folder, text)


class Served:
    """Where a server is, and what it says of itself."""

    def __init__(self, url: str, errors: Path):
        self.url, self.errors = url, errors

    def metric(self, name: str, **headers: str) -> float:
        lines = httpx.get(f"{self.url}/metrics", headers=headers, timeout=30).text.splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))

    def until(self, name: str, value: float, seconds: float = 30, **headers: str) -> None:
        """Wait for a number."""
        end = time.monotonic() + seconds
        while (found := self.metric(name, **headers)) != value:
            assert time.monotonic() < end, f"{name} stays {found}, expected {value}"
            time.sleep(0.02)


@contextmanager
def serving(folder: Path, *options: str, **environment: str) -> Iterator[Served]:
    """`unveil serve` with a checkpoint, until the block ends; it has to end well."""
    command = [sys.executable, "-m", "unveil", "serve", str(folder), "--port", "0", "--json", *options]
    errors = folder.with_name(f"{folder.name}.errors")
    with open(errors, "w") as told:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=told,
            cwd=TOP,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, errors.read_text()
        yield Served(json.loads(line)["url"], errors)
        assert process.poll() is None, errors.read_text()
        process.terminate()
        assert process.wait(30) == 0
        assert "Traceback" not in errors.read_text()
    finally:
        print(f"status {process.poll()}", errors.read_text())
        process.kill()
        process.wait()
        process.stdout.close()
