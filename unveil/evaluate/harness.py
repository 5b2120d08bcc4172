"""A model as lm-evaluation-harness asks models: log-likelihoods, rolling log-likelihoods and text up to a stop.

The only file that imports lm_eval, which knows its models by a list in its own package: importing this file adds
`unveil` to it. Written against lm_eval 0.4.13.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lm_eval import utils
from lm_eval._cli import HarnessCLI
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import model_registry
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from tqdm import tqdm

from .. import hub, spec
from ..canvas import Canvas
from ..decoders import Decoder
from ..sample import fill, prepare, writer
from ..together import together
from .conditional import Conditional, Pair, Protocol, conditional, fit, room
from .likelihood import Mode
from .shares import collected, joint, met, numbers, own, parted

ROOM = 2048  # positions of a model that names no limit, as for the harness's own models
AUTO = 16  # texts decoded side by side where the batch size is left to us
GENERATION = ("until", "max_gen_toks", "do_sample", "temperature", "top_p")


class Unveil(TemplateLM):
    """Any checkpoint that `hub.load` reads. Options are those of `--model_args`, and of the harness itself.

    pretrained      a folder, a hub id or an embedded model; adapter: of LoRA, to be merged into it
    mode            exact, bound or auto, as in `conditional`; protocol, draws and seed likewise
    bound_block     positions per block of the bound; None: what the model was trained with
    greedy          say of a continuation under the bound whether decoding writes it, which takes a decoding for each;
                    without it the answer is no. Exact likelihoods always know
    decoder, cache, guide, block, steps    how text is written; None: as the model was trained. An autoregressive parent
                    writes token by token whatever they say
    add_bos_token   put the beginning-of-text token before every context; None: yes for diffusion models, which were
                    trained so; of others what their tokenizer does, as the harness's `hf` model
    max_length      positions of context; None: the model's own
    batch_size      texts decoded side by side; likelihoods are batched by what fits into a pass. It changes no number

    ValueError for what the library does not take, and for an option that there is none of.
    """

    def __init__(
        self,
        pretrained: str = "stdlib-dlm",
        *,
        adapter: str | None = None,
        dtype: str | None = None,
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        mode: Mode = "auto",
        protocol: Protocol = "exact-count",
        draws: int = 32,
        seed: int = 0,
        bound_block: int | None = None,
        greedy: bool = False,
        decoder: str = "threshold",
        cache: str | None = None,
        guide: str | None = None,
        block: int | None = None,
        steps: int | None = None,
        add_bos_token: bool | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        **unknown: Any,
    ):
        super().__init__()
        if unknown:
            valid = [name for name in vars(type(self))["__init__"].__kwdefaults__ if name != "max_batch_size"]
            raise ValueError(f"no model argument called {next(iter(unknown))!r}; there are: {', '.join(valid)}")
        self._rank, self._world_size = met()
        # The harness asks for cuda:0 where its user named no device.
        found = not str(device or "cpu").startswith("cuda") or torch.cuda.is_available()
        self.name, self.model_device = str(pretrained), own(device) if device and found else "cpu"
        self.model, self.text = hub.load(pretrained, adapter=adapter, dtype=dtype, device=self.model_device)
        if self.text.start_id is None and self.text.eos_id is None:
            raise ValueError(f"the tokenizer of {pretrained} has no token that begins or ends a text")
        self.causal = self.model.attention.kind == "causal"
        self.way = {"mode": mode, "protocol": protocol, "draws": draws, "seed": seed, "block": bound_block}
        self.seed, self.greedy = seed, greedy
        self.decoder: Decoder = spec.build("decoders", "confidence" if self.causal else decoder)
        self.decoding = self.chosen(cache, guide, block, steps)
        self.begins = (None if self.causal else True) if add_bos_token is None else bool(add_bos_token)
        self.room, self.longest = max_length, int(max_gen_toks)
        self.batch_size = AUTO if batch_size is None or str(batch_size).startswith("auto") else int(batch_size)
        if self.batch_size < 1 or self.longest < 1 or (max_length is not None and max_length < 2):
            raise ValueError(
                "expected batch_size and max_gen_toks of at least 1 and max_length of at least 2, got "
                f"{batch_size}, {max_gen_toks} and {max_length}"
            )
        self.scored: Conditional | None = None  # the latest likelihoods, for what they were

    def chosen(self, cache: str | None, guide: str | None, block: int | None, steps: int | None) -> dict[str, Any]:
        """How text is written, as `sample.prepare` takes it."""
        look = self.model.attention
        if self.causal:
            return {"cache": "causal", "guide": "eos(policy='stop')", "block": 1, "steps": None}
        block = look.block if block is None else block
        return {"cache": cache or look.cache, "guide": guide, "block": block, "steps": steps}

    # What the harness wants to know

    @property
    def eot_token_id(self) -> int:
        return self.prefix_token_id if self.text.eos_id is None else self.text.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context."""
        assert self.text.start_id is not None
        return self.text.start_id

    @property
    def max_length(self) -> int:
        """Positions of context and answer."""
        return self.room or self.model.context_length or ROOM

    @property
    def reach(self) -> int:
        """Tokens that a context and what is scored after it may have together."""
        exact = self.way["mode"] == "exact" or (self.way["mode"] == "auto" and self.causal)
        found = room(self.model, self.max_length, exact)
        assert found is not None
        return found

    @property
    def max_gen_toks(self) -> int:
        return self.longest

    @property
    def device(self) -> torch.device:
        return torch.device(self.model_device)

    @property
    def tokenizer_name(self) -> str:
        return self.name.replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What a reader of the results needs to know of this model, of its likelihoods above all."""
        look, found = self.model.attention, self.scored
        kind = None if found is None else "exact" if found.exact else "bound" if found.bound else "neither"
        return {
            "model_num_parameters": sum(each.numel() for each in self.model.parameters()),
            "attention": look.kind,
            "likelihood": kind,
            "layout": found and found.layout,
            "model_device": self.model_device,
            "draws": found.draws.shape[1] if found and not found.exact else None,
            "decoder": str(self.decoder),
            "decoding": {name: value for name, value in self.decoding.items() if value is not None},
        }

    # Several processes, each with a share of the problems

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return joint(tensor, self.world_size)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        return collected(obj, self.rank, self.world_size, dst)

    def barrier(self) -> None:
        joint(torch.zeros(1), self.world_size)  # who hears of all has waited for all

    # Text to tokens and back

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Tokens of a text, special ones where they are spelled; what stands in front, `add_bos_token` decides."""
        tokenizer, start = self.text.tokenizer, self.text.start_id
        begins = self.begins if add_special_tokens is None else add_special_tokens
        spelled = tokenizer.encode(string, add_special_tokens=False).ids
        if begins is False or spelled[:1] == [start]:
            return spelled
        if begins is None or add_special_tokens:
            return tokenizer.encode(string, add_special_tokens=True).ids
        return spelled if start is None else [start, *spelled]

    def tok_decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self.text.decode(tokens, keep_special=not skip_special_tokens)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.text.template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as one text. Without a generation prompt its last message stays open, to be gone on with."""
        said = self.text.chat_text(chat_history, add_generation_prompt=add_generation_prompt)
        if add_generation_prompt:
            return said
        last = chat_history[-1]["content"].strip()
        return said[: said.rindex(last) + len(last)]

    # Likelihoods

    def pair(self, request: Instance, context: str, continuation: str) -> Pair:
        """As tokens, parted as the harness parts them."""
        if context:
            before, behind = self._encode_pair(context, continuation)
        else:
            before, behind = [self.prefix_token_id], self.tok_encode(continuation, add_special_tokens=False)
            if behind[:1] == before:
                before, behind = behind[:1], behind[1:]
        return Pair(before or [self.prefix_token_id], behind, request.doc_id or 0, request.idx)

    def scores(self, pairs: Sequence[Pair], quiet: bool) -> Conditional:
        """All pairs, with a bar while they are read."""
        with tqdm(total=len(pairs), desc="unveil: likelihoods", disable=quiet or self.rank > 0) as bar:

            def report(done: int, _: int) -> None:
                bar.update(done - bar.n)

            fitted = [fit(pair, self.reach) for pair in pairs]
            self.scored = conditional(self.model, fitted, **self.way, report=report)
        return self.scored

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """log p(continuation | context), or a bound from below, and whether greedy decoding writes the continuation.

        The options of one problem are hidden alike, so that their differences are surer than each of them.
        """
        pairs = [self.pair(request, *request.args) for request in requests]
        return self._answered([request.args for request in requests], pairs, disable_tqdm)

    def _loglikelihood_tokens(self, requests: list, disable_tqdm: bool = False, **kwargs: Any) -> list:
        pairs = [Pair(before, behind) for _, before, behind in requests]
        return self._answered([asked for asked, _, _ in requests], pairs, disable_tqdm)

    def _answered(self, asked: Sequence[Any], pairs: list[Pair], quiet: bool) -> list[tuple[float, bool]]:
        if not pairs:
            return []
        found = self.scores(pairs, quiet)
        if found.greedy is not None:
            sure = found.greedy.tolist()
        else:
            sure = [self.greedy and self.writes(pair, quiet) for pair in pairs]
        answers = [(-nats, said) for nats, said in zip(found.nats.tolist(), sure, strict=True)]
        for args, answer in zip(asked, answers, strict=True):
            if args is not None:
                self.cache_hook.add_partial("loglikelihood", args, answer)
        return answers

    def writes(self, pair: Pair, quiet: bool) -> bool:
        """Does the decoder write just this continuation, given as many blanks?"""
        blanks = [self.model.mask_id] * len(pair.continuation)
        row = torch.tensor([*pair.context, *blanks], device=self.device)
        look = self.model.attention
        found = fill(self.model, [row], self.decoder, **self.decoding, seed=self.seed, attention=look)[0]
        return found[len(pair.context) :].tolist() == list(pair.continuation)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """log p of whole texts, in windows of the model's context, as the harness cuts them.

        What stands in front of a text because we put it there is not scored; what its tokenizer puts there is, as the
        harness does it.
        """
        pairs, counts = [], []
        for number, request in zip(numbered(requests), requests, strict=True):
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0], add_special_tokens=False if self.begins else None),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.reach - 1,
                context_len=1,
            )
            parted = map(utils.make_disjoint_window, windows)
            cut = [Pair(*window, key=number * 4096 + count) for count, window in enumerate(parted)]
            pairs += cut
            counts.append(len(cut))
        parts = iter((-self.scores(pairs, disable_tqdm).nats).tolist() if pairs else [])
        totals = [math.fsum(next(parts) for _ in range(count)) for count in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    # Text up to a stop

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the decoder writes, up to the first stop. Problem i uses the seed + i, whatever it is batched with."""
        done: list[str] = []
        seeds = [self.seed + number for number in numbered(requests)]
        with tqdm(total=len(requests), desc="unveil: texts", disable=disable_tqdm or self.rank > 0) as bar:
            for first in range(0, len(requests), self.batch_size):
                some = requests[first : first + self.batch_size]
                texts = self.written(some, seeds[first : first + len(some)])
                for request, text in zip(some, texts, strict=True):
                    self.cache_hook.add_partial("generate_until", request.args, text)
                done += texts
                bar.update(len(some))
        return done

    def written(self, requests: Sequence[Instance], seeds: Sequence[int]) -> list[str]:
        """Some requests side by side, each on a canvas of its own."""
        writing = [Writing(self, *each.args, seed=seed) for each, seed in zip(requests, seeds, strict=True)]
        model = writer(self.model)
        model.bos_id, model.eos_id = self.text.start_id, self.text.eos_id
        jobs = [(each.canvas, prepare(model, each.canvas, each.decoder, **self.decoding)) for each in writing]
        for running in together(model, jobs):
            for number in running:
                writing[number].stop()
        return [each.said() for each in writing]


