"""From a recipe to everything that a training run needs: network, tokenizer, objective and corpus."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from . import hub, spec
from .attention import Attention
from .codecs.text import Text
from .codecs.train import train_tokenizer
from .data import Conversations, Corpus, Packed, converse, prepare, read, rows
from .denoiser import Denoiser
from .families import llama
from .nn.grow import add_mask, bare
from .nn.shift import Shifted
from .nn.transformer import Shape, Transformer
from .objectives import Objective
from .objectives.adapt import Adapt
from .objectives.autoregressive import Autoregressive
from .objectives.block import Block
from .objectives.leader import Leader
from .train.recipe import Recipe

BLANK_SHAPES = ("llama", "mistral", "qwen3")  # families of which a recipe's few numbers describe a network


@dataclass
class Start:
    """What `train.train` is given."""

    model: Denoiser
    text: Text
    objective: Objective
    corpus: Corpus[Packed] | Corpus[Conversations]


def start(recipe: Recipe, *, report: Callable[[int, int], None] | None = None) -> Start:
    """Make what the recipe names.

    ValueError for whatever the recipe names and is not there, or does not go together.
    """
    objective = spec.build("objectives", recipe.objective)
    sources = recipe.data.split(",")
    if recipe.parent:
        model, text = hub.load(recipe.parent)
        network = bare(model)
        next_token = model.shifted or model.attention.kind == "causal"
    else:
        text = train_tokenizer(spoken(sources) if recipe.chat else written(sources, recipe.field), recipe.vocab)
        network = bare(hub.fresh(config(recipe, text), seed=recipe.seed))
        network.bos_id = text.start_id
        next_token = False  # it has learnt nothing yet, so masked diffusion may read token i at i
    limit = network.s.context
    if recipe.length > limit:
        raise ValueError(f"rows of {recipe.length} positions are longer than the model's context of {limit}")
    if recipe.chat:
        corpus = converse(sources, text, held_out=recipe.held_out)
    else:
        corpus = prepare(sources, text, held_out=recipe.held_out, field=recipe.field, close=recipe.close, report=report)
    model = dressed(network, text, objective, next_token, recipe.shift)
    if isinstance(objective, Leader) and (objective.kl or objective.align):
        if not recipe.parent:
            raise ValueError("leader's kl and align compare with a parent, and the recipe names none")
        objective.parent = hub.load_model(recipe.parent).requires_grad_(False)
    return Start(model, text, objective, corpus)


def written(sources: list[str], field: str) -> Iterator[str]:
    """The texts of documents."""
    return (document.text for document in read(sources, field=field))


def spoken(sources: list[str]) -> Iterator[str]:
    """The prompts and responses of rows; messages are left out, since no new tokenizer has a template for them."""
    for _, row in rows(sources):
        yield from (row[name] for name in ("prompt", "response") if isinstance(row.get(name), str))


def dressed(network: Transformer, text: Text, objective: Objective, next_token: bool, shift: str) -> Denoiser:
    """The network as its objective needs it: with a mask token, the attention it will have, and a shift."""
    if isinstance(objective, Autoregressive):
        network.attention = Attention("causal")
        return network
    if network.mask_id < 0:
        used = text.vocab
        mask = text.add_mask()
        if mask < used:
            network.mask_id = mask  # the tokenizer had one all along
            network.s = replace(network.s, mask_id=mask)
        else:
            add_mask(network, used=used)
    match objective:
        case Leader(n=n):
            network.attention, usual = Attention("leader", n + 1), True
        case Block(size=size):
            network.attention, usual = Attention("block", size), False
        case Adapt():
            network.attention, usual = Attention("full"), True
        case _:
            network.attention, usual = Attention("full"), next_token
    if isinstance(objective, Leader) and shift == "no":
        raise ValueError("the leader layout reads token i at i - 1, as its parent does: it needs the shift")
    return Shifted(network) if (usual if shift == "auto" else shift == "yes") else network


def config(recipe: Recipe, text: Text) -> dict:
    """The config.json of a network with random weights."""
    if recipe.family not in BLANK_SHAPES:
        raise ValueError(
            f"random weights of the family {recipe.family!r} cannot be described by a recipe; "
            f"there are: {', '.join(BLANK_SHAPES)}; or give a parent"
        )
    if recipe.width % recipe.heads:
        raise ValueError(f"a width of {recipe.width} is no multiple of {recipe.heads} heads")
    kv_heads = recipe.kv_heads or recipe.heads
    if recipe.heads % kv_heads:
        raise ValueError(f"{recipe.heads} heads are no multiple of {kv_heads} key-value heads")
    shape = Shape(
        vocab=text.vocab,
        width=recipe.width,
        layers=recipe.layers,
        heads=recipe.heads,
        kv_heads=kv_heads,
        hidden=recipe.hidden or -(-recipe.width * 8 // 3 // 64) * 64,
        head_size=recipe.width // recipe.heads,
        context=max(1024, recipe.length),
        eps=1e-5,
        tied=recipe.tied,
    )
    names = {"mistral": "MistralForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
    return {**llama.describe(shape), "model_type": recipe.family, "architectures": [names[recipe.family]]}
