"""The ways to decode of the study of decoders, and what a model writes in each of them.

Shapes: N texts, P tokens of a prompt, L positions.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

import torch
from measure import put
from torch import Tensor

from unveil.context import Context
from unveil.denoiser import Denoiser
from unveil.evaluate.problems import Setting
from unveil.evaluate.samples import write
from unveil.evaluate.unfinished import files
from unveil.rules import causal
from unveil.sample import writer

BLOCKS = (2, 8, 32)
NEVER = "eos(policy='never')"
DECODERS = {
    "rr": "first_hitting",
    "lcr": "confidence(temperature=1.0)",
    "dlcr": "threshold(tau=0.9, temperature=1.0)",
    "er": "entropy(temperature=1.0)",
    "lcr, resampled": "confidence(temperature=1.0, resample=True)",
    "dlcr, resampled": "threshold(tau=0.9, temperature=1.0, resample=True)",
}
"""Their names in arXiv 2605.12522: random, low-confidence, dynamic low-confidence and entropy remasking."""
AR, FIRST = "AR", "block 1"


def name(block: int, decoder: str) -> str:
    return f"block {block}, {decoder}"


def variants(blocks: tuple[int, ...] = BLOCKS) -> dict[str, tuple[str, int]]:
    """Decoder and block length by name: 19 with three block lengths."""
    found = {FIRST: (DECODERS["lcr"], 1)}
    return found | {name(block, each): (spec, block) for block in blocks for each, spec in DECODERS.items()}


@dataclass(frozen=True)
class Job:
    """What decides the texts of one way to decode."""

    model: str
    decoder: str
    block: int
    prompts: str  # a digest of them
    length: int
    dtype: str
    seed: int

    def place(self, folder: Path) -> Path:
        """Where its texts lie: another job, or another model in this folder, never reads them."""
        key = json.dumps([asdict(self), files(Path(self.model)) if Path(self.model).is_dir() else ""])
        return folder / f"{blake2b(key.encode(), digest_size=8).hexdigest()}.json"


def digest(prompts: Tensor) -> str:
    return blake2b(prompts.numpy().tobytes(), digest_size=8).hexdigest()


def decoded(job: Job, load: Callable[[], Denoiser], prompts: Tensor, folder: Path, rows: int) -> tuple[Tensor, dict]:
    """The continuations (N, length), and what they took; written once and kept."""
    path = job.place(folder)
    if not path.exists():
        model = writer(load())
        cache, guide = model.attention.cache, NEVER if model.eos_id is not None else None
        began, spent = time.perf_counter(), time.process_time()
        setting = Setting(job.decoder, cache, guide, job.block)
        found, forwards = write(model, prompts, job.length, setting, seed=job.seed, rows=rows)
        took = {"seconds": time.perf_counter() - began, "processor_seconds": time.process_time() - spent}
        answer = found[:, prompts.shape[1] :].tolist()
        put(path, json.dumps({"rows": answer, "forwards": forwards, **took}) + "\n")
    kept = json.loads(path.read_text())
    return torch.tensor(kept.pop("rows")), kept


@torch.inference_mode()
def from_the_left(model: Denoiser, rows: Tensor, first: int) -> dict[str, float]:
    """Real text (N, L) read token by token from position `first`, all that follows hidden: as block 1 writes.

    Nats per token, and the mean entropy of what the model expected.
    """
    model = writer(model)
    rule = causal if model.attention.leads else None
    nats, spread = [], []
    for at in range(first, rows.shape[1]):
        seen = rows.clone()
        seen[:, at:] = model.mask_id
        read = torch.arange(len(rows)) * rows.shape[1] + at
        logits = model(seen, Context(rule=rule, read=read)).float()
        if model.mask_id < logits.shape[1]:
            logits[:, model.mask_id] = -torch.inf
        logp = logits.log_softmax(-1)
        nats.append(-logp.gather(1, rows[:, at : at + 1]).mean())
        spread.append(-(logp.exp() * logp.clamp_min(-1e4)).sum(-1).mean())
    return {"nats": float(torch.stack(nats).mean()), "entropy": float(torch.stack(spread).mean())}
