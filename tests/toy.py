"""A toy task, a tokenizer of letters and tiny checkpoints, for the tests of bench, calibration and traces."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from models import MASK, TINY
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from unveil import hub
from unveil.attention import Attention
from unveil.codecs.text import Text
from unveil.denoiser import Denoiser
from unveil.nn.shift import Shifted
from unveil.nn.transformer import Transformer
from unveil.tasks import Example, Task

LETTERS = "abcdefghijklmn"
END = 14


@dataclass
class Toy(Task):
    """Right is what has a letter of the first half in front. With `tail` something follows the answer."""

    tail: str = ""
    length: int = field(default=6, kw_only=True)

    def examples(self, count: int, split: str = "test", seed: int = 0) -> list[Example]:
        numbers = np.random.default_rng([seed, split == "test"])
        sizes = numbers.integers(2, 5, count)
        prompts = ["".join(LETTERS[i] for i in numbers.integers(0, 14, size)) for size in sizes]
        return [Example(prompt, "abc", self.tail) for prompt in prompts]

    def score(self, example: Example, completion: str) -> float:
        return float(completion[:1] in set("abcdefg"))


def spaced() -> Text:
    """A tokenizer that writes spaces as SentencePiece does and drops the first."""
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", "<unk>", "▁", "a", "b", "▁a", "▁b"])}
    tokenizer = Tokenizer(models.BPE(vocab, [("▁", "a"), ("▁", "b")], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return Text(tokenizer, special={"bos": "<s>", "eos": "</s>"})


def letters() -> Text:
    """One token a letter, and tokens for the end and the mask."""
    known = {letter: i for i, letter in enumerate(LETTERS)} | {"<e>": END, "<m>": MASK}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return Text(tokenizer, special={"eos": "<e>", "mask": "<m>"})


def network(kind: str = "full", block: int | None = None, seed: int = 0) -> Denoiser:
    """Random weights in which tokens matter to each other; shifted where that is how such models are."""
    torch.manual_seed(seed)
    model = Transformer(replace(TINY, qk_norm=None, mask_id=-1 if kind == "causal" else MASK)).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(10)
    model.attention = Attention(kind, block)
    model.bos_id = model.eos_id = END
    wrapped = Shifted(model) if kind == "leader" else model
    return wrapped.eval()


def checkpoint(folder: Path, kind: str = "full", block: int | None = None) -> Path:
    """The same, saved with its tokenizer."""
    return hub.save(network(kind, block), folder, letters())
