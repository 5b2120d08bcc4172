"""The sampling loop. Prompting, infilling, editing, streaming and watching all go through it."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from . import spec
from .attention import FULL, Attention
from .caches import Cache
from .caches.recompute import Recompute
from .canvas import Canvas
from .context import Ask, Asking
from .decoders import Decoder
from .denoiser import Denoiser
from .guides import Guide
from .nn.following import Following
from .nn.grow import bare
from .prediction import Prediction

Passes = Generator[Ask | None, Tensor | None, None]


def passes(
    canvas: Canvas, decoder: Decoder, cache: Cache, guide: Guide | None, block: int | None, steps: int | None
) -> Passes:
    """The loop as a coroutine: it yields each pass to be computed, is sent logits (N, V), writes, and yields None.

    Whoever drives it decides whether a pass is computed alone (`denoise`) or together with others (`together`).
    """
    beyond = cache.ahead and canvas.look.kind == "full"
    ahead = decoder.ahead or (decoder.reaches and beyond)
    if decoder.ahead and not beyond:
        raise ValueError(
            f"{name(decoder)} reads predictions beyond the block, and {name(cache)} on a model with "
            f"{canvas.look.kind} attention makes none"
        )
    if decoder.afresh and not isinstance(cache, Recompute):
        raise ValueError(f"{name(decoder)} looks at everything afresh in every pass, so {name(cache)} cannot serve it")
    if decoder.settles and cache.partly:
        raise ValueError(
            f"{name(decoder)} commits predictions that stand still, and {name(cache)} does not make each of them anew: "
            "use recompute, prefix or delayed"
        )
    if steps is not None and steps < 1:
        raise ValueError(f"steps is {steps}; expected at least one prediction per block")
    blocks = list(canvas.blocks(block))
    cache.begin(canvas)
    guides = guide.chain() if guide else []
    for each in guides:
        each.begin(canvas)
    decoder.begin(canvas)
    ask = guide.around(decoder.ask) if guide else decoder.ask
    for here in blocks:
        canvas.enter(here, steps)
        cache.enter(canvas)
        decoder.enter(canvas)
        while not decoder.done(canvas) and canvas.step < canvas.budget:
            context = cache.plan(canvas)
            assert context.window is not None
            canvas.window = context.window
            read = decoder.reads(canvas, ahead)
            if context.read is not None:  # what the cache vouches for
                read = read[torch.isin(read, context.read)]
            logits = yield from counted(ask(canvas, replace(context, read=read)), canvas)
            seen = canvas.latest = Prediction(logits, read, canvas)
            canvas.taken += canvas.open.any(1)
            canvas.write(decoder.write(canvas, seen))
            canvas.step += 1
            if canvas.step == canvas.budget:  # out of steps: settle for the latest guess
                canvas.write(torch.where(canvas.open & seen.seen, seen.best, canvas.seen))
            for each in guides:
                each.settle(canvas)
            yield None
            canvas.latest = None
            del logits, seen  # before the next pass makes as many


def counted(asking: Asking, canvas: Canvas) -> Generator[Ask, Tensor | None, Tensor]:
    """The passes of one step, each counted: those of a second look cost what any pass costs."""
    try:
        asked = next(asking)
        while True:
            canvas.forwards += 1
            logits = yield asked
            assert logits is not None
            asked = asking.send(logits)
    except StopIteration as stop:
        return stop.value


def name(choice: Decoder | Cache) -> str:
    return f"the {type(choice).__name__.lower()} {'decoder' if isinstance(choice, Decoder) else 'cache'}"


def prepare(
    model: Denoiser,
    canvas: Canvas,
    decoder: Decoder | str = "confidence",
    *,
    cache: Cache | str = "recompute",
    block: int | None = None,
    steps: int | None = None,
    guide: Guide | str | None = None,
) -> Passes:
    """The coroutine for one canvas, with choices built from their spec strings and the attention settled.

    block   positions per block, left to right from each row's first blank; None: one block
    steps   predictions allowed per block; None: one token a step for decoders with a quota, as many as others need
    guide   what changes predictions before the decoder reads them; around the guide that a decoder brings along
    """
    canvas.attention = canvas.attention or model.attention
    if canvas.look.kind == "causal":
        continues = bool(((~canvas.given).sum(1).cpu() == canvas.lengths - canvas.first).all())
        if not continues or not model.shifted:
            raise ValueError(
                "an autoregressive model continues texts and fills no blanks: adapt it first (unveil adapt), or "
                "continue texts by sample.generate or sample.writer"
            )
    canvas.end = model.eos_id if canvas.end is None else canvas.end
    canvas.shifted = model.shifted
    longest = int(canvas.lengths.max())
    if model.context_length is not None and longest > model.context_length:
        raise ValueError(
            f"prompt and answer take {longest} positions together; the model's context holds {model.context_length}"
        )
    rule: Decoder = spec.build("decoders", decoder) if isinstance(decoder, str) else decoder
    kept: Cache = spec.build("caches", cache) if isinstance(cache, str) else cache
    led: Guide | None = spec.build("guides", guide) if isinstance(guide, str) else guide
    rule.meet(model)
    if rule.guide:
        own: Guide = spec.build("guides", rule.guide)
        led = led.beyond(own) if led else own
    return passes(canvas, rule, kept, led, block, steps)


def writer(model: Denoiser) -> Denoiser:
    """The model as the loop reads it: an autoregressive parent as one that writes token by token, others as they are.

    The parent's weights are shared and not changed.
    """
    if model.attention.kind != "causal" or isinstance(model, Following):
        return model
    return Following(bare(model)).train(model.training)


def denoise(
    model: Denoiser,
    canvas: Canvas,
    decoder: Decoder | str = "confidence",
    *,
    cache: Cache | str = "recompute",
    block: int | None = None,
    steps: int | None = None,
    guide: Guide | str | None = None,
) -> Iterator[Canvas]:
    """Finish the canvas block by block with one model call per step, yielding it after every step.

    A terminal, a web page, a benchmark and a test all read this one stream.
    """
    run = prepare(model, canvas, decoder, cache=cache, block=block, steps=steps, guide=guide)
    for asked in run:
        while asked is not None:
            with torch.inference_mode():
                asked = run.send(model(asked.tokens, asked.context))
        yield canvas


def generate(
    model: Denoiser,
    prompts: Tensor | Sequence[Tensor],
    length: int,
    decoder: Decoder | str = "confidence",
    *,
    cache: Cache | str = "recompute",
    block: int | None = None,
    steps: int | None = None,
    seed: int | Sequence[int] | None = None,
    guide: Guide | str | None = None,
) -> Tensor:
    """Prompts, (B, P) or a list of 1-D tensors, to (B, P + length) tokens: each row its prompt and its answer.

    An autoregressive parent writes in blocks of one: give it the causal cache, which makes that fast.
    Rows of unequal length are followed by zeros. `seed` keys every random choice: row b uses seed + b, or the b-th of
    a list, so that any row of a batch can be written again alone; None: a seed from torch's generator.
    """
    model, rows = writer(model), [row.long() for row in prompts]
    empty = any(len(row) == 0 for row in rows)
    lead = empty and (model.shifted or model.attention.leads)
    if lead:  # the first token of a next-token predictor needs something to follow
        if model.bos_id is None:
            raise ValueError("a prompt is empty and the model has no beginning-of-text token to put in its place")
        rows = [torch.cat([row.new_tensor([model.bos_id]), row]) for row in rows]
    canvas = Canvas.answering(rows, length, model.mask_id, row_seeds(seed, len(rows)))
    deque(denoise(model, canvas, decoder, cache=cache, block=block, steps=steps, guide=guide), maxlen=0)
    return canvas.tokens[:, int(lead) : int(canvas.lengths.max())]


def fill(
    model: Denoiser,
    rows: Tensor | Sequence[Tensor],
    decoder: Decoder | str = "confidence",
    *,
    cache: Cache | str = "recompute",
    block: int | None = None,
    steps: int | None = None,
    seed: int | Sequence[int] | None = None,
    attention: Attention | None = None,
    guide: Guide | str | None = None,
) -> list[Tensor]:
    """Sequences whose blanks hold the mask id, (B, L) or a list of 1-D tensors, to the same without blanks.

    Leader models look both ways here, as they do in the share of full batches they were trained on; `attention`
    chooses otherwise. Block models see what stands before and inside a block and nothing after it.
    """
    rows = [row.long() for row in rows]
    attention = attention or (FULL if model.attention.kind == "leader" else model.attention)
    canvas = Canvas.filling(rows, model.mask_id, row_seeds(seed, len(rows)), attention)
    deque(denoise(model, canvas, decoder, cache=cache, block=block, steps=steps, guide=guide), maxlen=0)
    return canvas.rows()


def row_seeds(seed: int | Sequence[int] | None, rows: int) -> Tensor | None:
    """(B,) one seed a row."""
    if seed is None or isinstance(seed, int):
        return None if seed is None else torch.arange(rows) + seed
    if len(seed) != rows:
        raise ValueError(f"{len(seed)} seeds for {rows} rows; expected one number, or one seed a row")
    return torch.tensor(list(seed))
