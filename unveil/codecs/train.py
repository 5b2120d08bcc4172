"""Train a byte-level tokenizer on a corpus, for models that begin here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from .text import END, Text


def train_tokenizer(texts: Iterable[str], vocab: int, *, special: Sequence[str] = (END,)) -> Text:
    """Byte-level BPE with `vocab` tokens at most; the first of `special` begins and ends documents.

    The same texts give the same tokenizer. ValueError when `vocab` cannot hold every byte and the special tokens.
    Source: Sennrich et al. 2016, over bytes as in GPT-2.
    """
    least = 256 + len(special)
    if not special:
        raise ValueError("a tokenizer needs at least one special token, to begin and end documents")
    if vocab < least:
        raise ValueError(f"a vocabulary of {vocab} is too small: 256 bytes and the special tokens make {least}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return Text(tokenizer, special={"bos": special[0], "eos": special[0]})