model_registry.register("unveil", target=Unveil)


def numbered(requests: Sequence[Instance]) -> list[int]:
    """What keys the noise of each request."""
    return numbers([(each.task_name, each.doc_id, each.repeats) for each in requests])


class Writing:
    """One request for text while it is being answered."""

    def __init__(self, lm: Unveil, context: str, options: dict[str, Any], seed: int):
        wanted: dict[str, Any] = {**normalize_gen_kwargs(options, lm.max_gen_toks)}
        if unknown := [name for name in wanted if name not in GENERATION]:
            raise ValueError(f"no generation option called {unknown[0]!r}; there are: {', '.join(GENERATION)}")
        self.lm, length = lm, wanted["max_gen_toks"]
        room = lm.max_length - length
        if room < 1:
            raise ValueError(
                f"max_gen_toks is {length}, and the model's context holds {lm.max_length}: nothing is left for a prompt"
            )
        end = lm.tok_decode([lm.eot_token_id], skip_special_tokens=False)
        self.until = handle_stop_sequences(list(wanted["until"]), eos=end)
        heat = float(wanted["temperature"]) if "temperature" in wanted and wanted["do_sample"] else 0.0
        share = {"top_p": float(wanted["top_p"])} if heat and "top_p" in wanted else {}
        self.decoder = replace(lm.decoder, temperature=heat, **share)
        row = torch.tensor((lm.tok_encode(context) or [lm.prefix_token_id])[-room:], device=lm.device)
        mask = writer(lm.model).mask_id
        self.canvas, self.first, self.seen = Canvas.answering([row], length, mask, torch.tensor([seed])), len(row), 0

    def ids(self) -> list[int]:
        """What is written up to the first blank, and to the end of the text."""
        found = self.canvas.rows()[0][self.first :].tolist()
        ends = [found.index(each) for each in (self.canvas.mask_id, self.lm.eot_token_id) if each in found]
        return found[: min(ends, default=len(found))]

    def stop(self) -> None:
        """Write no further block when a finished one has a stop in it."""
        if self.canvas.number > self.seen:
            self.seen = self.canvas.number
            ready = int(self.canvas.starts[0]) - self.first  # the block that is open may still change
            said = self.lm.tok_decode(self.ids()[: max(ready, 0)])
            if any(each in said for each in self.until if each):
                self.canvas.close(torch.tensor([0]))

    def said(self) -> str:
        return postprocess_generated_text(self.lm.tok_decode(self.ids()), self.until, None)


def main(arguments: Sequence[str] | None = None) -> None:
    """The harness's own command line, with `unveil` among its models and chosen unless another is."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    commands = ("run", "ls", "validate")
    front = given[:1] if given[:1] and given[0] in commands else ["run"]
    rest = given[len(front) :] if given[:1] == front else given
    if front == ["run"] and not any(each.split("=")[0] in ("--model", "-M", "--config", "-C") for each in rest):
        rest = ["--model", "unveil", *rest]
    sys.argv = ["lm_eval", *front, *rest]  # where its parser looks
    command = HarnessCLI()
    try:
        command.execute(command.parse_args())
    finally:
        parted()


if __name__ == "__main__":
    main()
